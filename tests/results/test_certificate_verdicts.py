"""The verdicts of a certificate on made-up rows, where the truth about each value is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from saeval.results.board import Board, Column, Entry, Row
from saeval.results.certificate import Certificate, Certified
from saeval.results.certificate_section import section
from saeval.results.certifying import Roles, certificate
from saeval.results.result import Result
from saeval.stats.estimate import Estimate
from saeval.testing.claims import every

DOSES = {"dropped share=0.1": 0.1, "dropped share=0.4": 0.4, "dropped share=0.8": 0.8}
DOCUMENTS = 20


def entry(value, error=0.01):
    """An entry whose standard error is `error`, or that has none."""
    if error is None:
        return Entry(value, status="ok")
    steps = np.linspace(-1, 1, DOCUMENTS)
    without = value + error * steps / np.sqrt(np.square(steps).sum() * (DOCUMENTS - 1) / DOCUMENTS)
    estimate = Estimate(value, without, np.full(DOCUMENTS, 10.0), 10 * DOCUMENTS)
    return Entry(value, estimate.stderr, status="ok", estimate=estimate)


def made(
    trained, control=None, damaged=None, *, hooks=None, comparable="model", doses=DOSES, group=(), limit=None,
    error=0.01, reseeds=(), kind="sae", frozen=None,
) -> Certificate:  # fmt: skip
    """Return the certificate of values of SAEs, of a control of each, and of each at each dose; None: it has none.

    Values are those of metric `m`, or with a dot those of the one named, of which `t` knows the truth and `reseeds`
    are `m` with other seeds. `error` is their standard error, or one for each SAE and dose.
    """
    names = list(dict.fromkeys(name for values in trained for name in values))
    columns = [Column(whole(name), better="higher", comparable=comparable, main=True) for name in names]
    rows = []
    for place, values in enumerate(trained):
        sae, hook = f"sae{place}", hooks[place] if hooks else "hook"
        kinds = {None: values}
        kinds |= {"random": control(place, values)} if control else {}
        kinds |= {"frozen": frozen(place, values)} if frozen else {}
        kinds |= {rung: damaged(place, values, dose) for rung, dose in doses.items()} if damaged else {}
        for use, own in kinds.items():
            size = error(place, doses.get(use, 0)) if callable(error) else error
            entries = {whole(name): entry(value, size) for name, value in own.items() if value is not None}
            name, kinship = (f"{use}({sae})", sae) if use else (sae, None)
            row = Row(name, hook, "control" if use else kind, entries, control=use, of=kinship, site=hook)
            rows.append(row)
    board = Board("made", "model", {"documents": DOCUMENTS}, columns, rows, None)
    groups = {"seeds": [f"sae{place}" for place in group]} if group else {}
    roles = Roles(["m", "t"], {"m": reseeds}, {"frozen": 3, "random": 2}, {"dropped": doses}, ["t"], groups)
    return certificate([result(limit)], board, roles)


def whole(name: str) -> str:
    return name if "." in name else f"m.{name}"


def result(limit=None) -> Result:
    subject = {"name": "sae0", "hook_name": "hook", "kind": "sae", "key": "0"}
    cell = {
        "model": {},
        "data": {"fingerprint": "", "limit": limit},
        "metric": "m",
        "alias": "m",
        "params": {},
        "metric_version": 1,
    }
    return Result("key", "ok", {**cell, "subjects": [subject]})


def of(values, name="m.v") -> Certified:
    return next(one for one in values.values if one.column == name)


def worse(place, values, dose=5.0):
    return {name: None if value is None else value - dose for name, value in values.items()}


def test_two_saes_with_a_wide_interval_are_undecided():
    # one step of one SAE out of order: τ of 1 and of 2/3, whose t interval for two SAEs includes 0
    steps = {0: {0.1: -0.1, 0.4: -0.4, 0.8: -0.8}, 1: {0.1: -0.1, 0.4: -0.8, 0.8: -0.4}}
    found = of(made([{"v": 1.0}, {"v": 2.0}], worse, lambda place, v, dose: {"v": v["v"] + steps[place][dose]}))
    (dose,) = found.doses
    assert dose.tau.value > 0.8
    assert dose.tau.low < 0
    assert found.words == "undecided: 2 SAEs: too few to say whether it tells them from controls"
    alone = of(made([{"v": 1.0}, {"v": 2.0}], None, lambda place, v, dose: {"v": v["v"] + steps[place][dose]}))
    assert alone.words == "undecided: 2 SAEs: too few to say whether it gets worse with damage"


@pytest.mark.parametrize(("comparable", "verdict"), [("hook", "controls"), ("model", "ranking")])
def test_values_that_depend_on_their_hook_are_not_compared_between_hooks(comparable, verdict):
    hooks = ["a", "b", "c", "d", "e"]
    values = [{"v": float(place)} for place in range(5)]
    found = of(made(values, worse, worse, hooks=hooks, comparable=comparable))
    assert found.verdict == verdict
    assert (found.spread is None) == (comparable == "hook")
    assert (found.apart is None) == (comparable == "hook")


def test_a_value_that_nothing_changes_is_not_usable():
    found = of(made([{"v": float(place)} for place in range(5)], lambda _, v: v, lambda _, v, dose: v))
    assert found.words == "not usable here: no control and no damage changes it"


def test_one_dose_is_a_ladder():
    found = of(made([{"v": float(p)} for p in range(5)], worse, worse, doses={"dropped share=0.5": 0.5}))
    (dose,) = found.doses
    assert dose.tau.value == 1
    assert dose.detected == 0.5


def test_rank_correlations_are_over_the_saes_that_both_values_have():
    # the two SAEs that `w` lacks are the only ones between which `v` differs
    v, w = [0, 1, 1, 1, 1, 1, 2], [None, 1, 2, 3, 4, 5, None]
    values = [{"v": float(a), "w": b if b is None else float(b)} for a, b in zip(v, w, strict=True)]
    assert not of(made(values)).same
    v = [9, 1, 2, 3, 5, 4, 8]
    values = [{"v": float(a), "w": b if b is None else float(b)} for a, b in zip(v, w, strict=True)]
    both = made(values)
    rho = [of(both, f"m.{name}").same[0].rho.value for name in ("v", "w")]
    assert every(abs(value - 0.9) < 1e-12 for value in rho)


def test_equal_responses_of_all_saes_have_an_interval_that_narrows_with_their_number():
    lows = []
    for n in (2, 3, 5, 10):
        (dose,) = of(made([{"v": float(place)} for place in range(n)], worse, worse_by_dose)).doses
        assert (dose.tau.value, dose.tau.high) == (1, 1)
        lows.append(dose.tau.low)
    assert every(a < b < 1 for a, b in itertools.pairwise(lows))
    assert lows[1] < 0 < lows[2]  # three SAEs could agree by chance
    # five of 1 and one of 0: mean 5/6, standard error 1/6, t of 5 degrees of freedom
    assert lows[2] == pytest.approx(5 / 6 - 2.5706 / 6, abs=1e-4)


def worse_by_dose(place, values, dose):
    return {name: value - dose for name, value in values.items()}


def test_equal_ranks_have_an_interval():
    intervals = []
    for n in (5, 20):
        both = made([{"v": float(place), "w": float(place) ** 2} for place in range(n)])
        rho = of(both).same[0].rho
        assert (rho.value, rho.high) == (pytest.approx(1), 1)
        opposed = of(made([{"v": float(place), "w": -float(place)} for place in range(n)])).same[0].rho
        assert (opposed.low, opposed.high) == (-1, pytest.approx(-rho.low))
        intervals.append(rho.low)
    assert 0 < intervals[0] < intervals[1] < 1


def test_a_sure_but_small_difference_is_said_to_be_small():
    values = [{"v": 100 + place / 10, "w": 100.0 + 10 * place} for place in range(5)]
    found = made(values, worse, worse)
    assert of(found).apart.value == of(found, "m.w").apart.value == 1
    assert of(found).difference == pytest.approx(0.002, rel=0.01)
    assert of(found, "m.w").difference == pytest.approx(20 / 130, rel=0.05)
    (table,) = [table for table in section(found).tables if table.name == "errors"]
    by = [row[table.headers.index("by")] for row in table.rows]
    assert by[0] == "0.20%"


ORDERS = {"agrees": [0, 1, 2, 3, 4, 5, 6], "against": [6, 5, 4, 3, 2, 1, 0], "unrelated": [3, 5, 1, 0, 4, 2, 6]}


@pytest.mark.parametrize(
    ("truths", "verdict", "reason"),
    [
        (["agrees"], "ranking", ""),
        (["against"], "unusable", "it ranks SAEs against the truth (t.against)"),
        (["unrelated"], "controls", "it is not seen to rank SAEs as the truth does (rank correlations t.unrelated"),
        (["agrees", "against"], "ranking", ""),
        ([], "ranking", ""),
    ],
)
def test_where_the_truth_is_known_a_value_has_to_agree_with_it(truths, verdict, reason):
    values = [{"v": float(p), **{f"t.{name}": float(ORDERS[name][p]) for name in truths}} for p in range(7)]
    found = made(values, worse, worse)
    assert of(found).verdict == verdict, of(found).words
    assert reason in of(found).words
    # metrics that know the truth do not judge each other
    assert (
        every(not one.truths for one in found.values if one.column.startswith("t.")) if truths else not of(found).truths
    )


def test_a_truth_that_fails_beside_controls_is_no_yardstick():
    values = [{"v": float(p), "t.against": -float(p)} for p in range(7)]

    def better(place, own, dose=5.0):
        return {"v": own["v"] - dose, "t.against": own["t.against"] + dose}

    found = made(values, better, better)
    assert of(found, "t.against").verdict == "unusable"
    assert (of(found).verdict, of(found).truths) == ("ranking", ())


def test_pairs_of_one_recipe_are_left_out_of_those_to_tell_apart():
    values = [{"v": v} for v in (1.0, 1.0, 1.0, 2.0, 3.0)]
    assert of(made(values, worse, worse)).apart.value == pytest.approx(7 / 10)
    assert of(made(values, worse, worse, group=(0, 1, 2))).apart.value == 1


def test_a_value_without_error_bars_says_so():
    board_values = [{"v": float(place)} for place in range(5)]
    found = of(made(board_values, worse, worse, error=None))
    assert found.words == "usable against controls only: no two SAEs could be compared: it has no error bars"


def test_a_certificate_of_a_limited_run_says_so():
    values = [{"v": float(place)} for place in range(5)]
    assert (
        section(made(values, limit=8)).summary[0]
        == "From 5 SAEs and 8 sequences (--limit), on this model and text alone"
    )
    assert section(made(values)).summary[0] == "From 5 SAEs, on this model and text alone"


def test_pairs_are_told_apart_only_after_holms_correction():
    # every difference of two SAEs is 2.5 of its standard errors: p = 0.022 with 20 documents
    values, error = [{"v": 0.025 * place} for place in range(5)], lambda place, dose: 0.01 * place
    assert of(made(values[:2], error=error)).apart.value == 1
    assert of(made(values, error=error)).apart.value == 0


def test_the_smallest_dose_that_is_detected_is_one_after_holms_correction():
    def damaged(place, own, dose):
        return {"v": own["v"] - (0.025 if dose == 0.5 else 1.0) * dose}

    doses = {"dropped share=0.5": 0.5, "dropped share=1": 1.0}
    values, error = [{"v": float(place)} for place in range(5)], lambda place, dose: 0.01 * dose
    (alone,) = of(made(values[:1], None, damaged, doses=dict([*doses.items()][:1]), error=error)).doses
    (among,) = of(made(values, None, damaged, doses=doses, error=error)).doses
    assert (alone.detected, among.detected) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("moved", "verdict"), [(0.1, "ranking"), (1.2, "controls"), (3.0, "unusable")], ids=["little", "much", "too much"]
)
def test_what_draws_move_counts_against_what_saes_differ_by(moved, verdict):
    drawn = (-1, 1, 0)  # the standard deviation of these is 1, that of the SAEs' values 1.58
    values = [{"v": place + moved * drawn[0], **reseeded(place, moved, drawn[1:])} for place in range(5)]
    found = of(made(values, worse, worse, reseeds=("r1", "r2")))
    assert found.evaluation.value == pytest.approx(moved)
    assert (found.evaluation.n, found.verdict) == (10, verdict), found.words
    assert verdict == "ranking" or f"its own draws move it by {moved:g}" in found.words


def reseeded(place, moved, drawn):
    return {f"r{number}.v": place + moved * step for number, step in enumerate(drawn, 1)}


@pytest.mark.parametrize(("moved", "verdict"), [(0.1, "ranking"), (3.0, "controls")])
def test_what_training_seeds_move_counts_against_what_saes_differ_by(moved, verdict):
    values = [{"v": 3 + moved * step} for step in (-1, 1, 0)] + [{"v": 0.0}, {"v": 6.0}]
    found = of(made(values, worse, worse, group=(0, 1, 2)))
    assert (found.training.value, found.training.n) == (pytest.approx(moved), 2)
    assert found.verdict == verdict
    assert ("the training seed moves it by 3" in found.words) == (verdict == "controls")


def test_a_control_that_is_better_makes_a_value_unusable():
    def better(place, own):
        return {"v": own["v"] + 5}

    found = of(made([{"v": float(place)} for place in range(5)], better, worse_by_dose))
    assert found.words == "not usable here: it ranks random before the SAEs"
    rising = of(
        made([{"v": float(place)} for place in range(5)], worse, lambda *given: {"v": given[1]["v"] + given[2]})
    )
    assert rising.words == "not usable here: it gets better with dropped"


def test_values_of_groups_are_counted_in_groups():
    found = of(made([{"v": 1.0}, {"v": 2.0}], worse, kind="group"))
    assert found.words == "undecided: 2 groups: too few to say whether it tells them from controls"


def test_a_value_that_does_not_tell_trained_saes_from_frozen_ones_ranks_none():
    def even(place, own):
        return {"v": own["v"] + (1 if place % 2 else -1)}

    found = of(made([{"v": float(place)} for place in range(6)], worse, worse_by_dose, frozen=even))
    assert found.words == "usable against controls only: it does not tell the SAEs from frozen"
