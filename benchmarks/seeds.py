"""Error rates of the test of a group's values over seeds: `python benchmarks/seeds.py --help`.

Simulates groups of SAEs, one per seed, that agree no more than their untrained twins, and applies the jackknife and the
test of `saeval_stability` to the difference. A pair of SAEs has the value s_i + s_j + e_ij: s is an effect of a seed,
on all of its pairs, and e one of the pair alone. Both are normal.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import numpy as np

from saeval import Estimate
from saeval_stability.group import Group, Pair

SEEDS = (4, 5, 8)
SHARES = (1.0, 0.5, 0.0)


@dataclass
class Rates:
    """The test's error rate and its standard error, over simulated groups."""

    false: float
    """Share of the groups for which the test finds a difference, at 5%."""
    error: float
    """The root mean square of the standard errors, as a multiple of the standard deviation of the differences."""


def values(seeds: int, share: float, random: np.random.Generator) -> Estimate:
    """The mean over pairs of a simulated group, if `share` of a pair's variance is that of seeds."""
    own = np.sqrt(share / 2) * random.standard_normal(seeds)
    pairs = [
        Pair(a, b, {}, {"decoder_matched": own[a] + own[b] + np.sqrt(1 - share) * random.standard_normal()})
        for a, b in itertools.combinations(range(seeds), 2)
    ]
    names = [f"seed-{seed}" for seed in range(seeds)]
    estimate = Group(names, [""] * seeds, range(seeds), pairs, {}, [1] * seeds).values()["decoder_matched"].estimate
    assert isinstance(estimate, Estimate)
    return estimate


def simulated(seeds: int, share: float, runs: int, seed: int = 0) -> Rates:
    """Simulate `runs` groups and their twins; the same seed returns the same numbers."""
    random = np.random.default_rng([seed, seeds, int(100 * share)])
    differences = [values(seeds, share, random) - values(seeds, share, random) for _ in range(runs)]
    errors = np.array([difference.stderr for difference in differences])
    spread = np.std([difference.value for difference in differences])
    false = np.mean([difference.p_value < 0.05 for difference in differences])
    return Rates(float(false), float(np.sqrt(np.square(errors).mean()) / spread))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated groups of each kind (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| seeds | share of variance between seeds | false | standard error / spread |")
    print("|---|---|---|---|")
    for seeds, share in itertools.product(SEEDS, SHARES):
        rates = simulated(seeds, share, arguments.runs, arguments.seed)
        print(f"| {seeds} | {share:.0%} | {rates.false:.1%} | {rates.error:.2f} |", flush=True)


if __name__ == "__main__":
    main()
