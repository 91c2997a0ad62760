"""A short form of `benchmarks/seeds.py`: the test of a group over four seeds is false in at most 5% of cases."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "seeds.py"


@pytest.fixture(scope="module")
def seeds():
    spec = importlib.util.spec_from_file_location("benchmark_of_seeds", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_of_seeds"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("share", "least", "most", "error"), [(1.0, 0.02, 0.08, 1.0), (0.0, 0.0, 0.03, 3**0.5)])
def test_the_test_is_exact_for_effects_of_seeds_and_conservative_for_those_of_pairs(seeds, share, least, most, error):
    rates = seeds.simulated(4, share, 400)
    assert least <= rates.false <= most
    assert rates.error == pytest.approx(error, rel=0.12)
