"""The ranking of features on fold A, the random groups they are compared with, and the flags of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import hashed
from saeval_reward.totals import Attributions

if TYPE_CHECKING:
    from torch import Tensor

DUPLICATE = 0.9
"""Decoder cosine above which two features are near-duplicates."""
OUTLIER, MOSTLY = 6.0, 0.5
"""Outliers: dimensions with a root mean square above 6 medians, features with over half of ‖d_j‖² in these."""
MATCHED = 2.0
"""Largest factor between the density of a feature and the median of its matches."""
NEAREST = 20
"""Number of similar features from which a match is drawn."""
_MATCHED = 3
"""Key of the draws."""


@dataclass(frozen=True)
class Ranking:
    """Features ranked by |mean attribution| on fold A, and named sets of them."""

    order: Int[np.ndarray, "n"]
    """All features that fire, largest |mean attribution| first."""
    kept: Int[np.ndarray, "n"]
    """The order without outliers and high-frequency features."""
    swapped: Int[np.ndarray, "n"]
    """The order after swapping the labels of a random half of the pairs."""
    outlier: Bool[np.ndarray, "d_sae"]
    frequent: Bool[np.ndarray, "d_sae"]
    members: dict[str, Int[np.ndarray, "k"]]
    """Sets of features: `feature i` by rank, `other i` (its match), `top k`, `kept k`, `swapped k`, `random k.r` (of
    matches of `kept k`).

    A set is empty if there are not enough features for it.
    """
    unmatched: dict[int, int]
    """For each k, the number of features of `kept k` whose matches differ in density by more than a factor of 2."""

    def flags(self, feature: int) -> list[str]:
        flags = {"outlier": self.outlier[feature], "high-frequency": self.frequent[feature]}
        return [name for name, applies in flags.items() if applies]


def set_names(top: int, groups: tuple[int, ...], random: int) -> list[str]:
    """Names of the sets to ablate; they do not depend on the ranking."""
    names = [f"{kind} {i}" for kind in (["feature", "other"] if random else ["feature"]) for i in range(top)]
    names += [f"{kind} {k}" for k in groups for kind in ("top", "kept")]
    return names + [f"random {k}.{r}" for k in groups for r in range(random)]


def feature_ranking(
    attribution_totals: Attributions,
    W_dec: Float[Tensor, "d_sae d"],
    top: int = 20,
    groups: tuple[int, ...] = (1, 5, 20),
    random: int = 100,
    frequent: float = 0.1,
    seed: int = 0,
) -> Ranking:
    """The ranking of features by attribution of the margin, and the sets to evaluate.

    Random groups have no flagged feature and none of the first `top` or `groups` of the ranking, with or without flags.
    They are matched with the first k without flags: flagged features, such as those that fire on most tokens, have no
    equals to be matched with.
    """
    totals, rows = attribution_totals, W_dec.double().cpu().numpy()
    alive = totals.fires > 0
    outlier = _outliers(totals.squares, rows)
    is_frequent = np.maximum(totals.density, totals.prompt_density) > frequent

    def ranked(values: Float[np.ndarray, "d_sae"], among: Bool[np.ndarray, "d_sae"]) -> Int[np.ndarray, "n"]:
        order = np.argsort(-np.abs(values), kind="stable")
        return np.asarray(order[among[order]])

    usual = alive & ~outlier & ~is_frequent
    order, kept = ranked(totals.on_a, alive), ranked(totals.on_a, usual)
    swapped = ranked(totals.swapped, alive)
    most = max(groups)
    free = alive.copy()
    free[np.concatenate([order[: max(top, most)], kept[:most]])] = False
    traits = density_and_size(totals, rows)
    others = matched(order[: min(top, int(free.sum()))], free, traits, 1, seed).ravel()
    members = {
        f"{kind} {i}": some[i : i + 1] for kind, some in (("feature", order), ("other", others)) for i in range(top)
    }
    unmatched: dict[int, int] = {}
    for k in groups:
        members |= {f"top {k}": order[:k], f"kept {k}": kept[:k], f"swapped {k}": swapped[:k]}
        drawn = matched(kept[:k], free & usual, traits, random, seed)
        unmatched[k] = _unmatched(totals.density[kept[:k]], totals.density[drawn])
        members |= {f"random {k}.{r}": drawn[r] if r < len(drawn) else order[:0] for r in range(random)}
    return Ranking(order, kept, swapped, outlier, is_frequent, members, unmatched)


def matched(
    group: Int[np.ndarray, "k"], free: Bool[np.ndarray, "d_sae"], traits: Float[np.ndarray, "d_sae traits"], draws: int,
    seed: int,
) -> Int[np.ndarray, "draws k"]:  # fmt: skip
    """Random groups: for each feature of a group, one of the 20 free features with the most similar traits.

    No feature is twice in a draw. The draws for a group of one feature are all different, so they are the `draws` most
    similar ones. There are fewer draws than `draws`, perhaps none, if there are not enough free features.
    """
    candidates = np.flatnonzero(free)
    count = max(0, min(draws, len(candidates) - len(group) + 1))
    drawn = np.zeros((count, len(group)), dtype=np.int64)
    for i, feature in enumerate(group.tolist() if count else []):
        distance = np.square(traits[candidates] - traits[feature]).sum(1)
        pool = count if len(group) == 1 else min(count, NEAREST)
        nearest = candidates[np.argsort(distance, kind="stable")[: pool + i]]
        places = np.argsort(hashed(_MATCHED, seed, feature, np.arange(count)), kind="stable") % pool
        for r, place in enumerate(places):
            drawn[r, i] = nearest[~np.isin(nearest, drawn[r, :i])][place]
    return drawn


def _unmatched(density: Float[np.ndarray, "k"], drawn: Float[np.ndarray, "draws k"]) -> int:
    """Number of features whose draws have a median density of more than twice, or less than half, their own."""
    ratio = np.median(drawn, axis=0) / density if len(drawn) else np.ones(0)
    return int(((ratio > MATCHED) | (ratio < 1 / MATCHED)).sum())


def density_and_size(totals: Attributions, rows: Float[np.ndarray, "d_sae d"]) -> Float[np.ndarray, "d_sae 2"]:
    """Log density and log E[f_j]‖d_j‖, on which random groups are matched."""
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
    """For each direction, the index of the first earlier one with a cosine above 0.9, or None."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    cosines = unit @ unit.T
    earlier: list[int | None] = []
    for i in range(len(rows)):
        near = np.flatnonzero(cosines[i, :i] > DUPLICATE)
        earlier.append(int(near[0]) if len(near) else None)
    return earlier
