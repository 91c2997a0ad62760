"""Values over training: where they settle, numbers from names and declarations, families after equal training."""

from __future__ import annotations

import pytest

from ladders import estimate, result
from saeval.plugin import SaevalError, chart_files
from saeval.testing import check_chart
from saeval.testing.chart_checks import channels
from saeval.testing.claims import every
from saeval_frontier.families import Member, families, members
from saeval_frontier.pages import over_training, sentence
from saeval_frontier.plots import trajectory_chart
from saeval_frontier.trajectory import Stage, Trajectory, at_equal, trajectories


def run(values, kind="local", number="training_tokens", noise=0.05, seed=""):
    """Checkpoints `{tokens: loss}` of one run, whose errors are mostly shared."""
    return [
        result(f"{kind}{seed}/step_{tokens:.0f}", "ce", {"delta_ce": estimate(loss, noise, 7) + estimate(0, 0.01, i)},
               architecture=kind, k=8, **({number: tokens} if number else {}))
        for i, (tokens, loss) in enumerate(values.items())
    ]  # fmt: skip


LOCAL = {1e5: 3.0, 2e5: 2.0, 4e5: 1.005, 8e5: 1.0, 1.6e6: 1.0}


def curves(results, number="training_tokens", pattern=None):
    return trajectories(families(members(results)), "ce.delta_ce", number, pattern)


def test_a_planted_run_settles_where_it_was_planted():
    (curve,) = curves(run(LOCAL))
    assert [stage.number for stage in curve.stages] == list(LOCAL)
    assert curve.settled == 4e5
    assert "from 400,000 training_tokens on, no stage can be distinguished from the last, 1,600,000" in sentence(
        curve, "training_tokens"
    )
    (falling,) = curves(run({1e5: 3.0, 2e5: 2.0, 4e5: 1.0}))
    assert falling.settled is None
    assert "the last stage, 400,000, still differs" in sentence(falling, "training_tokens")


def test_numbers_from_names():
    (curve,) = curves(run({1e5: 2.0, 2e5: 1.0}, number=None), pattern="step_{}")
    assert [stage.number for stage in curve.stages] == [1e5, 2e5]
    (sae,) = members([result("run-2.5M", "l0", {"l0": estimate(1.0)})])
    assert sae.number("", "run-{}") == 2.5e6
    for name, number in (
        ("step_10bis", 10), ("step_2b", 2e9), ("step_2b-x", 2e9), ("step_1e5", 1e5), ("nstep_7/step_5", 5),
        ("step_100_2", 100),
    ):  # fmt: skip
        assert Member(name, "", {}, {}).number("", "step_{}") == number
    with pytest.raises(SaevalError, match=r"the name 'run-2.5M' has no number at 'step_\{\}'"):
        sae.number("", "step_{}")


def test_families_after_equal_training():
    both = curves([*run(LOCAL), *run({2e5: 1.5, 1.6e6: 1.0}, "e2e")])
    early, late = at_equal(both)
    assert (early.number, early.first, early.second) == (2e5, "local", "e2e")
    assert early.difference.value == pytest.approx(0.5)
    assert early.p_holm < 0.001
    assert late.p_holm > 0.05


def test_p_values_are_corrected():
    losses = {1e5: 1.02, 2e5: 1.02, 4e5: 1.0}
    first, second, last = run(losses, noise=0.0)
    second.arrays = first.arrays  # the same value, so the same p
    (curve,) = curves([first, second, last])
    assert [stage.p_holm for stage in curve.stages[:2]] == [2 * stage.to_last.p_value for stage in curve.stages[:2]]
    pairs = at_equal(curves([first, second, last, *run({1e5: 1.03, 2e5: 1.03, 4e5: 1.03}, "e2e", noise=0.0)]))
    raw = sorted(pair.difference.p_value for pair in pairs)
    assert min(pair.p_holm for pair in pairs) == 3 * raw[0]


def test_settled_needs_every_later_stage_and_5_percent():
    def settled(*p_values):
        one = estimate(1.0, 0.1)
        stages = [Stage(i, [], one, one, p) for i, p in enumerate(p_values, 1)]
        return Trajectory("hook", "family", [*stages, Stage(9, [], one)]).settled

    assert settled(0.04, 0.06) == 2
    assert settled(0.06, 0.04) is None
    assert settled(0.06, 0.06) == 1


def test_families_of_two_hooks_are_not_compared():
    late = run(LOCAL)
    for stored in late:
        stored.cell["subjects"][0]["hook_name"] = "blocks.2.hook_resid_pre"
    assert at_equal(curves([*run(LOCAL), *late])) == []


def test_seeds_are_one_stage():
    (curve,) = curves([*run({1e5: 2.0, 2e5: 1.0}), *run({2e5: 3.0}, seed="-seed1")])
    assert [len(stage.names) for stage in curve.stages] == [1, 2]
    assert curve.stages[1].value.value == pytest.approx(2.0)


def test_without_errors_no_stage_is_called_different():
    results = run(LOCAL)
    for stored in results:
        stored.arrays.clear()
    (curve,) = curves(results)
    assert curve.settled == 8e5  # equal to the last
    lost = run({1e5: 2.0, 2e5: 1.0})
    lost[0].arrays.clear()
    (curve,) = curves(lost)
    assert curve.settled is None
    assert sentence(curve, "n").endswith(
        "the last stage, 200,000, cannot be tested, since it has no error over documents"
    )


def test_numbers_are_in_full():
    (curve,) = curves(run({1.25: 2.0, 2.5: 1.0}))
    assert "the last stage, 2.5, still differs" in sentence(curve, "l1_coefficient")


def test_a_family_has_one_colour_at_all_hooks_and_step_0_is_drawn():
    late = run({0.0: 2.0, 2e5: 1.0}, "e2e")
    for stored in late:
        stored.cell["subjects"][0]["hook_name"] = "blocks.2.hook_resid_pre"
    both = [*run({1e5: 2.0, 2e5: 1.0}), *run({1e5: 2.0, 2e5: 1.0}, "e2e"), *late]
    chart = trajectory_chart(curves(both), "n", "v")
    check_chart(chart)
    scales = [c["scale"] for name, c in channels(chart.spec) if name == "color"]
    assert every(scale == scales[0] for scale in scales)
    assert len(set(scales[0]["range"])) == len(scales[0]["domain"]) == 2
    across = {c["scale"].get("type") for name, c in channels(chart.spec) if name == "x"}
    assert across == {None}  # a logarithmic axis has no place for step 0
    assert chart_files.svg(chart).decode().count('aria-roledescription="point"') == len(chart.data) == 6


def test_the_page_takes_the_declared_number_that_varies():
    number, _ = over_training(members(run(LOCAL, number="n_samples")), "ce.delta_ce")
    assert number == "n_samples"
    assert over_training(members(run({1e5: 1.0})), "ce.delta_ce") is None


def test_bad_input_is_one_sentence():
    with pytest.raises(SaevalError, match="'local/step_100000' does not declare 'tokens'; it declares architecture"):
        curves(run(LOCAL), "tokens")
    with pytest.raises(SaevalError, match=r"declares 'n' as 1000\d*, which is not a number"):
        Member("a", "", {"n": 10**400}, {}).number("n")
    with pytest.raises(SaevalError, match="declares 'architecture' as 'local', which is not a number"):
        curves(run(LOCAL), "architecture")
    with pytest.raises(
        SaevalError, match=r"no family has values of 'ce.delta_ce' at two different 'training_tokens': 'local' at"
    ):
        curves(run({1e5: 1.0}))
