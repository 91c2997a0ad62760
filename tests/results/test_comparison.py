"""Two subjects compared: the paired test against scipy's, Holm against its definition, mistakes in one sentence."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from scipy import stats

from made_results import NOISE, result
from saeval import SaevalError, cli
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.paired_tests import holm
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every
from saeval_reports import comparisons

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(2, 30)) + RANDOM.normal(size=30)


def mean_of(name, x, **facts):
    """A result whose value is the plain mean of one number a document."""
    return result(name, float(x.mean()), (x - x.mean()) / len(x), **facts)


def compared(*results, names=("a", "b"), metrics=()):
    return compare(from_results(results, "t", {}), *names, metrics)


def test_the_paired_difference_is_the_textbook_one():
    (row,) = compared(mean_of("a", X), mean_of("b", Y))
    theirs = stats.ttest_rel(X, Y)
    assert row.difference.value == pytest.approx(X.mean() - Y.mean())
    assert row.difference.stderr == pytest.approx(stats.sem(X - Y))
    assert row.difference.ci95 == pytest.approx(theirs.confidence_interval())
    assert row.difference.p_value == pytest.approx(theirs.pvalue)
    assert row.p_holm == pytest.approx(theirs.pvalue)
    assert row.difference.detectable == pytest.approx(stats.t.ppf([0.975, 0.8], len(X) - 1).sum() * stats.sem(X - Y))


@pytest.mark.parametrize(("direction", "better"), [("lower", "a"), ("higher", "b"), (None, None)])
def test_the_better_one_follows_the_direction_of_the_value(direction, better):
    (row,) = compared(mean_of("a", X, better=direction), mean_of("b", X + 1 + 0.01 * Y, better=direction))
    assert (row.better, row.sure) == (better, True)
    (row,) = compared(mean_of("a", X, better=direction), mean_of("b", X, better=direction))
    assert (row.better, row.sure, row.p_holm, row.difference.stderr) == (None, None, None, 0)  # nothing to test


def test_holm_corrects_over_the_rows_shown():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1, 1]
    results = [mean_of(n, x, metric=m) for m, shift in (("m", 0.4), ("k", 0)) for n, x in (("a", X), ("b", Y + shift))]
    both = compared(*results)
    assert [row.column.name for row in both] == ["m.v", "k.v"]
    small, large = sorted(row.difference.p_value for row in both)
    assert sorted(row.p_holm for row in both) == pytest.approx([min(2 * small, 1), max(2 * small, large)])
    (alone,) = compared(*results, metrics=["m"])
    assert alone.p_holm == alone.difference.p_value


def test_without_influences_the_plain_difference_stands_with_the_reason():
    counts = [result(n, v, NOISE) for n, v in (("a", 3.0), ("b", 5.0))]
    for one in counts:
        one.arrays = {}
        one.values["v"] |= {"stderr": None, "ci95": None, "reason": "not a mean over documents"}
    (row,) = both = compared(*counts)
    assert (row.difference.value, row.difference.stderr, row.p_holm, row.better) == (-2, None, None, None)
    text = comparisons.markdown(both)
    assert "- not tested: not a mean over documents (m.v)" in text
    assert re.search(r"^\| m\.v .*\| not tested +\|$", text, re.MULTILINE)
    (row,) = compared(result("a", 3.0, NOISE[:1]), result("b", 5.0, NOISE[:1]))
    assert row.difference.reason == "fewer than two documents"


def test_what_has_no_error_or_no_interval_says_why():
    steps = [result(n, v, NOISE, metric="k") for n, v in (("a", 3.0), ("b", 5.0))]
    for one in steps:
        one.arrays = {}
        one.values["v"]["reason"] = "it moves in steps"
    text = comparisons.markdown(compared(*steps, mean_of("a", X), mean_of("b", X + 1)))
    assert "- not tested: it moves in steps (k.v)" in text
    assert "- no interval: the difference is the same in every document (m.v)" in text


def test_one_document_has_no_test_and_the_legend_claims_none():
    lone = compared(result("a", 3.0, NOISE[:1]), result("b", 5.0, NOISE[:1]))
    text = comparisons.markdown(lone)
    assert "paired by document; no difference can be tested; ↓" in text
    for word in ("distinct test", "± one", "80% power"):
        assert word not in text


def test_a_result_that_is_not_there_says_so_once_with_its_cause_and_the_remedy(tmp_path, capsys):
    saes = {"one": TinySAE(seed=1), "two": TinySAE(seed=2)}
    results = evaluate_tiny(["l0", "density"], saes=saes, out=tmp_path)
    folder = tmp_path / "evaluate"
    (l0,) = (one for one in results if (one.metric, one.subject) == ("l0", "one"))
    path = folder / f"{l0.key}.json"
    content = path.read_bytes()
    path.unlink()
    for form in ("md", "csv"):
        assert cli.main(["compare", str(folder), "one", "two", "--format", form]) == 0
        output = capsys.readouterr()
        said = output.out if form == "md" else output.err
        assert said.count("has no value") == 1
        assert "l0 (4 values): one has no value (its result is missing; run 'evaluate' again)" in said
    path.write_bytes(content.replace(b'"status": "ok"', b'"status": "no"'))
    assert cli.main(["compare", str(folder), "one", "two"]) == 0
    cause = f"{l0.key}.json: its content does not match its checksum"
    said = capsys.readouterr().out
    assert f"l0 (4 values): one has no value (its result is damaged ({cause}); run 'evaluate' again)" in said


def test_a_metric_that_was_not_run_on_one_of_them_is_no_missing_result():
    both = compared(mean_of("a", X), mean_of("b", Y), mean_of("a", X, metric="k"))
    assert both.notes == ["k.v: b has no value (the metric was not run on it)"]


def test_two_words_that_are_no_folders_are_told_so(capsys):
    assert cli.main(["compare", "results/A", "results/B"]) == 2
    assert "results/A is no folder of results" in capsys.readouterr().err


def test_the_spread_of_a_controls_draws_is_in_the_error_with_its_few_degrees_of_freedom():
    facts = {"kind": "control", "control": "random", "of": "a"}
    draws = [mean_of("r" + (f"#{i}" if i else ""), Y + i, copy=i, key=f"k{i}", **facts) for i in range(3)]
    (row,) = compared(mean_of("a", X), *draws, names=("a", "r"))
    sampling, spread = stats.sem(X - Y) ** 2, 4 / 3  # the variance of 0, 1, 2 is 1, of one more and their mean 4/3
    assert row.difference.value == pytest.approx(X.mean() - Y.mean() - 1)
    assert row.difference.stderr == pytest.approx(np.sqrt(sampling + spread))
    dof = (sampling + spread) ** 2 / (sampling**2 / 29 + spread**2 / 2)
    assert row.difference.p_value == pytest.approx(
        2 * stats.t.sf(abs(row.difference.value) / row.difference.stderr, dof)
    )


def test_values_that_one_of_them_lacks_are_told_below():
    lacking = result("b", 0, NOISE, metric="k", status="undefined", reason="b has no features")
    both = compared(mean_of("a", X), mean_of("b", Y), mean_of("a", X, metric="k"), lacking)
    assert [row.column.name for row in both] == ["m.v"]
    assert both.notes == ["k.v: b has no value (undefined: b has no features)"]
    with pytest.raises(
        SaevalError, match=r"'a' and 'b' have no value in common: b has no value \(undefined: b has no features\)$"
    ):
        compared(mean_of("a", X, metric="k"), lacking)


def test_a_control_is_taken_at_the_hook_of_the_other():
    there = mean_of("mean", X, kind="control")
    there.cell["subjects"][0]["hook_name"] = "elsewhere"
    results = [mean_of("a", X), mean_of("mean", Y, kind="control"), there]
    assert compared(*results, names=("a", "mean")).b.hook_name == "h"
    crossed = compared(*results, names=("a", "mean@elsewhere"))
    assert crossed.b.hook_name == "elsewhere"
    twice = compared(*results, names=("mean@h", "mean@elsewhere"))
    assert {row.better for row in twice} <= {"mean@h", "mean@elsewhere"}
    with pytest.raises(SaevalError, match=r"name two of mean@elsewhere, mean@h"):
        compared(*results, names=("mean", "mean"))


@pytest.mark.parametrize(
    ("names", "metrics", "said"),
    [
        (("alpha", "betta"), (), "no subject 'betta' in these results; did you mean 'beta'?"),
        (("alpha", "alpha"), (), "'alpha' and 'alpha' are the same row; compare it with another: beta"),
        (("alpha", "gamma"), (), "the data of the two differ: 'alpha' was run on x (fingerprint d, no model), 'gamma' on x (fingerprint e"),
        (("alpha", "beta"), ("m.w",), "no value 'm.w' in these results; did you mean 'm.v'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(names, metrics, said):
    results = [mean_of("alpha", X), mean_of("beta", Y), mean_of("gamma", X, data="e")]
    with pytest.raises(SaevalError) as raised:
        compared(*results, names=names, metrics=metrics)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_runs_of_two_models_are_not_compared():
    other = mean_of("b", Y)
    other.cell = {**other.cell, "model": {"name": "gpt", "dtype": "bfloat16"}}
    with pytest.raises(SaevalError, match="the models of the two differ"):
        compared(mean_of("a", X), other)


def test_the_verb_prints_what_results_compare_returns(tmp_path, capsys):
    saes = {"one": TinySAE(seed=1), "two": TinySAE(seed=2)}
    results = evaluate_tiny(["l0", "density", "reconstruction"], saes=saes, controls=["mean"], out=tmp_path)
    folder = str(tmp_path / "evaluate")
    expected = results.compare("one", "two").to_frame()
    assert len(expected) > 5
    assert cli.main(["compare", folder, "one", "two", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["value"] for line in lines] == list(expected.value)
    assert {line["documents"] for line in lines} <= {"8", ""}
    assert (
        cli.main(["compare", folder, "one", "two", "--format", "json", "--metric", "l0.l0", "reconstruction.mse"]) == 0
    )
    records = json.loads(capsys.readouterr().out)
    assert {r["value"] for r in records} == {"l0.l0", "reconstruction.mse"}
    assert every(r["ci95_low"] < r["difference"] < r["ci95_high"] for r in records)
    assert cli.main(["compare", folder, "one", "mean"]) == 0
    text = capsys.readouterr().out
    assert "## evaluate: one against mean" in text
    assert "data in-memory, 24 sequences, 8 documents, 213 tokens, at" in text
    assert "l0 (4 values): mean has no value (undefined: " in text
    assert cli.main(["compare", folder, "one", "too"]) == 2
    assert "did you mean 'two'?" in capsys.readouterr().err


def test_subjects_of_two_folders_are_compared_where_the_data_agree(tmp_path, capsys):
    for name, seed in (("first", 1), ("second", 2)):
        saes = {name: TinySAE(seed=seed)}
        evaluate_tiny(["l0"], model=TinyModel(), rows=tiny_tokens(), saes=saes, out=tmp_path, name=name)
    evaluate_tiny(["l0"], rows=tiny_tokens(rows=5), saes={"third": TinySAE()}, out=tmp_path, name="third")
    folders = [str(tmp_path / name) for name in ("first", "second", "third")]
    assert cli.main(["compare", *folders[:2], "first", "second"]) == 0
    assert "first + second: first against second" in capsys.readouterr().out
    assert cli.main(["compare", *folders, "first", "third"]) == 2
    assert capsys.readouterr().err.startswith("the data of the two differ: ")


def test_a_value_of_a_group_is_missing_for_no_sae_but_belongs_to_the_group():
    mine = [mean_of(n, x) for n, x in (("a", X), ("b", Y))]
    group = mean_of("a", X, metric="stability")
    group.cell["subjects"] = [*group.cell["subjects"], *mine[1].cell["subjects"]]
    group.cell["over"] = "seeds"
    found = compare(from_results([*mine, group], "t", {}), "a", "b", ["m", "stability"])
    assert found.notes == [f"stability.v: {name} has no value (it belongs to the group 'seeds (2)')" for name in "ab"]
    with pytest.raises(SaevalError, match=r"have no value in common: a has no value \(it belongs to the group 'seeds"):
        compare(from_results([*mine, group], "t", {}), "a", "b", ["stability"])


def test_a_group_may_be_named_without_its_count():
    groups = [mean_of("a", x, metric="stability") for x in (X, Y)]
    for name, group in zip(("seeds", "others"), groups, strict=True):
        group.cell["subjects"] = [{**group.cell["subjects"][0], "key": f"{name}{i}"} for i in range(3)]
        group.cell["over"] = name
    found = compare(from_results(groups, "t", {}), "seeds", "others (3)")
    assert (found.a.name, found.b.name) == ("seeds (3)", "others (3)")
