"""Coverage of the intervals of proportions: `python benchmarks/proportions.py --help`.

Simulates accuracies over tokens of documents. A token is right with a probability of its document, which has a beta
distribution around p. Its variance gives any two tokens of a document the same correlation: with 0, tokens are
independent; with 1, a document is right or wrong as a whole.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from dataclasses import dataclass

import numpy as np

from saeval import Mean

DOCUMENTS = (5, 10, 20, 48, 200)
SIZES = ("equal", "Pareto(1)")
PROPORTIONS = (0.02, 0.5, 0.98)
CORRELATIONS = (0.0, 0.3, 1.0)
LARGEST = 1_000_000  # tokens


@dataclass
class Rates:
    """Shares of the simulated runs, and a mean."""

    covered: float
    """95% intervals that contain the true proportion, of those that exist."""
    width: float
    """Mean width of these intervals."""
    covered_by_t: float
    """The same share for intervals of the t distribution around the proportion."""


def simulated(sizes: str, documents: int, p: float, correlation: float, runs: int, seed: int = 0) -> Rates:
    """Simulate `runs` texts of one kind; the same seed returns the same numbers."""
    random = np.random.default_rng([seed, zlib.crc32(f"{sizes}/{documents}/{p}/{correlation}".encode())])
    rates = []
    for _ in range(runs):
        n = np.full(documents, 20)
        if sizes == "Pareto(1)":
            n = (5 * (random.pareto(1, documents) + 1)).astype(int).clip(max=LARGEST)
        if correlation == 1:
            right = n * (random.random(documents) < p)
        elif correlation == 0:
            right = random.binomial(n, p)
        else:
            both = (1 - correlation) / correlation
            right = random.binomial(n, random.beta(p * both, (1 - p) * both, documents))
        estimate = Mean(right.astype(float), n.astype(float), n).value
        interval, by_t = estimate.proportion_ci95, estimate.ci95
        if interval is not None and by_t is not None:
            covered = [low <= p <= high for low, high in (interval, by_t)]
            rates.append([covered[0], interval[1] - interval[0], covered[1]])
    return Rates(*np.mean(rates, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated texts of each kind (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| documents | sizes | p | correlation | coverage | mean width | coverage by t |")
    print("|---|---|---|---|---|---|---|")
    for documents, sizes, p, correlation in itertools.product(DOCUMENTS, SIZES, PROPORTIONS, CORRELATIONS):
        rates = simulated(sizes, documents, p, correlation, arguments.runs, arguments.seed)
        shares = f"{rates.covered:.1%} | {rates.width:.2f} | {rates.covered_by_t:.1%}"
        print(f"| {documents} | {sizes} | {p} | {correlation} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
