"""The features whose explanations are tested: a sample of those that fire often enough, over all densities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Evidence, Fired, Undefined, fit_split, fold, hashed
from saeval_explanations.given import given_words

if TYPE_CHECKING:
    from torch import Tensor

DECILES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Firing(Evidence):
    """How often each feature fires."""

    tokens: Int[np.ndarray, "d_sae"]
    """Number of included tokens on which it fires."""
    rows: Int[np.ndarray, "d_sae"]
    """Number of rows in which it does."""
    n: int
    """Number of included tokens."""

    @classmethod
    def of(cls, fired: Fired, included: Bool[Tensor, "batch seq"]) -> Firing:
        """Return the counts of one batch."""
        _, seq, d_sae = fired.shape
        inside = included.to(fired.token.device).flatten()[fired.token]
        token, feature = (index[inside].cpu().numpy() for index in (fired.token, fired.feature))
        in_rows = np.unique(token // seq * d_sae + feature) % d_sae
        on_tokens, rows = (np.bincount(index, minlength=d_sae) for index in (feature, in_rows))
        return cls(on_tokens, rows, int(included.sum()))


@fold
@fit_split
def fit_firing(fired: Fired, included: Bool[Tensor, "batch seq"]) -> Firing:
    """Fold over the fit split: on how many tokens and in how many rows each feature fires."""
    return Firing.of(fired, included)


@fold
def evaluated_firing(fired: Fired, included: Bool[Tensor, "batch seq"]) -> Firing:
    """Fold: on how many tokens and in how many rows each feature fires."""
    return Firing.of(fired, included)


@dataclasses.dataclass(frozen=True)
class SampledFeatures:
    """The chosen features, by density."""

    features: Int[np.ndarray, "n"]
    densities: Float[np.ndarray, "n"]
    """Share of the fit split's tokens on which each fires."""
    deciles: Int[np.ndarray, "n"]
    """The tenth of the eligible features by density that it is from, 1 (rarest) to 10."""
    eligible: int
    """Number of features that fire often enough."""

    def __len__(self) -> int:
        return len(self.features)


def sampled_features(
    fit_firing: Firing,
    evaluated_firing: Firing,
    sae_name: str,
    features: int,
    least_rows: int,
    seed: int,
    path: str | None = None,
) -> SampledFeatures:
    """Features with random hashes, the same number from each tenth of the eligible ones by density.

    Eligible are features that fire in at least `least_rows` rows of the fit split, and of the evaluated rows. With
    `path`, they also have words there.
    """
    eligible = np.minimum(fit_firing.rows, evaluated_firing.rows) >= least_rows
    if path is not None:
        has_words = np.zeros_like(eligible)
        known = [f for f in given_words(Path(path), sae_name) if 0 <= f < len(eligible)]
        has_words[known] = True
        eligible &= has_words
    numbers = np.flatnonzero(eligible)
    if not len(numbers):
        raise Undefined(f"no feature fires in {least_rows} rows of the fit split and of the evaluated rows")
    numbers = numbers[np.argsort(fit_firing.tokens[numbers], kind="stable")]
    decile = np.arange(len(numbers)) * DECILES // len(numbers)
    keys = hashed(seed, "explained features", numbers)
    by_chance = np.lexsort((keys, decile))
    place_in_decile = np.arange(len(numbers)) - np.searchsorted(decile, decile)
    chosen = np.sort(by_chance[np.lexsort((keys[by_chance], place_in_decile))[:features]])
    picked = numbers[chosen]
    density = fit_firing.tokens[picked] / max(fit_firing.n, 1)
    return SampledFeatures(picked, density, decile[chosen] + 1, len(numbers))


def nearest_features(
    sampled_features: SampledFeatures,
    W_dec: Float[Tensor, "d_sae d_out"],
    evaluated_firing: Firing,
) -> Int[np.ndarray, "n"]:
    """For each sampled feature, the other feature that fires whose decoder row has the largest cosine to its own."""
    directions = W_dec.float() / W_dec.float().norm(dim=1, keepdim=True).clamp_min(1e-30)
    own = directions[sampled_features.features.tolist()]
    cosines = (own @ directions.T).cpu().numpy()
    cosines[:, evaluated_firing.tokens == 0] = -np.inf
    cosines[np.arange(len(cosines)), sampled_features.features] = -np.inf
    return np.asarray(cosines.argmax(1))


def in_decile(sampled: SampledFeatures, seed: int) -> Int[np.ndarray, "n"]:
    """Return for each feature another one of its decile, whose explanation is its control: a cycle in random order.

    A feature that is alone in its decile takes part in the cycle of the next one.
    """
    other = np.arange(len(sampled))
    cycles: list[list[int]] = []
    for decile in np.unique(sampled.deciles):
        members = np.flatnonzero(sampled.deciles == decile)
        shuffled = members[np.argsort(hashed(seed, "shuffled", sampled.features[members]), kind="stable")].tolist()
        if cycles and (len(shuffled) == 1 or len(cycles[-1]) == 1):
            cycles[-1] += shuffled
        else:
            cycles.append(shuffled)
    for cycle in cycles:
        other[cycle] = np.roll(cycle, 1)
    return other
