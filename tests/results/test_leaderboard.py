"""Leaderboards: pure functions of results."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from made_results import NOISE, result
from saeval import Estimate, Metric, SaevalError, Scalar
from saeval.results.leaderboard import from_results
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny, tiny_tokens
from saeval_reports import tables


def ranked(rows):
    return [(r.name, r.rank, r.rank_high) for r in rows]


def test_a_rank_is_an_interval_since_ties_are_not_transitive():
    # a and b differ by less than their own errors, but the difference is sure; c differs from b by noise of its own.
    results = [
        result("b", 1.01, NOISE + np.array([1e-4, -1e-4, 0, 0])),
        result("a", 1.00, NOISE),
        result("c", 1.05, -NOISE),
    ]
    (board,) = from_results(results, "t", {})
    assert ranked(board.rows) == [("a", 1, 2), ("b", 2, 3), ("c", 1, 3)]
    text = tables.markdown([board])
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == [
        "1–2",
        "2–3",
        "1–3",
    ]
    reach = stats.t.ppf([0.975, 0.8], 3).sum()  # with 80% power at the 5% level
    errors = [(results[i].estimate("v") - results[1].estimate("v")).stderr for i in (0, 2)]
    assert [r.detectable for r in board.rows] == [None, *(pytest.approx(reach * error) for error in errors)]
    assert (
        "test against the top row finds differences of 0.00068 to 1.5 nats (depending on the row) with 80% power."
        in text
    )
    rows = {r["name"]: r for r in json.loads(tables.as_json([board]))}
    assert [rows["b"][k] for k in ("rank", "rank_low", "rank_high")] == [2, 2, 3]
    assert rows["c"]["detectable"] == pytest.approx(reach * errors[1])


def test_one_test_that_is_sure_alone_is_not_sure_among_many():
    ends = np.linspace(-1, 1, 30)
    (board,) = from_results([result("a", 0.0, 0 * ends), result("b", 0.25, ends / 30)], "t", {})
    assert ranked(board.rows) == [("a", 1, 1), ("b", 2, 2)]
    more = [result(f"c{i}", 0.25 + i / 1000, ends / 30 + np.roll(ends, i) / 30) for i in range(1, 12)]
    (board,) = from_results([result("a", 0.0, 0 * ends), result("b", 0.25, ends / 30), *more], "t", {})
    assert ranked(board.rows)[:2] == [("a", 1, 13), ("b", 1, 13)]


def test_rows_without_influences_rank_by_value():
    results = [result(name, value, NOISE) for name, value in (("a", 1.0), ("b", 2.0), ("c", 2.0))]
    for one in results:
        one.arrays = {}
    (board,) = from_results(results, "t", {})
    assert ranked(board.rows) == [("a", 1, 1), ("b", 2, 3), ("c", 2, 3)]
    assert "80% power" not in tables.markdown([board])


def test_rows_that_cannot_be_tested_rank_by_value():
    """Over one document there is no test."""
    results = [result(name, value, NOISE[:1]) for name, value in (("a", 1.0), ("b", 2.0), ("c", 2.0))]
    for one in results:
        one.cell["data"] |= {"documents": 1, "tokens": 1008}
        one.values["v"] |= {"stderr": None, "ci95": None, **Estimate(1.0, np.ones(1), np.ones(1)).support._asdict()}
        one.values["v"]["effective_documents"] = one.values["v"].pop("effective")
    (board,) = from_results(results, "t", {})
    assert ranked(board.rows) == [("a", 1, 1), ("b", 2, 3), ("c", 2, 3)]
    text = tables.markdown([board])
    assert "1 document, 1008 tokens." in text
    assert "ranks are by the value of m.v: its differences cannot be tested" in text
    for word in ("±", "Holm", "80% power"):
        assert word not in text


def test_higher_may_be_better_and_controls_stand_below_without_rank():
    results = [
        result("low", 0.1, np.zeros(8), "higher"),
        result("high", 0.9, np.zeros(8), "higher"),
        result("zero", 1.0, np.zeros(8), "higher", kind="control", control="zero", of=None, copy=0),
    ]
    (board,) = from_results(results, "t", {"rank_by": "m.v"})
    assert ranked(board.rows) == [("high", 1, 1), ("low", 2, 2), ("zero", None, None)]


def at(hook, one):
    one.cell["subjects"][0]["hook_name"] = hook
    return one


def control(name, of, value, influence=NOISE, copy=0, better="lower"):
    shown = f"{name}({of})" if of else name
    shown += f"#{copy}" if copy else ""
    return result(shown, value, influence, better, kind="control", control=name, of=of, copy=copy, key=f"{shown}{copy}")


def test_against_a_control_is_paired_and_positive_where_the_sae_is_better():
    def board(better, sae=1.0):
        results = [result("a", sae, NOISE, better), control("mean", None, 3.0, 2 * NOISE, better=better)]
        return from_results(results, "t", {"against": ["mean"]})[0]

    ahead = board("lower").rows[0].entries["m.v vs mean"]
    assert ahead.value == 2
    assert ahead.stderr == pytest.approx(result("x", 0, NOISE).estimate("v").stderr)  # of 2 NOISE - NOISE
    low, high = ahead.ci95
    assert low < 2 < high
    assert board("higher").rows[0].entries["m.v vs mean"].value == -2
    text = tables.markdown([board("lower")])
    assert "m.v vs mean ↑" in text
    assert "x vs y is the paired lead of a row over that control" in text
    rows = {r["name"]: r for r in json.loads(tables.as_json([board("lower")]))}
    assert rows["a"]["m.v vs mean"] == 2
    assert rows["mean"]["m.v vs mean"] is None
    assert rows["mean"]["missing"] == {"m.v vs mean": "for SAEs only"}
    (warning,) = from_results([result("a", 1.0, NOISE, None), control("mean", None, 3.0)], "t", {"against": ["mean"]})[
        0
    ].warnings
    assert "no better direction" in warning


def test_against_takes_the_saes_own_control_at_its_own_hook_and_else_the_hooks():
    results = [
        result("a", 1.0, NOISE), result("b", 2.0, NOISE), at("far", result("c", 2.0, NOISE)), at("off", result("d", 2.0, NOISE)),
        control("mean", None, 10.0), at("far", control("mean", None, 20.0)),
        control("random", "a", 5.0), control("random", "b", 6.0), at("far", control("random", "x", 9.0)),
    ]  # fmt: skip
    (board,) = from_results(results, "t", {"against": ["random", "mean"]})
    found = {
        r.name: [r.entries[f"m.v vs {c}"].value for c in ("random", "mean")] for r in board.rows if r.kind == "sae"
    }
    assert found == {"a": [4, 9], "b": [4, 8], "c": [None, 18], "d": [None, None]}
    assert "undefined: no control 'mean' at off (m of d)" in board.notes
    assert (
        "undefined: no control 'random' at far is built from this SAE; add the SAE to the control's 'of:' (m of c)"
        in board.notes
    )  # there is that of x alone
    two = [result(name, 7.0, NOISE, kind="control", control="random", key=name) for name in ("one", "another")]
    results += [result("e", 2.0, NOISE), *two]
    (board,) = from_results(results, "t", {"against": {"random": ["m.v"], "men": ["m.v"], "mean": ["m.w"]}})
    assert [c.name for c in board.columns] == ["m.v", "m.v vs random"]
    assert any("several controls 'random' at h (m of e)" in note for note in board.notes)
    assert "against 'men': there is no such control; did you mean 'mean'?" in board.warnings
    assert any("there is no column 'm.w'; did you mean 'm.v'?" in note for note in board.warnings)


def test_saes_without_a_control_of_their_own_are_not_tested_beside_those_that_lead_theirs():
    results = [result("a", 1.0, NOISE), result("b", 2.0, NOISE)]
    results += [control("random", "a", 5.0, 2 * NOISE), control("mean", None, 10.0, 2 * NOISE)]
    text = tables.markdown(from_results(results, "t", {"against": ["random", "mean"]}))
    assert "- m.v vs random: 1 of 1 is better than the control random: a (5% level, Holm's correction over 3" in text
    assert "- m.v vs mean: 2 of 2 are better than the control mean: a, b (5% level, Holm's correction over 3" in text


def test_equal_rows_of_a_control_are_said_to_share_their_draws():
    results = [result("a", 1.0, NOISE), result("b", 2.0, NOISE), result("c", 2.0, NOISE)]
    results += [control("random", "a", 5.0), control("random", "b", 5.0), control("random", "c", 6.0)]
    (warning,) = from_results(results, "t", {})[0].warnings
    assert warning.startswith("random(a), random(b) have the same numbers, so these SAEs have the same control, ")


def test_against_takes_the_control_of_this_name_of_an_sae_with_two_names():
    results = [result(name, 1.0, NOISE, key="k") for name in "ab"]
    results += [control("random", name, 5.0) for name in "ab"]
    for twin in results[2:]:
        twin.cell["subjects"][0]["of_key"] = "k"
    (board,) = from_results(results, "t", {"against": ["random"]})
    assert [row.entries["m.v vs random"].value for row in board.rows[:2]] == [4, 4]


def test_against_several_draws_has_their_spread_in_its_error():
    draws = [control("random", "a", value, copy=i) for i, value in enumerate([4.0, 5.0, 6.0])]
    (board,) = from_results([result("a", 1.0, 2 * NOISE), *draws], "t", {"against": ["random"]})
    ahead = board.rows[0].entries["m.v vs random"]
    sampling = result("x", 0, NOISE).estimate("v").stderr
    assert (ahead.value, ahead.stderr) == (4, pytest.approx(np.sqrt(sampling**2 + 4 / 3)))  # beside one more draw


def test_copies_of_a_control_are_one_row_with_their_spread_in_its_error():
    facts = {"control": "random", "of": "a", "seeds": 3}
    results = [
        result("r" + (f"#{i}" if i else ""), value, NOISE, kind="control", copy=i, key=f"k{i}", **facts)
        for i, value in enumerate([1.0, 2.0, 3.0])
    ]
    (board,) = from_results(results, "t", {})
    (row,) = board.rows
    assert row.copies == 3
    sampling = results[0].estimate("v").stderr
    assert row.entries["m.v"].value == 2
    assert row.entries["m.v"].stderr == pytest.approx(np.sqrt(sampling**2 + 1 / 3))


def test_a_count_over_draws_has_no_error_unless_they_differ():
    facts = {"control": "random", "of": "a", "seeds": 2, "kind": "control"}
    for counts, error in (((7.0, 7.0), None), ((7.0, 9.0), 1.0)):
        draws = [result(f"r#{i}", n, NOISE, copy=i, key=f"k{i}", **facts) for i, n in enumerate(counts)]
        for one in draws:
            one.arrays = {}
            one.values["v"] |= {"stderr": None, "ci95": None}
        (board,) = from_results(draws, "t", {})
        assert board.rows[0].entries["m.v"].stderr == error


def test_whole_numbers_are_whole_in_csv():
    (board,) = from_results([result("a", 1.0, NOISE), result("b", 2.0, NOISE), control("mean", None, 3.0)], "t", {})
    lines = list(csv.DictReader(io.StringIO(tables.csv([board]))))
    assert [line["rank"] for line in lines] == ["1", "1", ""]


def test_different_data_make_different_boards():
    boards = from_results([result("a", 1, NOISE), result("a", 2, NOISE, data="e")], "t", {})
    assert [b.rows[0].entries["m.v"].value for b in boards] == [1, 2]


def test_failures_and_undefined_values_show_with_their_reason():
    results = [
        result("a", 1.0, NOISE),
        result("b", 0, NOISE, status="failed", reason="RuntimeError: planted"),
        result("c", 0, NOISE, status="undefined", reason="c has no features"),
    ]
    boards = from_results(results, "t", {})
    text = tables.markdown(boards)
    assert "FAILED" in text
    assert "failed: RuntimeError: planted (m of b)" in text
    assert "undefined: c has no features (m of c)" in text
    rows = {r["name"]: r for r in json.loads(tables.as_json(boards))}
    assert rows["b"]["m.v"] is None
    assert rows["b"]["missing"] == {"m.v": "failed: RuntimeError: planted"}
    assert rows["a"]["missing"] == {}
    assert "planted" in tables.csv(boards)


def test_a_reason_that_many_share_names_a_few_of_them():
    results = [result(f"s{i}", 0, NOISE, status="undefined", reason="no features") for i in range(9)]
    boards = from_results([result("a", 1.0, NOISE), *results], "t", {})
    assert boards[0].notes == [
        "undefined: no features (m of s0, m of s1, m of s2, m of s3, m of s4, m of s5 and 3 more)"
    ]
    assert sum("no features" in r["missing"].get("m.v", "") for r in json.loads(tables.as_json(boards))) == 9


def test_an_unknown_column_or_rank_is_told_beside_the_table():
    (board,) = from_results([result("a", 1, NOISE)], "t", {"columns": ["m.w"], "rank_by": "m.u"})
    text = tables.markdown([board])
    assert "column 'm.w': metric 'm' has no value 'w'" in text
    assert "rank_by 'm.u': there is no such column" in text


def test_subjects_of_one_name_from_two_runs_keep_rows_of_their_own():
    (board,) = from_results([result("a", 1, NOISE, key="x"), result("a", 2, NOISE, key="y")], "t", {})
    assert [(r.name, r.entries["m.v"].value) for r in board.rows] == [("a", 1), ("a (2)", 2)]


def test_one_name_for_two_configurations_is_refused():
    other = result("a", 2, NOISE)
    other.cell = {**other.cell, "params": {"ablation": "zero"}}
    with pytest.raises(SaevalError, match="another name with 'as:'"):
        from_results([result("a", 1, NOISE), other], "t", {})


def test_folders_merge_where_model_and_data_agree(tmp_path):
    from saeval.results.leaderboard import boards

    rows = tiny_tokens()
    for name, seed in (("first", 1), ("second", 2)):
        evaluate_tiny(["l0"], model=TinyModel(), rows=rows, saes={name: TinySAE(seed=seed)}, out=tmp_path, name=name)
    (board,) = boards([tmp_path / "first", tmp_path / "second"])
    assert {r.name for r in board.rows} == {"first", "second"}
    assert board.title == "first + second"


def test_an_unfinished_cell_has_a_row_that_says_so(tmp_path):
    from saeval.results.leaderboard import boards

    results = evaluate_tiny(["l0", "density"], out=tmp_path)
    (tmp_path / "evaluate" / f"{results[0].key}.json").unlink()
    (board,) = boards([tmp_path / "evaluate"])
    assert Store(tmp_path / "evaluate").read(results[0].key) is None
    assert any("1 of 2 cells of 'evaluate' are not computed yet" in note for note in board.notes)


class Three(Metric):
    """Multiples of the decoder's norm."""

    name, headline = "three", ("second",)

    def conclude(self, W_dec):
        norm = float(W_dec.norm())
        return {"first": Scalar(norm), "second": Scalar(2 * norm, better="lower"), "third": Scalar.undefined("none")}


