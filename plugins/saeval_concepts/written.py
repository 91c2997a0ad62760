"""What features write into the activations: the terms f_j D_j, and their sums over groups of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt64

from saeval.plugin import Encoding, Evidence, Substitute, Undefined, finite, fit_split, fold, torch
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.texts import read

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 8192
"""Decoder rows that are converted to float64 together."""


@finite("feature activations")
def written_acts(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d"],
    included: Bool[Tensor, "batch seq"],
    token_keys: UInt64[np.ndarray, "batch seq"],
    W_dec: Float[Tensor, "d_sae d"],
) -> Float[Tensor, "batch seq d_sae"]:
    """Feature activations in the unit of W_dec: their products with its rows add up to what the features write.

    They are the activations, times the scale of each token if the SAE normalises its input. Undefined if the
    reconstruction is no such sum.
    """
    if encoding is None:
        raise Undefined(f"{sae.name} has no features")
    acts, here = encoding.feature_acts, sae.at(token_keys)
    # In the dtype of bfloat16 activations, the difference of two reconstructions would be rounding.
    x = activations.to(acts.device, torch.promote_types(activations.dtype, torch.float32))
    empty = here.decode(encoding._replace(feature_acts=torch.zeros_like(acts)), x)
    written = (here.decode(encoding, x) - empty).double()
    plain = (acts @ W_dec.to(acts)).double()
    squares = plain.square().sum(-1)
    scale = torch.where(squares > 0, (written * plain).sum(-1) / squares, 1.0)
    tolerance = max(1e-4, 8 * torch.finfo(acts.dtype).eps)
    inside = included.to(acts.device)
    off = torch.where(inside[..., None], written - scale[..., None] * plain, 0.0).abs().max()
    if off > tolerance * torch.where(inside[..., None], written, 0.0).abs().max():
        raise Undefined(f"what {sae.name} writes is no sum of features times decoder rows")
    scale = torch.where((scale - 1).abs() < tolerance, 1.0, scale)
    return (acts * scale[..., None].to(acts)).to(included.device)


def pooled_written_acts(
    written_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    pooling: str,
    chosen_tokens: ChosenTokens | None = None,
) -> Float[Tensor, "n d_sae"]:
    """Those activations of each row: a text's `mean` or `last` token, or those of a chosen `token`."""
    return read(written_acts, included, pooling, chosen_tokens)


@dataclass(frozen=True, eq=False)
class GroupSums(Evidence):
    """Sums of pooled features by group of texts, which may overlap."""

    sums: Float[np.ndarray, "groups d"]
    """Σ z over the texts of a group."""
    n: Int[np.ndarray, "groups"]
    """Number of texts of each group."""
    sizes: Float[np.ndarray, "d"]
    """Σ |z| over all texts in any group; 0 for features that are silent there."""

    @classmethod
    def of(cls, z: Float[Tensor, "batch d"], member: Bool[np.ndarray, "groups batch"]) -> GroupSums:
        """Return the sums of one batch."""
        values = z.detach().double().cpu().numpy()
        return cls(member.astype(np.float64) @ values, member.sum(1), np.abs(values[member.any(0)]).sum(0))

    @property
    def means(self) -> Float[np.ndarray, "groups d"]:
        """Mean of each group; zeros for an empty one."""
        return np.asarray(self.sums / np.maximum(self.n, 1)[:, None])

    @property
    def alive(self) -> Bool[np.ndarray, "d"]:
        """Features that are active on a text."""
        return np.asarray(self.sizes > 0)


@fold
@fit_split
def written_by_class(
    pooled_written_acts: Float[Tensor, "batch d_sae"], fit_labels: Int8[np.ndarray, "batch tasks"]
) -> GroupSums:
    """Fold over the fit split: sums by task and class, the positive classes first, then the others."""
    return GroupSums.of(pooled_written_acts, np.concatenate([fit_labels.T == 1, fit_labels.T == 0]))


@fold
@fit_split
def written_by_quadrant(
    pooled_written_acts: Float[Tensor, "batch d_sae"], fit_quadrants: Int8[np.ndarray, "batch"]
) -> GroupSums:
    """Fold over the fit split: sums by the answers to two tasks, in the order no-no, no-yes, yes-no, yes-yes."""
    return GroupSums.of(pooled_written_acts, fit_quadrants == np.arange(4)[:, None])


def projections(
    W_dec: Float[Tensor, "d_sae d"], directions: Float[np.ndarray, "k d"]
) -> tuple[Float[np.ndarray, "d_sae k"], Float[np.ndarray, "d_sae"]]:
    """Return the products of decoder rows with directions, and the norms of the rows, in float64."""
    wanted = torch.from_numpy(np.ascontiguousarray(directions.T)).to(W_dec.device)
    products, norms = [], []
    for rows in W_dec.split(_CHUNK):
        exact = rows.double()
        products.append((exact @ wanted).cpu().numpy())
        norms.append(exact.norm(dim=1).cpu().numpy())
    return np.concatenate(products), np.concatenate(norms)
