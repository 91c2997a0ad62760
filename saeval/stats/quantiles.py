"""`Quantiles`: quantiles over tokens with standard errors and intervals over documents."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.stats.estimate import Estimate, reach95
from saeval.stats.evidence import Evidence, Ratio, Stamp, binned, nth
from saeval.stats.randomness import hashed
from saeval.stats.values import Better, Comparable, Scalar

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 512
"""Largest number of documents kept apart; more are merged into this many groups, to limit memory."""
DRAWS = 1000
"""Number of bootstrap samples of documents: it determines a standard error to about 2%."""
_UNTESTED = "many tokens share this value, so it moves in steps; its interval ends on whole numbers"


@dataclasses.dataclass(frozen=True, eq=False)
class Quantiles(Evidence):
    """Counts of a value over the mask, per document, for quantiles such as `scalar(0.95)`.

    The value is continuous and counted between fixed edges, or a whole number such as a count of features. Before the
    engine calls `stamp`, each row is its own document. With more than 512 documents, those with the same number modulo
    512 are one group. Memory: 4 bytes per group and nonempty bin.
    """

    edges: Float[np.ndarray, "bins+1"]
    """Edges of the bins, ascending; empty for whole numbers."""
    filled: Int[np.ndarray, "filled"]
    """Nonempty bins, or whole numbers, ascending."""
    counts: Int[np.ndarray, "groups filled"]
    """Number of tokens in each, per document or group of documents."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        edges: Float[np.ndarray, "bins+1"] | None = None,
    ) -> Self:
        """Return the counts of `x` over `mask`; values outside the mask are ignored.

        Bins are half-open, [edge, next edge); values beyond the outer edges count in the outer bins. Without `edges`
        each whole number has its own bin. `ValueError` for NaN and, without `edges`, for values that are not whole.
        """
        rows = mask.nonzero(as_tuple=True)[0].cpu().numpy()
        bins = binned(x, mask, edges) if edges is not None else _whole(x[mask])
        filled, place = np.unique(bins, return_inverse=True)
        counts = np.zeros((len(mask), len(filled)), dtype=np.int32)
        np.add.at(counts, (rows, place), 1)
        return cls(np.asarray([] if edges is None else edges, dtype=np.float64), filled, counts)

    def stamp(self, stamp: Stamp) -> Self:
        groups = min(max(stamp.n_clusters, 1), GROUPS)
        counts = np.zeros((groups, len(self.filled)), dtype=np.int32)
        np.add.at(counts, stamp.clusters % groups, self.counts)
        return dataclasses.replace(self, counts=counts)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("quantiles with different edges cannot be added")
        filled = np.union1d(self.filled, other.filled)
        counts = np.zeros((len(self.counts), len(filled)), dtype=np.int32)
        for part in (self, other):
            counts[:, np.searchsorted(filled, part.filled)] += part.counts
        return dataclasses.replace(self, filled=filled, counts=counts)

    def scalar(self, q: float, *, unit: str = "", better: Better = None, comparable: Comparable = "model") -> Scalar:
        """Return the q-quantile over tokens, with standard error and 95% interval over documents.

        It is undefined without tokens and in the last bin; `ValueError` for a q outside 0 .. 1. Between edges it is
        interpolated, except in the first bin, where it is the lower edge; for whole numbers it is exact.

        The interval is Woodruff's (1952), from the quantile at q − t·s to that at q + t·s: s is the jackknife error of
        the share of tokens at or below the quantile, and t has effective documents − 1 degrees of freedom. The
        standard error is s times the slope of the quantile against that share. The slope is the ratio of their
        standard deviations over 1,000 bootstrap samples of documents; the standard deviation of the quantile alone is
        too small if documents differ in size. Differences of continuous quantiles are paired like those of means.
        Differences of whole numbers are not tested, since they move in steps.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q is {q}; it must lie in 0 .. 1")
        n = self.counts.sum(1)
        if not n.sum():
            return Scalar.undefined("no token is in the mask", unit=unit, better=better)
        place = int(np.searchsorted(self.counts.sum(0).cumsum(), nth(q, int(n.sum()))))
        if self.edges.size and self.filled[place] == len(self.edges) - 2:
            return Scalar.undefined(f"it lies above {self.edges[-2]:g}, in the last bin", unit=unit, better=better)
        estimate, interval = self._estimate(q, n)
        if self.edges.size:
            return Scalar(estimate, unit=unit, better=better, ci95=interval, comparable=comparable)
        value, error = estimate.value, estimate.stderr
        reason = "fewer than two documents" if error is None else _UNTESTED
        return Scalar(
            value, unit=unit, better=better, n=estimate.n, reason=reason, stderr=error, ci95=interval,
            support=estimate.support, comparable=comparable,
        )  # fmt: skip

    def _estimate(self, q: float, n: Int[np.ndarray, "groups"]) -> tuple[Estimate, tuple[float, float] | None]:
        sizes, total = n.astype(np.float64), int(n.sum())
        reached = np.append(0, self.counts.sum(0).cumsum())

        def at(share: float) -> float:
            place = int(np.searchsorted(reached[1:], nth(share, total)))
            return float(self._interpolated(place, share * total - reached[place], reached[place + 1] - reached[place]))

        value, place = at(q), int(np.searchsorted(reached[1:], nth(q, total)))
        # If many tokens have this value, the share below it may vary when the share at or below it does not.
        parts = [self.counts[:, : place + 1].sum(1), self.counts[:, :place].sum(1)]
        shares = [(Ratio(part.astype(np.float64), sizes, n).value, part) for part in parts]
        share, part = max(shares, key=lambda pair: pair[0].stderr or 0.0)
        if not share.stderr:
            point = None if share.stderr is None else (value, value)
            return Estimate(value, np.full(len(n), value), sizes, total), point
        reach = reach95(share.stderr, share.effective - 1)
        low, high = at(q - reach), at(q + reach)
        slope = self._slope(q, part) or (high - low) / (2 * reach)
        return Estimate(value, value - slope * (share.without - share.value), sizes, total), (low, high)

    def _slope(self, q: float, part: Int[np.ndarray, "groups"]) -> float:
        """Return the slope of the quantile against the share `part`, from bootstrap samples of documents."""
        # Documents are sorted by content before they are drawn, so that their numbering does not matter.
        order = sorted(np.flatnonzero(self.counts.any(1)), key=lambda group: self.counts[group].tobytes())
        weights, counts = _resampled(len(order)), self.counts[order].astype(np.float64)
        until, n = np.pad(counts.cumsum(1), ((0, 0), (1, 0))), weights @ counts.sum(1)

        def reached(place: Int[np.ndarray, "draws"]) -> Float[np.ndarray, "draws"]:
            """Return the number of tokens in earlier bins, per sample."""
            return np.asarray(np.einsum("dg,gd->d", weights, until[:, place]))

        low, high = np.zeros(DRAWS, dtype=np.int64), np.full(DRAWS, len(self.filled) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = reached(middle + 1) >= nth(q, n)
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        before = reached(low)
        moved = self._interpolated(low, q * n - before, reached(low + 1) - before)
        return float(np.std(moved) / np.std(weights @ part[order] / n))

    def _interpolated(self, place: Any, within: Any, count: Any) -> Any:
        """Return the interpolated value of token `within` of `count` in the nonempty bin at `place`, elementwise."""
        bins = self.filled[place]
        if not self.edges.size:
            return bins.astype(np.float64)
        outer = (bins == 0) | (bins == len(self.edges) - 2)
        part = np.where(outer, 0.0, np.clip(within / count, 0.0, 1.0))
        return self.edges[bins] + part * (self.edges[bins + 1] - self.edges[bins])

    def components(self) -> dict[str, Any]:
        values = self.edges[self.filled] if self.edges.size else self.filled
        return {"from": values.tolist(), "counts": self.counts.sum(0).tolist()}


def _whole(values: Tensor) -> Int[np.ndarray, "n"]:
    numbers = values.detach().double().cpu().numpy()
    if (odd := numbers[~np.isfinite(numbers) | (numbers != np.floor(numbers))]).size:
        raise ValueError(f"{len(odd)} of {len(numbers)} values are not whole numbers, such as {odd[0]}; pass edges")
    return numbers.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _resampled(groups: int) -> Float[np.ndarray, "draws groups"]:
    """Return the count of each group in each bootstrap sample, drawn with replacement."""
    draw, place = np.divmod(np.arange(DRAWS * groups), groups)
    drawn = (hashed("bootstrap", draw, place) % np.uint64(groups)).astype(np.int64)
    return np.bincount(draw * groups + drawn, minlength=DRAWS * groups).reshape(DRAWS, groups).astype(np.float64)
