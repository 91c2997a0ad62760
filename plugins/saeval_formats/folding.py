"""Fold affine maps around an SAE into its weights, so that it reads and returns the model's own activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def scaled(tensors: Mapping[str, Tensor], s_in: float, s_out: float) -> dict[str, Tensor]:
    """Return tensors for inputs x and outputs x̂ of an SAE whose `tensors` expect x·s_in and return x̂·s_out.

    W_enc·s_in, W_dec/s_out, b_dec/s_out; if b_dec is also subtracted from x, s_in and s_out must be equal. The
    features do not change.
    """
    folded = {"W_enc": tensors["W_enc"] * s_in, "W_dec": tensors["W_dec"] / s_out, "b_dec": tensors["b_dec"] / s_out}
    return {**tensors, **folded}


def whitened(
    tensors: Mapping[str, Tensor],
    mean: Float[Tensor, "d_in"],
    matrix: Float[Tensor, "d_in d_in"],
    inverse: Float[Tensor, "d_in d_in"],
    *,
    apply_b_dec_to_input: bool,
) -> dict[str, Tensor]:
    """Return tensors for x and x̂ of an SAE whose `tensors` expect (x - mean) M and return (x̂ - mean) M.

    W_enc <- M W_enc, W_dec <- W_dec M⁻¹, b_dec <- b_dec M⁻¹ + mean. If b_dec is subtracted from the input, this
    also subtracts the mean; otherwise mean M W_enc is subtracted from every encoder bias, times e^{r_mag} for the
    magnitudes of a gated SAE. The features do not change. Computed in float64, because whitening divides by the
    standard deviations of directions that hardly vary.
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
    """Return tensors with decoder rows of norm 1 and their old norms multiplied into W_enc and b_enc."""
    norms = tensors["W_dec"].norm(dim=-1)
    encoder = {name: tensors[name] * norms for name in ("W_enc", "b_enc")}
    return {**tensors, **encoder, "W_dec": tensors["W_dec"] / norms.clamp(min=1e-12)[:, None]}
