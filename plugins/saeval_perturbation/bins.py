"""Same-token differences in fixed bins of the SAE's cosine: does it beat noise at low cosine and lose at high?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from saeval.plugin import Mean, Table

if TYPE_CHECKING:
    from torch import Tensor

EDGES = (-1.0, 0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
FEWEST = 20
"""Documents in a bin below which nothing is concluded."""
COLUMNS = (
    "from", "to", "difference", "stderr", "ci95_low", "ci95_high", "p", "share_worse", "tokens", "documents", "reason",
)  # fmt: skip


def in_bins(
    difference: Float[Tensor, "batch seq"], cosine: Float[Tensor, "batch seq"], where: Bool[Tensor, "batch seq"]
) -> dict[str, Mean]:
    """For each bin [low, high) of `cosine` (the last holds 1): the mean difference, and how often it is above 0."""
    worse = (difference > 0).double() + 0.5 * (difference == 0).double()
    found = {}
    for index, (low, high) in enumerate(pairwise(EDGES)):
        last = index == len(EDGES) - 2
        inside = where & (cosine >= low) & ((cosine <= high) if last else (cosine < high))
        found[f"difference {index}"] = Mean.of(difference, inside)
        found[f"worse {index}"] = Mean.of(worse, inside)
    return found


def by_cosine(total: Mapping[str, Mean], prefix: str) -> Table:
    """One row a bin that holds a token. Undefined ones have their reason and no difference."""
    rows: list[list[Any]] = []
    for index, (low, high) in enumerate(pairwise(EDGES)):
        found = total[f"{prefix}difference {index}"].value
        if found.n == 0:
            continue
        counts = [found.n, found.clusters]
        if found.clusters < FEWEST:
            reason = f"{found.clusters} documents have a token in this bin; {FEWEST} are needed"
            rows.append([low, high, None, None, None, None, None, None, *counts, reason])
            continue
        below, above = found.ci95 or (None, None)
        share = total[f"{prefix}worse {index}"].value
        rows.append([low, high, found, found.stderr, below, above, found.p_value, share, *counts, None])
    return Table(COLUMNS, rows)
