"""Which features come first, chosen on fold A; what random groups they are set against; which are flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Undefined, hashed
from saeval_reward.totals import Attributions

if TYPE_CHECKING:
    from torch import Tensor

DUPLICATE = 0.9
"""Decoder cosine above which two features are one."""
OUTLIER, MOSTLY = 6.0, 0.5
"""A dimension is an outlier above so many times the median root mean square, a feature with so much of ‖d_j‖² there."""
_MATCHED, _NEAREST = 3, 20
"""What keyed draws are for; among how many of the nearest features a match is drawn."""


@dataclass(frozen=True)
class Ranking:
    """Features by |mean attribution| on fold A, and named sets of them."""

    order: Int[np.ndarray, "n"]
    """All features that fire, first ones first."""
    kept: Int[np.ndarray, "n"]
    """The order without outliers and features of high frequency."""
    swapped: Int[np.ndarray, "n"]
    """The order with the labels of a random half of the pairs swapped."""
    outlier: Bool[np.ndarray, "d_sae"]
    frequent: Bool[np.ndarray, "d_sae"]
    members: dict[str, Int[np.ndarray, "k"]]
    """The sets by name: `feature i` by rank, `top k`, `kept k`, `swapped k`, `random k.r`."""

    def flags(self, feature: int) -> list[str]:
        found = ["outlier"] if self.outlier[feature] else []
        return found + (["high-frequency"] if self.frequent[feature] else [])


def set_names(top: int, groups: tuple[int, ...], random: int) -> list[str]:
    """Names of the sets that are ablated, known before anything is ranked."""
    names = [f"feature {i}" for i in range(top)]
    names += [f"{kind} {k}" for k in groups for kind in ("top", "kept")]
    return names + [f"random {k}.{r}" for k in groups for r in range(random)]


def feature_ranking(
    attribution_totals: Attributions,
    W_dec: Float[Tensor, "d_sae d"],
    top: int = 20,
    groups: tuple[int, ...] = (1, 5, 20),
    random: int = 20,
    frequent: float = 0.1,
    seed: int = 0,
) -> Ranking:
    """The ranking of features by what they do to the margin, and the sets that are evaluated."""
    if not attribution_totals.pairs.sum(1).all():
        raise Undefined(f"one of the two folds of {int(attribution_totals.pairs.sum())} pairs is empty; use more pairs")
    totals, rows = attribution_totals, W_dec.double().cpu().numpy()
    alive = totals.fires > 0
    outlier = _outliers(totals.squares, rows)
    often = np.maximum(totals.density, totals.prompt_density) > frequent

    def ranked(values: Float[np.ndarray, "d_sae"], among: Bool[np.ndarray, "d_sae"]) -> Int[np.ndarray, "n"]:
        found = np.argsort(-np.abs(values), kind="stable")
        return np.asarray(found[among[found]])

    order, kept = ranked(totals.on_a, alive), ranked(totals.on_a, alive & ~outlier & ~often)
    swapped = ranked(totals.swapped, alive)
    members = {f"feature {i}": order[i : i + 1] for i in range(top)}
    density_and_size = _density_and_size(totals, rows)
    for k in groups:
        members |= {f"top {k}": order[:k], f"kept {k}": kept[:k], f"swapped {k}": swapped[:k]}
        for r in range(random):
            members[f"random {k}.{r}"] = matched(order[:k], alive, density_and_size, seed, k, r)
    return Ranking(order, kept, swapped, outlier, often, members)


def matched(
    group: Int[np.ndarray, "k"],
    alive: Bool[np.ndarray, "d_sae"],
    density_and_size: Float[np.ndarray, "d_sae 2"],
    *seeds: int,
) -> Int[np.ndarray, "k"]:
    """For each feature of a group another one of about its density and size: a keyed draw among the nearest few.

    None of the group and none twice, as far as there are others.
    """
    free = alive.copy()
    free[group] = False
    found = []
    for feature in group:
        candidates = np.flatnonzero(free)
        if len(candidates) == 0:
            break
        distance = np.square(density_and_size[candidates] - density_and_size[feature]).sum(1)
        nearest = candidates[np.argsort(distance, kind="stable")[:_NEAREST]]
        chosen = nearest[int(hashed(_MATCHED, *seeds, int(feature)) % np.uint64(len(nearest)))]
        free[chosen] = False
        found.append(int(chosen))
    return np.array(found, dtype=np.int64)


def _density_and_size(totals: Attributions, rows: Float[np.ndarray, "d_sae d"]) -> Float[np.ndarray, "d_sae 2"]:
    """Log density and log E[f_j]‖d_j‖, what random groups are matched on."""
    size = totals.magnitude / max(totals.tokens, 1) * np.linalg.norm(rows, axis=1)
    return np.log(np.stack([totals.density, size], axis=1) + 1e-12)


def _outliers(squares: Float[np.ndarray, "d_in"], rows: Float[np.ndarray, "d_sae d"]) -> Bool[np.ndarray, "d_sae"]:
    if squares.shape[-1] != rows.shape[1]:
        return np.zeros(len(rows), dtype=bool)
    rms = np.sqrt(squares)
    beyond = rms > OUTLIER * np.median(rms)
    norms = np.square(rows).sum(1)
    return np.asarray(np.square(rows[:, beyond]).sum(1) > MOSTLY * np.where(norms > 0, norms, 1))


def duplicate_of(rows: Float[np.ndarray, "n d"]) -> list[int | None]:
    """For each direction the first earlier one with a cosine above 0.9, or None."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    cosines = unit @ unit.T
    found: list[int | None] = []
    for i in range(len(rows)):
        near = np.flatnonzero(cosines[i, :i] > DUPLICATE)
        found.append(int(near[0]) if len(near) else None)
    return found
