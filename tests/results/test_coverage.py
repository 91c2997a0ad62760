"""What the errors promise, by simulation: intervals cover, tests are false as often as they say, also many at once.

A simulated run has documents of unequal size, whose sequences share an effect of their document, and
skewed tokens. All runs of a simulation are one evidence with a trailing dimension.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from made_results import result
from saeval import Mean, Ratio
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.stats.evidence import Stamp

pytestmark = pytest.mark.slow

RUNS, DOCUMENTS, TOKENS = 4000, 48, 8
SIZES = np.resize([1, 2, 3, 4, 6], DOCUMENTS)
"""Sequences of each document."""
CLUSTERS = np.repeat(np.arange(DOCUMENTS), SIZES)
STAMP = Stamp(np.arange(len(CLUSTERS)), CLUSTERS, DOCUMENTS)


class Text:
    """Random numbers of one simulated stream, `[sequences, tokens, runs]` or what broadcasts to it."""

    def __init__(self, seed, runs=RUNS):
        self.random = np.random.default_rng(seed)
        self.runs = runs

    def documents(self, scale):
        """An effect that all sequences of a document share."""
        return scale * self.random.standard_normal((DOCUMENTS, 1, self.runs))[CLUSTERS]

    def tokens(self, scale):
        """Skewed, mean 0, independent."""
        size = (len(CLUSTERS), TOKENS, self.runs)
        return scale * (self.random.standard_exponential(size) - 1)


def estimates(evidence):
    stamped = evidence.stamp(STAMP)
    return [stamped[run].value for run in range(len(stamped))]


def mean(x):
    return estimates(Mean.of(torch.from_numpy(x)))


def coverage(found, truth):
    return np.mean([low < truth < high for low, high in (one.ci95 for one in found)])


def test_intervals_of_a_mean_cover():
    text = Text(0)
    x = text.documents(0.5) + text.tokens(1.0)
    assert 0.93 <= coverage(mean(x), 0.0) <= 0.97
    unclustered = Mean.of(torch.from_numpy(x))  # before the stamp, every sequence counts as independent
    assert coverage([unclustered[run].value for run in range(RUNS)], 0.0) < 0.90


def test_intervals_of_a_ratio_of_sums_cover():
    """As fvu: both sums vary, with each other and within a document."""
    text = Text(1)
    shared = text.documents(0.2)
    below = 4 * np.exp(shared) * (1 + text.tokens(0.5))
    above = 0.3 * below * np.exp(text.documents(0.2)) + text.tokens(0.2)
    truth = 0.3 * np.exp(0.2**2 / 2)  # E[above] / E[below], by the log-normal's mean
    found = estimates(Ratio.of(torch.from_numpy(above), torch.from_numpy(below)))
    assert 0.93 <= coverage(found, truth) <= 0.97


def test_intervals_of_recovered_cover():
    """(ablated - sae) / (ablated - clean), from three losses of the same text."""
    text = Text(2)
    hard = text.documents(0.5)
    clean = 3.0 + hard + text.tokens(1.0)
    sae = clean + 0.6 + 0.2 * hard + text.documents(0.15) + text.tokens(0.5)
    ablated = 8.0 + 0.3 * hard + text.documents(0.2) + text.tokens(1.0)
    losses = zip(mean(clean), mean(sae), mean(ablated), strict=True)
    found = [(high - low) / (high - best) for best, low, high in losses]
    assert 0.93 <= coverage(found, (8.0 - 3.6) / (8.0 - 3.0)) <= 0.97


def stored(name, estimate):
    return result(name, estimate.value, estimate.deviations * (len(estimate.sizes) - 1) / len(estimate.sizes))


def losses(text, saes):
    """Estimates of several different SAEs with equal population mean, on one text, by SAE and run."""
    hard = text.documents(0.5)
    return [
        mean(hard * (1 + 0.1 * k) + text.documents(0.1 + 0.02 * k) + text.tokens(0.5 + 0.05 * k)) for k in range(saes)
    ]


def test_the_paired_test_is_false_one_time_in_twenty():
    pairs = zip(*losses(Text(3), 2), strict=True)
    boards = (from_results([stored("a", a), stored("b", b)], "t", {}) for a, b in pairs)
    false = np.mean([compare(board, "a", "b")[0].sure for board in boards])
    assert 0.04 <= false <= 0.06


def test_eight_equal_saes_share_all_ranks_in_95_of_100_tables():
    runs = 2000
    tables = zip(*losses(Text(4, runs), 8), strict=True)
    names = "abcdefgh"
    split = 0
    for saes in tables:
        (board,) = from_results([stored(n, e) for n, e in zip(names, saes, strict=True)], "t", {})
        split += any((row.rank, row.rank_high) != (1, 8) for row in board.rows)
    assert split / runs < 0.05
