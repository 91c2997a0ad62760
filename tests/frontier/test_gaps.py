"""Gaps of pruned to trained SAEs at equal L0."""

from __future__ import annotations

import math

import pytest

from ladders import estimate, result
from saeval.plugin import SaevalError
from saeval_frontier.families import families, members
from saeval_frontier.gaps import aliases, gaps, trained


def sae(name, l0, loss, points=(), **facts):
    """An SAE with its own L0 and loss, and a prune curve `[(target, L0, loss), ...]`."""
    values = {"l0": estimate(l0), "delta_ce": loss}
    for target, x, y in points:
        values |= {f"l0_most_frequent@{target}": estimate(x), f"delta_ce_most_frequent_zero@{target}": y}
    made = result(name, "sparsity_frontier", values, architecture="topk", **facts)
    if points:
        made.values["delta_ce_most_frequent_zero"] = {"kind": "curve"}
    return made


def measured(*results):
    return gaps(families(members(results)), "sparsity_frontier", "delta_ce")


def test_on_a_line_in_log_l0_the_gap_is_zero():
    points = [(0.5, 32.0, estimate(math.log(32), 0.1, 1)), (0.01, 0.5, estimate(9.0))]
    pruned = sae("a", 64.0, estimate(math.log(64), 0.1, 1), points)
    found, reasons = measured(pruned, sae("b", 16.0, estimate(math.log(16), 0.1, 1)))
    (gap,) = found
    assert gap.difference.value == pytest.approx(0, abs=1e-12)
    assert gap.difference.stderr == pytest.approx(0, abs=1e-12)  # the documents deviate together
    assert gap.trained.stderr == pytest.approx(0.1, rel=0.2)
    assert reasons == [
        "no gap for 1 point of family 'topk' at blocks.1.hook_resid_pre, outside its trained range of L0, 16 to 64"
    ]


def test_the_interval_is_paired():
    points = [(0.5, 32.0, estimate(2.0, 0.1, 1))]
    saes = [sae("a", 64.0, estimate(1.0, 0.1, 1), points), sae("b", 16.0, estimate(1.0, 0.1, 1))]
    (gap,), _ = measured(*saes)
    assert gap.difference.value == pytest.approx(1.0)
    assert gap.difference.stderr < 1e-9
    assert gap.p_holm < 0.001


def test_without_errors_of_one_sae_a_gap_has_a_value_and_no_test():
    lone = sae("b", 16.0, estimate(2.0))
    lone.arrays.clear()
    (gap,), _ = measured(sae("a", 64.0, estimate(1.0), [(0.5, 32.0, estimate(2.0, 0.1, 1))]), lone)
    assert gap.difference.value == pytest.approx(0.5)
    assert gap.difference.stderr is None
    assert gap.p_holm is None


def test_p_values_are_corrected_over_all_gaps():
    points = [(target, 32.0, estimate(1.03, 0.01, 1)) for target in (0.5, 0.4)]
    found, _ = measured(sae("a", 64.0, estimate(1.0), points), sae("b", 16.0, estimate(1.0)))
    assert [gap.p_holm for gap in found] == [2 * gap.difference.p_value for gap in found]
    assert 0 < found[0].p_holm < 0.1


def test_an_sae_that_keeps_nothing_is_no_point_of_a_ladder():
    saes = [sae("a", 64.0, estimate(1.0)), sae("dead", 0.0, estimate(9.0)), sae("b", 60.0, estimate(1.1))]
    ladder = trained(members(saes), "sparsity_frontier", "delta_ce")
    assert [x.value for x, _ in ladder] == [60.0, 64.0]  # nor are 60 and 64 near enough to be one


def test_seeds_count_as_one_trained_point():
    saes = [sae("a", 64.0, estimate(1.0)), sae("b", 16.0, estimate(2.0)), sae("b-seed1", 16.1, estimate(4.0))]
    ladder = trained(members(saes), "sparsity_frontier", "delta_ce")
    assert [(x.value, y.value) for x, y in ladder] == [(16.05, 3.0), (64.0, 1.0)]


def test_one_sae_in_a_family_is_said_in_one_sentence():
    found, reasons = measured(sae("a", 64.0, estimate(1.0), [(0.5, 32.0, estimate(2.0))]))
    assert not found
    assert reasons == [
        "family 'topk' at blocks.1.hook_resid_pre has 1 trained L0; a gap needs SAEs trained at two or more different L0"
    ]


def test_a_property_inside_another_is_suggested():
    (typo,) = members([sae("a", 1.0, estimate(1.0), training={"l1_coefficient": 5})])
    assert typo.required("l1_coefficient") == 5
    with pytest.raises(SaevalError, match="does not declare 'l1_coeficient'; did you mean 'l1_coefficient'"):
        typo.required("l1_coeficient")


def test_a_declared_none_is_not_suggested():
    (unknown,) = members([sae("a", 1.0, estimate(1.0), training_tokens=None)])
    with pytest.raises(SaevalError, match="does not declare 'training_tokens'; it declares architecture; add"):
        unknown.required("training_tokens")


def test_families():
    saes = members([sae("ladder/a", 1.0, estimate(1.0), k=8), sae("ladder/b", 2.0, estimate(1.0), k=8, d_sae=9)])
    assert [label for _, label in families(saes)] == ["topk", "topk d_sae=9"]
    assert [label for _, label in families(saes, ["k"])] == ["k=8"]
    assert [label for _, label in families(saes, patterns={"mine": "*/a"})] == ["mine"]
    for by, patterns, words in (
        (["lr"], None, "'ladder/a' does not declare 'lr'; it declares architecture, k; add 'facts:'"),
        ([], {"x": "other*"}, "family 'x': no SAE of these results matches 'other\\*'"),
        ([], {"x": "*", "y": "*/a"}, "'ladder/a' is in two families, 'x' and 'y'"),
    ):
        with pytest.raises(SaevalError, match=words):
            families(saes, by, patterns)


def test_results_without_the_metric():
    with pytest.raises(SaevalError, match="no values of the metric 'sparsity_frontier'; add it to the suite"):
        aliases(members([result("a", "l0", {"l0": estimate(1.0)})]))
