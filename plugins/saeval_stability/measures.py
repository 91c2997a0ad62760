"""The numbers that are reported of a matching of two SAEs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

if TYPE_CHECKING:
    from saeval_stability.matching import Matching

ABOVE = (0.5, 0.7, 0.9)
SHARED = 0.7
"""A matched similarity above which two features count as the same."""

MEASURES = {
    "matched": "Σ over the matched pairs / max(n_A, n_B)",
    "matched_over_smaller": "Σ over the matched pairs / min(n_A, n_B)",
    **{f"share_above_0_{10 * t:.0f}": f"share of the matched pairs above {t}" for t in ABOVE},
    "max_a_to_b": "mean best match in B of the features of A",
    "max_b_to_a": "mean best match in A of the features of B",
    "collisions_a_to_b": "1 − |unique best matches| / n_A",
    "collisions_b_to_a": "1 − |unique best matches| / n_B",
}


def unit_of(name: str) -> str:
    """The unit of the number called `name`, such as `decoder_matched` or `shared`."""
    if "_share_above_" in name:
        return "share of matched pairs"
    if "_collisions_" in name or name.endswith("_found_in_all") or name in ("shared", "index_agreement"):
        return "share of features"
    return {"pearson": "correlation", "jaccard": "Jaccard index"}.get(name.split("_")[0], "cosine")


def measures(matching: Matching) -> dict[str, float]:
    """The numbers of one matching, named as in `MEASURES`."""
    cosines = matching.cosines[matching.indices >= 0]
    return {
        "matched": matching.over_larger,
        "matched_over_smaller": matching.over_smaller,
        **{f"share_above_0_{10 * t:.0f}": float((cosines > t).mean()) for t in ABOVE},
        "max_a_to_b": matching.a_to_b.mean,
        "max_b_to_a": matching.b_to_a.mean,
        "collisions_a_to_b": matching.a_to_b.collision_rate,
        "collisions_b_to_a": matching.b_to_a.collision_rate,
    }


def flattened(views: Mapping[str, Matching]) -> dict[str, float]:
    """The numbers of several matchings of the same two SAEs, as VIEW_MEASURE."""
    return {f"{view}_{name}": value for view, matching in views.items() for name, value in measures(matching).items()}


def agreement(first: Matching, second: Matching, least: float = -np.inf) -> float:
    """Share of the smaller side's rows with the same partner in both matchings, and similarities above `least`."""
    same = (first.indices >= 0) & (first.indices == second.indices)
    smaller = min(len(first.indices), len(first.b_to_a.indices))
    return float((same & (first.cosines > least) & (second.cosines > least)).sum()) / smaller


def above(matching: Matching) -> tuple[Bool[np.ndarray, "n_A"], Bool[np.ndarray, "n_B"]]:
    """Masks of the rows of A and of the rows of B that are matched above `SHARED`."""
    rows: Int[np.ndarray, "k"] = np.flatnonzero(matching.cosines > SHARED)
    of_a, of_b = np.zeros(len(matching.indices), bool), np.zeros(len(matching.b_to_a.indices), bool)
    of_a[rows], of_b[matching.indices[rows]] = True, True
    return of_a, of_b


@cache  # takes 0.1 s, and most pairs of a group have the same sizes
def iid_best(n: int, d: int, absolute: bool) -> float:
    """Expected largest of `n` cosines (or |cosines|) with independent uniform directions in `d` dimensions.

    E max = 1 − ∫ F(t)ⁿ dt, where (1 + cos)/2 ~ Beta((d−1)/2, (d−1)/2), or cos² ~ Beta(½, (d−1)/2) for |cos|.
    """
    from scipy.integrate import trapezoid  # late: listings do not need it
    from scipy.special import betainc

    if d == 1:  # directions are ±1
        return 1.0 if absolute else 1.0 - 2.0 ** (1 - n)
    grid = np.linspace(0.0 if absolute else -1.0, 1.0, 400_001)
    half = (d - 1) / 2
    below = betainc(0.5, half, grid**2) if absolute else betainc(half, half, (1 + grid) / 2)
    return float(1.0 - trapezoid(below**n, grid))
