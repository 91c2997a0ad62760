"""Margins by subset, and what they warn of."""

from __future__ import annotations

import json

import numpy as np
import pytest

import saeval
from rewards import EYE, POSITIVE, Directions, Pairs, Readout, W, pairs, plugins, run
from saeval import SaevalError, cli
from saeval.registry.discovery import Plugins
from saeval.testing import TinyModel, TinyPairs, TinySAE
from saeval.testing.claims import some
from saeval_reward.per_pair import PerPair


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """The command line finds this plugin, also where it was installed after the environment."""
    monkeypatch.setattr("saeval.cli.verbs.Plugins", lambda files=(): _with(files))


def _with(files):
    found = Plugins(files)
    ours = plugins()
    for name in ours.origins:
        if name not in found.origins:
            import saeval_reward

            found.add(saeval_reward, "reward")
    return found


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def recorded(tmp_path, flip=(), count=400):
    """Recorded rewards: a margin of about 1 in every subset, turned round in those of `flip`."""
    random = np.random.default_rng(0)
    records = []
    for row in range(count):
        subset = "abc"[row % 3]
        sign = -1 if subset in flip else 1
        records.append({"c": float(sign * (1 + random.normal())), "r": 0.0, "subset": subset, "who": f"d{row // 4}"})
    return write(tmp_path / "r.jsonl", records), records


def margins(path, **options):
    data = {
        "use": "preferences",
        "path": path,
        "chosen_reward": "c",
        "rejected_reward": "r",
        "by": ["subset"],
        **options,
    }
    return saeval.evaluate(saes=[], data=data, metrics=["reward_margin"], plugins=plugins(), batch_size=256)


def lines(record):
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def test_margins_of_recorded_rewards_without_a_model(tmp_path):
    path, records = recorded(tmp_path)
    results = margins(path, document="who")
    (result,) = results
    assert result.status == "ok", result.traceback
    assert results.forward_passes == 0
    truth = np.array([r["c"] - r["r"] for r in records])
    assert result.values["margin"]["value"] == pytest.approx(truth.mean())
    assert result.values["margin_sd"]["value"] == pytest.approx(truth.std(ddof=1))
    assert result.values["accuracy"]["value"] == pytest.approx((truth > 0).mean())
    assert result.values["length_accuracy"]["reason"] == "no text was read, so lengths are unknown"
    for line in some(lines(result.values["by"])):
        inside = np.array([r["subset"] == line["level"] for r in records])
        assert line["pairs"] == inside.sum()
        assert line["margin"] == pytest.approx(truth[inside].mean())
        assert line["documents"] == 100
        assert line["margin_low"] < line["margin"] < line["margin_high"]
        assert line["unreliable"] == ""
    assert result.values["warnings"]["notes"] == []


def test_a_flipped_subset_shows_plainly_and_warns_on_every_board(tmp_path):
    path, _ = recorded(tmp_path, flip=("b",))
    results = margins(path)
    by = {line["level"]: line for line in lines(results[0].values["by"])}
    assert by["b"]["margin"] < -0.5 < 0.5 < by["a"]["margin"]
    assert by["b"]["accuracy"] < 0.3
    assert 0 <= by["b"]["accuracy_low"] < by["b"]["accuracy"] < by["b"]["accuracy_high"] <= 1
    (note,) = results[0].values["warnings"]["notes"]
    assert note.startswith("subsets of 'subset' disagree in sign, so the pooled margin ")
    assert "negative in b (" in note
    assert f"- {note}" in results.leaderboard()
    assert note in results.boards()[0].notes


def test_subsets_disagree_in_sign_only_if_their_margins_differ_from_0_beyond_several_tests(tmp_path):
    """One document has no error; and of fifty subsets without a preference some seem to have one."""
    rows = [{"c": 1.0 + i % 3, "r": 0.0, "subset": "many", "who": f"d{i}"} for i in range(20)]
    rows += [{"c": -2.0, "r": 0.0, "subset": "one", "who": "last"} for _ in range(5)]
    notes = margins(write(tmp_path / "one.jsonl", rows), document="who")[0].values["warnings"]["notes"]
    assert not [note for note in notes if note.startswith("subsets")]
    draws = np.random.default_rng(0).normal(size=(50, 20))
    rows = [{"c": float(x), "r": 0.0, "subset": f"s{i}"} for i, level in enumerate(draws) for x in level]
    notes = margins(write(tmp_path / "noise.jsonl", rows))[0].values["warnings"]["notes"]
    assert not [note for note in notes if note.startswith("subsets")]
    each = [{"c": (-1.0) ** i + j / 100, "r": 0.0, "subset": f"s{i}"} for i in range(60) for j in range(3)]
    notes = margins(write(tmp_path / "each.jsonl", each))[0].values["warnings"]["notes"]
    (note,) = [n for n in notes if n.startswith("subsets")]
    assert "and 25 more; negative in" in note
    assert note.endswith("(5% level, Holm's correction over 60 levels)")


