"""The control `matched_noise`: an SAE with noise in place of its error."""

from __future__ import annotations

import copy as copies_of
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt64

from saeval.plugin import Encoding, Repeats, Substitute, torch
from saeval_controls.fitted import Repeated
from saeval_perturbation.noise import noisy_error

if TYPE_CHECKING:
    from torch import Tensor


class _Noisy(Substitute):
    name = "matched_noise"

    def __init__(self, parent: Substitute, *draw: int, hook_name: str) -> None:
        self.parent, self.draw, self.hook_name = parent, draw, hook_name
        self.d_sae, self.reads_earlier = parent.d_sae, parent.reads_earlier
        self.token_keys: UInt64[np.ndarray, "batch seq"] | None = None

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        bound = copies_of.copy(self)
        bound.parent, bound.token_keys = self.parent.at(token_keys), token_keys
        return bound

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        return self.parent.encode(activations)

    def decode(self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]) -> Tensor:
        if self.token_keys is None:
            raise ValueError(f"{self.name} draws noise for each token: call at(token_keys) first")
        seed, copy = self.draw
        reconstruction = self.parent.decode(encoding, activations)
        return noisy_error(activations, reconstruction, self.token_keys, self.hook_name, draw=copy, seed=seed)

    @property
    def device(self) -> torch.device | None:
        return self.parent.device

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.parent.weights


class MatchedNoise(Repeated):
    """The SAE with isotropic noise in place of its error, of the same cosine and norm.

    x̂ has at each token the cosine to x and the norm of the SAE's reconstruction; perpendicular to x, its direction is
    uniform, drawn by a hash of (control, seed, draw, hook, sequence id, position). Features are the SAE's own.
    `seeds` independent draws form one row of the leaderboard; every token is already a draw.
    """

    name, version, per = "matched_noise", 1, "sae"

    def __init__(self, seeds: Repeats = 1, seed: int = 0) -> None:
        super().__init__(seeds, seed)

    def build(self, sae: Substitute, hook_name: str, copy: int) -> Substitute:
        return _Noisy(sae, self.seed, copy, hook_name=hook_name)
