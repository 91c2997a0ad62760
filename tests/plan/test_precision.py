"""Adaptive stopping: where it stopping_points, when it stops, and that nothing but the numbers decides it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeval import Mean, Metric, Scalar, Undefined, cli, fold
from saeval.plan.precision import FIRST, precise, stopping_points
from saeval.results.leaderboard import boards
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import numbers, some
from scattered_rows import documents, saes

METRICS = ["l0", "density", "reconstruction", "ce", "kl"]
TARGET = {"ce.delta_ce": 0.045}
"""Within reach of the tiny SAEs below after 256 of some 350 documents."""


def run(metrics=METRICS, precision=TARGET, **options):
    options = {
        "rows": documents(),
        "saes": saes(),
        "controls": ["identity"],
        "batch_size": 32,
        "key": "these",
        **options,
    }
    return evaluate_tiny(metrics, precision=precision, **options)


@pytest.fixture(scope="module")
def adaptive():
    return run()


@pytest.fixture(scope="module")
def places():
    return stopping_points(documents().clusters)


def by_cell(results):
    return {(r.subject, r.metric): r for r in results}


# Where it stopping_points


@given(st.integers(0, 400), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_look_takes_all_that_the_stream_shows_of_its_first_documents(count_of_all, seed, shuffled):
    sizes = np.random.default_rng(seed).integers(1, 7, size=count_of_all)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        clusters = np.random.default_rng(seed).permutation(clusters)
    found = stopping_points(clusters)
    ends = [look.sequences for look in found]
    assert ends == sorted(set(ends))
    assert max(ends, default=0) < len(clusters) or not len(clusters)
    assert bool(found) == (len(sizes) > FIRST)
    for index, (end, count) in enumerate(found):  # may be empty: where there are few documents
        assert count == len(set(clusters[:end]))
        if FIRST << index < len(sizes):  # while there are further documents
            assert count == FIRST << index
            assert clusters[end] not in clusters[:end]
            assert shuffled or clusters[end - 1] not in clusters[end:]
        else:
            assert end == 2 * ends[index - 1]
    if ends:
        assert 2 * ends[-1] >= len(clusters) or len(sizes) > FIRST << (len(found))


def test_two_looks_in_a_row_must_be_precise():
    def rule(*errors):
        return precise([{"m.v": e} for e in errors], {"m.v": 0.1})

    assert [rule(0.01), rule(0.2, 0.1), rule(0.1, 0.2), rule(None, 0.1), rule(0.1, None)] == [False] * 5
    assert rule(0.1, 0.1)
    assert rule(0.3, None, 0.05, 0.06)
    both = {"m.v": 0.1, "m.w": 1.0}
    assert not precise([{"m.v": 0.1, "m.w": 2.0}, {"m.v": 0.1, "m.w": 1.0}], both)
    assert precise([{"m.v": 0.1, "m.w": 0.0}, {"m.v": 0.1, "m.w": 1.0}], both)
    assert not precise([{"m.v": 0.1}, {"m.v": 0.1}], both)
    assert not precise([], both)


# When it stops


def test_it_stops_where_the_rule_says_and_its_estimates_are_those_of_the_first_rows(adaptive, places):
    sample = adaptive.sample
    assert sample["stopped_adaptively"]
    assert sample["sequences"] < 700
    assert [(s["sequences"], s["documents"]) for s in sample["looks"]] == places[: len(sample["looks"])]
    assert sample["looks"][-1]["sequences"] == sample["sequences"]
    assert precise([s["errors"] for s in sample["looks"]], TARGET)
    for count in range(1, len(sample["looks"])):
        assert not precise([s["errors"] for s in sample["looks"][:count]], TARGET)
    errors = [r.values["delta_ce"]["stderr"] for r in adaptive if r.metric == "ce"]
    assert max(errors) == sample["looks"][-1]["errors"]["ce.delta_ce"] <= TARGET["ce.delta_ce"]
    assert sample["looks"][-1]["largest_of"]["ce.delta_ce"] in [f"{n}@blocks.1.hook_resid_pre" for n in "ab"]
    assert len({json.dumps({**r.sample, "of_prefix": 0, "prefix_components": 0}) for r in adaptive}) == 1

    # What the fixed run over the same rows says, save for what has the mean: that is of all planned tokens.
    fixed = by_cell(run(precision=None, limit=sample["sequences"]))
    first = by_cell(run(precision=None, limit=places[1].sequences))
    estimates = {
        "l0": ["l0"],
        "reconstruction": ["mse", "cosine"],
        "ce": ["ce_sae", "delta_ce"],
        "kl": ["kl_sae", "kl_p95"],
    }
    for metric, names in some(estimates.items()):
        for record, other in some(
            (r[name, metric].values[v] for r in (by_cell(adaptive), fixed)) for name in "ab" for v in names
        ):
            assert record["n"] == other["n"]
            assert record["value"] == pytest.approx(other["value"], rel=1e-6)
            assert record["stderr"] == pytest.approx(other["stderr"], rel=1e-6)
    counted = {
        "l0": ["by_position", "l0_p5", "l0_p50", "l0_p95"],
        "density": ["dead", "frac_above_10pct", "frac_above_1pct", "frac_dead", "histogram"],
        "reconstruction": ["without_direction"],
        "ce": [],
        "kl": [],
    }
    for metric, names in some(counted.items()):
        found = by_cell(adaptive)["a", metric]
        assert sorted(found.sample["of_prefix"]) == names
        assert bool(found.sample["prefix_components"]) == bool(names)
        assert {name: found.values[name] for name in names} == {name: first["a", metric].values[name] for name in names}
    tokens = fixed["a", "ce"].values["delta_ce"]["n"]
    assert sample["tokens"] == tokens
    assert sample["prefix"] == {**places[1]._asdict(), "tokens": first["a", "ce"].values["delta_ce"]["n"]}
    assert by_cell(adaptive)["a", "density"].values["dead"]["n"] == sample["prefix"]["tokens"] < tokens


@pytest.mark.parametrize("size", [1, 7, 64, 700])
@pytest.mark.parametrize("shuffled", [True, False])
def test_the_batch_size_moves_neither_the_stop_nor_a_number(size, shuffled):
    metrics = ["ce", "l0"]
    one = run(metrics, rows=documents(shuffled))
    other = run(metrics, rows=documents(shuffled), batch_size=size)
    assert one.sample["stopped_adaptively"]
    for key in ("sequences", "documents", "tokens", "prefix"):
        assert one.sample[key] == other.sample[key]
    for _, (record, its) in numbers(one, other):
        assert its["value"] == pytest.approx(record["value"], rel=1e-6, abs=1e-9)
        assert its["n"] == record["n"]


def test_whole_documents_are_not_cut(places):
    rows = documents(shuffled=False)
    stop = run(["ce"], rows=rows).sample["sequences"]
    assert rows.clusters[stop - 1] < rows.clusters[stop]


def test_a_target_out_of_reach_takes_all_rows_and_says_what_was_missing():
    found = run(["ce", "density"], {"ce.delta_ce": 1e-6})
    sample = found.sample
    assert not sample["stopped_adaptively"]
    assert sample["sequences"] == sample["of"]["sequences"] == 700
    assert "did not stop early" in repr(found)
    assert "wanted ce.delta_ce ± 1e-06, but had ce.delta_ce ± 0.0" in found.leaderboard()
    fixed = run(["ce", "density"], None)
    for a, b in some(zip(found, fixed, strict=True)):
        if a.metric == "ce":
            assert a.values["delta_ce"]["value"] == pytest.approx(b.values["delta_ce"]["value"], rel=1e-9, abs=1e-12)
    dead = [by_cell(r)["a", "density"].values["dead"]["n"] for r in (found, fixed)]
    assert dead == [sample["prefix"]["tokens"], sample["tokens"]]


def test_few_documents_are_never_enough():
    found = run(["ce"], {"ce.delta_ce": 100.0}, rows=tiny_tokens(rows=100, documents=30))
    assert found.sample["looks"] == []
    assert found.sample["sequences"] == 100
    assert "too few documents" in found.leaderboard()


def test_several_values_are_all_to_be_precise(adaptive):
    loose = run(["ce", "kl"], {"ce.delta_ce": 100.0})
    assert loose.sample["documents"] == 2 * FIRST
    both = run(["ce", "kl"], {"ce.delta_ce": 100.0, "kl.kl_sae": 0.012})
    assert loose.sample["sequences"] < both.sample["sequences"]
    assert set(both.sample["looks"][0]["errors"]) == {"ce.delta_ce", "kl.kl_sae"}


def test_the_worst_subject_decides():
    worst = {n: run(["ce"], saes={n: sae}, controls=[]).sample["sequences"] for n, sae in saes().items()}
    assert run(["ce"], controls=[]).sample["sequences"] == max(worst.values())


class Late(Metric):
    """A mean that is not there before a hundred documents were seen, and one that is."""

    name, version = "late", 1

    def observe(self, activations, mask):
        return Mean.of(activations.norm(dim=-1), mask)

    def conclude(self, total):
        value = total.value
        shown = value if value.clusters > 100 else None
        return {"late": Scalar(shown, reason="too early"), "norm": Scalar(value), "count": Scalar(3.0)}


def test_a_value_that_is_undefined_as_yet_is_not_precise_and_a_subject_without_values_is_not_asked():
    early = evaluate_tiny(["late"], Late, rows=documents(), precision={"late.norm": 100.0}, saes=saes())
    late = evaluate_tiny(["late"], Late, rows=documents(), precision={"late.late": 100.0}, saes=saes())
    assert early.sample["documents"] == 2 * FIRST
    assert [look["errors"]["late.late"] is None for look in late.sample["looks"]] == [True, False, False]
    # Without features there is no L0, however many rows there are.
    assert run(["l0"], {"l0.l0": 100.0}).sample["documents"] == 2 * FIRST


# Keys, stored cells, folds


def test_the_key_holds_the_target_and_all_it_is_about(adaptive):
    def keys(**changed):
        metrics = changed.pop("metrics", ["ce", "l0"])
        return {cell: r.key for cell, r in by_cell(run(metrics, **changed)).items()}

    same = keys()
    assert same == keys(batch_size=5)
    fixed = keys(precision=None)
    other = keys(precision={"ce.delta_ce": 0.06})
    more = keys(saes={**saes(), "c": TinySAE(seed=2)})
    added = keys(metrics=["ce", "l0", "kl"])
    for cell, key in some(same.items()):
        assert len({key, fixed[cell], other[cell], more[cell]}) == 4
        assert added[cell] == key  # another metric moves no stop


def test_cells_added_later_stop_where_the_finished_ones_did(tmp_path):
    first = run(["ce", "l0"], out=tmp_path)
    model = TinyModel()
    later = run(["ce", "l0", "reconstruction"], out=tmp_path, model=model)
    assert later.sample == first.sample
    whole = by_cell(run(["ce", "l0", "reconstruction"]))
    for cell, result in some(by_cell(later).items()):
        assert result.values == whole[cell].values
        assert result.key == whole[cell].key
    # The fold of the mean is stored; the pass is cut, since no score is asked for, and goes no further than the stop.
    assert model.passes["clean"] == model.passes["resumed"] == 0
    assert 0 < model.passes["cut"] < 700 / 32
    nothing = TinyModel()
    assert run(["ce", "l0", "reconstruction"], out=tmp_path, model=nothing).sample
    assert sum(nothing.passes.values()) == 0
    fresh = run(["ce", "l0"], out=tmp_path, fresh=True)
    assert [r.values for r in fresh] == [r.values for r in first]


class Relative(Metric):
    """A mean over another, which is summed beside it, and how many tokens that has."""

    name, version = "relative", 1

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1), mask)

    def conclude(self, total, norms):
        return {"relative": Scalar(total.value / norms.value), "tokens": Scalar(float(norms.n.sum()))}


class Early(Metric):
    """Needs the same fold before its own pass."""

    name, version = "early", 1

    def observe(self, feature_acts, mask, norms):
        return Mean.of(feature_acts.sum(-1) / norms.value.value, mask)

    def conclude(self, total):
        return Scalar(total.value)


@fold
def norms(activations, mask):
    """Mean norm of the activations."""
    return Mean.of(activations.norm(dim=-1), mask)


def test_a_fold_that_a_conclusion_asks_for_is_of_the_same_rows_whatever_else_there_is(tmp_path):
    def found(*metrics, **options):
        options = {"saes": saes(), "rows": documents(), "quantities": [norms], "key": "these", **options}
        options.setdefault("precision", {"relative.relative": 0.08})
        return evaluate_tiny(list(metrics), Relative, Early, **options)

    alone = found("relative")
    sample = alone.sample
    assert sample["stopped_adaptively"]
    limited = found("relative", precision=None, limit=sample["sequences"])
    for a, b in some(zip(alone, limited, strict=True)):
        assert a.values["relative"]["value"] == pytest.approx(b.values["relative"]["value"], rel=1e-9)
        assert a.values["relative"]["stderr"] == pytest.approx(b.values["relative"]["stderr"], rel=1e-9)
        assert a.values["tokens"]["value"] == sample["prefix"]["tokens"]
    found("relative", precision=None, out=tmp_path)  # stores the fold over all rows
    beside = by_cell(found("early", "relative", out=tmp_path))
    for cell, result in some(by_cell(alone).items()):
        assert beside[cell].key == result.key
        assert beside[cell].values == result.values
    # And the stored one is still that of all rows.
    again = by_cell(found("relative", precision=None, out=tmp_path, fresh=False))
    assert again["a", "relative"].values["tokens"]["value"] > sample["tokens"]


def test_a_weights_only_metric_knows_nothing_of_it(tmp_path):
    class Norm(Metric):
        """Norm of the decoder."""

        name, version = "norm", 1

        def conclude(self, W_dec):
            return Scalar(float(W_dec.norm()))

    def one(precision):
        options = {"saes": saes(), "rows": documents(), "precision": precision, "out": tmp_path, "key": "these"}
        return by_cell(evaluate_tiny(["norm", "ce"], Norm, **options))

    with_it, without = one(TARGET), one(None)
    assert with_it["a", "norm"].key == without["a", "norm"].key
    assert with_it["a", "norm"].sample is None
    (board,) = boards([tmp_path / "evaluate"])
    assert {c.metric for c in board.columns} == {"norm", "ce"}


@pytest.mark.parametrize("limit", [100, 690])
def test_a_limited_run_stops_in_its_own_rows(adaptive, limit):
    found = run(["ce"], limit=limit)
    assert found.sample["of"]["sequences"] == limit
    assert found.sample["stopped_adaptively"] == (limit == 690)
    if limit == 690:
        assert found.sample["sequences"] == adaptive.sample["sequences"]
    assert {r.key for r in found}.isdisjoint(r.key for r in adaptive)


# Interruptions, memory


class Interrupted(TinyModel):
    """Stops the run when it sees a sequence, once."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        if self.at is not None and self.at in batch.sequence_ids:
            self.at = None
            raise KeyboardInterrupt
        return super().resumed(batch, captured, hook_name, activations, hooks)