def test_no_preference_and_labels_exchanged_are_said(tmp_path):
    rows = [{"c": (-1.0) ** i, "r": 0.0, "subset": "a"} for i in range(100)]
    (note,) = margins(write(tmp_path / "none.jsonl", rows))[0].values["warnings"]["notes"]
    assert "cannot be distinguished from chance" in note
    turned = [{"c": -1.0 - i, "r": 0.0, "subset": "a"} for i in range(30)]
    (note,) = margins(write(tmp_path / "turned.jsonl", turned))[0].values["warnings"]["notes"]
    assert "are chosen and rejected exchanged?" in note


def test_a_reward_that_is_not_finite_leaves_margins_undefined():
    model = Readout(lambda x: x @ W / (x[..., 0] - x[..., 0]), embed=POSITIVE)
    with pytest.raises(SaevalError, match="gives NaN or infinite rewards for 5 of 5 rows of the first batch"):
        run(["reward_margin"], rows=pairs(5), model=model, saes=[])
    (result,) = run(["reward_margin"], rows=pairs(5), model=model, saes=[], preflight="warn")
    assert result.status == "undefined"
    assert result.reason == "NaN or infinite values in the reward of 10 of 10 texts"


def test_rows_that_were_trained_on_stand_apart(tmp_path):
    path, _ = recorded(tmp_path)
    results = margins(path, trained_on=[[0, 100]])
    by = {(line["column"], line["level"]): line["pairs"] for line in lines(results[0].values["by"])}
    assert by["trained_on", "yes"] == 100
    assert by["trained_on", "no"] == 300
    assert any("100 of 400 pairs were trained on" in note for note in results[0].notes)


