"""The numbers of a synthetic world, with their presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from saeval.plugin import SaevalError, digest_of, hashed, normal
from saeval_synthetic.directions import directions, least_coherence
from saeval_synthetic.world import Tree, World

RECIPE = 1
"""Version of the recipe: raise it when the same settings give other numbers."""
_MOST = 0.99
"""Largest share of the variance behind a feature's firing that other features share."""


@dataclass(frozen=True)
class Settings:
    """All numbers of a world; `World` says how they are used."""

    dimensions: int
    features: int
    zipf_exponent: float
    """Probabilities fall with rank^-exponent, rescaled into `least_probability` to `most_probability`."""
    most_probability: float
    least_probability: float
    magnitude_first: float
    """Mean activation of the most frequent feature; that of the others is on a line to `magnitude_last`."""
    magnitude_last: float
    magnitude_spread: float
    """Standard deviation of a feature's activations."""
    coherence: float | None
    """Root mean square of the cosine between two directions; None for random directions."""
    correlation_rank: int
    """Number of factors that all features share."""
    correlation_scale: float
    """Standard deviation of a feature's weight for each of them."""
    groups: int
    """Number of groups of correlated features, of `group_size` each, outside of the hierarchy."""
    group_size: int
    group_correlation: float
    roots: int
    """Number of trees of the hierarchy; the most frequent features are the roots, the next ones their children."""
    branching: int
    depth: int
    exclusive: float
    """Share of the parents whose children are mutually exclusive."""
    compensate: bool
    """True: children are drawn more often, so that their probability is about the stated one in spite of the tree."""
    scale_children: bool
    """True: a child is multiplied by its parent's activation over the parent's mean."""
    dense_features: int
    """Number of the last features that fire with `dense_probability`."""
    dense_probability: float
    bias: float
    """Norm of the bias."""
    noise: float
    """Standard deviation of the noise in each dimension."""
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and of the recipe's version."""
        return digest_of(["synthetic world", RECIPE, asdict(self)])

    @property
    def in_trees(self) -> int:
        """Number of features of the hierarchy."""
        return int(self.roots * sum(self.branching**level for level in range(self.depth + 1)))

    def check(self) -> None:
        """Raise `SaevalError` for numbers that no world has."""
        shared = self.in_trees + self.groups * self.group_size + self.dense_features
        if shared > self.features:
            parts = f"{self.in_trees} in the hierarchy, {self.groups * self.group_size} in groups"
            needed = f"{parts}, {self.dense_features} dense"
            raise SaevalError(f"'features: {self.features}' is too few: {needed}; choose {shared} or more")
        if self.least_probability >= self.most_probability:
            both = f"'least_probability: {self.least_probability:g}' and 'most_probability: {self.most_probability:g}'"
            raise SaevalError(f"{both}: the first must be smaller")
        least = least_coherence(self.features, self.dimensions)
        if self.coherence is not None and not least - 1e-9 <= self.coherence < 1:
            raise SaevalError(
                f"'coherence: {self.coherence:g}' is out of reach: {self.features} directions in {self.dimensions} "
                f"dimensions have one from {least:.4g} to 1"
            )

    def stated_probability(self) -> Float[np.ndarray, "n"]:
        """Return the probabilities that the settings state, before any compensation."""
        ranks = np.arange(1, self.features + 1, dtype=np.float64) ** -self.zipf_exponent
        share = (ranks - ranks.min()) / (np.ptp(ranks) or 1.0)
        stated: np.ndarray = self.least_probability + (self.most_probability - self.least_probability) * share
        if self.dense_features:
            stated[-self.dense_features :] = self.dense_probability
        return stated

    def tree(self) -> Tree:
        """Return the hierarchy: breadth first, from the most frequent feature on."""
        tree = Tree.none(self.features)
        above, number, parents = np.arange(self.roots), self.roots, np.zeros(0, np.int64)
        for _ in range(self.depth if self.roots else 0):
            own = np.arange(number, number + len(above) * self.branching)
            tree.parent[own], tree.scaled[own] = np.repeat(above, self.branching), self.scale_children
            parents, above, number = np.concatenate([parents, above]), own, number + len(own)
        chosen = np.argsort(hashed(self.seed, "exclusive", parents), kind="stable")[
            : int(len(parents) * self.exclusive)
        ]
        group = np.full(self.features, -1, np.int64)
        group[np.sort(parents[chosen])] = np.arange(len(chosen))
        has_parent = tree.parent >= 0
        tree.group[has_parent] = group[tree.parent[has_parent]]
        return tree

    def _factor(self) -> Float32[np.ndarray, "n rank"]:
        common = normal(hashed(self.seed, "factor", np.arange(self.features)), max(self.correlation_rank, 1)).numpy()
        factor = np.zeros((self.features, self.correlation_rank + self.groups))
        factor[:, : self.correlation_rank] = self.correlation_scale * common[:, : self.correlation_rank]
        for group in range(self.groups):
            first = self.in_trees + group * self.group_size
            members = slice(first, first + self.group_size)
            factor[members, : self.correlation_rank] *= np.sqrt(1 - self.group_correlation)
            factor[members, self.correlation_rank + group] = np.sqrt(self.group_correlation)
        squares = np.square(factor).sum(1)
        factor *= np.sqrt(np.minimum(1, _MOST / np.maximum(squares, 1e-12)))[:, None]
        return np.asarray(factor, dtype=np.float32)

    def world(self) -> World:
        """Return the world."""
        self.check()
        tree, stated = self.tree(), self.stated_probability()
        bias = normal(hashed(self.seed, "bias"), self.dimensions).numpy().reshape(-1)
        bias = self.bias * bias / np.linalg.norm(bias)
        place = np.linspace(0, 1, self.features)
        mean = self.magnitude_first + (self.magnitude_last - self.magnitude_first) * place
        return World(
            directions(self.features, self.dimensions, self.coherence, self.seed),
            bias.astype(np.float32),
            compensated(stated, tree) if self.compensate else stated,
            mean.astype(np.float32),
            np.full(self.features, self.magnitude_spread, np.float32),
            self._factor(),
            tree,
            self.noise,
            self.seed,
        )