@pytest.mark.parametrize("where", ["first batch", "prefix", "after the prefix", "before the stop"])
@pytest.mark.parametrize("apart", [False, True])
def test_an_interrupted_run_stops_at_the_same_place_with_the_same_numbers(
    tmp_path, adaptive, places, where, apart, monkeypatch
):
    if apart:  # the SAEs do not fit in memory together
        monkeypatch.setattr("saeval.engine.loop.memory_budget", lambda device: 8 * 16 * 32)
    at = {
        "first batch": 3,
        "prefix": places[1].sequences - 1,
        "after the prefix": places[1].sequences,
        "before the stop": adaptive.sample["sequences"] - 1,
    }[where]
    model = Interrupted(documents().batch([at], "cpu").sequence_ids[0])
    with pytest.raises(KeyboardInterrupt):
        run(model=model, out=tmp_path, checkpoint_seconds=0.0)
    before = sum(model.passes.values())
    found = run(model=model, out=tmp_path, checkpoint_seconds=0.0, batch_size=9)
    assert found.sample == run(out=tmp_path).sample
    assert {k: v for k, v in found.sample.items() if k not in ("of_prefix", "prefix_components")} == {
        k: v for k, v in adaptive.sample.items() if k not in ("of_prefix", "prefix_components")
    }
    if where != "first batch":  # where a checkpoint had the batch size of the first run
        for a, b in some(zip(found, adaptive, strict=True)):
            assert a.values == b.values
        for one, other, name in some((x, y, name) for x, y in zip(found, adaptive, strict=True) for name in y.arrays):
            np.testing.assert_array_equal(other.arrays[name], one.arrays[name])
    if where == "before the stop" and not apart:
        assert sum(model.passes.values()) - before < before / 5


