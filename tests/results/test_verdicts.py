"""Verdicts: claims only where a null hypothesis is rejected after Holm's correction over the metric."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from saeval.cli import main
from saeval.plugin import verdicts, verdicts_in_words, verdicts_on
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.result import Result
from saeval.results.section_files import section_files
from saeval.results.store import MANIFEST_FORM, Store
from saeval.stats.estimate import Estimate
from saeval.stats.values import Null, Scalar
from saeval.testing.claims import none
from saeval_reports import claims, comparisons, tables

BOTH = Null("noise", above="more harmful than", below="less harmful than")
DOCUMENTS = 24


def results(values, hook="h", null=BOTH, metric="m", **facts):
    """A result per row of `values`, an array of one number per document for each of its values."""
    made = []
    for place, named in enumerate(values):
        scalars = {}
        arrays = {}
        for name, documents in named.items():
            documents = np.asarray(documents, dtype=float)
            count = len(documents)
            without = (documents.sum() - documents) / (count - 1)
            estimate = Estimate(float(documents.mean()), without, np.ones(count), count)
            scalars[name] = Scalar(estimate, unit="nats", better="lower", null=null, **facts).record()
            arrays |= {f"without/{name}": without, f"sizes/{name}": np.ones(count)}
        subject = {"name": f"sae-{place}", "hook_name": hook, "kind": "sae"}
        cell = {"model": None, "data": {"fingerprint": "d", "use": "x"}, "metric": metric, "subjects": [subject]}
        made.append(Result(f"{hook}-{place}", "ok", cell, values=scalars, arrays=arrays))
    return made


def test_under_the_null_a_board_makes_a_claim_in_at_most_5_of_100():
    rng = np.random.default_rng(0)
    boards, false = 400, 0
    for _ in range(boards):
        shared = rng.normal(size=DOCUMENTS)  # the same documents move all rows
        values = [{name: shared + rng.normal(size=DOCUMENTS) for name in "ab"} for _ in range(4)]
        false += any(verdict.claimed for verdict in verdicts_on(results(values)))
    assert false / boards < 0.05 + 2 * (0.05 * 0.95 / boards) ** 0.5


def test_a_planted_difference_is_claimed_in_words_on_its_own_side():
    rng = np.random.default_rng(1)
    shifts = (3.0, -3.0, 0.0)
    given = verdicts_on(results([{"v": shift + rng.normal(size=DOCUMENTS)} for shift in shifts]))
    assert [verdict.claim for verdict in given] == ["less harmful than", "", "more harmful than"]  # ranked by value
    below, neither, above = given
    assert below.words.startswith("sae-1 is less harmful than noise (m.v: -")
    assert above.words.endswith("p < 0.0001 after Holm's correction over 3 tests)")
    assert neither.words.startswith("sae-2 cannot be distinguished from noise (m.v: ")
    assert above.p < above.p_holm < 1e-4
    (sentence,) = verdicts_in_words(given)
    assert sentence == (
        "m.v: 1 of 3 is less harmful than noise: sae-1; 1 of 3 is more harmful than it: sae-0; "
        "1 cannot be distinguished from it (5% level, Holm's correction over 3 tests)"
    )


def test_a_claim_has_its_qualifier_and_names_a_few_rows():
    rng = np.random.default_rng(2)
    tail = Null("noise", above="more harmful than", qualifier="a tail effect")
    given = verdicts_on(results([{"v": 3 + rng.normal(size=DOCUMENTS)} for _ in range(9)], null=tail))
    assert "is more harmful than noise, a tail effect (" in given[0].words
    (sentence,) = verdicts_in_words(given)
    assert sentence.startswith("m.v: 9 of 9 are more harmful than noise: sae-")
    assert sentence.count("(a tail effect)") == 6
    assert " and 3 more " in sentence


@pytest.mark.parametrize(("above", "below"), [("more than", None), (None, "less than")])
def test_a_null_with_one_claim_is_tested_on_one_side(above, below):
    documents = 0.4 + np.random.default_rng(3).normal(size=DOCUMENTS)
    (two,) = verdicts_on(results([{"v": documents}]))
    (one,) = verdicts_on(results([{"v": documents}], null=Null("noise", above=above, below=below)))
    assert one.p == pytest.approx(two.p / 2 if above else 1 - two.p / 2)
    far = results([{"v": 9 + documents}], null=Null("noise", below="less than"))
    assert none(verdict.claimed for verdict in verdicts_on(far))


def test_a_value_is_tested_against_the_number_that_its_null_expects():
    documents = 0.5 + 0.01 * np.random.default_rng(4).normal(size=DOCUMENTS)
    half = Null("chance", value=0.5, above="better than")
    assert none(verdict.claimed for verdict in verdicts_on(results([{"v": documents}], null=half)))
    (verdict,) = verdicts_on(results([{"v": documents + 0.1}], null=half))
    assert verdict.claimed


def test_the_metrics_own_p_value_decides_and_controls_have_no_verdict():
    made = results([{"v": np.zeros(DOCUMENTS)}, {"v": np.ones(DOCUMENTS)}], null=Null("chance", above="above", p=0.001))
    made[0].cell["subjects"][0].update(kind="control", control="random")
    (verdict,) = verdicts_on(made)
    assert (verdict.name, verdict.p, verdict.claimed) == ("sae-1", 0.001, True)


def test_a_value_of_the_model_is_tested():
    (made,) = results([{"v": 9 + np.random.default_rng(6).normal(size=DOCUMENTS)}])
    made.cell["subjects"] = []
    (verdict,) = verdicts_on([made])
    assert (verdict.row.kind, verdict.claim) == ("model", "more harmful than")


def test_a_value_of_a_group_is_tested_by_its_error_over_seeds():
    values = np.array([0.1, 0.3, 0.2, 0.4])
    (made,) = results([{"v": values}], seeds=["0", "1", "2", "3"])
    (verdict,) = verdicts_on([made])
    assert verdict.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_correction_is_over_the_columns_of_a_metric_and_not_over_others():
    rng = np.random.default_rng(5)
    two = results([{"a": rng.normal(size=DOCUMENTS), "b": rng.normal(size=DOCUMENTS)}] * 2)
    other = results([{"a": rng.normal(size=DOCUMENTS)}], metric="other")
    assert sorted(verdict.tests for verdict in verdicts_on([*two, *other])) == [1, 4, 4, 4, 4]


def test_rows_of_one_name_at_two_hooks_are_named_with_their_hooks():
    rng = np.random.default_rng(6)
    made = [r for hook in ("h1", "h2") for r in results([{"v": rng.normal(size=DOCUMENTS)}], hook=hook)]
    assert sorted(verdict.name for verdict in verdicts_on(made)) == ["sae-0@h1", "sae-0@h2"]


def test_tables_have_p_values_and_verdicts_of_values_with_a_null_alone():
    rng = np.random.default_rng(7)
    made = results([{"v": 3 + rng.normal(size=DOCUMENTS)}])
    made += results([{"v": rng.normal(size=DOCUMENTS)}], null=None, metric="plain")
    (board,) = from_results(made, "t", {})
    (record,) = json.loads(tables.as_json([board]))
    (verdict,) = verdicts(board)
    assert record["m.v.verdict"] == verdict.words
    assert (record["m.v.p"], record["m.v.p_holm"]) == (verdict.p, verdict.p_holm)
    assert "plain.v.p" not in record
    assert "m.v.verdict" in tables.csv([board]).splitlines()[0]
    assert "- m.v: 1 of 1 is more harmful than noise: sae-0 (5% level, one test)" in tables.markdown([board])


def test_claims_in_other_columns_are_counted_with_the_names_of_the_first_columns():
    rng = np.random.default_rng(12)
    made = results([{name: 3 + rng.normal(size=DOCUMENTS) for name in "vabcde"}])
    text = tables.markdown(from_results(made, "t", {"columns": ["m.v"]}))
    assert "- 5 claims in columns that are not shown (m.a, m.b, m.c, m.d and 1 more): see --format json" in text


def test_a_comparison_has_the_verdicts_on_both_corrected_over_the_whole_board():
    rng = np.random.default_rng(8)
    made = results([{"v": shift + rng.normal(size=DOCUMENTS)} for shift in (3.0, 0.0, 0.0)])
    (board,) = from_results(made, "t", {})
    comparison = compare([board], "sae-0", "sae-1")
    assert [verdict.tests for verdict in comparison.verdicts] == [3, 3]
    (record,) = comparison.records()
    assert record["verdict_a"].startswith("sae-0 is more harmful than noise (m.v: ")
    assert record["verdict_b"].startswith("sae-1 cannot be distinguished from noise (m.v: ")
    text = comparisons.markdown(comparison)
    assert "- sae-0 is more harmful than noise (m.v: " in text
    assert "- 1 value cannot be distinguished from its null" in text


def test_the_verb_compares_with_the_correction_of_the_whole_board(tmp_path, capsys):
    rng = np.random.default_rng(9)
    made, store = results([{"v": 3 + rng.normal(size=DOCUMENTS)} for _ in range(3)]), Store(tmp_path / "out")
    for result in made:
        store.write(result)
    cells = [{"key": result.key, "cell": result.cell} for result in made]
    store.write_manifest({"schema": MANIFEST_FORM, "suite": "s", "limit": None, "leaderboard": {}, "cells": cells})
    assert main(["compare", str(tmp_path / "out"), "sae-0", "sae-1"]) == 0
    assert "correction over 3 tests" in capsys.readouterr().out


def test_pages_have_a_line_for_each_verdict_and_escape_names():
    rng = np.random.default_rng(10)
    made = results([{"v": shift + rng.normal(size=DOCUMENTS)} for shift in (3.0, 0.0)])
    made[0].cell["subjects"][0]["name"] = "<b>|x"
    (section,) = claims.sections(made)
    text = section_files("verdicts", [section])["verdicts.md"]
    assert text.count("\n| ") == 4  # with the line below the headers
    assert "| more harmful than noise |" in text
    assert "&lt;b>\\|x" in text
    assert "<b>" not in text
    assert claims.sections(results([{"v": rng.normal(size=DOCUMENTS)}], null=None)) == []


def test_the_verb_report_writes_the_leads_that_the_suite_asks_for(tmp_path):
    rng = np.random.default_rng(11)
    made, store = (
        results([{"v": 3 * place + rng.normal(size=DOCUMENTS)} for place in (0, 1)], null=None),
        Store(tmp_path),
    )
    made[1].cell["subjects"][0] |= {"name": "mean", "kind": "control", "control": "mean"}
    for result in made:
        store.write(result)
    cells = [{"key": result.key, "cell": result.cell} for result in made]
    layout = {"against": ["mean"], "rank_by": "m.v"}
    store.write_manifest({"schema": MANIFEST_FORM, "suite": "s", "limit": None, "leaderboard": layout, "cells": cells})
    assert main(["report", str(tmp_path), "--format", "verdicts"]) == 0
    page = (tmp_path / "report" / "verdicts.md").read_text()
    assert "- m.v vs mean: 1 of 1 is better than the control mean: sae-0 (5% level, one test)" in page


def test_a_value_with_a_null_but_without_an_error_says_why_it_is_not_tested():
    made = results([{"v": np.zeros(DOCUMENTS)}])
    made[0].arrays.clear()
    made[0].values["v"] = Scalar(0.5, unit="nats", reason="an error needs 4 seeds", null=BOTH).record()
    sentence = "not tested: an error needs 4 seeds (m.v of sae-0)"
    (board,) = from_results(made, "t", {})
    assert sentence in board.notes
    (record,) = json.loads(tables.as_json([board]))
    assert record["missing"] == {"m.v.verdict": "not tested: an error needs 4 seeds"}
    (section,) = claims.sections(made)
    assert sentence in section.summary


def test_each_row_is_tested_against_its_own_null():
    documents = 0.5 + 0.01 * np.random.default_rng(3).normal(size=DOCUMENTS)
    made = [
        results([{"v": documents}], null=null)[0]
        for null in (Null("X", 0.2, above="above"), Null("X", 0.5, above="above"), Null("Y", 0.9, above="above"), None)
    ]
    for place, result in enumerate(made):
        result.cell["subjects"][0]["name"] = f"sae-{place}"
    for order in (made, made[::-1]):
        given = {verdict.name: verdict for verdict in verdicts_on(order)}
        assert {name: (verdict.claim, verdict.null["name"]) for name, verdict in given.items()} == {
            "sae-0": ("above", "X"), "sae-1": ("", "X"), "sae-2": ("", "Y"),
        }  # fmt: skip


def test_a_number_at_its_null_is_on_no_side():
    documents = np.repeat([-1.0, 1.0], DOCUMENTS // 2)
    (verdict,) = verdicts_on(results([{"v": documents}], null=replace(BOTH, p=0.001)))
    assert verdict.value == 0
    assert not verdict.claimed


@pytest.mark.parametrize("wrong", [{"p": float("nan")}, {"p": 2.0}, {"value": float("inf")}])
def test_a_null_without_a_probability_or_a_number_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Null 'noise': 'value' is .*, 'p' is .*; p is from 0 to 1, or None"):
        replace(BOTH, **wrong)
