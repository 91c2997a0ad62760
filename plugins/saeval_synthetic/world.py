"""`World`: features with known directions, frequencies and relations, and activations made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt32, UInt64

from saeval.plugin import hashed, normal, torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 128
"""Rows drawn at a time: 8 MB of uniform numbers for 16,384 features without a hierarchy."""


class TrueFeatures(NamedTuple):
    """The true features that fire on the tokens of a batch, as pairs of token and feature, ordered by token."""

    token: Int[Tensor, "k"]
    """Token of each: row · seq + position, ascending."""
    feature: Int[Tensor, "k"]
    """Feature of each, 0 .. n - 1, ascending within a token."""
    value: Float[Tensor, "k"]
    """Its activation, above 0."""
    shape: tuple[int, int, int]
    """(batch, seq, n)"""

    def dense(self) -> Float[Tensor, "batch seq n"]:
        """Return all activations, 0 for features that do not fire."""
        batch, seq, n = self.shape
        values = self.value.new_zeros(batch * seq, n)
        values[self.token, self.feature] = self.value
        return values.view(batch, seq, n)


class Fires(NamedTuple):
    """Features of rows in compressed form: those of row i are at `starts[i]` to `starts[i + 1]`."""

    starts: Int[np.ndarray, "rows+1"]
    feature: Int[np.ndarray, "k"]
    value: Float32[np.ndarray, "k"]

    @property
    def row(self) -> Int[np.ndarray, "k"]:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True, eq=False)
class Tree:
    """The hierarchy of a world's features: a child fires only if its parent does."""

    parent: Int[np.ndarray, "n"]
    """Parent of each feature; -1 for roots and features outside of the hierarchy."""
    group: Int[np.ndarray, "n"]
    """Mutually exclusive group of each feature, of which one member at most fires; -1 for none. Its members have the
    same parent."""
    scaled: Bool[np.ndarray, "n"]
    """True for features multiplied by their parent's activation over its mean."""

    @classmethod
    def none(cls, n: int) -> Tree:
        """Return the hierarchy of unrelated features."""
        return cls(np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, bool))

    @cached_property
    def roots(self) -> Int[np.ndarray, "r"]:
        """The features without a parent."""
        return np.flatnonzero(self.parent < 0)

    @cached_property
    def children(self) -> tuple[Int[np.ndarray, "n+1"], Int[np.ndarray, "c"]]:
        """Places and features: the children of feature j, ascending, are those from `places[j]` to `places[j + 1]`."""
        owned = np.flatnonzero(self.parent >= 0)
        order = np.argsort(self.parent[owned], kind="stable")
        counts = np.bincount(self.parent[owned], minlength=len(self.parent))
        return np.concatenate([[0], np.cumsum(counts)]), owned[order]

    def ancestors(self, feature: int) -> list[int]:
        """Return the parent of a feature, its parent, and so on."""
        above = []
        while (feature := int(self.parent[feature])) >= 0:
            above.append(feature)
        return above

    def below(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the children of features in rows, as the number of the pair that each belongs to, and the child."""
        places, child = self.children
        lengths = places[feature + 1] - places[feature]
        pair = np.repeat(np.arange(len(feature)), lengths)
        before = np.repeat(places[feature] - (np.cumsum(lengths) - lengths), lengths)
        return pair, child[before + np.arange(len(pair))]


class Draws(Protocol):
    """The random numbers of some rows."""

    def latent(self, rank: int) -> Float[np.ndarray, "rows rank"]:
        """Return standard normal numbers that all features of a row share."""

    def uniform(self, features: Int[np.ndarray, "f"]) -> UInt32[np.ndarray, "rows f"]:
        """Return P(N > η) of each row's and feature's standard normal number η, as a share of 2^32."""

    def uniform_at(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> UInt32[np.ndarray, "k"]:
        """Return the same for pairs of row and feature."""

    def delta(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        """Return the standard normal number of a feature's activation."""

    def priority(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> np.ndarray:
        """Return numbers of which the largest wins in a mutually exclusive group."""


@dataclass(frozen=True)
class Keyed:
    """Random numbers that follow from a world's seed and the tokens' keys."""

    seed: int
    keys: UInt64[np.ndarray, "rows"]

    def latent(self, rank: int) -> Float[np.ndarray, "rows rank"]:
        return normal(hashed(self.seed, "latent", self.keys), rank).numpy()

    def uniform(self, features: Int[np.ndarray, "f"]) -> UInt32[np.ndarray, "rows f"]:
        from saeval_synthetic import kernels  # late: it loads numba, which only a run needs

        numbers: np.ndarray = kernels.uniform(hashed(self.seed, "firing", self.keys), features)
        return numbers

    def uniform_at(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> UInt32[np.ndarray, "k"]:
        from saeval_synthetic import kernels  # late: as above

        numbers: np.ndarray = kernels.uniform_at(hashed(self.seed, "firing", self.keys)[row], feature)
        return numbers

    def delta(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        return normal(hashed(self.seed, "magnitude", self.keys[row], feature), 1)[:, 0].numpy()

    def priority(self, row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"]) -> np.ndarray:
        return hashed(self.seed, "priority", self.keys[row], feature)


@dataclass(frozen=True, eq=False)
class World:
    """Features with known directions, frequencies and relations.

    A feature j fires on a token if F_j · ε + √(1 − ‖F_j‖²) η_j > t_j, with ε and η_j standard normal and P(N > t_j) its
    probability: a Gaussian copula of low rank. Its activation is max(0, mean_j + std_j · δ), after which the hierarchy
    applies. The token's activations are Σ_j f_j d_j + bias + noise. All draws of a token follow from its key.
    """

    directions: Float32[np.ndarray, "n d"]
    """Unit vectors."""
    bias: Float32[np.ndarray, "d"]
    probability: Float[np.ndarray, "n"]
    """Probability that each feature fires before the hierarchy applies."""
    mean: Float32[np.ndarray, "n"]
    """Mean activation of each feature when it fires, before the hierarchy."""
    std: Float32[np.ndarray, "n"]
    factor: Float32[np.ndarray, "n rank"]
    """F: rows have a norm below 1, and F_i · F_j is the correlation behind the firing of features i and j."""
    tree: Tree
    noise: float = 0.0
    """Standard deviation of the noise in each dimension."""
    seed: int = 0
    spread: Float32[np.ndarray, "n"] | None = None
    """√(1 − ‖F_j‖²), if it is known more exactly than it follows from `factor`."""

    @property
    def n(self) -> int:
        """Number of features."""
        return len(self.directions)

    @property
    def d(self) -> int:
        """Width of the activations."""
        return int(self.directions.shape[1])

    @cached_property
    def _last(self) -> dict[str, tuple[UInt64[np.ndarray, "rows"], Fires]]:
        """The last answer of `features`; not a field, since the engine takes fields that change for a fault."""
        return {}

    @cached_property
    def _copula(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from scipy.special import ndtri  # late: only a run needs it

        spread = self.spread
        if spread is None:
            spread = np.sqrt(1 - np.square(self.factor, dtype=np.float64).sum(1)).astype(np.float32)
        with np.errstate(divide="ignore"):
            threshold = -ndtri(self.probability)
        return np.ascontiguousarray(self.factor.T), threshold.astype(np.float32), spread

    def features(self, keys: UInt64[np.ndarray, "rows"]) -> Fires:
        """Return the features that fire on the tokens with these keys. The last answer is kept, for an oracle."""
        last = self._last.get("features")
        if last is not None and np.array_equal(last[0], keys):
            return last[1]
        parts = [self._features(keys[start : start + _ROWS]) for start in range(0, len(keys), _ROWS)]
        lengths = np.concatenate([np.diff(part.starts) for part in parts]) if parts else np.zeros(0, np.int64)
        feature = np.concatenate([part.feature for part in parts]) if parts else np.zeros(0, np.int64)
        value = np.concatenate([part.value for part in parts]) if parts else np.zeros(0, np.float32)
        fires = Fires(np.concatenate([[0], np.cumsum(lengths)]), feature, value)
        self._last["features"] = keys.copy(), fires
        return fires

    def _features(self, keys: UInt64[np.ndarray, "rows"]) -> Fires:
        return self.drawn(Keyed(self.seed, keys), len(keys))

    def drawn(self, draws: Draws, rows: int) -> Fires:
        """Return the features that follow from the draws of some rows.

        Parents come first, and children are tried only where the parent fires, so that time grows with what fires.
        """
        from saeval_synthetic import kernels  # late: it loads numba, which only a run needs

        factor, threshold, spread = self._copula
        latent = draws.latent(len(factor)).astype(np.float32) if len(factor) else np.zeros((rows, 0), np.float32)
        first = self.tree.roots
        own = np.ascontiguousarray(factor[:, first]), threshold[first], spread[first]
        row, place = np.nonzero(kernels.fired(latent, draws.uniform(first), *own))
        feature, above = first[place], np.full(len(row), np.nan, np.float32)
        kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(row):
            value = self._value(draws, row, feature)
            alive = value > 0
            row, feature, value, above = row[alive], feature[alive], value[alive], above[alive]
            wins = self._winners(draws, row, feature)
            row, feature, value, above = row[wins], feature[wins], value[wins], above[wins]
            scaled = self.tree.scaled[feature] & ~np.isnan(above)
            value[scaled] *= above[scaled]
            kept.append((row, feature, value))
            pair, child = self.tree.below(row, feature)
            row, above = row[pair], (value / self.mean[feature])[pair]
            uniform = draws.uniform_at(row, child)
            fires = kernels.fired_at(row, child, latent, uniform, factor, threshold, spread)
            row, feature, above = row[fires], child[fires], above[fires]
        if not kept:
            return Fires(np.zeros(rows + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        row, feature, value = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        order = np.lexsort((feature, row))
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
        return Fires(starts, feature[order], value[order])

    def _value(self, draws: Draws, row: np.ndarray, feature: np.ndarray) -> Float32[np.ndarray, "k"]:
        value = self.mean[feature]
        if self.std.any():
            value = value + self.std[feature] * draws.delta(row, feature).astype(np.float32)
        return np.asarray(value, dtype=np.float32)

    def _winners(self, draws: Draws, row: np.ndarray, feature: np.ndarray) -> Bool[np.ndarray, "k"]:
        """True for pairs outside of mutually exclusive groups, and for the pair of each group that wins it."""
        group = self.tree.group[feature]
        wins, members = group < 0, np.flatnonzero(group >= 0)
        if len(members):
            contest = row[members] * (int(self.tree.group.max()) + 1) + group[members]
            order = np.lexsort((draws.priority(row[members], feature[members]), contest))
            last = np.append(np.diff(contest[order]) != 0, True)
            wins[members[order[last]]] = True
        return np.asarray(wins)

    def activations(self, fires: Fires, keys: UInt64[np.ndarray, "rows"]) -> Float[Tensor, "rows d"]:
        """Return the activations of the tokens with these features and keys, float32."""
        from saeval_synthetic import kernels  # late: as above

        out = np.empty((len(keys), self.d), np.float32)
        kernels.superpose(fires.starts, fires.feature, fires.value, self.directions, self.bias, out)
        x = torch.from_numpy(out)
        if self.noise:
            for start in range(0, len(keys), 1024):  # the draws are float64
                part = slice(start, start + 1024)
                x[part] += (self.noise * normal(hashed(self.seed, "noise", keys[part]), self.d)).float()
        return x

    def correlation(self, feature: int) -> Float[np.ndarray, "n"]:
        """Return the correlations behind the firing of one feature and of each, 0 for itself."""
        correlations: np.ndarray = self.factor @ self.factor[feature]
        correlations[feature] = 0
        return correlations
