"""Edges between the features of two SAEs, by weights and by fitted maps, and the choice of those to be tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saeval.plugin import Undefined, torch
from saeval_connections.maps import Maps, fit
from saeval_connections.members import CrossMoments
from saeval_stability.firing import Activity

if TYPE_CHECKING:
    from torch import Tensor

WAYS = ("direct", "block", "data")
"""Ways to compute an edge before any intervention."""
_ROWS = 512


@dataclass(frozen=True)
class Edges:
    """The features of the earlier SAE that are ablated, their edges to all later features, and those to be tested."""

    sources: Int[np.ndarray, "n"]
    """Features of the earlier SAE."""
    values: Mapping[str, Float[np.ndarray, "n d_sae_2"]]
    """Change of each later feature per unit of the source, by way. A way that does not exist is missing."""
    pairs: Int[np.ndarray, "edges 2"]
    """Edges to be tested: (index in `sources`, feature of the later SAE), without repetition."""
    ways: Sequence[Sequence[str]]
    """For each of `pairs`, the ways by which it is among its source's strongest edges."""
    first: Sequence[bool]
    """For each of `pairs`, True if it is its source's strongest edge by one way."""
    scale: Float[np.ndarray, "n d_sae_2"]
    """Mean activation of the source / mean activation of the later feature, where they fire; 0 for dead ones."""


def feature_maps(
    earlier_activity: Activity, later_activity: Activity, levels: tuple[int, ...], least_gain: float, alive_firings: int
) -> Maps:
    """Sparse linear and ReLU maps from the features of a group's first SAE to those of its second."""
    if not earlier_activity.components()["n"]:
        raise Undefined("no token of the fit split is in the mask; check the data's 'exclude'")
    (earlier, _), (later, _) = earlier_activity.matrix(), later_activity.matrix()
    return fit(earlier, later, levels, least_gain, alive_firings)


def strongest_edges(
    feature_maps: Maps,
    earlier_decoder: Float[Tensor, "d_sae_1 d_x"],
    later_encoder: Float[Tensor, "d_y d_sae_2"],
    block_moments: CrossMoments,
    ablated: int,
    edges: int,
) -> Edges:
    """The `ablated` sources with the strongest edges, by each way in turn, and their `edges` strongest edges by way.

    Strength = |edge| · mean activation of the source / mean activation of the later feature, both where they fire, so
    that the scale of neither SAE matters. Features that fire too rarely on the fit split have no edges.
    """
    fired = feature_maps.alive
    if not fired[0].any() or not fired[1].any():
        side = "earlier" if not fired[0].any() else "later"
        raise Undefined(f"no feature of the {side} SAE fires often enough on the fit split; set a larger 'fit_tokens'")
    decoder, encoder = earlier_decoder.double().cpu(), later_encoder.double().cpu()
    moved = {"block": decoder @ torch.from_numpy(block_moments.linear_map()).T}
    if decoder.shape[1] == encoder.shape[0]:
        moved = {"direct": decoder, **moved}
    W = feature_maps.widest().W.tocsc()
    sizes = (feature_maps.size[0] * fired[0], np.where(fired[1], 1 / np.maximum(feature_maps.size[1], 1e-300), 0.0))

    def rows(way: str, sources: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d_sae_2"]:
        if way == "data":
            return np.asarray(W[:, sources].toarray().T)
        return np.asarray((moved[way][torch.from_numpy(sources)] @ encoder).numpy())

    ways = [*moved, "data"]
    alive = np.flatnonzero(fired[0])
    ranked = {}
    for way in ways:
        best = [
            (np.abs(rows(way, part)) * sizes[1]).max(1) * sizes[0][part]
            for part in np.array_split(alive, -(-len(alive) // _ROWS))
        ]
        ranked[way] = alive[np.argsort(-np.concatenate(best), kind="stable")]
    turns = np.stack([ranked[way] for way in ways], 1).ravel()
    sources = np.array(list(dict.fromkeys(turns.tolist()))[:ablated])
    values = {way: rows(way, sources) for way in ways}
    scale = sizes[0][sources][:, None] * sizes[1]
    by_pair: dict[tuple[int, int], list[str]] = {}
    firsts: set[tuple[int, int]] = set()
    for way in ways:
        strength = np.abs(values[way]) * scale
        order = np.argsort(-strength, axis=1, kind="stable")[:, :edges]
        for n in range(len(sources)):
            strong = [int(j) for j in order[n] if strength[n, j] > 0]
            firsts.update((n, j) for j in strong[:1])
            for j in strong:
                by_pair.setdefault((n, j), []).append(way)
    pairs = sorted(by_pair)
    index = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Edges(sources, values, index, [by_pair[p] for p in pairs], [p in firsts for p in pairs], scale)
