"""Same-token differences of KL, SAE minus matched noise, in fixed bins of the SAE's cosine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from saeval.plugin import Mean, Table
from saeval_perturbation.scored import EFFECTIVE_POSITIONS, effective_positions

if TYPE_CHECKING:
    from torch import Tensor

EDGES = (-1.0, 0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
FEWEST = 20
"""Fewest effective documents for a bin to be defined."""
COLUMNS = (
    "from", "to", "difference", "stderr", "ci95_low", "ci95_high", "p", "share_worse", "tokens", "documents", "reason",
)  # fmt: skip


def in_bins(
    difference: Float[Tensor, "batch seq"], cosine: Float[Tensor, "batch seq"], where: Bool[Tensor, "batch seq"]
) -> dict[str, Mean]:
    """Means of the difference, its size, its square and the share above 0, per bin [low, high) of `cosine`.

    The last bin includes 1.
    """
    worse = (difference > 0).double() + 0.5 * (difference == 0).double()
    means = {}
    for index, (low, high) in enumerate(pairwise(EDGES)):
        last = index == len(EDGES) - 2
        inside = where & (cosine >= low) & ((cosine <= high) if last else (cosine < high))
        means[f"difference {index}"] = Mean.of(difference, inside)
        means[f"size {index}"] = Mean.of(difference.abs(), inside)
        means[f"square {index}"] = Mean.of(difference.square(), inside)
        means[f"worse {index}"] = Mean.of(worse, inside)
    return means


def by_cosine(total: Mapping[str, Mean], prefix: str) -> Table:
    """One row per bin with tokens. Undefined bins have a reason and no difference."""
    rows: list[list[Any]] = []
    for index, (low, high) in enumerate(pairwise(EDGES)):
        difference = total[f"{prefix}difference {index}"].value
        if difference.n == 0:
            continue
        counts = [difference.n, difference.clusters]
        positions = effective_positions(total[f"{prefix}size {index}"], total[f"{prefix}square {index}"])
        reason = None
        if difference.effective < FEWEST:
            reason = f"{difference.effective:.3g} effective documents have a token in this bin; {FEWEST} are needed"
        elif positions < EFFECTIVE_POSITIONS:
            reason = f"the mean rests on {positions:.0f} effective positions; {EFFECTIVE_POSITIONS} are needed"
        if reason:
            rows.append([low, high, None, None, None, None, None, None, *counts, reason])
            continue
        below, above = difference.ci95 or (None, None)
        share = total[f"{prefix}worse {index}"].value
        rows.append([low, high, difference, difference.stderr, below, above, difference.p_value, share, *counts, None])
    return Table(COLUMNS, rows)