def test_a_printed_table_shows_headlines_unless_the_suite_names_columns(tmp_path):
    results = evaluate_tiny([Three.name], Three, out=tmp_path)
    text = results.leaderboard()
    assert "three.second" in text
    assert "three.first" not in text
    assert "undefined" not in text
    assert "- 2 more values: see --format csv or json" in text
    for format in ("csv", "json"):
        assert all(f"three.{name}" in results.leaderboard(format) for name in ("first", "second", "third"))
    (board,) = from_results(list(results), "t", {})
    assert board.rank_by == "three.second"
    (again,) = from_results(Store(tmp_path / "evaluate").results(True)[1], "t", {})
    assert [c.name for c in again.shown] == ["three.second"]
    (asked,) = from_results(list(results), "t", {"columns": ["three.third", "three.first"]})
    assert [c.name for c in asked.shown] == ["three.third", "three.first"]
    assert [c.name for c in asked.columns] == ["three.third", "three.first", "three.second"]


class Misnamed(Three):
    name, headline = "misnamed", ("second", "fourth")


def test_a_headline_names_values_that_there_are():
    with pytest.raises(AssertionError, match=r"misnamed.headline: unknown values \['fourth'\]"):
        check_metric(Misnamed)
    assert "misnamed.second" in evaluate_tiny([Misnamed.name], Misnamed).leaderboard()


