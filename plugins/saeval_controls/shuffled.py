"""Controls with the right parts in the wrong places: features of other tokens, directions of other features."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.plugin import Control, Encoding, Repeats, Sample, Substitute, Undefined, hashed, torch
from saeval_controls.fitted import Derived, Repeated, Share, chosen_share, device_of, rows_of, with_features

if TYPE_CHECKING:
    from torch import Tensor


class Reservoir:
    """Rows of the fit split; a hash of (keys, the token's key) draws one of them per token."""

    def __init__(self, rows: Float[Tensor, "n d"], *keys: int | str) -> None:
        self.rows, self.keys = rows, keys

    def drawn(self, token_keys: UInt64[np.ndarray, "batch seq"], device: torch.device) -> Float[Tensor, "batch seq d"]:
        index = hashed(*self.keys, token_keys) % np.uint64(len(self.rows))
        self.rows = self.rows.to(device)  # moved once, to the device of the first batch
        return self.rows[torch.from_numpy(index.astype(np.int64)).to(device)]


class Keyed(Substitute):
    """A substitute that draws from a reservoir by the keys of the tokens in the batch."""

    reservoir: Reservoir
    token_keys: UInt64[np.ndarray, "batch seq"] | None = None

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        bound = copy.copy(self)
        bound.token_keys = token_keys
        return bound

    def drawn(self, activations: Tensor) -> Tensor:
        """Return one row per token, in the activations' dtype and on their device."""
        if self.token_keys is None:
            raise ValueError(f"{self.name} draws one row per token: call at(token_keys) first")
        return self.reservoir.drawn(self.token_keys, activations.device).to(activations)


class _Resampled(Keyed):
    name = "resample"

    def __init__(self, reservoir: Reservoir) -> None:
        self.reservoir = reservoir

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        return self.drawn(activations)


class Resample(Control):
    """Resample ablation: each token gets the activations of a token of another document.

    A hash of (control, seed, hook, sequence id, position) draws the other token from up to 8192 tokens
    sampled from the fit split, which shares no document with the evaluated rows.
    """

    name, version, per = "resample", 1, "hook"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def build(self, fit_activations: Sample, hook_name: str) -> Substitute:
        return _Resampled(Reservoir(rows_of(fit_activations), self.name, self.seed, hook_name))


class _OtherFeatures(Derived, Keyed):
    def __init__(self, parent: Substitute, reservoir: Reservoir) -> None:
        super().__init__(parent, "shuffled_features")
        self.reservoir = reservoir

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        return self.parent.encode(self.drawn(activations))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.parent.weights


class ShuffledFeatures(Repeated):
    """The SAE with each token's whole feature vector taken from a token of another document.

    x̂(t) = decode(encode(x(s))); a hash of (control, seed, draw, hook, sequence id, position) draws the token
    s from up to 8192 tokens sampled from the fit split, which shares no document with the evaluated
    rows. Whatever else decoding needs (norms, scales) is also that of s. Features keep the frequencies,
    sizes and co-occurrences that they have in the SAE, and are unrelated to the token.
    `seeds` independent draws form one row of the leaderboard; every token is already a draw.
    """

    name, version, per = "shuffled_features", 1, "sae"

    def __init__(self, seeds: Repeats = 1, seed: int = 0) -> None:
        super().__init__(seeds, seed)

    def build(self, sae: Substitute, fit_inputs: Sample, hook_name: str, copy: int) -> Substitute:
        with_features(sae)
        return _OtherFeatures(sae, Reservoir(rows_of(fit_inputs), self.name, self.seed, copy, hook_name))


class _OtherDirections(Derived):
    def __init__(self, parent: Substitute, directions: Int[np.ndarray, "d_sae"]) -> None:
        super().__init__(parent, "shuffled_decoder")
        self.directions = directions
        """Index of the feature whose decoder direction each feature writes."""
        self._feature = torch.from_numpy(np.argsort(directions)).to(device_of(parent))

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d_out"]
    ) -> Float[Tensor, "batch seq d_out"]:
        assert encoding is not None
        # Σ_j f_j d_π(j): the direction of feature π(j) gets the activation of j.
        acts = encoding.feature_acts
        return self.parent.decode(encoding._replace(feature_acts=acts[..., self._feature.to(acts.device)]), activations)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        weights = dict(self.parent.weights)
        if "W_dec" in weights:
            weights["W_dec"] = weights["W_dec"][torch.from_numpy(self.directions).to(weights["W_dec"].device)]
        return weights


class ShuffledDecoder(Repeated):
    """The SAE with the decoder directions of its alive features exchanged among them, or of a share of them.

    x̂ = decode(f_π⁻¹), that is f_j writes d_π(j), for a derangement π of the features that fire on at least
    one of up to 8192 tokens sampled from the fit split; the other features keep their directions. With `share`
    below 1, of that share of them, at least two, chosen by a hash: those of a smaller share are among those of a
    larger one. The features themselves, and so L0 and density, are the parent's. Undefined if fewer than two
    features are alive. `seeds` independent derangements form one row of the leaderboard.
    """

    name, version, per, standing, dose = "shuffled_decoder", 1, "sae", 1, "share"

    def __init__(self, seeds: Repeats = 5, seed: int = 0, share: Share = 1.0) -> None:
        super().__init__(seeds, seed)
        self.share = share

    def build(self, sae: Substitute, alive_features: Bool[np.ndarray, "d_sae"], copy: int) -> Substitute:
        with_features(sae)
        moved = alive_features
        if self.share < 1:
            moved = chosen_share(alive_features, self.share, self.name, self.seed, copy, least=2)
        return _OtherDirections(sae, deranged(moved, self.seed, copy))


def deranged(alive: Bool[np.ndarray, "n"], *seeds: int) -> Int[np.ndarray, "n"]:
    """Return a permutation that moves every alive index and keeps every other one in place.

    It is one cycle through all alive indices in an order drawn by hash, so that no draw is rejected.
    """
    members = np.flatnonzero(alive)
    if len(members) < 2:
        raise Undefined(f"{len(members)} features fire on the sampled tokens of the fit split; exchanging takes 2")
    order = members[np.argsort(hashed(*seeds, members), kind="stable")]
    permutation = np.arange(len(alive))
    permutation[order] = np.roll(order, -1)
    return permutation