def test_saes_that_do_not_fit_together_stop_together(adaptive, monkeypatch):
    monkeypatch.setattr("saeval.engine.loop.memory_budget", lambda device: 8 * 16 * 32)
    model = TinyModel()
    apart = run(model=model)
    assert model.passes["clean"] > 1.5 * adaptive.sample["sequences"] / 32
    for a, b in some(zip(apart, adaptive, strict=True)):
        assert a.sample == b.sample
        assert a.values == b.values


def test_running_out_of_memory_moves_no_stop(adaptive):
    import torch

    class Full(TinyModel):
        def capture(self, batch, hooks, final, resumable=()):
            if len(batch.tokens) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().capture(batch, hooks, final, resumable)

    found = run(model=Full())
    for key in ("sequences", "documents", "tokens", "prefix"):
        assert found.sample[key] == adaptive.sample[key]
    for _, (record, its) in numbers(adaptive, found):
        assert its["value"] == pytest.approx(record["value"], rel=1e-6, abs=1e-6)
        assert its["n"] == record["n"]


def test_a_failing_cell_stops_nothing_and_is_retried_with_the_same_rows(tmp_path):
    class Moody(Metric):
        name, version = "moody", 1
        broken = True

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total):
            if self.broken:
                raise RuntimeError("planted")
            return Scalar(total.value)

    def found(**options):
        return evaluate_tiny(["moody", "ce"], Moody, rows=documents(), saes=saes(), precision=TARGET, **options)

    first = found(out=tmp_path)
    assert {r.metric for r in first.failed} == {"moody"}
    Moody.broken = False
    again = found(out=tmp_path)
    assert not again.failed
    assert by_cell(again)["a", "moody"].values == by_cell(found())["a", "moody"].values
    assert by_cell(again)["a", "moody"].sample["sequences"] == first.sample["sequences"]


