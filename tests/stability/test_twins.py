"""Twins of groups: each SAE replaced by its untrained control, and the difference of the group to its twin."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from given_features import SMALL, Given, column, value
from saeval import SaevalError
from saeval.base.names import names_matching_any
from saeval.cli import main
from saeval.interfaces.documentation import documented_claims
from saeval.results.leaderboard import boards, from_results
from saeval.testing import TinyModel, check_chart, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval_controls.untrained import Random
from saeval_stability.functional import FunctionalStability
from saeval_stability.pages import sections, tables
from saeval_stability.plots import similarities
from saeval_stability.seeds import SeedStability

BOTH = ["seed_stability", "functional_stability"]
METRICS = {metric.name: metric for metric in (SeedStability, FunctionalStability)}
MATCHED = ["seed_stability.decoder_matched", "functional_stability.pearson_matched"]


def seeded(saes, seeds=None):
    """The SAEs by name, each with its training seed."""
    named = {f"sae-{i}": sae for i, sae in enumerate(saes)}
    for sae, seed in zip(named.values(), range(len(saes)) if seeds is None else seeds, strict=True):
        sae.seed = seed
    return named


def evaluated(saes, metrics=BOTH, **options):
    entries = [{name: {**SMALL, "over": "g", **options.pop(name, {})}} for name in metrics]
    return evaluate_tiny(entries, saes=saes, groups={"g": ["*"]}, key="these", **options)


def rows_of(results):
    (board,) = results.boards()
    return {row.name: row for row in board.rows}


def noisy_copies(base, scale, count):
    noise = [torch.randn(base.W_dec.shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return [Given(base.W_dec + scale * x, base.W_enc + scale * x.T, base.b_enc) for x in noise]


def test_a_group_is_compared_with_its_untrained_twin():
    saes = seeded(noisy_copies(Given.random(0), 0.02, 5))
    results = evaluated(saes)
    assert [r.cell["over"] for r in results] == ["g", "random(g)"] * 2
    assert results.value(MATCHED[0])["value"] == results[0].values["decoder_matched"]["value"]
    rows = rows_of(results)
    assert {name: row.kind for name, row in rows.items()} == {"g (5)": "group", "random(g) (5)": "control"}
    for index, name in enumerate(MATCHED):
        own, twin = results[2 * index], results[2 * index + 1]
        measure = name.partition(".")[2]
        entry = rows["g (5)"].entries[f"{name} vs random"]
        assert entry.value == pytest.approx(value(own, measure) - value(twin, measure))
        pairs = [column(r, "pairs", "matched", view=measure.removesuffix("_matched")) for r in (own, twin)]
        by_pair = dict(zip(itertools.combinations(range(5), 2), np.subtract(*pairs), strict=True))
        without = [np.mean([v for pair, v in by_pair.items() if i not in pair]) for i in range(5)]
        assert entry.stderr == pytest.approx(np.sqrt(4 / 5 * np.square(without - np.mean(without)).sum()))
        assert entry.p < 0.001
        assert rows["g (5)"].entries[name].p is None  # 0 is not what untrained SAEs have


def test_untrained_saes_do_not_differ_from_their_twin():
    data, model = tiny_tokens(), TinyModel()
    batch = data.batch(range(len(data)), "cpu")
    (x,) = model.capture(batch, ["blocks.1.hook_resid_pre"], False).activations.values()
    sample = SimpleNamespace(rows=x[batch.mask].numpy())
    parent = SimpleNamespace(device=torch.device("cpu"), d_sae=32, name="parent")
    untrained = [Random(seed=9).build(parent, 8.0, sample, sample, copy) for copy in range(5)]
    for sae in untrained:
        sae.hook_name, sae.W_enc = "blocks.1.hook_resid_pre", sae.weights["W_enc"]
    rows = rows_of(evaluated(seeded(untrained), rows=data, model=model))
    for name in MATCHED:
        assert rows["g (5)"].entries[f"{name} vs random"].p > 0.05


def test_members_of_a_twin_are_drawn_independently_and_alike_in_every_run():
    results = evaluated(seeded([Given.random(0), Given.random(1)]), ["seed_stability"])
    again = evaluated(seeded([Given.random(0), Given.random(1)]), ["seed_stability"])
    twin = results[1]
    assert value(twin, "decoder_matched") < 0.7  # equal draws would match at 1
    assert value(twin, "decoder_matched") == value(again[1], "decoder_matched")
    keys = {subject["key"] for subject in twin.cell["subjects"]}
    assert len(keys) == 2
    renamed = evaluate_tiny(
        [{"seed_stability": {**SMALL, "over": "g"}}], saes={"a": Given.random(0), "b": Given.random(1)},
        groups={"g": ["*"]}, key="these",
    )  # fmt: skip
    assert not keys & {subject["key"] for subject in renamed[1].cell["subjects"]}


def test_a_twin_leaves_the_key_of_its_group_and_can_be_left_out_or_be_of_another_control():
    saes = seeded([Given.random(0), Given.random(1)])
    default, none, other = (
        evaluated(saes, ["functional_stability"], functional_stability=controls)
        for controls in ({}, {"controls": []}, {"controls": ["shuffled_features"]})
    )
    assert [r.cell["over"] for r in none] == ["g"]
    assert [r.cell["over"] for r in other] == ["g", "shuffled_features(g)"]
    assert default[0].key == none[0].key == other[0].key
    for controls, sentence in (
        (["mean"], "controls: 'mean' is not built from an SAE; use one of "),
        (["randm"], "unknown control 'randm'; did you mean 'random'"),
        ("random", "'controls' of metric 'functional_stability' is a list of names, as in [random], or [] for none"),
    ):
        with pytest.raises(SaevalError) as caught:
            evaluated(saes, ["functional_stability"], functional_stability={"controls": controls})
        assert sentence in str(caught.value)


def test_against_names_the_control_of_a_twin():
    results = evaluated(seeded([Given.random(0), Given.random(1)]), ["functional_stability"])
    share = "functional_stability.pearson_share_above_0_5"
    (board,) = from_results(list(results), "one", {"against": {"random": [share, MATCHED[1]]}})
    assert [column.name for column in board.columns if column.paired] == [
        f"{name} vs random" for name in (MATCHED[1], share, "functional_stability.jaccard_matched")
    ]
    (row,) = (row for row in board.rows if row.kind == "group")
    assert row.entries[f"{share} vs random"].value == value(results[0], share[21:]) - value(results[1], share[21:])
    assert "an error needs 4 seeds, and there are 2" in row.entries[f"{MATCHED[1]} vs random"].reason


def test_pairs_of_one_seed_are_listed_apart_and_left_out_of_means_and_errors():
    base = [Given.random(seed, bias=0.0) for seed in range(4)]
    saes = [copy for sae in base for copy in noisy_copies(sae, 0.01, 2)]
    kinds = {"even": ["sae-0", "sae-2", "sae-4", "sae-6"], "odd": ["sae-1", "sae-3", "sae-5", "sae-7"]}
    options = {"seed_stability": {"kinds": kinds, "controls": []}}
    result = evaluated(seeded(saes, [0, 0, 1, 1, 2, 2, 3, 3]), ["seed_stability"], **options)[0]
    matched, seeds = (column(result, "pairs", name, view="decoder") for name in ("matched", "seeds"))
    assert (seeds.count("same"), seeds.count("different")) == (4, 24)
    different = [m for m, seed in zip(matched, seeds, strict=True) if seed == "different"]
    assert value(result, "decoder_matched") == pytest.approx(np.mean(different))
    assert min(m for m, seed in zip(matched, seeds, strict=True) if seed == "same") > max(different) + 0.2
    pairs = list(itertools.combinations(range(8), 2))
    without = [
        np.mean([m for m, (a, b) in zip(matched, pairs, strict=True) if a // 2 != b // 2 and i not in (a // 2, b // 2)])
        for i in range(4)
    ]
    record = result.values["decoder_matched"]
    assert record["stderr"] == pytest.approx(np.sqrt(3 / 4 * np.square(without - np.mean(without)).sum()))
    assert record["seeds"] == ["0", "1", "2", "3"]
    assert "means are over 24 pairs of different seeds, without 4 of one seed" in " ".join(result.notes)
    across = {"value": "decoder_matched", "kind_a": "even", "kind_b": "odd"}
    for relation in ("different", "same"):
        expected = [
            m for m, seed, (a, b) in zip(matched, seeds, pairs, strict=True) if seed == relation and (a + b) % 2
        ]
        assert column(result, "kinds", "pairs", **across, seeds=relation) == [len(expected)]
        assert column(result, "kinds", "mean", **across, seeds=relation) == [pytest.approx(np.mean(expected))]
    assert column(result, "kinds", "seeds", value="shared", kind_a="odd", kind_b="odd") == ["different"]
    means = next(table for table in tables(result, [result]) if table.name == "means")
    row = next(row for row in means.rows if row[0] == "decoder_matched")
    assert row[3] == pytest.approx(value(result, "decoder_matched_floor"))


@pytest.mark.parametrize(
    ("seeds", "reason"),
    [
        ([0, 1, 2, None], "that of 'sae-3' is unknown: write 'seed: NUMBER' in its entry of 'saes:'"),
        ([7, 7, 7, 7], "all SAEs were trained with the seed 7, so no pair is independent"),
        ([0, 0, 1, 2], "an error needs 4 seeds, and there are 3"),
    ],
)
def test_without_four_known_seeds_there_is_no_error_and_no_test(seeds, reason):
    results = evaluated(seeded(noisy_copies(Given.random(0), 0.02, 4), seeds), ["seed_stability"])
    record = results[0].values["decoder_matched"]
    assert record["value"] > 0.9
    assert (record["stderr"], record["ci95"]) == (None, None)
    assert reason in record["reason"]
    entry = rows_of(results)["g (4)"].entries[f"{MATCHED[0]} vs random"]
    assert entry.value > 0.2
    assert (entry.stderr, entry.p) == (None, None)
    assert reason in entry.reason
    (board,) = from_results(
        list(results), "t", {"columns": ["seed_stability.shared"]}
    )  # leads have verdicts all the same
    (note,) = [note for note in board.notes if f"({MATCHED[0]} vs random of g (4)" in note]
    assert note.startswith("not tested: ")
    assert reason in note


def test_check_says_beforehand_that_a_group_has_too_few_seeds(tmp_path, capsys):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        """suite: small
model: {use: testbed}
data: {texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n"], context: 8}
saes: ["testbed/relu-5-seed*", {use: random, of: testbed/topk-16, name: untrained, seeds: 4}]
groups: {two: ["testbed/*"], four: ["untrained/*"]}
metrics: [seed_stability: {over: two}, functional_stability: {over: four}]
"""
    )
    assert main(["check", str(suite), "--out", str(tmp_path)]) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    reason = "an error needs 4 seeds, and there are 2, so no value of the group will be tested"
    assert warning == f"warning: seed_stability over two: {reason}"


def test_a_declared_seed_overrides_the_checkpoint_and_changes_the_keys_of_groups_alone(tmp_path, capsys):
    from saeval.api import prepare
    from saeval.base.run_options import RunOptions
    from saeval.registry.discovery import Plugins
    from saeval.registry.registry import Registry
    from saeval_testbed import WEIGHTS

    def planned(seed=""):
        suite = tmp_path / "suite.yaml"
        path = WEIGHTS / "saes" / "relu-5"
        suite.write_text(
            f"""suite: small
model: {{use: testbed}}
data: {{texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n"], context: 8}}
saes: [testbed/relu-5-seed1, {{use: saelens, path: {path}, name: mine{seed}}}]
groups: {{seeds: ["*"]}}
metrics: [l0, seed_stability: {{over: seeds}}]
""",
            encoding="utf-8",
        )
        return suite

    def keys(suite):
        cells = prepare(suite, Registry(Plugins()), RunOptions()).cells
        return [[cell.key, *(s.facts.get("seed") for s in cell.subjects)] for cell in cells]

    plain, declared = keys(planned()), keys(planned(", seed: 3"))
    assert [row[1:] for row in plain][:3] == [[1], [0], [1, 0]]
    assert [row[1:] for row in declared][:3] == [[1], [3], [1, 3]]
    assert [a[0] == b[0] for a, b in zip(plain, declared, strict=True)] == [True, True, False, False]
    assert main(["check", str(planned(", seed: three"))]) == 2
    assert "'seed' is the whole number that the SAE was trained with, got 'three'" in capsys.readouterr().err
    assert main(["check", str(planned())]) == 0
    assert "twins of groups: random(seeds)" in capsys.readouterr().out
    assert main(["explain", "seed_stability", str(planned())]) == 0
    assert "computed again for random(seeds)" in capsys.readouterr().out


def test_a_value_has_a_null_if_its_claim_names_one():
    saes = seeded([Given.random(0), Given.random(1)])
    none = {"controls": []}
    for result in some(evaluated(saes, seed_stability=none, functional_stability=none)):
        for claim in some(documented_claims(METRICS[result.metric])):
            values = [n for n in names_matching_any(claim.names, result.values) if "value" in result.values[n]]
            tested = {name for name in values if "null" in result.values[name]}
            assert tested == (set() if claim.null.startswith("none") else set(values)), claim.names


def test_sections_show_the_twin_and_what_is_left():
    results = evaluated(seeded(noisy_copies(Given.random(0), 0.02, 4)), ["functional_stability"])
    (section,) = sections(list(results))
    own, twin = (value(result, "pearson_matched") for result in results)
    means = next(table for table in section.tables if table.name == "means")
    row = dict(zip(means.headers, next(row for row in means.rows if row[0] == "pearson_matched"), strict=True))
    assert row["random(g)"] == twin
    assert row["mean − random(g)"].startswith(f"{own - twin:.4g} [")
    assert "each SAE replaced by its control 'random', each drawn independently" in " ".join(section.notes)
    chart = similarities(results[0], results[1:])
    check_chart(chart)
    assert list(dict.fromkeys(r["of"] for r in chart.data)) == [
        "the SAEs of the group", "twin random(g): each SAE replaced by 'random'", "null model, one draw a pair",
    ]  # fmt: skip
    every_pair = [np.mean(column(result, "pairs", "matched", view="pearson")) for result in results]
    assert [r["mean"] for r in chart.data if r["mean"] is not None][:2] == pytest.approx(every_pair)
    shares = [r["share"] for r in chart.data if r["of"] == "the SAEs of the group" and r["view"].startswith("pearson")]
    assert sum(share for share in shares if share is not None) == pytest.approx(1)


def test_a_group_is_compared_with_its_own_twin_alone(tmp_path):
    def run(name, first, controls, seeds):
        saes = seeded([Given.random(first + i) for i in range(4)], seeds)
        named = {f"{name}-{place}": sae for place, sae in enumerate(saes.values())}
        evaluate_tiny(
            [{"functional_stability": {**SMALL, "over": "g", "controls": controls}}], saes=named, groups={"g": ["*"]},
            key=name, name=name, out=tmp_path,
        )  # fmt: skip
        return tmp_path / name

    first, second = run("first", 0, ["random"], range(4)), run("second", 10, ["random"], range(4))
    without = run("without", 20, [], range(4))
    name = "functional_stability.pearson_matched"

    def leads(*folders):
        (board,) = boards(folders)
        return {r.keys: r.entries[f"{name} vs random"] for r in board.rows if r.kind == "group"}

    alone = {keys: entry.value for folder in (first, second) for keys, entry in leads(folder).items()}
    assert {keys: entry.value for keys, entry in leads(first, second).items()} == alone
    for folders in ((first, without), (without, first)):
        values = leads(*folders)
        lacking = [entry for keys, entry in values.items() if keys not in alone]
        assert [entry.value for entry in lacking] == [None]
        assert "no control 'random'" in lacking[0].reason
        assert every(entry.value == alone[keys] for keys, entry in values.items() if keys in alone)


def test_shares_of_groups_stay_inside_0_and_1_and_the_share_found_in_all_has_no_error():
    base = Given.random(0)
    saes = noisy_copies(base, 0.02, 3) + [Given.random(seed) for seed in (1, 2, 3)]
    values = evaluated(seeded(saes), ["seed_stability"])[0].values
    shares = {
        name: r for name, r in values.items() if "_share_above_" in name and not name.endswith(("_floor", "_excess"))
    }
    intervals = [record["ci95"] for record in shares.values() if record["ci95"]]
    assert every(0 <= low <= high <= 1 for low, high in intervals)
    estimate = evaluated(seeded(saes), ["seed_stability"])[0].estimate("decoder_share_above_0_9")
    assert estimate.ci95[0] < 0  # what the jackknife alone would say
    found_in_all = values["decoder_found_in_all"]
    assert found_in_all["stderr"] is None
    assert "leaving out an SAE can only raise it" in found_in_all["reason"]
