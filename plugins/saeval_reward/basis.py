"""The control `residual_basis`: the raw basis of the hook in place of an SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Control, Encoding, Substitute, torch

if TYPE_CHECKING:
    from torch import Tensor


class _Coordinates(Substitute):
    name = "residual_basis"

    def __init__(self, hook_name: str, d_in: int) -> None:
        self.hook_name, self.d_in, self.d_sae = hook_name, d_in, d_in

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        return Encoding(activations)

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        assert encoding is not None
        return encoding.feature_acts

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {"W_enc": torch.eye(self.d_in), "W_dec": torch.eye(self.d_in)}


class ResidualBasis(Control):
    """The hook's coordinates as features: f = x, d_j = e_j, x̂ = x. Features are signed and dense."""

    name, version, per = "residual_basis", 1, "hook"

    def build(self, hook_name: str, d_in: int) -> Substitute:
        return _Coordinates(hook_name, d_in)
