"""The interventions, one function each, and the covariances and errors of held-out documents that they draw from.

A draw is keyed by (seed, sequence id, position, hook, variant, draw). `place` is None to perturb every token
of the mask, or the number of the single position to perturb in each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.plugin import Moments, Sample, Undefined, fit_split, fold, hashed, normal, torch
from saeval_perturbation.geometry import at_cosine, matched, perpendicular, scaled_to, unit, verify

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 8192
"""Number of errors sampled per SAE."""


@fold
@fit_split
def fit_covariance(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Moments:
    """Fold over the fit split: count, sum and second moment of the activations."""
    return Moments.of(activations, mask, covariance=True)


def fit_covariance_root(fit_covariance: Moments) -> Float[Tensor, "d_in d_in"]:
    """The symmetric square root of Σ_x, the centred covariance of the activations on the fit split, float64."""
    if fit_covariance.n == 0:
        remedy = "change 'exclude', or leave out 'cosine_matched_covariance'"
        raise Undefined(f"the fit split has no token in its mask; {remedy}")
    values, vectors = torch.linalg.eigh(torch.from_numpy(fit_covariance.covariance))
    return torch.matmul(vectors * values.clamp_min(0).sqrt(), vectors.T)


@fold
@fit_split
def fit_errors(
    activations: Float[Tensor, "batch seq d_in"],
    reconstruction: Float[Tensor, "batch seq d_in"],
    mask: Bool[Tensor, "batch seq"],
) -> Sample:
    """Fold over the fit split: δ = x̂ − x for up to 8,192 tokens, chosen by hash."""
    return Sample.of(reconstruction.to(activations.dtype) - activations, mask, SAMPLE)


def fit_displacements(fit_errors: Sample) -> Float[Tensor, "n d_in"]:
    """The sampled δ of the fit split."""
    if len(fit_errors.rows) == 0:
        raise Undefined("the fit split has no token in its mask; change 'exclude', or leave out 'shuffled_error'")
    return torch.from_numpy(fit_errors.rows)


class _Tokens:
    """The tokens to perturb: `x` `[n, d]` in float64 and their `keys` `[n]`, from the places `where` `[batch, seq]`."""

    def __init__(
        self, activations: Tensor, mask: Tensor, token_keys: np.ndarray, hook_name: str, place: int | None, seed: int
    ) -> None:
        if activations.shape[-1] == 1:
            raise Undefined(f"{hook_name} has width 1: no direction is perpendicular to x")
        self.activations, self.hook_name, self.seed = activations, hook_name, seed
        self.where = mask if place is None else chosen(token_keys, mask, seed, place + 1) == place
        self.x, self.keys = activations[self.where].double(), token_keys[self.where.cpu().numpy()]

    def rows(self, substitute: Float[Tensor, "batch seq d"]) -> Float[Tensor, "n d"]:
        """The same rows of a substitute, rounded to the model's dtype as in splicing."""
        return substitute.to(self.activations.dtype)[self.where].double()

    def isotropic(self, variant: str, draw: int) -> Float[Tensor, "n d"]:
        return normal(self._keys(variant, draw), self.x.shape[-1], self.x.device)

    def _keys(self, variant: str, draw: int) -> UInt64[np.ndarray, "n"]:
        return hashed(self.seed, self.keys, self.hook_name, variant, draw)

    def sampled(self, rows: Float[Tensor, "m d"], variant: str, draw: int) -> Float[Tensor, "n d"]:
        """One of `rows` for each token, drawn by hash."""
        index = torch.from_numpy((self._keys(variant, draw) % np.uint64(len(rows))).astype(np.int64))
        return rows[index.to(rows.device)].to(self.x)

    def replaced(self, new: Float[Tensor, "n d"]) -> Float[Tensor, "batch seq d"]:
        activations = self.activations.clone()
        activations[self.where] = new.to(activations.dtype)
        return activations


def chosen(
    token_keys: UInt64[np.ndarray, "batch seq"], mask: Bool[Tensor, "batch seq"], seed: int, count: int
) -> Int[Tensor, "batch seq"]:
    """Number 0 .. count − 1 the `count` masked positions of each sequence with the smallest hashes; −1 elsewhere."""
    inside = mask.cpu().numpy()
    order = np.argsort(np.where(inside, hashed(seed, token_keys, "position") >> np.uint64(1), ~np.uint64(0)), axis=1)
    places = np.full(inside.shape, -1)
    for place in range(min(count, inside.shape[1])):
        rows = np.flatnonzero(inside.sum(1) > place)
        places[rows, order[rows, place]] = place
    return torch.from_numpy(places).to(mask.device)