# What is said


def test_reports_say_that_it_stopped_and_what_it_took(adaptive, tmp_path, capsys):
    sample = adaptive.sample
    words = f"stopped adaptively after {sample['tokens']} tokens ({sample['sequences']} of 700 sequences, "
    assert words in repr(adaptive)
    assert f"**Adaptive**: {words}" in adaptive.leaderboard()
    assert f"Counts, curves and quantiles of counts always use the first {sample['prefix']['sequences']} sequences" in (
        adaptive.leaderboard()
    )
    rows = json.loads(adaptive.leaderboard("json"))
    assert {(row["stopped_adaptively"], row["tokens"]) for row in rows} == {(True, sample["tokens"])}
    assert adaptive.to_frame().stopped_adaptively.all()
    assert not run(["l0"], None).to_frame().stopped_adaptively.any()
    pair = adaptive.compare("a", "b", ["ce"])
    assert pair.stop.startswith(words)
    assert pair[0].difference.stderr is not None

    for name, precision in (("adaptive", TARGET), ("fixed", None), ("other", {"ce.delta_ce": 0.2})):
        run(["ce"], precision, saes={name: TinySAE()}, out=tmp_path, name=name)
    folders = [str(tmp_path / name) for name in ("adaptive", "fixed", "other")]
    assert len(boards(folders)) == 3
    assert cli.main(["compare", folders[0], "adaptive", "identity"]) == 0
    assert "The run stopped adaptively after " in capsys.readouterr().out
    for other in ("fixed", "other"):
        assert cli.main(["compare", *folders, "adaptive", other]) == 2
        assert "did not stop together" in capsys.readouterr().err


