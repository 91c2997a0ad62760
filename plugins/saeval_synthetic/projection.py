"""The metric `decoder_projection`: two numbers that are smallest near the right L0, without a ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from saeval.plugin import Metric, Sample, Scalar, Undefined, Value, torch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject

_ROWS = 1024
"""Decoder rows, or tokens, whose products are held at a time."""


class DecoderProjection(Metric):
    """Signs of a wrong L0 in the decoder: projections of the activations on it, and cosines between its rows.

    An SAE with too small or too large an L0 mixes features into its latents. Then more decoder rows have a part of any
    activation, and of each other. The projections ⟨x − b_dec, d_j⟩ of B tokens on all m decoder rows, scaled to norm 1,
    are sorted; `projection` is the (n · B)-th largest, n = `share` · m. The B = `sampled` tokens are sampled by hash,
    so that nothing depends on the batch size. Both values compare SAEs of one width at one hook that differ in L0:
    they are least near the right one.

    Values:
        projection: the (n · B)-th largest projection; unit of the activations; −∞ .. ∞; lower is better.
        pairwise_cosine: mean of |cos| over all pairs of decoder rows; cosine; 0 .. 1; lower is better.
        pairwise_cosine_floor: the expected value for random directions, Γ(d/2) / (√π Γ((d + 1)/2)); cosine; 0 .. 1; no
            better direction.

    Claims:
        projection, pairwise_cosine: latents that have parts of other features; null: none is tested; the value of
            random rows is 0 at a share of 1/2, and pairwise_cosine_floor; needs: SAEs of one width that differ in L0;
            not: that an SAE of another width or hook is better.
        pairwise_cosine_floor: nothing on its own; null: is one itself; needs: the width of the hook; not: a quality.

    Source: Chanin and Garriga-Alonso 2025 (arXiv 2508.16560).
    """

    name, version = "decoder_projection", 1
    headline = ("projection", "pairwise_cosine", "pairwise_cosine_floor")
    main = ("projection",)
    value_names = ("projection", "pairwise_cosine", "pairwise_cosine_floor")

    def __init__(
        self, share: Annotated[float, Field(gt=0, lt=1)] = 0.5, sampled: Annotated[int, Field(ge=1, le=2**20)] = 1024,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.share, self.sampled, self.seed = share, sampled, seed

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        each = [(s.d_sae or 0, s.d_out or s.d_in or 0) for s in subjects]
        return sum(2.0 * (m + 4 * min(self.sampled, tokens)) * m * d for m, d in each)

    def observe(self, activations: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Sample:
        return Sample.of(activations, mask, self.sampled, self.seed)

    def conclude(self, total: Sample, W_dec: Float[Tensor, "d_sae d"], b_dec: Float[Tensor, "d"]) -> dict[str, Value]:
        if not len(total.rows):
            raise Undefined("no token is in the mask; check the data's 'exclude'")
        norms = W_dec.norm(dim=1, keepdim=True)
        rows = (W_dec / torch.where(norms > 0, norms, 1.0)).float()
        x = torch.from_numpy(total.rows).to(rows) - b_dec.to(rows)
        m, d = rows.shape
        values: dict[str, Value] = {"projection": self._projection(x @ rows.T, total)}
        values["pairwise_cosine"] = (
            Scalar(_pairwise(rows), unit="cosine", better="lower")
            if m > 1
            else Scalar.undefined("there is one decoder row, so no pair", unit="cosine", better="lower")
        )
        log = math.lgamma(d / 2) - math.lgamma((d + 1) / 2)
        values["pairwise_cosine_floor"] = Scalar(math.exp(log) / math.sqrt(math.pi), unit="cosine")
        return values

    def _projection(self, projections: Float[Tensor, "tokens m"], total: Sample) -> Scalar:
        """Return the quantile with its error over rows of the stream: that of the share above it, as a quantile."""
        flat = projections.flatten()
        place = min(max(round(self.share * projections.shape[1]), 1) * len(projections), len(flat))

        def largest(rank: float) -> float:
            """Return the `rank`-th largest projection."""
            return float(flat.kthvalue(len(flat) + 1 - min(max(round(rank), 1), len(flat))).values)

        value = largest(place)
        above = (projections > value).float().mean(1).double().cpu().numpy()
        rows = np.unique(total.sequence_ids, return_inverse=True)[1]
        counts = np.bincount(rows)
        if len(counts) < 2:
            return Scalar(value, unit="unit of the activations", better="lower", n=len(total.rows))
        deviations = np.bincount(rows, above - above.mean())
        error = math.sqrt(len(counts) / (len(counts) - 1) * float(np.square(deviations).sum())) / len(above)
        high, low = (largest(place + sign * error * len(flat)) for sign in (-1, 1))
        return Scalar(
            value, unit="unit of the activations", better="lower", n=len(total.rows), stderr=(high - low) / 2,
        )  # fmt: skip


def _pairwise(rows: Float[Tensor, "m d"]) -> float:
    total = 0.0
    for part in rows.split(_ROWS):
        total += float((part @ rows.T).abs().sum(dtype=torch.float64))
    diagonal = float(rows.square().sum(1).double().sum())
    return (total - diagonal) / (len(rows) * (len(rows) - 1))
