"""What an SAE's weights say by themselves; no forward pass is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saeval.plugin import Metric, Scalar, Substitute, Undefined, torch

if TYPE_CHECKING:
    from torch import Tensor

ENDS = ("", "_p5", "_p50", "_p95")
"""The mean over features and its quantiles, as names end."""
BLOCK_ELEMENTS = 2**22
"""Largest number of cosines alive together."""


class Weights(Metric):
    """Geometry of W_enc `[d_in, d_sae]` (columns e_j) and W_dec `[d_sae, d_out]` (rows d_j), over all features.

    encoder_decoder_cosine: e_j·d_j / ‖e_j‖‖d_j‖, mean and quantiles over features; 1 for tied weights.
    max_decoder_cosine: max over k ≠ j of d_j·d_k / ‖d_j‖‖d_k‖ (signed), mean and median; near 1 where features
    have twins. decoder_norm, encoder_norm: ‖d_j‖, ‖e_j‖, mean and quantiles. b_enc: mean; b_dec_norm: ‖b_dec‖.
    Features with a zero row or column have no direction: they are left out of cosines and counted
    (without_direction). Dead features count like any other. Weights a substitute lacks make their
    values undefined. No error bars: features are not a sample of documents.

    Values:
        encoder_decoder_cosine, encoder_decoder_cosine_p*: e_j·d_j / ‖e_j‖‖d_j‖: mean and quantiles over
            features; cosine; -1 .. 1; no better direction.
        max_decoder_cosine, max_decoder_cosine_p50: max over k ≠ j of d_j·d_k / ‖d_j‖‖d_k‖: mean and median;
            cosine; -1 .. 1; no better direction.
        decoder_norm, decoder_norm_p*, encoder_norm, encoder_norm_p*: ‖d_j‖ and ‖e_j‖: mean and quantiles; norm
            of weights; ≥ 0; no better direction.
        b_enc, b_enc_p*: encoder bias: mean and quantiles; bias; −∞ .. ∞; no better direction.
        b_dec_norm: ‖b_dec‖; activation; ≥ 0; no better direction.
        without_direction: #{j : ‖e_j‖ = 0 or ‖d_j‖ = 0}; features; 0 .. d_sae; no better direction.

    Source: the cosines as in SAEBench (Karvonen et al. 2025), the rest is saeval's own.
    """

    name, version = "weights", 1
    headline = ("encoder_decoder_cosine", "max_decoder_cosine")
    value_names = (
        *(f"{name}{q}" for name in ("encoder_decoder_cosine", "decoder_norm", "encoder_norm", "b_enc") for q in ENDS),
        "max_decoder_cosine", "max_decoder_cosine_p50", "b_dec_norm", "without_direction",
    )  # fmt: skip

    def conclude(self, sae: Substitute) -> dict[str, Scalar]:
        weights = {name: sae.weight(name).detach() for name in sae.weights}
        if not weights:
            raise Undefined(f"{sae.name} shows no weights")
        encoder = weights["W_enc"].T if "W_enc" in weights else None
        decoder, b_enc, b_dec = weights.get("W_dec"), weights.get("b_enc"), weights.get("b_dec")
        quantiles = ("", "p5", "p50", "p95")
        found = _described("encoder_decoder_cosine", "cosine", quantiles, *_own_cosines(encoder, decoder))
        found |= _described("max_decoder_cosine", "cosine", ("", "p50"), *_largest_cosines(decoder))
        for name, rows in (("decoder_norm", decoder), ("encoder_norm", encoder)):
            norms = None if rows is None else _norms(rows)
            found |= _described(name, "norm of weights", quantiles, norms, _lacking(name.split("_")[0]))
        found |= _described("b_enc", "bias", quantiles, _array(b_enc), _lacking("b_enc"))
        found["b_dec_norm"] = (
            Scalar.undefined(_lacking("b_dec"), unit="activation")
            if b_dec is None
            else Scalar(float(b_dec.double().norm()), unit="activation")
        )
        present = [_norms(rows) == 0 for rows in (encoder, decoder) if rows is not None]
        if present:
            lost = float(np.logical_or.reduce(present).sum())
            found["without_direction"] = Scalar(lost, unit="features", n=len(present[0]))
        return found


def _described(
    name: str, unit: str, which: tuple[str, ...], values: Float[np.ndarray, "n"] | None, reason: str
) -> dict[str, Scalar]:
    """Mean ("") and quantiles (p5, ...) over features, or the reason why there are none."""
    names = [f"{name}_{q}" if q else name for q in which]
    if values is None or len(values) == 0:
        return {shown: Scalar.undefined(reason, unit=unit) for shown in names}
    numbers = [
        float(np.quantile(values, int(q[1:]) / 100, method="inverted_cdf")) if q else float(values.mean())
        for q in which
    ]
    return {shown: Scalar(x, unit=unit, n=len(values)) for shown, x in zip(names, numbers, strict=True)}


def _lacking(what: str) -> str:
    return f"there is no {what} among the weights"


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.double().cpu().numpy()


def _norms(rows: Float[Tensor, "n d"]) -> Float[np.ndarray, "n"]:
    return np.asarray(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu())


def _directed(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of norm 1; zero rows stay zero."""
    return torch.nn.functional.normalize(rows.float(), dim=1)


def _own_cosines(encoder: Tensor | None, decoder: Tensor | None) -> tuple[np.ndarray | None, str]:
    """Cosine of each feature's encoder and decoder directions, features without one left out."""
    if encoder is None or decoder is None:
        return None, _lacking("encoder" if encoder is None else "decoder")
    if encoder.shape != decoder.shape:
        return None, f"it reads {encoder.shape[1]} dimensions and writes {decoder.shape[1]}: they have no angle"
    cosines = (_directed(encoder).double() * _directed(decoder).double()).sum(1).cpu().numpy()
    return cosines[(_norms(encoder) > 0) & (_norms(decoder) > 0)], "no feature has directions"


def _largest_cosines(decoder: Tensor | None) -> tuple[np.ndarray | None, str]:
    """Largest cosine of each feature's decoder row with another's, rows of zeros left out."""
    if decoder is None:
        return None, _lacking("decoder")
    rows = _directed(decoder[torch.from_numpy(_norms(decoder) > 0).to(decoder.device)])
    if len(rows) < 2:
        return None, "there are no two features with a direction"
    largest = []
    size = max(1, BLOCK_ELEMENTS // len(rows))
    for begin in range(0, len(rows), size):
        cosines = rows[begin : begin + size] @ rows.T
        index = torch.arange(len(cosines), device=rows.device)
        cosines[index, begin + index] = -torch.inf  # a feature's cosine with itself
        largest.append(cosines.amax(1))
    return torch.cat(largest).double().cpu().numpy(), ""
