"""The 95% intervals that `ce`, `kl`, `l0` and `reconstruction` print cover the truth 95 times in 100, by simulation.

Each of the runs goes through the metrics' own `observe` and `conclude`: 96 documents of 1 to 6 sequences, which
share an effect of their document, and skewed tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeval.interfaces.fired import Fired
from saeval.stats.evidence import Spread, Stamp, stamped
from saeval_fidelity import L0, CrossEntropy, KLDivergence, Reconstruction

pytestmark = pytest.mark.slow

DOCUMENTS, TOKENS, D = 96, 8, 4
RUNS = {"ce": 2000, "kl": 600, "l0": 800, "explained_variance": 2000}
"""Quantiles are slow."""
CLUSTERS = np.repeat(np.arange(DOCUMENTS), np.resize([1, 2, 3, 4, 6], DOCUMENTS))
STAMP = Stamp(np.arange(len(CLUSTERS)), CLUSTERS, DOCUMENTS)
MASK = torch.ones(len(CLUSTERS), TOKENS, dtype=torch.bool)


class Scores:
    """What the metrics read of token scores."""

    def __init__(self, **values):
        self.__dict__.update(values)
        self.top1_agreement = self.mask = MASK


def documents(random, *shape):
    return torch.from_numpy(random.standard_normal((STAMP.n_clusters, 1, *shape))[CLUSTERS])


def skewed(random, *shape):
    return torch.from_numpy(random.standard_exponential((len(CLUSTERS), TOKENS, *shape)) - 1)


def ce(random):
    hard = documents(random)
    clean = 3 + 0.5 * hard + skewed(random)
    sae = clean + 0.6 + 0.2 * hard + 0.15 * documents(random) + 0.5 * skewed(random)
    ablated = 8 + 0.3 * hard + skewed(random)
    metric = CrossEntropy()
    total = stamped(metric.observe(Scores(nll=clean), Scores(nll=sae), Scores(nll=ablated), MASK), STAMP)
    return metric.conclude(total)["delta_ce"]


def kl(random):
    # A log-normal of a document's and a token's effect, as divergences are.
    values = (0.5 * documents(random) + 0.8 * torch.from_numpy(random.standard_normal(MASK.shape)) - 1).exp()
    metric = KLDivergence()
    total = stamped(metric.observe(Scores(kl=values), Scores(kl=values + 4), MASK), STAMP)
    return metric.conclude(total)["kl_sae"]


def l0(random):
    chance = torch.sigmoid(-2 + 0.7 * documents(random))
    fired = torch.from_numpy(random.random((*MASK.shape, 40))) < chance[..., None]
    metric = L0()
    return metric.conclude(stamped(metric.observe(Fired.of(fired.double()), MASK), STAMP))["l0"]


def explained_variance(random):
    x = 5 + 0.5 * documents(random, D) + skewed(random, D)
    error = (0.4 + 0.1 * documents(random).abs())[..., None] * skewed(random, D)
    metric = Reconstruction()
    total = stamped(metric.observe(x, x - error, MASK), STAMP)
    mean = x[MASK].double().mean(0)
    return metric.conclude(total, Spread.of(x, MASK).stamp(STAMP), mean)["explained_variance"]


def expected_chance():
    """E σ(−2 + 0.7 z) by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((weights / (1 + np.exp(2 - 0.7 * nodes))).sum() / weights.sum())


MEAN_ABS = (2 / np.pi) ** 0.5
TRUTHS = {
    ce: 0.6,
    kl: float(np.exp(-1 + (0.5**2 + 0.8**2) / 2)),
    l0: 40 * expected_chance(),
    # Var x = 0.5² + 1 in each dimension; E(0.4 + 0.1|z|)² = 0.4² + 0.08 E|z| + 0.1².
    explained_variance: 1 - (0.16 + 0.08 * MEAN_ABS + 0.01) / 1.25,
}


@pytest.mark.parametrize("metric", TRUTHS, ids=lambda metric: metric.__name__)
def test_intervals_of_a_metric_cover(metric):
    random = np.random.default_rng(0)
    covered, runs = 0, RUNS[metric.__name__]
    for _ in range(runs):
        value = metric(random)
        assert value.estimate is not None
        low, high = value.estimate.ci95
        covered += low < TRUTHS[metric] < high
    assert 0.93 <= covered / runs <= 0.97
    print(f"{metric.__name__}: {covered / runs:.4f}")
