"""P values of values against their null hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from saeval.plugin import Estimate

PERMUTATIONS = 9999
BOOTSTRAPS = 1999


def rank_p(value: float, draws: Float[np.ndarray, "n"]) -> float:
    """One-sided p value of a value among draws of its null: (r + 1)/(n + 1), r of which are at least as large."""
    return (1 + int((draws >= value).sum())) / (len(draws) + 1)


def above_p(estimate: Estimate, null: float = 0.0) -> float:
    """One-sided p value of the t test over documents that the true value is above `null`; 1 if there is no test."""
    difference = estimate - null
    p = difference.p_value
    return 1.0 if p is None else p / 2 if difference.value > 0 else 1 - p / 2


def bootstrapped(
    statistic: Callable[..., Float[np.ndarray, "n"]], x: Sequence[Estimate], y: Sequence[Estimate]
) -> Float[np.ndarray, "draws"]:
    """A statistic of means x and y, in bootstraps of their documents or blocks of these; none from one document.

    It suits statistics with steps, such as a share of signs, which often stay the same without any single document.
    """
    sizes, total = x[0].sizes, x[0].sizes.sum()
    present = np.flatnonzero(sizes)
    weights = np.random.default_rng(0).multinomial(len(present), np.full(len(present), 1 / len(present)), BOOTSTRAPS).T

    def resampled(means: Sequence[Estimate]) -> Float[np.ndarray, "features draws"]:
        sums = np.stack([mean.value * total - mean.without * (total - sizes) for mean in means])
        return np.asarray(sums[:, present] @ weights / (sizes[present] @ weights))

    return statistic(resampled(x), resampled(y)) if len(present) > 1 else np.zeros(0)


def permuted_p(
    statistic: Callable[..., Float[np.ndarray, "n"]], x: Float[np.ndarray, "features"], y: Float[np.ndarray, "features"]
) -> float:
    """One-sided p value of an agreement of x and y, among its values if the y are assigned to features at random.

    `statistic(x, y)` has features along the first axis. The permutations are the same for every call.
    """
    order = np.random.default_rng(0).permuted(np.tile(np.arange(len(y)), (PERMUTATIONS, 1)), axis=1).T
    value = float(statistic(x[:, None], y[:, None])[0])
    return rank_p(value - 1e-12, statistic(x[:, None], y[order]))  # permutations that tie may differ by rounding
