"""Windows for explaining a feature, from the fit split, and for testing the words, from the evaluated rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.plugin import Batch, Evidence, fit_split, fold, hashed
from saeval_explanations.sampling import SampledFeatures
from saeval_explanations.windows import Windows, acts_of, silent_around, strongest

if TYPE_CHECKING:
    from torch import Tensor

STRONGEST, SPREAD, SILENT, NEAR = "strongest", "spread", "silent", "near"
"""Kinds of windows: where the feature fires most; around a random token on which it fires; where it is silent, around
a random token; and where it is silent, around a token on which its nearest feature fires."""


def _windows(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    token_keys: UInt64[np.ndarray, "batch seq"],
    sampled: SampledFeatures,
    sizes: dict[str, int],
    nearest: Int[np.ndarray, "n"] | None,
    seed: int,
) -> dict[str, Evidence]:
    parts: dict[str, list[Windows]] = {kind: [] for kind in sizes}
    inside = included.cpu().numpy()
    near = iter(acts_of(feature_acts, included, nearest)) if nearest is not None else None
    for place, acts in acts_of(feature_acts, included, sampled.features):
        features = sampled.features[place]
        labels = np.zeros((len(inside), len(features)), dtype=np.int8)
        silent = silent_around(acts) & inside if SILENT in sizes else None
        for kind, size in sizes.items():
            if kind == STRONGEST:
                order = strongest(acts)
            else:
                # A hash for each feature and token: the smallest are a random sample, whatever the size of a batch.
                keys = hashed(seed, kind, features[:, None, None], token_keys[None]).astype(np.float64)
                if kind == SPREAD:
                    allowed = acts != 0
                elif kind == SILENT:
                    allowed = silent
                else:
                    assert near is not None
                    allowed = silent & (next(near)[1] != 0)
                order = np.where(allowed, keys, np.inf)
            parts[kind].append(Windows.of(order, acts, batch, labels, size))
    return {kind: Windows.joined(own) for kind, own in parts.items()}


@fold
@fit_split
def explaining_windows(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    token_keys: UInt64[np.ndarray, "batch seq"],
    sampled_features: SampledFeatures,
    shown: int,
    seed: int,
) -> dict[str, Evidence]:
    """Fold over the fit split: of each sampled feature, the strongest windows, and windows over all activations."""
    sizes = {STRONGEST: shown, SPREAD: shown}
    return _windows(feature_acts, included, batch, token_keys, sampled_features, sizes, None, seed)


@fold
def testing_windows(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    token_keys: UInt64[np.ndarray, "batch seq"],
    sampled_features: SampledFeatures,
    nearest_features: Int[np.ndarray, "n"],
    windows: int,
    seed: int,
) -> dict[str, Evidence]:
    """Fold: of each sampled feature, windows over all activations, and silent ones, also near its nearest feature."""
    half = windows // 2
    sizes = {SPREAD: half, SILENT: windows - half, NEAR: half}
    return _windows(feature_acts, included, batch, token_keys, sampled_features, sizes, nearest_features, seed)
