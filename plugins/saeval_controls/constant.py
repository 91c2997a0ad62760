"""Controls without features: the activations themselves, zero and mean ablation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Control, Encoding, Substitute, torch

if TYPE_CHECKING:
    from torch import Tensor


class _Identical(Substitute):
    name = "identity"

    def decode(self, encoding: Encoding | None, activations: Tensor) -> Tensor:
        return activations


class _Constant(Substitute):
    def __init__(self, vector: Tensor | float, name: str) -> None:
        self.vector = torch.as_tensor(vector)
        self.name = name

    def decode(self, encoding: Encoding | None, activations: Tensor) -> Tensor:
        return self.vector.to(activations).expand_as(activations)


class Identity(Control):
    """The activations themselves: the score of a perfect substitute, rounding included."""

    name, version, per = "identity", 1, "hook"

    def build(self) -> Substitute:
        return _Identical()


class Zero(Control):
    """Zero ablation."""

    name, version, per = "zero", 1, "hook"

    def build(self) -> Substitute:
        return _Constant(0.0, "zero")


class Mean(Control):
    """Mean ablation: the mean activation over the mask of all planned tokens, at every position."""

    name, version, per = "mean", 1, "hook"

    def build(self, activation_mean: Float[Tensor, "d_in"]) -> Substitute:
        return _Constant(activation_mean, "mean")
