"""The verdicts of a certificate on made-up rows, where the truth about each value is known."""

from __future__ import annotations

import numpy as np
import pytest

from saeval.results.board import Board, Column, Entry, Row
from saeval.results.certificate import Certificate, Certified
from saeval.results.certifying import Roles, certificate
from saeval.results.result import Result
from saeval.stats.estimate import Estimate
from saeval.testing.claims import every

DOSES = {"dropped share=0.1": 0.1, "dropped share=0.4": 0.4, "dropped share=0.8": 0.8}
DOCUMENTS = 20


def entry(value, error=0.01):
    steps = np.linspace(-1, 1, DOCUMENTS)
    without = value + error * steps / np.sqrt(np.square(steps).sum() * (DOCUMENTS - 1) / DOCUMENTS)
    estimate = Estimate(value, without, np.full(DOCUMENTS, 10.0), 10 * DOCUMENTS)
    return Entry(value, estimate.stderr, status="ok", estimate=estimate)


def made(trained, control=None, damaged=None, *, hooks=None, comparable="model", doses=DOSES) -> Certificate:
    """Return the certificate of values of SAEs, of a control of each, and of each at each dose; None: it has none."""
    names = list(dict.fromkeys(name for values in trained for name in values))
    columns = [Column(f"m.{name}", better="higher", comparable=comparable) for name in names]
    rows = []
    for place, values in enumerate(trained):
        sae, hook = f"sae{place}", hooks[place] if hooks else "hook"
        kinds = {None: values}
        kinds |= {"random": control(place, values)} if control else {}
        kinds |= {rung: damaged(place, values, dose) for rung, dose in doses.items()} if damaged else {}
        for kind, own in kinds.items():
            entries = {f"m.{name}": entry(value) for name, value in own.items() if value is not None}
            name, kinship = (f"{kind}({sae})", sae) if kind else (sae, None)
            row = Row(name, hook, "control" if kind else "sae", entries, control=kind, of=kinship, site=hook)
            rows.append(row)
    board = Board("made", "model", {"documents": DOCUMENTS}, columns, rows, None)
    roles = Roles(["m"], standing={"random": 2}, ladders={"dropped": doses})
    return certificate([result()], board, roles)


def result() -> Result:
    subject = {"name": "sae0", "hook_name": "hook", "kind": "sae", "key": "0"}
    cell = {"model": {}, "data": {"fingerprint": ""}, "metric": "m", "alias": "m", "params": {}, "metric_version": 1}
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
    every(abs(value - 0.9) < 1e-12 for value in rho)