def test_fifty_thousand_rows(tmp_path):
    """In seconds, with every row in its place."""
    import pandas as pd

    count = 50_000
    random = np.random.default_rng(1)
    frame = pd.DataFrame({"c": random.normal(0.2, 1, count), "r": random.normal(0, 1, count)})
    frame["subset"] = np.where(np.arange(count) % 4 == 0, "x", "y")
    frame.to_parquet(tmp_path / "big.parquet")
    (result,) = margins(str(tmp_path / "big.parquet"))
    truth = frame["c"] - frame["r"]
    assert result.values["margin"]["value"] == pytest.approx(truth.mean(), rel=1e-12)
    assert result.values["margin"]["stderr"] == pytest.approx(truth.std() / count**0.5, rel=1e-3)
    x = lines(result.values["by"])[1]
    assert (x["level"], x["pairs"]) == ("x", count // 4)
    assert x["margin"] == pytest.approx(truth[::4].mean(), rel=1e-12)


def test_a_metric_that_needs_the_model_is_refused_without_one(tmp_path):
    path, _ = recorded(tmp_path)
    data = {"use": "preferences", "path": path, "chosen_reward": "c", "rejected_reward": "r"}
    with pytest.raises(SaevalError, match="needs a model, and this suite has none"):
        saeval.evaluate(saes=[TinySAE()], data=data, metrics=["margin_recovered"], plugins=plugins())


def test_margins_of_a_model_and_what_length_would_do():
    rows = pairs(60)
    (result,) = run(["reward_margin"], rows=rows, model=Readout(lambda x: x @ W, embed=POSITIVE), saes=[])
    longer = np.array([len(c) - len(r) for c, r, _ in rows.pairs])
    expected = np.where(longer > 0, 1, np.where(longer == 0, 0.5, 0)).mean()
    assert result.values["length_accuracy"]["value"] == pytest.approx(expected)
    truth = [sum(float(POSITIVE[t] @ W) for t in c) - sum(float(POSITIVE[t] @ W) for t in r) for c, r, _ in rows.pairs]
    assert result.values["margin"]["value"] == pytest.approx(np.mean(truth))
    assert result.values["length_correlation"]["value"] == pytest.approx(np.corrcoef(truth, longer)[0, 1])
    top = lines(result.values["top_texts"])
    assert len(top) == 10
    assert [line["reward"] for line in top] == sorted((line["reward"] for line in top), reverse=True)
    best = max(float(POSITIVE[torch_index(side)].sum(0) @ W) for c, r, _ in rows.pairs for side in (c, r))
    assert top[0]["reward"] == pytest.approx(best)


def torch_index(tokens):
    import torch

    return torch.tensor(tokens)


def test_a_perfect_reconstruction_recovers_the_margin_and_none_at_all_does_not():
    rows = Pairs([([3, 4, 5, i % 9 + 2], [3, i % 7 + 2, 5], 1) for i in range(60)])
    reward = lambda x: x @ W.abs()  # noqa: E731
    results = run(
        ["margin_recovered"],
        rows=rows,
        model=Readout(reward, embed=POSITIVE),
        saes={"sae": Directions(EYE)},
        controls=["identity", "zero"],
    )
    found = {r.subject: r.values for r in results}
    for name in ("sae", "identity"):
        assert found[name]["recovered"]["value"] == pytest.approx(1, rel=1e-6)
        assert found[name]["change"]["value"] == pytest.approx(0, abs=1e-6)
        assert found[name]["same_sign"]["value"] == 1
    assert found["zero"]["recovered"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["zero"]["lost"]["value"] == pytest.approx(found["zero"]["margin_clean"]["value"])


def test_recovered_is_undefined_without_a_clear_margin():
    (result,) = run(["margin_recovered"], rows=TinyPairs(pairs=6), model=TinyModel(kind="reward"), saes=[TinySAE()])
    assert result.values["recovered"]["value"] is None
    assert "less than two standard errors above 0" in result.values["recovered"]["reason"]


def test_recovered_is_undefined_where_the_pairs_are_of_one_document():
    rows = Pairs([([3, 4, 5, i % 9 + 2], [3, i % 7 + 2, 5], 1) for i in range(60)], clusters=np.zeros(60, int))
    model = Readout(lambda x: x @ W.abs(), embed=POSITIVE)
    (result,) = run(["margin_recovered"], rows=rows, model=model, saes={"sae": Directions(EYE)})
    assert result.values["margin_clean"]["value"] > 0
    assert result.values["recovered"]["value"] is None
    assert result.values["recovered"]["reason"].startswith("one document gives no standard error")


def test_rows_join_in_any_order_and_are_restored_bit_for_bit():
    from saeval.stats.evidence import Stamp

    def part(ids):
        ids = np.array(ids)
        return PerPair.of(x=ids * 1.5, label=np.array([f"l{i}" for i in ids])).stamp(Stamp(ids, ids % 3, 3))

    one = part([0, 1]) + part([2]) + part([3, 4, 5]) + part([6])
    other = (part([6]) + part([3, 4, 5])) + (part([2]) + part([0, 1]))
    for rows in (other, PerPair.from_state(one.state())):
        assert np.array_equal(rows["x"], one["x"])
        assert rows["label"].tolist() == one["label"].tolist() == [f"l{i}" for i in range(7)]
        assert np.array_equal(rows.clusters, one.clusters)
    many = part([0])
    for i in range(1, 1000):
        many = many + part([i])
    assert len(many.parts) < 12
    assert len(many) == 1000


def test_a_suite_of_margins_alone_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    path, _ = recorded(tmp_path, flip=("c",))
    monkeypatch.chdir(tmp_path)
    data = f"{{use: preferences, path: {path}, chosen_reward: c, rejected_reward: r, by: [subset]}}"
    (tmp_path / "s.yaml").write_text(f"suite: s\ndata: {data}\nmetrics: [reward_margin]\n")
    assert cli.main(["run", "s.yaml"]) == 0
    told = capsys.readouterr().out
    assert "disagree in sign" in told
    assert cli.main(["report", "results/s"]) == 0
    page = (tmp_path / "results" / "s" / "report" / "reward.md").read_text()
    assert "- Warning: subsets of 'subset' disagree in sign" in page


def test_a_head_with_two_scores_is_refused(tmp_path):
    import transformers

    from saeval.testing.architectures import tiny_folder

    tiny_folder(tmp_path / "m", kind="reward")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", num_labels=2, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "m")
    write(tmp_path / "p.jsonl", [{"chosen": "a b", "rejected": "a c"}] * 3)
    with pytest.raises(SaevalError, match="has 2 labels; a reward model must have num_labels 1"):
        saeval.evaluate(
            model={"use": "huggingface", "path": str(tmp_path / "m")}, saes=[], metrics=["reward_margin"], plugins=plugins(),
            data={"use": "preferences", "path": str(tmp_path / "p.jsonl")},
        )  # fmt: skip
