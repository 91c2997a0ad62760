"""Geometry of an SAE's weights, without a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saeval.plugin import Metric, Scalar, Substitute, Undefined, torch

if TYPE_CHECKING:
    from torch import Tensor

ENDS = ("", "_p5", "_p50", "_p95")
"""Suffixes of names: the mean over features, and quantiles."""
BLOCK_ELEMENTS = 2**22
"""Largest number of cosines in memory at once."""


class Weights(Metric):
    """Geometry of W_enc `[d_in, d_sae]` (columns e_j) and W_dec `[d_sae, d_out]` (rows d_j), over all features.

    encoder_decoder_cosine is 1 for tied weights; max_decoder_cosine (signed) is near 1 if features have twins.
    Features with a zero row or column have no direction: cosines leave them out, and without_direction counts
    them. Dead features count like any other. Values of weights that a substitute lacks are undefined. No error
    bars: features are not a sample of documents.

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

    Claims:
        encoder_decoder_cosine, encoder_decoder_cosine_p*: how far encoder and decoder directions agree; null: none; 1
            for tied weights; needs: 1 SAE; 4 seeds for a training method; not: that features are good or interpretable.
        max_decoder_cosine, max_decoder_cosine_p50: features have nearer neighbours than in another SAE of the same
            width; null: the same value of the control random, which has random directions of that width; needs: 1 SAE
            and its control random; 4 seeds for a training method; not: that near features are redundant; a comparison
            of widths, since the maximum rises with d_sae / d.
        decoder_norm, decoder_norm_p*, encoder_norm, encoder_norm_p*, b_enc, b_enc_p*, b_dec_norm: the scale of the
            weights as loaded; null: none, since scales are a convention; needs: 1 SAE; not: a difference between SAEs
            of unlike formats or normalisations, which fold scales into the weights.
        without_direction: so many features were left out of the cosines; null: none, since it is a count; needs: 1 SAE;
            not: that the others are used.

    Source: the cosines as in SAEBench (Karvonen et al. 2025), the rest is saeval's own.
    """

    name, version = "weights", 1
    headline = ("encoder_decoder_cosine", "max_decoder_cosine")
    main = ()
    value_names = (
        *(f"{name}{q}" for name in ("encoder_decoder_cosine", "decoder_norm", "encoder_norm", "b_enc") for q in ENDS),
        "max_decoder_cosine", "max_decoder_cosine_p50", "b_dec_norm", "without_direction",
    )  # fmt: skip

    def conclude(self, sae: Substitute) -> dict[str, Scalar]:
        weights = {name: sae.weight(name).detach() for name in sae.weights}
        if not weights:
            raise Undefined(f"{sae.name} has no weights")
        encoder = weights["W_enc"].T if "W_enc" in weights else None
        decoder, b_enc, b_dec = weights.get("W_dec"), weights.get("b_enc"), weights.get("b_dec")
        values = _summaries("encoder_decoder_cosine", "cosine", ENDS, *_paired_cosines(encoder, decoder))
        values |= _summaries("max_decoder_cosine", "cosine", ("", "_p50"), *_decoder_cosines(decoder))
        for name, rows in (("decoder_norm", decoder), ("encoder_norm", encoder)):
            norms = None if rows is None else _norms(rows)
            values |= _summaries(name, "norm of weights", ENDS, norms, _missing(name.split("_")[0]))
        biases = None if b_enc is None else b_enc.double().cpu().numpy()
        values |= _summaries("b_enc", "bias", ENDS, biases, _missing("b_enc"))
        values["b_dec_norm"] = (
            Scalar.undefined(_missing("b_dec"), unit="activation")
            if b_dec is None
            else Scalar(float(b_dec.double().norm()), unit="activation", comparable="hook")
        )
        zero_rows = [_norms(rows) == 0 for rows in (encoder, decoder) if rows is not None]
        if zero_rows:
            count = float(np.logical_or.reduce(zero_rows).sum())
            values["without_direction"] = Scalar(count, unit="features", n=len(zero_rows[0]), comparable="everywhere")
        return values


def _summaries(
    name: str, unit: str, ends: tuple[str, ...], values: Float[np.ndarray, "n"] | None, reason: str
) -> dict[str, Scalar]:
    """Mean ("") and quantiles ("_p5", ...) over features, or the reason why there are none."""
    if values is None or len(values) == 0:
        return {f"{name}{end}": Scalar.undefined(reason, unit=unit) for end in ends}
    numbers = [np.quantile(values, int(end[2:]) / 100, method="inverted_cdf") if end else values.mean() for end in ends]
    return {
        f"{name}{end}": Scalar(float(x), unit=unit, n=len(values), comparable="hook")
        for end, x in zip(ends, numbers, strict=True)
    }


def _missing(weight: str) -> str:
    return f"there is no {weight} among the weights"


def _norms(rows: Float[Tensor, "n d"]) -> Float[np.ndarray, "n"]:
    return np.asarray(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu())


def directed(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of norm 1; zero rows stay zero."""
    return torch.nn.functional.normalize(rows.float(), dim=1)


def _paired_cosines(encoder: Tensor | None, decoder: Tensor | None) -> tuple[np.ndarray | None, str]:
    """Cosine of each feature's encoder and decoder directions; features without a direction are left out."""
    if encoder is None or decoder is None:
        return None, _missing("encoder" if encoder is None else "decoder")
    if encoder.shape != decoder.shape:
        return None, f"it reads {encoder.shape[1]} dimensions and writes {decoder.shape[1]}: no cosine is defined"
    cosines = (directed(encoder).double() * directed(decoder).double()).sum(1).cpu().numpy()
    return cosines[(_norms(encoder) > 0) & (_norms(decoder) > 0)], "no feature has both directions"


def _decoder_cosines(decoder: Tensor | None) -> tuple[np.ndarray | None, str]:
    """Largest cosine of each feature's decoder row with another row; zero rows are left out."""
    if decoder is None:
        return None, _missing("decoder")
    rows = directed(decoder[torch.from_numpy(_norms(decoder) > 0).to(decoder.device)])
    if len(rows) < 2:
        return None, "fewer than two features have a direction"
    return largest_cosines(rows, max(1, BLOCK_ELEMENTS // len(rows))).cpu().numpy(), ""


def largest_cosines(unit: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n"]:
    """Largest cosine of each row with another one, for rows of norm 1 (or 0); computed `block` rows at a time."""
    largest = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        index = torch.arange(len(cosines), device=unit.device)
        cosines[index, start + index] = -torch.inf  # a row's cosine with itself
        largest.append(cosines.amax(1))
    return torch.cat(largest).double()
