"""Parts that controls share: samples of the fit split, quantities computed on them, base classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from saeval.plugin import (
    Control,
    Encoding,
    Repeats,
    Sample,
    Substitute,
    Undefined,
    fit_split,
    fold,
    hashed,
    torch,
)

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(gt=0, le=1)]
"""The part of an SAE that a control damages."""
SAMPLE = 8192
_ROWS = 1024
"""Rows encoded at a time."""


@fold
@fit_split
def fit_activations(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Sample:
    """Fold over the fit split: up to 8192 rows of activations, chosen by hash."""
    return Sample.of(activations, mask, SAMPLE)


@fold
@fit_split
def fit_inputs(sae_input: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Sample:
    """Fold over the fit split: up to 8192 rows of the SAE's input, at the same tokens as `fit_activations`."""
    return Sample.of(sae_input, mask, SAMPLE)


def parent_l0(sae: Substitute, fit_inputs: Sample) -> float:
    """Mean number of features that fire per sampled token of the fit split."""
    fired = sum(float((acts != 0).sum()) for acts in _acts(sae, fit_inputs))
    return fired / len(fit_inputs.rows)


def alive_features(sae: Substitute, fit_inputs: Sample) -> Bool[np.ndarray, "d_sae"]:
    """True for each feature that fires on at least one sampled token of the fit split."""
    alive = torch.stack([(acts != 0).any(1)[0] for acts in _acts(sae, fit_inputs)]).any(0)
    return alive.cpu().numpy()


def rows_of(sample: Sample) -> Float[Tensor, "n d"]:
    """Return the sampled rows; raise `Undefined` if there are none."""
    if len(sample.rows) == 0:
        raise Undefined("the fit split has no token in its mask; check 'exclude' in the data")
    return torch.from_numpy(sample.rows)


def with_features(sae: Substitute) -> Substitute:
    """Return the SAE; raise `Undefined` if it has no features."""
    if not sae.has_features:
        raise Undefined(f"{sae.name} has no features")
    return sae


def device_of(sae: Substitute) -> torch.device:
    """The device on which an SAE computes."""
    return sae.device or next((w.device for w in sae.weights.values()), torch.device("cpu"))


def _acts(sae: Substitute, sample: Sample) -> Iterator[Float[Tensor, "1 n d_sae"]]:
    with_features(sae)
    for part in rows_of(sample).split(_ROWS):
        acts = sae.encode(part[None].to(device_of(sae))).feature_acts
        if not acts.isfinite().all():  # NaN would count as firing
            raise Undefined(f"{sae.name} has NaN or infinite feature activations on the fit split")
        yield acts


def chosen_share(
    alive: Bool[np.ndarray, "d_sae"], share: float, *keys: int | str, least: int = 1
) -> Bool[np.ndarray, "d_sae"]:
    """Return a share of the alive features, chosen by a hash of the keys; those of a smaller share are among them."""
    members = np.flatnonzero(alive)
    count = min(max(round(share * len(members)), least), len(members))
    chosen = np.zeros_like(alive)
    chosen[members[np.argsort(hashed(*keys, "share", members), kind="stable")[:count]]] = True
    return chosen


class Repeated(Control):
    """A control of which `seeds` independent draws form one row of the leaderboard."""

    def __init__(self, seeds: Repeats = 5, seed: int = 0) -> None:
        if seeds < 1:
            raise ValueError(f"control '{self.name}': seeds must be at least 1, got {seeds}")
        self.seeds, self.seed = seeds, seed

    @property
    def copies(self) -> int:
        return self.seeds


class Derived(Substitute):
    """A substitute with its parent's encoder and decoder; subclasses change one of them."""

    def __init__(self, parent: Substitute, name: str) -> None:
        self.parent, self.name = with_features(parent), name
        self.hook_name = getattr(parent, "hook_name", "")
        self.d_sae = parent.d_sae

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        return self.parent.encode(activations)

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d_out"]
    ) -> Float[Tensor, "batch seq d_out"]:
        return self.parent.decode(encoding, activations)

    @property
    def device(self) -> torch.device | None:
        return self.parent.device