def cosine_matched(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"], mask: Tensor,
    token_keys: np.ndarray, hook_name: str, *, draw: int, seed: int, place: int | None = None,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """Noise with the cosine and norm of x̂; perpendicular to x, its direction is uniform."""
    tokens = _Tokens(activations, mask, token_keys, hook_name, place, seed)
    return _matched(tokens, reconstruction, tokens.isotropic("cosine_matched", draw))


def noisy_error(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"],
    token_keys: np.ndarray, hook_name: str, *, draw: int, seed: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """As `cosine_matched` at every token, from draws of its own."""
    everywhere = torch.ones_like(activations[..., 0], dtype=torch.bool)
    tokens = _Tokens(activations, everywhere, token_keys, hook_name, None, seed)
    return _matched(tokens, reconstruction, tokens.isotropic("noisy_error", draw))


def cosine_matched_covariance(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"], mask: Tensor,
    token_keys: np.ndarray, hook_name: str, fit_covariance_root: Float[Tensor, "d d"], *, draw: int, seed: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """Noise with the cosine and norm of x̂; perpendicular to x, it is along noise with the activations' covariance."""
    tokens = _Tokens(activations, mask, token_keys, hook_name, None, seed)
    g = tokens.isotropic("cosine_matched_covariance", draw)
    return _matched(tokens, reconstruction, g @ fit_covariance_root.to(g), lambda: g)


def shuffled_error(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"], mask: Tensor,
    token_keys: np.ndarray, hook_name: str, fit_displacements: Float[Tensor, "m d"], *, draw: int, seed: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """Noise with the cosine and norm of x̂; perpendicular to x, it is along the SAE's δ in another document."""
    tokens = _Tokens(activations, mask, token_keys, hook_name, None, seed)
    g = tokens.sampled(fit_displacements, "shuffled_error", draw)
    return _matched(tokens, reconstruction, g, lambda: tokens.isotropic("shuffled_error", draw))


def epsilon(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"], mask: Tensor,
    token_keys: np.ndarray, hook_name: str, *, draw: int, seed: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """x + ‖δ‖·g/‖g‖: as far from x as x̂ is, but without its cosine or norm."""
    tokens = _Tokens(activations, mask, token_keys, hook_name, None, seed)
    distance = (tokens.rows(reconstruction) - tokens.x).norm(dim=-1, keepdim=True)
    return tokens.replaced(tokens.x + distance * unit(tokens.isotropic("epsilon", draw)))


def norm_only(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"]
) -> Float[Tensor, "batch seq d"]:
    """x with the norm of x̂: only the SAE's error in length."""
    x, x_hat = activations.double(), reconstruction.to(activations.dtype).double()
    return scaled_to(x, x_hat).to(activations.dtype)


def norm_corrected(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"]
) -> Float[Tensor, "batch seq d"]:
    """x̂ with the norm of x: only the SAE's error in direction."""
    return scaled_to(reconstruction.double(), activations.double()).to(activations.dtype)


def alone(
    activations: Float[Tensor, "batch seq d"], reconstruction: Float[Tensor, "batch seq d"], mask: Tensor,
    token_keys: np.ndarray, *, seed: int, place: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """x̂ at one position of each sequence."""
    where = chosen(token_keys, mask, seed, place + 1) == place
    return torch.where(where[..., None], reconstruction.to(activations.dtype), activations)


def turned(
    activations: Float[Tensor, "batch seq d"], mask: Tensor, token_keys: np.ndarray, hook_name: str,
    *, cosine: float, ratio: float, seed: int,
) -> Float[Tensor, "batch seq d"]:  # fmt: skip
    """Noise with the given cosine to x and norm ratio, in the same random direction for every cosine."""
    tokens = _Tokens(activations, mask, token_keys, hook_name, None, seed)
    return tokens.replaced(at_cosine(tokens.x, tokens.isotropic("curve", 0), cosine, ratio))


def _matched(
    tokens: _Tokens, reconstruction: Tensor, g: Tensor, spare: Callable[[], Tensor] | None = None
) -> Float[Tensor, "batch seq d"]:
    """Noise along g with the cosine and norm of x̂; `spare` returns directions for tokens where g is parallel to x."""
    x_hat = tokens.rows(reconstruction)
    if spare is not None and not bool((has := perpendicular(g, unit(tokens.x))[1]).all()):
        g = torch.where(has[:, None], g, spare())
    new = matched(tokens.x, x_hat, g)
    verify(new, tokens.x, x_hat, tokens.activations.dtype)
    return tokens.replaced(new)