def test_results_as_a_frame():
    results = evaluate_tiny(["l0", "reconstruction"], controls=["zero"])
    frame = results.to_frame()
    l0 = frame[(frame.metric == "l0") & (frame.quantity == "l0") & (frame.name == "tinysae")]
    assert len(l0) == 1
    assert l0.ci95_low.item() < l0.value.item() < l0.ci95_high.item()
    undefined = frame[(frame.metric == "l0") & (frame.name == "zero")]
    assert undefined.status.item() == "undefined"
    assert results._repr_markdown_().startswith("## evaluate")


class Doubled(Metric):
    """Twice the decoder's mean norm: one value, without an error."""

    name = "doubled"

    def conclude(self, W_dec):
        return Scalar(2 * float(W_dec.norm(dim=1).mean()), better="lower")


def test_a_metric_of_one_value_may_be_named_alone():
    layout = {"rank_by": "twice", "columns": ["twice", "l0.l0"]}
    metrics = [{"doubled": {"as": "twice"}}, "l0"]
    saes = {"a": TinySAE(), "b": TinySAE(seed=1)}
    results = evaluate_tiny(metrics, Doubled, saes=saes)
    (board,) = from_results(list(results), "tiny", layout)
    assert [column.name for column in board.shown] == ["twice.doubled", "l0.l0"]
    assert not [w for w in board.warnings if "preflight" not in w]
    text = tables.markdown([board])
    assert "ranks are by the value of twice.doubled: its differences cannot be tested" in text
    (board,) = from_results(list(results), "tiny", {"rank_by": "l0.l0", "columns": ["twice", "l0.l0"]})
    assert [w for w in board.warnings if "preflight" not in w] == [
        "rank_by 'l0.l0': it has no better direction, so nothing is ranked"
    ]
