"""An SAE with dense matrices: the canonical form that every checkpoint format is read into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saeval.substitute import Encoding, Substitute

Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

# Where the field's formulas divide by a norm, a zero vector must give zeros, not NaN.
_TINY = 1e-12
_LAYER_NORM_EPS = 1e-5


class Activation(ABC):
    """From x̃ W_enc and b_enc to feature activations."""

    @abstractmethod
    def __call__(self, projected: Float[Tensor, "*batch d_sae"], b_enc: Float[Tensor, "d_sae"]) -> Tensor:
        """`[*batch, d_sae]`, none negative."""


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """relu(x̃ W_enc + b_enc)"""

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        return torch.relu(projected + b_enc)


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """The k largest of x̃ W_enc + b_enc of each token, then relu."""

    k: int

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        values, indices = torch.topk(projected + b_enc, self.k, dim=-1, sorted=False)
        return torch.zeros_like(projected).scatter_(-1, indices, values.relu())


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """relu(pre) where pre = x̃ W_enc + b_enc is strictly above the threshold, else 0."""

    threshold: Float[Tensor, "d_sae"]

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        pre = projected + b_enc
        return torch.relu(pre) * (pre > self.threshold)


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """1[x̃ W_enc + b_gate > 0] · relu(x̃ W_enc e^{r_mag} + b_mag); `b_enc` has no part in it."""

    b_gate: Float[Tensor, "d_sae"]
    r_mag: Float[Tensor, "d_sae"]
    b_mag: Float[Tensor, "d_sae"]

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        return torch.relu(projected * self.r_mag.exp() + self.b_mag) * (projected + self.b_gate > 0)


class DenseSAE(Substitute):
    """acts = activation(x̃ W_enc + b_enc); x̂ = denormalise(acts W_dec + b_dec).

    x̃ = normalise(x), less b_dec where `apply_b_dec_to_input`. Computed in the dtype of the weights; reconstructions
    come in that of the activations. What normalisation took away travels in the encoding's context, so nothing is
    kept between calls. With `rescale_acts_by_decoder_norm` (ReLU and TopK) the decoder's row norms are folded into
    the encoder, so that `feature_acts` and `weights` belong together.
    """

    def __init__(
        self,
        hook_name: str,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, "d_sae"] | None,
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, "d_out"],
        activation: Activation,
        *,
        apply_b_dec_to_input: bool = False,
        normalization: Normalization = "none",
        rescale_acts_by_decoder_norm: bool = False,
    ) -> None:
        """`b_enc=None` stands for zeros (gated SAEs have none). `ValueError` where shapes or options do not fit."""
        d_in, d_sae = W_enc.shape
        d_out = W_dec.shape[1]
        if W_dec.shape[0] != d_sae or b_dec.shape != (d_out,) or (b_enc is not None and b_enc.shape != (d_sae,)):
            shapes = [None if t is None else tuple(t.shape) for t in (W_enc, b_enc, W_dec, b_dec)]
            raise ValueError(f"W_enc, b_enc, W_dec, b_dec do not fit together: {shapes}")
        if d_in != d_out and (apply_b_dec_to_input or normalization != "none"):
            raise ValueError(f"d_in {d_in} and d_out {d_out} differ: b_dec and norms of one do not apply to the other")
        if rescale_acts_by_decoder_norm and not isinstance(activation, ReLU | TopK):
            raise ValueError(f"rescale_acts_by_decoder_norm is for ReLU and TopK, not {type(activation).__name__}")
        self.hook_name = hook_name
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.activation = activation
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalization = normalization
        self._has_b_enc = b_enc is not None
        if b_enc is None:
            b_enc = W_enc.new_zeros(d_sae)
        if rescale_acts_by_decoder_norm:
            norms = W_dec.norm(dim=-1)
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms.clamp(min=_TINY)[:, None]
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = W_enc, b_enc, W_dec, b_dec

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def weights(self) -> Mapping[str, Tensor]:
        found = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return {**found, "b_enc": self.b_enc} if self._has_b_enc else found

    def encode(self, activations: Float[Tensor, "*batch d_in"]) -> Encoding:
        x, context = self._normalise(activations.to(self.dtype))
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        return Encoding(self.activation(x @ self.W_enc, self.b_enc), context)

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """`encoding` may hold changed feature activations, but the context of these `activations`."""
        if encoding is None:
            encoding = self.encode(activations)
        x_hat = encoding.feature_acts.to(self.dtype) @ self.W_dec + self.b_dec
        return self._denormalise(x_hat, encoding.context).to(activations.dtype)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Any]:
        if self.normalization == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            centred = x - mean
            std = centred.std(dim=-1, keepdim=True)  # the unbiased one, as these SAEs were trained
            return centred / (std + _LAYER_NORM_EPS), (mean, std)
        if self.normalization == "constant_norm_rescale":
            scale = self.d_in**0.5 / x.norm(dim=-1, keepdim=True).clamp(min=_TINY)
            return x * scale, scale
        return x, None

    def _denormalise(self, x_hat: Tensor, context: Any) -> Tensor:
        if self.normalization == "layer_norm":
            mean, std = context
            x_hat = x_hat * std + mean
        if self.normalization == "constant_norm_rescale":
            x_hat = x_hat / context
        return x_hat
