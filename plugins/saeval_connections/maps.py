"""Sparse maps between the features of two SAEs on the same tokens: F2 ≈ W·F1 + b and F2 ≈ relu(W·F1 + b).

`fit(F1, F2, levels)` takes sparse activations `[tokens, features]`. For each feature of F2, orthogonal matching pursuit
chooses up to max(levels) features of F1. It needs the sums of products of F1's features with each other, one float32
matrix of alive × alive features, and those of F1 with a block of F2's. Coefficients are then fitted in float64 on the
tokens on which a chosen feature fires. No step holds tokens × features densely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array

from saeval.plugin import torch

if TYPE_CHECKING:
    from saeval_stability.coactivation import Side

BLOCK = 128
"""Features of F2 whose sources are chosen together; memory grows with it."""
STEPS = 5
"""Most Gauss-Newton steps of a ReLU fit."""
ROWS = 4096
"""Most rows of a ReLU fit: evenly spaced ones of those on which a source fires."""


@dataclass(frozen=True)
class Map:
    """F2 ≈ W·F1 + b with at most `level` sources per feature; if `relu`, of which the positive part is taken."""

    level: int
    relu: bool
    W: csr_array
    """`[d_sae of F2, d_sae of F1]`"""
    b: Float[np.ndarray, "d_sae_2"]

    @property
    def name(self) -> str:
        return f"{'relu' if self.relu else 'linear'}_{self.level}"


@dataclass(frozen=True)
class Maps:
    """All maps, and the facts about the features on the tokens on which they were fitted."""

    maps: list[Map]
    """A linear and a ReLU map for each level."""
    tokens: int
    """Number of tokens on which they were fitted."""
    fired: tuple[Int[np.ndarray, "d_sae_1"], Int[np.ndarray, "d_sae_2"]]
    """Number of tokens on which each feature fires."""
    size: tuple[Float[np.ndarray, "d_sae_1"], Float[np.ndarray, "d_sae_2"]]
    """Mean activation of each feature where it fires; 0 for a feature that never does."""
    mean: Float[np.ndarray, "d_sae_2"]
    """Mean activation over all tokens."""
    variance: Float[np.ndarray, "d_sae_2"]
    """Variance over all tokens; 0 if it could be rounding error."""
    alive: tuple[Bool[np.ndarray, "d_sae_1"], Bool[np.ndarray, "d_sae_2"]]
    """Features that fire on enough tokens to be fitted."""

    def widest(self, relu: bool = False) -> Map:
        """The map with the most sources."""
        return max((m for m in self.maps if m.relu == relu), key=lambda m: m.level)


def fit(F1: csc_array, F2: csc_array, levels: Sequence[int], least_gain: float, alive_firings: int) -> Maps:
    """Fit all maps.

    A source is added only if it explains at least `least_gain` of the feature's variance, and more than the best of n
    unrelated sources would, 4 ln(n) / tokens.
    """
    from saeval_stability.coactivation import Side  # late: it loads numba, which only a run needs

    ours, theirs = Side(F1), Side(F2)
    alive = (ours.fired >= alive_firings, theirs.fired >= alive_firings)
    numbers = [np.flatnonzero(a) for a in alive]
    chosen = np.full((F2.shape[1], max(levels)), -1, np.int64)
    if all(map(len, numbers)):
        sources, targets = Side(F1[:, numbers[0]]), Side(F2[:, numbers[1]])
        chosen[numbers[1]] = _chosen(sources, targets, max(levels), least_gain, numbers[0])
    maps = _fitted(F1, F2, chosen, levels)
    sizes = tuple(side.mean * F1.shape[0] / np.maximum(side.fired, 1) for side in (ours, theirs))
    variance = theirs.deviation**2
    return Maps(maps, F1.shape[0], (ours.fired, theirs.fired), (sizes[0], sizes[1]), theirs.mean, variance, alive)


def _chosen(
    sources: Side, targets: Side, most: int, least_gain: float, numbers: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "m most"]:
    """The sources of each target in the order of their choice; -1 after the last.

    Orthogonal matching pursuit on centred sums. `residual` has the covariance of each source with what is not yet
    explained. It shrinks along the covariances of each chosen source, made orthogonal to those of earlier ones.
    """
    from saeval_stability.coactivation import Coactivation  # late: as above

    n, m = sources.columns.shape[1], targets.columns.shape[1]
    tokens = sources.columns.shape[0]
    gram = torch.empty(n, n)
    products = Coactivation(sources, sources)
    everything = np.arange(n)
    for rows in np.array_split(everything, max(1, n // 256)):
        centred = products.sums(rows, everything) / tokens - np.outer(sources.mean[rows], sources.mean)
        gram[rows[0] : rows[-1] + 1] = torch.from_numpy(centred).float()
    spread = gram.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
    varying = torch.from_numpy(sources.deviation > 0)
    chosen = np.full((m, most), -1, np.int64)
    least_gain = max(least_gain, 4 * math.log(max(n, 2)) / tokens)
    across = Coactivation(targets, sources)
    for block in np.array_split(np.arange(m), max(1, m // BLOCK)):
        centred = across.sums(block, everything) / tokens - np.outer(targets.mean[block], sources.mean)
        residual = torch.from_numpy(centred).float()
        variance = torch.from_numpy(targets.deviation[block] ** 2).float()
        running = variance > 0
        lines = torch.arange(len(block))
        earlier: list[torch.Tensor] = []
        left = spread.repeat(len(block), 1)  # variance of each source that the chosen ones do not share
        for step in range(most):
            usable = varying & (left > 1e-4 * spread)
            gain = torch.where(usable, residual.square() / left, torch.zeros(()))
            best, pick = gain.max(1)
            running &= best >= least_gain * variance
            if not bool(running.any()):
                break
            chosen[block[running.numpy()], step] = numbers[pick[running].numpy()]
            direction = gram[pick]
            for before in earlier:
                direction -= before[lines, pick][:, None] * before
            direction /= direction[lines, pick].clamp_min(torch.finfo(torch.float32).tiny).sqrt()[:, None]
            residual -= residual[lines, pick][:, None] / direction[lines, pick][:, None] * direction
            left -= direction.square()
            earlier.append(direction)
    return chosen


class _Problem(NamedTuple):
    """One feature of F2 with its sources: rows on which a source fires, and sums over the other tokens."""

    X: Float[np.ndarray, "rows k"]
    y: Float[np.ndarray, "rows"]
    others: float
    """Number of tokens on which no source fires."""
    total: float
    """Σ y over them."""
    squares: float
    """Σ y² over them."""

    def thinned(self) -> _Problem:
        """Evenly spaced rows, at most `ROWS`, and the same share of the other tokens."""
        step = -(-len(self.y) // ROWS)
        rest = (part / step for part in (self.others, self.total, self.squares))
        return _Problem(self.X[::step], self.y[::step], *rest)

    def squared_error(self, w: Float[np.ndarray, "k"], b: float) -> float:
        """Σ (y − relu(Xw + b))² over all tokens."""
        rest = max(b, 0.0)
        sparse = float(np.square(self.y - np.maximum(self.X @ w + b, 0)).sum())
        return sparse + self.squares - 2 * rest * self.total + self.others * rest**2


def _fitted(F1: csc_array, F2: csc_array, chosen: Int[np.ndarray, "d_sae_2 most"], levels: Sequence[int]) -> list[Map]:
    d_1, d_2, tokens = F1.shape[1], F2.shape[1], F1.shape[0]
    plain: dict[tuple[int, bool], tuple[list[np.ndarray], np.ndarray]] = {
        (level, relu): ([], np.zeros(d_2)) for level in levels for relu in (False, True)
    }
    place, y_all = np.full(tokens, -1), np.zeros(tokens)
    counts = {level: np.zeros(d_2 + 1, np.int64) for level in levels}
    for j in range(d_2):
        sources = chosen[j][chosen[j] >= 0]
        rows_y, values_y = _column(F2, j)
        mean = values_y.sum() / max(tokens, 1)
        for key in plain:
            plain[key][1][j] = mean
        if not len(sources):
            continue
        columns = [_column(F1, int(i)) for i in sources]
        rows = np.unique(np.concatenate([r for r, _ in columns]))
        place[rows] = np.arange(len(rows))
        X = np.zeros((len(rows), len(sources)))
        for k, (fires, values) in enumerate(columns):
            X[place[fires], k] = values
        y_all[rows_y] = values_y
        y = y_all[rows]
        y_all[rows_y] = 0
        place[rows] = -1
        squares = max(float(np.square(values_y).sum() - np.square(y).sum()), 0.0)
        whole = _Problem(X, y, tokens - len(rows), float(values_y.sum() - y.sum()), squares)
        before: tuple[int, tuple[np.ndarray, float], tuple[np.ndarray, float]] | None = None
        sums, few = _Sums.of(whole.X, whole.y, whole.others, whole.total), whole.thinned()
        for level in sorted(levels):
            k = min(level, len(sources))
            if before is None or before[0] != k:
                linear = sums.solution(k)
                before = (k, linear, _rectified(few._replace(X=few.X[:, :k]), *linear))
            for relu, (w, b) in ((False, before[1]), (True, before[2])):
                plain[level, relu][0].append(w)
                plain[level, relu][1][j] = b
            counts[level][j + 1] = k
    maps = []
    for (level, relu), (weights, intercepts) in plain.items():
        starts = np.cumsum(counts[level])
        indices = np.concatenate([np.zeros(0, np.int64), *(chosen[j][: counts[level][j + 1]] for j in range(d_2))])
        data = np.concatenate([np.zeros(0), *weights])
        maps.append(Map(level, relu, csr_array((data, indices, starts), shape=(d_2, d_1)), intercepts))
    return maps


def _column(F: csc_array, j: int) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    part = slice(F.indptr[j], F.indptr[j + 1])
    return F.indices[part], F.data[part]


class _Sums(NamedTuple):
    """Centred sums of a least-squares fit with an intercept."""

    gram: Float[np.ndarray, "k k"]
    right: Float[np.ndarray, "k"]
    x_mean: Float[np.ndarray, "k"]
    y_mean: float

    @classmethod
    def of(
        cls, X: Float[np.ndarray, "rows k"], y: Float[np.ndarray, "rows"], others: float = 0, total: float = 0
    ) -> _Sums:
        """`others` more rows have x = 0, and y of the sum `total`."""
        n = len(X) + others
        x_mean, y_mean = X.sum(0) / n, float(y.sum() + total) / n
        squares = X.T @ X
        gram = squares - n * np.outer(x_mean, x_mean)
        constant = np.diag(gram) <= 1e-12 * np.diag(squares)
        gram[constant] = gram[:, constant] = 0.0
        return cls(gram, X.T @ y - n * x_mean * y_mean, x_mean, y_mean)

    def solution(self, k: int) -> tuple[Float[np.ndarray, "k"], float]:
        """Coefficients of the first k columns, 0 for a constant one, and the intercept."""
        variation = np.diag(self.gram)[:k]
        scale = np.sqrt(np.where(variation > 0, variation, np.inf))
        correlations = self.gram[:k, :k] / np.outer(scale, scale)
        w = np.linalg.lstsq(correlations, self.right[:k] / scale, rcond=1e-10)[0] / scale
        return w, float(self.y_mean - self.x_mean[:k] @ w)


def _rectified(problem: _Problem, w: Float[np.ndarray, "k"], b: float) -> tuple[Float[np.ndarray, "k"], float]:
    """Minimise Σ (y − relu(Xw + b))² by Gauss-Newton steps with halving, from the better of two starts.

    The starts are the linear fit, and the linear fit to the rows on which y is positive.
    """
    starts = [(w, b)]
    positive = problem.y > 0
    if positive.sum() > problem.X.shape[1] + 1:
        starts.append(_Sums.of(problem.X[positive], problem.y[positive]).solution(len(w)))
    error, w, b = min(((problem.squared_error(*s), *s) for s in starts), key=lambda start: start[0])
    for _ in range(STEPS):
        active = problem.X @ w + b > 0
        others, total = (problem.others, problem.total) if b > 0 else (0.0, 0.0)
        if active.sum() + others <= problem.X.shape[1] + 1:
            break
        w_new, b_new = _Sums.of(problem.X[active], problem.y[active], others, total).solution(len(w))
        for step in (1.0, 0.5, 0.25):
            moved = w + step * (w_new - w), b + step * (b_new - b)
            if (lower := problem.squared_error(*moved)) < error * (1 - 1e-6):
                error, (w, b) = lower, moved
                break
        else:
            break
    return w, b


def predicted(map_: Map, F1: Float[torch.Tensor, "tokens d_sae_1"]) -> Float[torch.Tensor, "tokens d_sae_2"]:
    """The map's prediction of F2 on some tokens."""
    W = map_.W.tocoo()
    index = torch.from_numpy(np.stack([W.row, W.col]).astype(np.int64))
    weights = torch.sparse_coo_tensor(index, torch.from_numpy(W.data).to(F1.dtype), W.shape, check_invariants=False)
    values: torch.Tensor = torch.sparse.mm(weights.to(F1.device), F1.T).T + torch.from_numpy(map_.b).to(F1)
    return values.clamp_min(0) if map_.relu else values
