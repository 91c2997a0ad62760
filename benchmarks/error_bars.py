"""Coverage of intervals and error rates of paired tests and ranks: `python benchmarks/error_bars.py --help`.

Simulates texts whose documents differ in size and difficulty, and SAEs that are all equally good, and applies the same
estimates, tests and ranks to them as a leaderboard does. A document of n tokens has the loss `n (hard + own) + noise`
for each SAE: `hard` is shared by all SAEs, `own` is the SAE's, and the noise is a sum over tokens. All have mean 0, so
the true value of every SAE is 0 and no SAE is better than another.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saeval import Estimate, Mean
from saeval.results.board import Column, Entry, Row
from saeval.results.paired_tests import ALPHA, difference
from saeval.results.ranks import rank

DOCUMENTS = (5, 10, 20, 48, 200)
SAES = 8
LARGEST = 1_000_000  # tokens
COLUMN = Column("loss", "nats", "lower")


def sizes(kind: str, documents: int, random: np.random.Generator) -> np.ndarray:
    """Tokens of each document."""
    if kind == "equal":
        return np.full(documents, 20)
    if kind == "1 to 6":
        return 5 * random.integers(1, 7, documents)
    if kind == "Pareto(1)":
        return (5 * (random.pareto(1, documents) + 1)).astype(int).clip(max=LARGEST)
    if kind == "one holds half":
        return np.array([20 * (documents - 1)] + [20] * (documents - 1))
    raise ValueError(kind)


SIZES = ("equal", "1 to 6", "Pareto(1)", "one holds half")


def effects(tail: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random effects with mean 0 and variance 1."""
    normal = random.standard_normal(shape)
    if tail == "normal":
        return normal
    return (np.exp(normal) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


TAILS = ("normal", "log-normal")


def text(kind: str, tail: str, documents: int, random: np.random.Generator) -> list[Estimate]:
    """The estimates of equally good SAEs on one simulated text."""
    n = sizes(kind, documents, random)
    hard = effects(tail, (documents, 1), random)
    own = 0.3 * effects(tail, (documents, SAES), random)
    noise = np.sqrt(n)[:, None] * random.standard_normal((documents, SAES))
    above = n[:, None] * (hard + own) + noise
    evidence = Mean(above, np.repeat(n[:, None], SAES, axis=1).astype(float), n)
    return [evidence[index].value for index in range(SAES)]


@dataclass
class Rates:
    """Shares of the simulated runs."""

    covered: float
    """95% intervals that contain the true value, of those that exist."""
    false_tests: float
    """Paired tests of two equally good SAEs that find a difference at 5%."""
    split: float
    """Tables of eight equally good SAEs in which some rank is narrower than 1 to 8."""
    warned: float
    """Runs with a warning beside the interval."""


def simulated(kind: str, tail: str, documents: int, runs: int, seed: int = 0) -> Rates:
    """Simulate `runs` texts of one kind; the same seed returns the same numbers."""
    random = np.random.default_rng([seed, zlib.crc32(f"{kind}/{tail}/{documents}".encode())])
    rates = np.array([_rates(text(kind, tail, documents, random)) for _ in range(runs)], dtype=float)
    return Rates(*np.nanmean(rates, axis=0))


def _rates(estimates: Sequence[Estimate]) -> tuple[float, float, bool, bool]:
    covered = [interval[0] <= 0 <= interval[1] for estimate in estimates if (interval := estimate.ci95)]
    entries = [Entry(e.value, e.stderr, e.ci95, e.n, "ok", None, e) for e in estimates]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    false = [(difference(a, b).p_value or 1.0) < ALPHA for a, b in pairs]
    rows = [Row(str(index), "hook", "sae", {COLUMN.name: entry}) for index, entry in enumerate(entries)]
    rank(rows, COLUMN)
    split = any((row.rank, row.rank_high) != (1, len(rows)) for row in rows)
    return np.mean(covered) if covered else np.nan, np.mean(false), split, bool(estimates[0].support.doubt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated texts of each kind (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| tokens | documents | sizes | coverage | false tests | tables split | warned |")
    print("|---|---|---|---|---|---|---|")
    for tail in TAILS:
        for documents in DOCUMENTS:
            for kind in SIZES:
                rates = simulated(kind, tail, documents, arguments.runs, arguments.seed)
                shares = [f"{x:.3f}" for x in (rates.covered, rates.false_tests, rates.split, rates.warned)]
                print(f"| {tail} | {documents} | {kind} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
