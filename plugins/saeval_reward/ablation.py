"""Ablation of features from the activations, with the SAE's error kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt64

from saeval.plugin import Encoding, Substitute, Undefined, torch

if TYPE_CHECKING:
    from torch import Tensor


class Ablations:
    """x − Σ_{j∈J} f_j D_j for named sets J of features, computed on access so that only one is in memory."""

    def __init__(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        members: Mapping[str, Int[np.ndarray, "k"]],
    ) -> None:
        if encoding is None:
            raise Undefined(f"{sae.name} has no features")
        self._sae, self._encoding = sae.at(token_keys), encoding
        self._activations, self._members = activations, members
        self._here = activations.to(sae.device or activations.device)
        self._empty = self._decoded(np.zeros(0, dtype=np.int64))

    def _decoded(self, members: Int[np.ndarray, "k"]) -> Tensor:
        acts = self._encoding.feature_acts
        selected = torch.zeros_like(acts)
        index = torch.from_numpy(members).to(acts.device)
        selected[..., index] = acts[..., index]
        return self._sae.decode(self._encoding._replace(feature_acts=selected), self._here)

    def __getitem__(self, name: str) -> Float[Tensor, "batch seq d"]:
        written = self._decoded(self._members[name]) - self._empty
        return self._activations - written.to(self._activations)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)
