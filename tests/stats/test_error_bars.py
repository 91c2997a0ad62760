"""A short form of `benchmarks/error_bars.py`: the promises of intervals, tests and ranks where documents differ in size."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[2] / "benchmarks" / "error_bars.py"
RUNS = 300


@pytest.fixture(scope="module")
def error_bars():
    spec = importlib.util.spec_from_file_location("error_bars", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["error_bars"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("sizes", "documents"), [("equal", 5), ("1 to 6", 48), ("Pareto(1)", 10), ("one holds half", 20)]
)
def test_intervals_cover_and_equal_saes_are_not_told_apart(error_bars, sizes, documents):
    found = error_bars.simulated(sizes, "normal", documents, RUNS)
    print(f"\n{sizes}, {documents} documents: {found}")
    assert 0.92 <= found.covered <= 0.995
    assert found.false_tests <= 0.08
    assert found.split <= 0.09


def test_what_intervals_of_heavy_tails_lack_is_warned_of(error_bars):
    found = error_bars.simulated("equal", "log-normal", 48, RUNS)
    assert 0.85 <= found.covered <= 0.94
    assert 0.5 <= found.warned <= 0.8
    assert found.false_tests <= 0.08
