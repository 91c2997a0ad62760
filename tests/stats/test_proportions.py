"""Intervals of proportions: inside [0, 1], not of length 0 for 4 of 4, and covering; `benchmarks/proportions.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from saeval import Mean, Scalar
from saeval.base.formatting import scalar, with_error
from saeval.results.board import Entry
from saeval.results.paired_tests import difference
from saeval.stats.estimate import proportion_interval

FILE = Path(__file__).parents[2] / "benchmarks" / "proportions.py"


def accuracy(right, of=1):
    n = np.full(len(right), of)
    return Mean(np.array(right, dtype=float), n.astype(float), n).value


def test_four_of_four_have_an_interval_and_no_error_of_0():
    record = Scalar(accuracy([1, 1, 1, 1]), proportion=True).record()
    assert record["proportion"] is True
    assert record["stderr"] == 0
    low, high = record["ci95"]
    assert low == pytest.approx(4 / (4 + 1.959964**2))  # Wilson
    assert high == 1
    assert scalar(record) == "1 [0.51, 1]"
    assert scalar(Scalar(accuracy([1, 1, 1, 1])).record()) == "1 ± 0"
    assert scalar(Scalar(accuracy([0, 0, 0, 0]), proportion=True).record()) == "0 [0, 0.49]"


@pytest.mark.parametrize("right", [[20, 20, 19, 20, 20, 20], [0, 0, 1, 0, 0, 0], [20, 0], [3, 7, 11, 2, 9]])
def test_an_interval_lies_inside_0_to_1_and_around_the_value(right):
    estimate = accuracy(right, of=20)
    low, high = estimate.proportion_ci95
    assert 0 <= low < estimate.value < high <= 1
    assert high - low > 0.01


def test_one_document_has_no_interval():
    assert accuracy([17], of=20).proportion_ci95 is None
    assert Scalar(accuracy([17], of=20), proportion=True).record()["reason"] == "fewer than two documents"


def test_many_documents_have_the_interval_of_their_standard_error():
    random = np.random.default_rng(0)
    estimate = accuracy(random.binomial(20, random.beta(2, 2, 400)), of=20)
    assert estimate.proportion_ci95 == pytest.approx(estimate.ci95, abs=1e-3)


def test_an_interval_replaces_an_error_that_misleads():
    assert with_error(0.98, 0.015, (0.91, 0.996)) == "0.980 [0.910, 0.996]"
    assert with_error(0.5, 0.05, (0.4, 0.6)) == "0.500 ± 0.050"
    assert with_error(0.99996, 0.00004, (0.9997, 0.99999)) == "0.99996 [0.99970, 0.99999]"
    assert with_error(1.0, None, None) == "1"


def test_a_share_of_units_that_are_no_draws_has_no_interval():
    record = Scalar(0.75, proportion=True, n=8).record()
    assert record["ci95"] is None
    assert "not independent draws" in record["reason"]


def test_a_proportion_above_1_is_refused():
    with pytest.raises(ValueError, match=r"a proportion is 1\.2"):
        Scalar(1.2, proportion=True)


def entry(right):
    estimate = accuracy(right)
    return Entry(estimate.value, estimate.stderr, estimate.proportion_ci95, 4, "ok", estimate=estimate, proportion=True)


def test_a_paired_difference_of_4_of_4_and_4_of_4_is_no_certain_0():
    paired = difference(entry([1, 1, 1, 1]), entry([1, 1, 1, 1]))
    assert paired.value == 0
    assert paired.ci95 == pytest.approx((-0.49, 0.49), abs=0.01)
    assert paired.p_value is None
    low, high = difference(entry([1, 1, 1, 1]), entry([0, 0, 0, 0])).ci95
    assert (low, high) == pytest.approx((0.51, 1), abs=0.01)


@pytest.fixture(scope="module")
def proportions():
    spec = importlib.util.spec_from_file_location("proportions", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["proportions"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sizes", ["equal", "Pareto(1)"])
@pytest.mark.parametrize(("documents", "p"), [(10, 0.5), (20, 0.02), (48, 0.98)])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_intervals_cover(proportions, sizes, documents, p, correlation):
    rates = proportions.simulated(sizes, documents, p, correlation, runs=300)
    print(f"\n{sizes}, {documents} documents, p {p}, correlation {correlation}: {rates}")
    assert rates.covered >= 0.9  # 0.93 less the chance of 300 runs


def test_many_observations_of_the_rarer_outcome_leave_no_wide_interval():
    low, high = proportion_interval(0.93, 0.0066, 24, 1512)  # about 100 tokens of 24 documents have it
    assert high - low < 0.04
    low, high = proportion_interval(0.93, 0.0066, 24, 24)  # here it is 2 documents
    assert high - low > 0.15
