"""How well tokens alone tell where a feature fires: a list of tokens, rates by token, rates by pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, PerRow, fit_split, fold
from saeval_explanations.sampling import SampledFeatures
from saeval_explanations.windows import acts_of

if TYPE_CHECKING:
    from torch import Tensor

_PRIOR = 1.0
"""Number of imagined tokens at the rate of the shorter context, added to those seen."""


def _firing_tokens(
    feature_acts: Float[Tensor, "batch seq d_sae"], included: Bool[Tensor, "batch seq"], batch: Batch,
    sampled: SampledFeatures,
) -> PerRow:  # fmt: skip
    fires = np.concatenate([acts != 0 for _, acts in acts_of(feature_acts, included, sampled.features)])
    real = batch.real.cpu().numpy()
    return PerRow.of(
        tokens=np.where(real, batch.tokens.cpu().numpy(), -1).astype(np.int32),
        included=included.cpu().numpy(),
        fires=np.packbits(fires.transpose(1, 2, 0), axis=2),
    )


@fold
@fit_split
def fit_firing_tokens(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    sampled_features: SampledFeatures,
) -> PerRow:
    """Fold over the fit split: each row's tokens, and on which of them each sampled feature fires, one bit each."""
    return _firing_tokens(feature_acts, included, batch, sampled_features)


@fold
def evaluated_firing_tokens(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    sampled_features: SampledFeatures,
) -> PerRow:
    """Fold: each row's tokens, and on which of them each sampled feature fires, one bit each."""
    return _firing_tokens(feature_acts, included, batch, sampled_features)


@dataclass(frozen=True)
class SeenTokens:
    """The included tokens of some rows, with the token before each."""

    tokens: Int[np.ndarray, "t"]
    before: Int[np.ndarray, "t"]
    """-1 at the begin of a row."""
    fires: Bool[np.ndarray, "t n"]

    @classmethod
    def of(cls, rows: PerRow, n: int) -> SeenTokens:
        """Return the tokens of `n` features' rows."""
        tokens, included = rows["tokens"].astype(np.int64), rows["included"]
        before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        fires = np.unpackbits(rows["fires"][included], axis=1, count=n).astype(bool)
        return cls(tokens[included], before[included], fires)

    @property
    def pairs(self) -> Int[np.ndarray, "t"]:
        """A number for each (token before, token)."""
        return np.asarray((self.before + 1) << 32 | self.tokens)


@dataclass(frozen=True)
class _Rates:
    """How often one feature fires in each context: how many tokens, and on how many of them."""

    contexts: Int[np.ndarray, "m"]
    n: Int[np.ndarray, "m"]
    fires: Int[np.ndarray, "m"]

    @classmethod
    def of(cls, contexts: Int[np.ndarray, "t"], fires: Bool[np.ndarray, "t"]) -> _Rates:
        distinct, index, n = np.unique(contexts, return_inverse=True, return_counts=True)
        return cls(distinct, n, np.bincount(index, fires, len(distinct)).astype(np.int64))

    def at(self, contexts: Int[np.ndarray, "t"], prior: Float[np.ndarray, "t"] | float) -> Float[np.ndarray, "t"]:
        """Return the rate in each context, drawn towards `prior`, which is the rate of an unseen one."""
        place = np.searchsorted(self.contexts, contexts).clip(0, max(len(self.contexts) - 1, 0))
        known = self.contexts[place] == contexts
        n, fires = np.where(known, self.n[place], 0), np.where(known, self.fires[place], 0)
        return np.asarray((fires + _PRIOR * prior) / (n + _PRIOR))


class TokenModel:
    """What tokens alone say of where features fire, fitted on the fit split."""

    def __init__(self, seen: SeenTokens, list_length: int) -> None:
        self._seen, self._list_length = seen, list_length
        self.lists = [self._list(feature) for feature in range(seen.fires.shape[1])]
        """Token ids of each feature's list, the best first."""

    def _list(self, feature: int) -> Int[np.ndarray, "m"]:
        """Return the tokens whose list tells best, by Youden's J, where the feature fires, at most `list_length`.

        J of a list is the share of firing tokens that are in it minus the share of silent ones, a sum over its tokens.
        """
        rates = _Rates.of(self._seen.tokens, self._seen.fires[:, feature])
        fires, silent = rates.fires.sum(), (rates.n - rates.fires).sum()
        gain = rates.fires / max(fires, 1) - (rates.n - rates.fires) / max(silent, 1)
        best = np.argsort(-gain, kind="stable")[: self._list_length]
        return np.asarray(rates.contexts[best[gain[best] > 0]])

    def spelled(self, token_text: Callable[[Sequence[int]], list[str]]) -> list[str]:
        """Return each feature's list as the quoted texts of its tokens."""
        return [" ".join(repr(token_text([int(token)])[0]) for token in own) for own in self.lists]

    def in_list(self, feature: int, tokens: SeenTokens) -> Float[np.ndarray, "t"]:
        """Return 1 for each token that is in the feature's list, else 0."""
        return np.isin(tokens.tokens, self.lists[feature]).astype(np.float64)

    def by_token(self, feature: int, tokens: SeenTokens) -> Float[np.ndarray, "t"]:
        """Return the rate at which the feature fired on each token's type."""
        fires = self._seen.fires[:, feature]
        return _Rates.of(self._seen.tokens, fires).at(tokens.tokens, float(fires.mean()))

    def by_pair(self, feature: int, tokens: SeenTokens) -> Float[np.ndarray, "t"]:
        """Return the rate at which the feature fired on the token after the same token before it.

        A pair that was rarely seen has nearly the rate of its second token (additive smoothing by the shorter context).
        """
        pairs = _Rates.of(self._seen.pairs, self._seen.fires[:, feature])
        return pairs.at(tokens.pairs, self.by_token(feature, tokens))


def token_model(fit_firing_tokens: PerRow, sampled_features: SampledFeatures, list_length: int) -> TokenModel:
    """What tokens of the fit split say of where each sampled feature fires."""
    return TokenModel(SeenTokens.of(fit_firing_tokens, len(sampled_features)), list_length)


def auc(scores: Float[np.ndarray, "t"], y: Bool[np.ndarray, "t"]) -> float:
    """Return the share of pairs of a positive and a negative that the scores order rightly; ties count half.

    NaN if there is no pair.
    """
    values, index, n = np.unique(scores, return_inverse=True, return_counts=True)
    positive = np.bincount(index, y, len(values))
    negative = n - positive
    pairs = float(positive.sum() * negative.sum())
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")
