"""The time that `saeval check` foretells: passes with all that they compute, and conclusions that are work of their own."""

from __future__ import annotations

import re

import pytest

from saeval.cli import cost_estimate, main

PLUGIN = """
from saeval import Metric, Scalar, hookimpl

class Slow(Metric):
    name = "slow"

    def operations(self, subjects, tokens):
        return OPERATIONS

    def conclude(self, W_dec):
        return {"x": Scalar(1.0)}

@hookimpl
def saeval_metrics():
    return [Slow]
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Function: metrics of a suite of two SAEs -> what `check` prints at a billion operations a second, and its code."""
    monkeypatch.setattr(cost_estimate, "operations_a_second", lambda device: 1e9)

    def printed(metrics, *words, texts=8):
        suite = tmp_path / "suite.yaml"
        suite.write_text(
            f"""
suite: small
model: {{use: testbed}}
data: {{texts: [{", ".join(f'"for a{i} in range(9): pass"' for i in range(texts))}], context: 8}}
saes: [testbed/relu-5, testbed/relu-5-seed1]
groups: {{seeds: [testbed/relu-5*]}}
metrics: {metrics}
""",
            encoding="utf-8",
        )
        code = main(["check", str(suite), "--out", str(tmp_path / "out"), *words])
        return code, *capsys.readouterr()

    return printed


def seconds(text, what):
    return float(re.search(rf"(\d+) s of {what}", text)[1])


def test_matchings_are_foretold_and_grow_with_the_draws_of_chance(check):
    told = {}
    for draws, controls in ((0, "[]"), (20, "[]"), (1, "[random]")):
        code, text, _ = check(f"[{{seed_stability: {{over: seeds, draws: {draws}, controls: {controls}}}}}]")
        assert code == 0
        told[draws] = seconds(text, "conclusions")
        assert f"(seed_stability {told[draws]:.0f})" in text
    # For alive, dead and all features, and for each draw of two nulls: decoder and encoder, signed and not.
    each = (2 * 1024**2 * 128 + 6e6 * 1024) / 1e9
    assert told[0] == pytest.approx(12 * each, abs=1)
    assert told[20] == pytest.approx(172 * each, rel=0.02)
    assert told[1] == pytest.approx(2 * 20 * each, rel=0.02)  # the group and its twin


def test_a_suite_of_metrics_that_only_sum_foretells_no_conclusions(check):
    code, text, _ = check("[l0]")
    assert code == 0
    assert "s of passes" in text
    assert "conclusions" not in text


def test_resumes_scores_and_saes_are_foretold(check, monkeypatch):
    monkeypatch.setattr(cost_estimate, "operations_a_second", lambda device: 1e6)
    times = {}
    for metrics in ("[l0]", "[kl]", "[perturbation: {draws: 4}]", "[perturbation: {draws: 8}]"):
        code, text, _ = check(metrics, texts=64)
        assert code == 0
        times[metrics] = seconds(text, "passes")
    l0, kl, four, eight = times.values()
    assert 0 < l0 < kl < four < eight
    rows, body = int(re.search(r"data: (\d+) sequences", text)[1]), 2 * (1350528 - 4096 * 128) + 3000 * 128 * 4
    # To the middle of the third of four blocks, and two SAEs, there and back.
    assert l0 == pytest.approx((2.5 / 4 * body + 2 * 4 * 128 * 1024) * rows * 8 / 1e6, abs=1)
    # Four draws more of each of four nulls, over half of the blocks each, scored.
    a_pass = 0.5 * body + 4096 * (2 * 128 + 500)
    assert eight - four == pytest.approx(2 * 16 * a_pass * rows * 8 / 1e6, rel=0.05)


@pytest.mark.parametrize(
    ("operations", "line", "failure"),
    [("7e9 * len(subjects)", "14 s of conclusions (slow 14)", ""), ("1 / 0", "", "'operations' of metric 'slow'")],
)
def test_a_metric_says_what_its_conclusion_takes(check, tmp_path, operations, line, failure):
    plugin = tmp_path / "slow.py"
    plugin.write_text(PLUGIN.replace("OPERATIONS", operations), encoding="utf-8")
    code, text, errors = check("[slow]", "--plugin", str(plugin))
    assert code == 0
    assert line in text
    assert failure in errors