SUITE = """\
suite: mine
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 12}
saes: [testbed/relu-5]
metrics: [ce, l0, reconstruction, weights]
precision:
  PLACE: 0.01
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cee.delta_ce", "precision: no metric 'cee' in this suite; did you mean 'ce'?"),
        ("ce", "precision: 'ce' is a metric; name one of its values, as in ce.VALUE"),
        ("ce.delta_c", "precision: metric 'ce' has no value 'delta_c'; did you mean 'delta_ce'?"),
        (
            "reconstruction.without_direction",
            "precision: 'reconstruction.without_direction' has no standard error; usable values of ",
        ),
        ("l0.l0_p50", "precision: 'l0.l0_p50' moves in steps, so no stop can depend on it; usable values of 'l0': l0"),
        ("weights.b_enc", "precision: metric 'weights' observes no rows"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SUITE.replace("PLACE", name))
    assert cli.main(["run", "s.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("pass: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"s.yaml:7:3: {said}")
    assert not list((tmp_path / "results").rglob("[0-9a-f]*.json"))


def test_check_says_where_it_will_look(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SUITE.replace("PLACE", "ce.delta_ce"))
    assert cli.main(["check", "s.yaml"]) == 0
    assert "too few documents to stop early" in capsys.readouterr().out
    assert cli.main(["check", "s.yaml", "--set", "data.sequences=700"]) == 0
    found = capsys.readouterr().out
    assert "precision: ce.delta_ce ± 0.01; checked after sequences (documents) " in found
    assert "(64), " in found
    assert "if the run does not stop early" in found


def test_what_raises_undefined_as_a_whole_is_not_asked():
    class Half(Metric):
        """Has values for one SAE of two."""

        name, version = "half", 1

        def observe(self, activations, mask, subject_name):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total, subject_name):
            if subject_name == "b":
                raise Undefined("not for b")
            return Scalar(total.value)

    found = evaluate_tiny(["half"], Half, rows=documents(), saes=saes(), precision={"half.half": 100.0})
    assert found.sample["documents"] == 2 * FIRST
    assert [r.status for r in found] == ["ok", "undefined"]