def compensated(stated: Float[np.ndarray, "n"], tree: Tree) -> Float[np.ndarray, "n"]:
    """Return probabilities that make up for the hierarchy, at most 1.

    A child's is divided by its parent's. In a mutually exclusive group it is multiplied by 1 + the sum of the others'
    over the parent's, which makes up for a part of the losses.
    """
    has_parent = tree.parent >= 0
    above = np.where(has_parent, stated[tree.parent], 1.0)
    factor = np.where(has_parent, 1 / above, 1.0)
    in_group = tree.group >= 0
    if in_group.any():
        total = np.bincount(tree.group[in_group], stated[in_group])
        others = np.where(in_group, total[tree.group] - stated, 0.0)
        factor *= 1 + np.maximum(others, 0) / above
    return np.asarray(np.minimum(stated * factor, 1.0))


def changed(preset: Settings, **given: Any) -> Settings:
    """Return a preset with the given numbers in place of its own; None keeps the preset's."""
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


NAMES = tuple(f.name for f in fields(Settings))
PRESETS = {
    "small": Settings(
        dimensions=128, features=512, zipf_exponent=0.5, most_probability=0.2, least_probability=0.005,
        magnitude_first=1.0, magnitude_last=1.0, magnitude_spread=0.15, coherence=None,
        correlation_rank=4, correlation_scale=0.1, groups=8, group_size=4, group_correlation=0.7,
        roots=16, branching=3, depth=2, exclusive=0.5, compensate=True, scale_children=False,
        dense_features=0, dense_probability=0.9, bias=1.0, noise=0.02,
    ),
    "medium": Settings(
        dimensions=256, features=2048, zipf_exponent=0.5, most_probability=0.3, least_probability=0.002,
        magnitude_first=1.0, magnitude_last=1.0, magnitude_spread=0.15, coherence=None,
        correlation_rank=8, correlation_scale=0.1, groups=16, group_size=4, group_correlation=0.7,
        roots=32, branching=4, depth=2, exclusive=0.5, compensate=True, scale_children=False,
        dense_features=4, dense_probability=0.9, bias=1.0, noise=0.02,
    ),
    "synthsaebench": Settings(
        dimensions=768, features=16_384, zipf_exponent=0.5, most_probability=0.4, least_probability=5e-4,
        magnitude_first=5.0, magnitude_last=4.0, magnitude_spread=0.5, coherence=None,
        correlation_rank=25, correlation_scale=0.1, groups=0, group_size=4, group_correlation=0.7,
        roots=128, branching=4, depth=3, exclusive=1.0, compensate=True, scale_children=True,
        dense_features=0, dense_probability=0.9, bias=10.0, noise=0.0,
    ),
}  # fmt: skip
"""The worlds that can be chosen by name."""
