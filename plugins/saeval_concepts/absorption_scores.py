"""SAEBench's absorption scores of words: full absorption, and its fraction by two definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Bool, Float

from saeval.plugin import torch
from saeval_concepts.mains import SILENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LEAST_COSINE_FULL, LEAST_COSINE_FRACTION = 0.025, 0.1
LEAST_SHARE = 0.4
MOST_ABSORBERS = 3


class WordScores(NamedTuple):
    """The scores of words that have a parent concept."""

    full: Bool[Tensor, "n"]
    fraction: Float[Tensor, "n"]
    fraction_v03: Float[Tensor, "n"]
    silent: Bool[Tensor, "n"]
    """True if all main features are silent."""
    top: Float[Tensor, "n"]
    """The feature with the largest projection."""


def word_scores(
    acts: Float[Tensor, "n d_sae"],
    cosines: Float[Tensor, "d_sae"],
    x_on_p: Float[Tensor, "n"],
    mains: Sequence[int],
) -> WordScores:
    """Return the scores of SAEBench 0.6 and, as `fraction_v03`, of its versions 0.3.0 to 0.4.0; float64.

    `cosines` are those of p and each decoder row, `x_on_p` is x·p with a unit vector p. A feature's projection is
    f_j cos(p, d_j): signed, and not multiplied by ‖d_j‖.
    """
    projections, x_on_p = acts.double() * cosines.double(), x_on_p.double()
    index = torch.as_tensor(list(mains), dtype=torch.long, device=acts.device)
    of_mains = projections[:, index].sum(1)
    silent = (acts[:, index] < SILENT).all(1)

    largest, top = projections.max(1)
    full = silent & (cosines[top] >= LEAST_COSINE_FULL) & (x_on_p >= 0) & (largest >= LEAST_SHARE * x_on_p)

    others = torch.where((cosines >= LEAST_COSINE_FRACTION) & (projections > 0), projections, 0.0)
    others[:, index] = 0
    absorbers = others.topk(min(MOST_ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    # A negative x·p makes the package's share negative too, which is below the threshold.
    enough = (x_on_p > 0) & (absorbers >= LEAST_SHARE * x_on_p)
    absorbed = torch.minimum(absorbers, x_on_p - of_mains)
    share = torch.where(of_mains <= 0, 1.0, (absorbed / (absorbed + of_mains)).clamp(0, 1))
    fraction = torch.where(enough & (of_mains < x_on_p), share, 0.0)

    everything = projections.sum(1)
    rest = ((everything - of_mains) / everything).clamp(0, 1)
    v03 = torch.where((of_mains >= x_on_p) | (everything <= 0), 0.0, rest)
    return WordScores(full, fraction, v03, silent, top)
