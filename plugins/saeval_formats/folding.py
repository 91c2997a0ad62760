"""Affine maps around an SAE, folded into its weights so that it takes and gives activations as the model has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def scaled(tensors: Mapping[str, Tensor], s_in: float, s_out: float) -> dict[str, Tensor]:
    """The SAE for x that, in `tensors`, reads x·s_in and gives x̂·s_out; its features are the same.

    W_enc·s_in, W_dec/s_out, b_dec/s_out, the last as it is subtracted from x where s_in = s_out.
    """
    found = dict(tensors)
    found["W_enc"] = tensors["W_enc"] * s_in
    found["W_dec"] = tensors["W_dec"] / s_out
    found["b_dec"] = tensors["b_dec"] / s_out
    return found


def whitened(
    tensors: Mapping[str, Tensor],
    mean: Float[Tensor, "d_in"],
    matrix: Float[Tensor, "d_in d_in"],
    inverse: Float[Tensor, "d_in d_in"],
    *,
    apply_b_dec_to_input: bool,
) -> dict[str, Tensor]:
    """The SAE for x that, in `tensors`, reads (x - mean) M and gives (x̂ - mean) M, its features the same.

    W_enc <- M W_enc, W_dec <- W_dec M⁻¹, b_dec <- b_dec M⁻¹ + mean. Where b_dec is subtracted from the input it
    takes the mean along; elsewhere mean M W_enc comes off every bias of the encoder, times e^{r_mag} for a gated
    SAE's magnitudes. In float64: whitening divides by the standard deviations of directions that hardly vary.
    """
    dtype = tensors["W_enc"].dtype
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    mean, matrix, inverse = mean.double(), matrix.double(), inverse.double()
    wide["W_enc"] = matrix @ wide["W_enc"]
    wide["W_dec"] = wide["W_dec"] @ inverse
    wide["b_dec"] = wide["b_dec"] @ inverse + mean
    if not apply_b_dec_to_input:
        shift = mean @ wide["W_enc"]
        for name, factor in (("b_enc", 1.0), ("b_gate", 1.0), ("b_mag", None)):
            if name in wide:
                wide[name] = wide[name] - shift * (wide["r_mag"].exp() if factor is None else factor)
    return {name: tensor.to(dtype) for name, tensor in wide.items()}


def rescaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decoder rows of norm 1, their norms multiplied into W_enc and b_enc."""
    norms = tensors["W_dec"].norm(dim=-1)
    found = {name: tensors[name] * norms for name in ("W_enc", "b_enc")}
    return {**tensors, **found, "W_dec": tensors["W_dec"] / norms.clamp(min=1e-12)[:, None]}
