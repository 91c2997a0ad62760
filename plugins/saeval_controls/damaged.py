"""SAEs with a known damage: a share of their features dropped, or noise on what they reconstruct."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import Encoding, Repeats, Substitute, hashed, normal, torch
from saeval_controls.fitted import Derived, Repeated, Share, chosen_share, device_of, with_features

if TYPE_CHECKING:
    from torch import Tensor


class _WithoutFeatures(Derived):
    def __init__(self, parent: Substitute, dropped: Bool[np.ndarray, "d_sae"]) -> None:
        super().__init__(parent, "dropped_features")
        self._kept = torch.from_numpy(~dropped).to(device_of(parent))

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        encoding = self.parent.encode(activations)
        acts = encoding.feature_acts
        return encoding._replace(feature_acts=acts * self._kept.to(acts.device))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        weights = dict(self.parent.weights)
        for name, features in (("W_enc", -1), ("W_dec", 0)):
            if name in weights:
                kept = self._kept.to(weights[name].device)
                weights[name] = weights[name] * (kept if features else kept[:, None])
        return weights


class DroppedFeatures(Repeated):
    """The SAE without a share of its alive features.

    Those features are 0 on every token. They are a share of the features that fire on at least one of up to 8192 tokens
    sampled from the fit split, chosen by a hash; those of a smaller share are among those of a larger one.
    `seeds` independent choices form one row of the leaderboard.
    """

    name, version, per, dose = "dropped_features", 1, "sae", "share"

    def __init__(self, share: Share, seeds: Repeats = 1, seed: int = 0) -> None:
        super().__init__(seeds, seed)
        self.share = share

    def build(self, sae: Substitute, alive_features: Bool[np.ndarray, "d_sae"], copy: int) -> Substitute:
        with_features(sae)
        return _WithoutFeatures(sae, chosen_share(alive_features, self.share, self.name, self.seed, copy))


class _WithNoise(Derived):
    def __init__(self, parent: Substitute, share: float, *keys: int | str) -> None:
        super().__init__(parent, "noisy_reconstruction")
        self.share, self.keys = share, keys
        self.token_keys: UInt64[np.ndarray, "batch seq"] | None = None

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        bound = copy.copy(self)
        bound.parent, bound.token_keys = self.parent.at(token_keys), token_keys
        return bound

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d_out"]
    ) -> Float[Tensor, "batch seq d_out"]:
        if self.token_keys is None:
            raise ValueError(f"{self.name} draws noise for each token: call at(token_keys) first")
        reconstruction = self.parent.decode(encoding, activations)
        keys = hashed(*self.keys, self.token_keys)
        drawn = normal(keys, activations.shape[-1], reconstruction.device)
        scale = self.share * activations.double().norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
        noise: Tensor = (drawn * scale).to(reconstruction.dtype)
        return reconstruction + noise

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.parent.weights


class NoisyReconstruction(Repeated):
    """The SAE with isotropic noise on its reconstruction.

    x̂' = x̂ + share · ‖x‖ · u at each token, with u uniform on the unit sphere, drawn by a hash of (control, seed,
    draw, hook, sequence id, position): the same direction for every share. Features and weights are the SAE's own.
    `seeds` independent draws form one row of the leaderboard; every token is already a draw.
    """

    name, version, per, dose = "noisy_reconstruction", 1, "sae", "share"

    def __init__(self, share: Share, seeds: Repeats = 1, seed: int = 0) -> None:
        super().__init__(seeds, seed)
        self.share = share

    def build(self, sae: Substitute, hook_name: str, copy: int) -> Substitute:
        with_features(sae)
        return _WithNoise(sae, self.share, self.name, self.seed, copy, hook_name)
