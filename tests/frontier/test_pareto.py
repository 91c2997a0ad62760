"""Pareto fronts: a planted set, shares that know which errors are shared, hypervolumes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ladders import estimate, result
from saeval.plugin import Estimate, SaevalError
from saeval.testing import check_chart
from saeval.testing.chart_checks import channels
from saeval.testing.claims import every
from saeval_frontier.families import families, members
from saeval_frontier.pages import pareto_section
from saeval_frontier.pareto import dominated_area, fronts, jackknife_draws, undominated
from saeval_frontier.plots import pareto_chart


def front(*saes, y="ce.delta_ce"):
    """The front of SAEs `(name, L0, loss)`; a family per architecture."""
    results = []
    for name, l0, loss in saes:
        kind = name.partition("-")[0]
        results.append(result(name, "l0", {"l0": l0}, architecture=kind))
        results.append(result(name, "ce", {y.partition(".")[2]: loss}, architecture=kind))
    (only,) = fronts(families(members(results)), "l0.l0", y)
    return only


def _by_family(found):
    return {(found.hook_name, f): [p.sae for p in found.points if p.family == f] for f in found.families}


def test_the_front_of_a_planted_set():
    planted = front(
        ("a-1", estimate(1), estimate(4)), ("a-2", estimate(2), estimate(2)), ("a-3", estimate(4), estimate(1)),
        ("b-1", estimate(2), estimate(3)), ("b-2", estimate(4), estimate(4)), ("b-3", estimate(4), estimate(1)),
    )  # fmt: skip
    assert planted.on.tolist() == [True, True, True, False, False, True]  # a-3 and b-3 are equal
    assert planted.share.tolist() == planted.on.tolist()  # nothing has an error


def test_undominated_equals_its_definition():
    x, y = np.random.default_rng(0).integers(0, 8, (2, 60)).astype(float)
    dominated = [any((x <= x[i]) & (y <= y[i]) & ((x < x[i]) | (y < y[i]))) for i in range(60)]
    assert undominated(x, y).tolist() == [not d for d in dominated]


def test_a_value_where_higher_is_better():
    planted = front(("a-1", estimate(1), estimate(0.5)), ("a-2", estimate(2), estimate(0.4)), y="ce.recovered")
    assert planted.on.tolist() == [True, False]
    saes = families(members([r for name, l0, share in (("a", 1, 0.5), ("b", 2, 0.4)) for r in (
        result(name, "l0", {"l0": estimate(l0)}), result(name, "ce", {"recovered": estimate(share)}))]))  # fmt: skip
    (turned,) = fronts(saes, "ce.recovered", "l0.l0")
    assert turned.on.tolist() == [True, False]
    one, low, best = estimate(1), estimate(0.2), estimate(0.8)
    area = front(("a-1", one, low), ("a-2", estimate(4), best), ("b-1", estimate(2), estimate(0.6)), y="ce.recovered")
    assert area.hypervolume["b"].value == pytest.approx(1 / 3)


def test_shared_errors_cancel_and_own_errors_do_not():
    same = front(("a-1", estimate(1), estimate(1.0, 0.5, 1)), ("a-2", estimate(2), estimate(1.01, 0.5, 1)))
    own = front(("a-1", estimate(1), estimate(1.0, 0.5, 1)), ("a-2", estimate(2), estimate(1.01, 0.5, 2)))
    assert same.share.tolist() == [1, 0]
    assert own.share[0] == 1
    assert 0.4 < own.share[1] < 0.6


def test_draws_have_the_errors_of_the_jackknife():
    estimates = [estimate(1.0, 0.3, 1), estimate(2.0, 0.1, 1), estimate(5.0)]
    drawn = np.array(list(jackknife_draws(estimates, 4000, 0)))
    assert drawn.std(0)[:2] == pytest.approx([e.stderr for e in estimates[:2]], rel=0.05)
    assert np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(1)
    assert every(drawn[:, 2] == 5.0)
    few = Estimate(0.0, np.array([-1.0, 0.0, 1.0]), np.ones(3))
    assert np.std(list(jackknife_draws([few], 4000, 0))) == pytest.approx(few.stderr, rel=0.05)


def test_the_dominated_area():
    assert dominated_area(np.array([0.0]), np.array([0.0])) == 1
    assert dominated_area(np.array([0.0, 0.5]), np.array([0.5, 0.25])) == pytest.approx(0.5 + 0.5 * 0.25)
    assert dominated_area(np.array([1.0, 2.0]), np.array([0.2, 0.1])) == 0


def test_a_hypervolume_has_the_error_of_its_values():
    planted = front(
        ("a-1", estimate(1), estimate(4.0, 0.1, 1)), ("a-2", estimate(4), estimate(1.0, 0.1, 2)),
        ("b-1", estimate(2), estimate(3.0, 0.1, 3)),
    )  # fmt: skip
    box = np.log(4) * 3
    assert planted.hypervolume["b"].value == pytest.approx(np.log(2) * 1 / box)
    assert planted.hypervolume["b"].stderr == pytest.approx(0.1 * np.log(2) / box, rel=0.3)
    assert planted.hypervolume["a"].value == 0  # both are at the edge of the box


def test_a_box_without_area_has_no_hypervolume():
    assert front(("a-1", estimate(3, 0.1, 1), estimate(1, 0.1, 2))).hypervolume == {}


def test_without_errors_there_is_no_share_of_draws():
    one_document = Estimate(1.0, np.array([1.0]), np.ones(1), 1)
    results = [result(f"a-{i}", m, {v: one_document}) for i in range(2) for m, v in (("l0", "l0"), ("ce", "delta_ce"))]
    (only,) = fronts(families(members(results)), "l0.l0", "ce.delta_ce")
    assert [row["share of draws"] for row in only.rows("x", "y")] == [None, None]


def test_a_family_has_one_colour_at_all_hooks():
    results = []
    for name, kind, block in (("a", "relu", 1), ("b", "topk", 1), ("c", "topk", 2), ("d", "relu", 2)):
        for metric, value in (("l0", "l0"), ("ce", "delta_ce")):
            values = {value: estimate(ord(name), 0.1, ord(name))}
            hook = f"blocks.{block}.hook_resid_pre"
            results.append(result(name, metric, values, hook=hook, architecture=kind))
    found = fronts(families(members(results)), "l0.l0", "ce.delta_ce")
    chart = pareto_chart(found, "x", "y")
    scales = [c["scale"] for name, c in channels(chart.spec) if name == "color"]
    assert every(scale == scales[0] for scale in scales)
    assert scales[0]["domain"] == ["relu", "topk"]
    assert len(set(scales[0]["range"])) == 2


def test_only_the_front_is_joined_and_ringed():
    planted = front(*((f"a-{x}", estimate(x), estimate(y)) for x, y in ((1, 4), (2, 2), (3, 3), (4, 1))))
    chart = pareto_chart([planted], "l0.l0", "ce.delta_ce")
    check_chart(chart)
    assert [r["x"] for r in chart.data if r["on the front"]] == [1, 2, 4]
    joined = [layer for layer in chart.spec["spec"]["layer"] if layer["mark"]["type"] == "line"]
    assert [layer["transform"][-1] for layer in joined] == [{"filter": "datum['on the front']"}]


def test_the_shares_of_seeds_are_written_beside_each_other():
    seeds = [(f"a-{i}", estimate(32), estimate(1.0 + i / 100, 0.5, i)) for i in range(3)]
    chart = pareto_chart([front(*seeds, ("b", estimate(64), estimate(0.99, 0.5, 9)))], "l0.l0", "ce.delta_ce")
    shares = {r["SAE"]: r["share"] for r in chart.data}
    assert len(shares["a-0"].split(", ")) == 3
    assert shares["a-1"] is shares["a-2"] is None
    assert shares["b"].endswith("%")
    assert every(0 < r["share of draws"] < 1 for r in chart.data)


def test_saes_without_one_of_the_values_are_named():
    saes = families(members([*(result(n, "l0", {"l0": estimate(1.0)}) for n in "ab"),
                             result("a", "ce", {"delta_ce": estimate(1.0)})]))  # fmt: skip
    found = fronts(saes, "l0.l0", "ce.delta_ce")
    section = pareto_section(saes, found, "l0.l0", "ce.delta_ce")
    (said,) = [sentence for sentence in section.summary if sentence.startswith("Left out")]
    assert said == (
        "Left out, since they lack l0.l0 or ce.delta_ce: 1 of 2 SAEs of SAEs at blocks.1.hook_resid_pre (b); they could "
        "be on the front."
    )


def test_a_front_says_who_may_be_on_it_and_that_families_of_unequal_size_are_not_comparable():
    close = [("a-1", estimate(1), estimate(4.0)), ("a-2", estimate(2), estimate(1.0, 0.5, 1))]
    planted = front(*close, ("b-1", estimate(2.5), estimate(1.01, 0.5, 2)), ("b-2", estimate(3), estimate(9.0)))
    words, *rest = pareto_section(_by_family(planted), [planted], "l0.l0", "ce.delta_ce").summary
    assert words.startswith("On the front of 4 SAEs at blocks.1.hook_resid_pre: a-1, a-2; not sure, with the share of")
    assert re.search(r"b-1 \((4|5)\d%\)\.$", words)
    assert rest == []
    alone = front(*close, ("b-1", estimate(3), estimate(0.5)))
    section = pareto_section(_by_family(alone), [alone], "l0.l0", "ce.delta_ce")
    assert section.summary[-1].startswith(
        "Families have 1 to 2 SAEs at a hook, so their hypervolumes are not comparable"
    )
    assert [row[2] for row in section.tables[0].rows] == ["2", "1"]


def test_values_that_do_not_exist():
    saes = families(members([result("a", "l0", {"l0": estimate(1.0)})]))
    with pytest.raises(SaevalError, match=r"no SAE of these results has a value 'ce.delta_ce'; values are named"):
        fronts(saes, "l0.l0", "ce.delta_ce")
