"""`Pairs`: the paired tests of all pairs of many entries at once, equal to those of `paired_tests` one by one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.results.board import Entry
from saeval.results.paired_tests import (
    ALPHA,
    NEARLY_ONE,
    NOT_STORED,
    NOT_WITHOUT,
    ONE_DOCUMENT,
    ROUNDING,
    Difference,
    of_draws,
)
from saeval.stats.estimate import LEAST, Support, effective

Rows: TypeAlias = Int[np.ndarray, "rows"]
Counts: TypeAlias = Int[np.ndarray, "entries"]
_Tests: TypeAlias = "tuple[Rows, Rows, Float[np.ndarray, 'tests']]"
"""Pairs with their t²."""

_BLOCK = 256
"""Entries a side of a block of pairs, whose arrays a processor's cache holds."""
_CHUNK = 1 << 20
"""Numbers of single differences that are computed at once."""
_CANCELLED = 1e-6
"""Share of two variances below which their difference's, as g_ii + g_jj - 2 g_ij, has lost digits that matter."""
_BINS = 1 << 13
_FEW = 1 << 20
"""Tests near the threshold whose p values are computed and sorted."""
_MARGIN = 1e-9
"""Relative error of a threshold, far more than that of the quantiles."""


@dataclass(frozen=True)
class _Block:
    """Tests of entries `rows` against `cols`, each pair in one block only, the better entry in `rows`."""

    rows: Rows
    cols: Rows
    squares: Float[np.ndarray, "rows cols"] | None
    """t² at `Pairs.dof` degrees of freedom, or what it would be at these for the same p value; 0 without a test. None
    if every pair is tested and surely significant."""
    tested: int
    """How many of the pairs have a p value."""
    untested: Bool[np.ndarray, "rows cols"] | None = None
    """Pairs of which the values decide, since one is not known without each document; None where there are none."""


class Pairs:
    """Entries with values, the best first, and the data of their paired differences.

    Most entries of a column have the same documents with the same sizes. All variances among those are one matrix
    product of the deviations D: (C-1)/C (g_ii + g_jj - 2 g_ij) with G = D Dᵀ. The pairs of all other entries, and those
    where that difference of large numbers has lost its digits, are computed from the differences themselves.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        known = [entry.estimate for entry in entries if entry.estimate is not None]
        for estimate in known[1:]:
            if estimate.without.shape != known[0].without.shape:
                known[0] - estimate  # raises: other streams
        clusters = known[0].without.size if known else 0
        self._reasons = [entry.reason for entry in entries]
        self.values = np.array([entry.value for entry in entries], dtype=np.float64)
        self.known = np.array([entry.estimate is not None for entry in entries], dtype=bool)
        self.proportion = [entry.proportion for entry in entries]
        self.draws = np.array([entry.draws for entry in entries])
        self.spread = np.array([entry.spread if entry.draws > 1 else 0.0 for entry in entries])
        self.without = np.full((len(entries), clusters), np.nan)
        self.sizes = np.zeros((len(entries), clusters))
        self.effective = np.full(len(entries), math.inf)
        counts: dict[bytes, float] = {}
        for index, entry in enumerate(entries):
            if entry.estimate is not None:
                sizes = entry.estimate.sizes
                self.without[index], self.sizes[index] = entry.estimate.without, sizes
                if (same := sizes.tobytes()) not in counts:
                    counts[same] = effective(sizes)
                self.effective[index] = min(counts[same], entry.estimate.least)

    def _set_common(self) -> None:
        """Find the entries whose pairs have all their variances in one product, and prepare it."""
        plain = self.known & (self.draws == 1) & np.isfinite(self.without).all(axis=1)
        plain &= ((self.sizes > 0).sum(axis=1) > 1) & (self.effective >= LEAST)
        sizes = [
            self.sizes[index].tobytes() + self.effective[index].tobytes() if plain[index] else b""
            for index in range(len(self.values))
        ]
        counted = Counter(one for one in sizes if one)
        most = counted.most_common(1)[0][0] if counted else None
        common = np.array([one == most for one in sizes], dtype=bool) if most else np.zeros(len(sizes), dtype=bool)
        self.common, self.others = np.flatnonzero(common), np.flatnonzero(~common)
        self.dof = 1.0
        if most:
            self.dof = self.effective[self.common[0]] - 1
            here = self.sizes[self.common[0]] > 0
            count = int(here.sum())
            deviations = self.without[self.common][:, here]
            deviations -= deviations.mean(axis=1, keepdims=True)
            deviations *= np.sqrt((count - 1) / count)
            values = np.square(self.values[self.common])
            self._flat = np.square(deviations).sum(axis=1) < (0.1 * ROUNDING) ** 2 * values
            twins = {row.tobytes(): index for index, row in enumerate(deviations)}
            self._twin = np.array([twins[row.tobytes()] for row in deviations])
            deviations -= deviations.mean(axis=0)  # what all share is in no difference, and costs digits
            norms = np.square(deviations).sum(axis=1)
            ones = np.ones_like(norms)
            self._left = np.column_stack([-2 * deviations, norms, ones])  # times the other: g_ii + g_jj - 2 g_ij
            self._right = np.column_stack([deviations, ones, norms])
            self._doubtful = _CANCELLED * norms + (2 * ROUNDING) ** 2 * values
            self._least = self._bounds(deviations, norms)

    def against(self, index: int, others: Rows) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
        """Variances of one entry minus each of `others`, NaN where there is none, and their degrees of freedom."""
        with np.errstate(all="ignore"):
            variance = self._variances(self.without[index] - self.without[others], self._here(index, others))
            dof = self._effective(index, others) - 1
            unknown = ~self.known[index] | ~self.known[others] | (dof < LEAST - 1)
            variance[~np.isfinite(variance) | unknown] = np.nan
            variance[np.sqrt(variance) <= self._rounding(index, others)] = 0.0
            below = np.square(variance) / dof
            total = variance.copy()
            for one, other in ((index, others), (others, index)):  # Welch and Satterthwaite
                spread = of_draws(self.spread[one], self.draws[one], self.draws[other])
                total += spread
                below += np.square(spread) / np.maximum(self.draws[one] - 1.0, 1.0)
            return total, np.where(below == 0, dof, np.square(total) / below)

    def _here(self, index: int, others: Rows) -> Bool[np.ndarray, "others clusters"]:
        """Documents that contributed to an entry or to the other."""
        return np.asarray((self.sizes[index] > 0) | (self.sizes[others] > 0))

    def _effective(self, index: int, others: Rows) -> Float[np.ndarray, "others"]:
        """Effective documents of one entry minus each of the others."""
        return np.asarray(np.minimum(self.effective[index], self.effective[others]))

    def _variances(
        self, paired: Float[np.ndarray, "pairs clusters"], here: Bool[np.ndarray, "pairs clusters"]
    ) -> Float[np.ndarray, "pairs"]:
        """Of differences without each document, over the documents that are `here`."""
        count, squares = here.sum(axis=1), self._squares(paired, here).sum(axis=1)
        return np.asarray(np.where(count > 1, (count - 1) / count * squares, np.nan))

    def _squares(
        self, paired: Float[np.ndarray, "pairs clusters"], here: Bool[np.ndarray, "pairs clusters"]
    ) -> Float[np.ndarray, "pairs clusters"]:
        """Squared deviations from their mean."""
        paired = np.where(here, paired, 0.0)
        mean = paired.sum(axis=1) / here.sum(axis=1)
        return np.asarray(np.square(np.where(here, paired - mean[:, None], 0.0)))

    def _rounding(self, first: Rows | int, second: Rows | int) -> Float[np.ndarray, "..."]:
        return np.asarray(ROUNDING * np.maximum(np.abs(self.values[first]), np.abs(self.values[second])))

    def differences(self, index: int) -> list[Difference]:
        """Every entry minus entry `index`, as `difference` gives it but for what it is without each document."""
        found: list[Difference] = []
        for others in self._chunks(np.arange(len(self.values))):
            here, effective = self._here(index, others), self._effective(index, others)
            with np.errstate(all="ignore"):
                squares = self._squares(self.without[others] - self.without[index], here)
                count, total = here.sum(axis=1), squares.sum(axis=1)
                error = np.sqrt((count - 1) / count * total)
                shares = squares.max(axis=1, initial=0.0) / total
            values, rounding = self.values[others] - self.values[index], self._rounding(index, others)
            columns = (others, values, rounding, count, effective, error, total, shares)
            for one in zip(*(column.tolist() for column in columns), strict=True):
                found.append(self._difference(index, *one))
        return found

    def _difference(
        self, index: int, other: int, value: float, rounding: float, count: int, effective: float, error: float,
        total: float, share: float,
    ) -> Difference:  # fmt: skip
        if not (self.known[index] and self.known[other]):
            return Difference(value, reason=self._reasons[index if self.known[other] else other] or NOT_STORED)
        if count < 2:
            return Difference(value, reason=ONE_DOCUMENT)
        if effective < LEAST:
            return Difference(value, reason=NEARLY_ONE)
        if not math.isfinite(error):
            return Difference(value, reason=NOT_WITHOUT)
        spreads = [
            (float(of_draws(self.spread[one], self.draws[one], self.draws[beside])), float(self.draws[one]) - 1.0)
            for one, beside in ((other, index), (index, other))
            if self.draws[one] > 1
        ]
        support = Support(count, effective, share if 0 < total < math.inf else None)
        error = error if error > rounding else 0.0
        proportions = self.proportion[index] and self.proportion[other]
        return Difference(
            value, ((error**2, effective - 1.0), *spreads), None, None, rounding, support, proportions
        )  # fmt: skip

    def sure(self, level: float = ALPHA) -> tuple[Counts, Counts]:
        """How many entries each is surely better than, and how many are surely better than it, at this level.

        By Holm's correction of all p values: once the k smallest of M are below the level, the next is if p (M - k) is.
        So k is the smallest with k = #{p (M - k) < level}, which takes no sorted list: t² are counted in bins, and only
        tests in the bins around the threshold are looked at one by one.
        """
        from scipy.special import stdtr  # late: `saeval ls` compares nothing

        self._level = level
        self._set_common()
        low, high, tested, above = self._near()
        better, worse = np.zeros((2, len(self.values)), dtype=np.int64)
        near: list[_Tests] = []
        for block in self._blocks(high):
            if block.squares is None:
                better[block.rows] += len(block.cols)
                worse[block.cols] += len(block.rows)
                continue
            surely = block.squares >= high
            left = (block.squares >= low) & ~surely
            if left.any():
                rows, cols = left.nonzero()
                near.append((block.rows[rows], block.cols[cols], block.squares[rows, cols]))
            if block.untested is not None:
                surely |= block.untested
            ones = surely.view(np.uint8)  # whose sum is several times faster than that of true and false
            better[block.rows] += ones.sum(axis=1, dtype=np.uint32)
            worse[block.cols] += ones.sum(axis=0, dtype=np.uint32)
        if near:
            rows, cols, squares = (np.concatenate(parts) for parts in zip(*near, strict=True))
            p = 2 * stdtr(self.dof, -np.sqrt(squares))
            order = np.argsort(p, kind="stable")
            over = np.flatnonzero(p[order] * (tested - above - np.arange(len(p))) >= level)
            order = order[: over[0]] if len(over) else order
            np.add.at(better, rows[order], 1)
            np.add.at(worse, cols[order], 1)
        return better, worse

    def _near(self) -> tuple[float, float, int, int]:
        """From which t² on a test may be and is surely significant, how many tests there are, and how many surely are.

        Where too many lie between, they are counted in finer bins.
        """
        pairs = len(self.values) * (len(self.values) - 1) // 2
        low, high = _bits(self._threshold(1) * (1 - _MARGIN)), _bits(self._threshold(pairs) * (1 + _MARGIN))
        while True:
            shift = max((high - low) // _BINS, 1).bit_length()
            bins = ((high - low) >> shift) + 1
            counts, tested = np.zeros(bins + 1, dtype=np.int64), 0
            for block in self._blocks(_float(high)):
                tested += block.tested
                if block.squares is None:
                    counts[bins] += block.tested
                    continue
                above_low = block.squares >= _float(low)
                between = block.squares[above_low & (block.squares < _float(high))]
                counts += np.bincount((between.view(np.int64) - low) >> shift, minlength=bins + 1)
                counts[bins] += np.count_nonzero(above_low) - between.size
            from_bin = counts[::-1].cumsum()[::-1]  # in each bin or above it
            bars = [self._place(from_bin, tested, low, shift, margin) for margin in (1 + _MARGIN, 1 - _MARGIN)]
            sure, possible = min(bars[0] + 1, bins), bars[1]
            above = int(from_bin[sure])
            reach, low, high = high - low, low + (possible << shift), min(low + (sure << shift), high)
            if from_bin[possible] - above <= _FEW or high - low > reach // 2:
                return _float(low), _float(high), tested, above

    def _place(self, from_bin: Counts, tested: int, low: int, shift: int, margin: float) -> int:
        """The bin of Holm's threshold, were all tests of its bin significant (margin below 1) or none of them."""
        place, count = len(from_bin) - 1, -1
        while (found := int(from_bin[min(place + (margin > 1), len(from_bin) - 1)])) != count:
            count = found
            place = (_bits(self._threshold(tested - count) * margin) - low) >> shift
            place = min(max(place, 0), len(from_bin) - 1)
        return place

    def _threshold(self, tests: int) -> float:
        """The t² above which the smallest p value of so many tests is significant."""
        from scipy.special import stdtrit  # late: as above

        return float(stdtrit(self.dof, self._level / max(tests, 1) / 2)) ** 2

    def _blocks(self, sure: float) -> Iterator[_Block]:
        """Every pair, once. Pairs whose t² are surely above `sure` by their bounds are not computed."""
        for block, start in enumerate(range(0, len(self.common), _BLOCK)):
            cols = np.arange(start, min(start + _BLOCK, len(self.common)))
            undecided = self._least[: cols[-1] + 1, block] < sure
            decided = np.flatnonzero(~undecided)
            if len(decided):
                yield _Block(self.common[decided], self.common[cols], None, len(decided) * len(cols))
            rows = np.flatnonzero(undecided)
            for first in range(0, len(rows), _BLOCK):
                yield self._product(rows[first : first + _BLOCK], cols)
        for place, index in enumerate(self.others.tolist()):
            for chunk in self._chunks(np.concatenate([self.common, self.others[place + 1 :]])):
                yield self._single(index, chunk[chunk > index], False)
                yield self._single(index, chunk[chunk < index], True)

    def _bounds(
        self, deviations: Float[np.ndarray, "rows clusters"], norms: Float[np.ndarray, "rows"]
    ) -> Float[np.ndarray, "rows blocks"]:
        """For each common entry and block of them a t² that no pair of the two is below; 0 where none is known.

        The error of a difference is at most the distance of the entry to the block's centre, plus the block's radius.
        A pair that agrees in every document has the t² of the sign test.
        """
        values = self.values[self.common]
        cuts = range(0, len(values), _BLOCK)
        ends = [(part.min(), part.max()) for part in (values[start : start + _BLOCK] for start in cuts)]
        low, high = np.array(ends).T
        centres = np.array([deviations[start : start + _BLOCK].mean(axis=0) for start in cuts])
        radii = np.array([
            np.sqrt(np.square(deviations[start : start + _BLOCK] - centre).sum(axis=1).max())
            for start, centre in zip(cuts, centres, strict=True)
        ])  # fmt: skip
        sums = np.add.outer(norms, np.square(centres).sum(axis=1))
        distances = np.sqrt(np.maximum(sums - 2 * deviations @ centres.T, 0.0) + _CANCELLED * sums)
        gaps = np.maximum(low - values[:, None], values[:, None] - high)
        gaps[gaps <= ROUNDING * np.maximum(np.abs(values[:, None]), np.maximum(np.abs(low), np.abs(high)))] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.square(gaps / (distances + radii)) * (1 - _CANCELLED)
        return np.asarray(np.where(gaps > 0, np.minimum(least, self._agreed_square), 0.0))

    def _product(self, first: Rows, second: Rows) -> _Block:
        """The tests of some common entries against a block of them, of which some may be among the former."""
        rows, cols = self.common[first], self.common[second]
        variance = self._left[first] @ self._right[second].T
        squares = np.subtract.outer(self.values[rows], self.values[cols])
        zero = None
        own, others = self._doubtful[first], self._doubtful[second]
        if variance.min() <= own.max() + others.max():
            zero = self._computed_again(variance, first, second, variance <= own[:, None] + others)
            agreed = zero & (np.abs(squares) > self._rounding(rows[:, None], cols))
        np.multiply(squares, squares, out=squares)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(squares, variance, out=squares)
        if zero is not None:
            squares[zero], squares[agreed] = 0.0, self._agreed_square
            zero &= ~agreed
        tested = squares.size - (int(np.count_nonzero(zero)) if zero is not None else 0)
        if first[-1] >= second[0]:
            below = first[:, None] >= second
            tested -= int(np.count_nonzero(below & ~zero if zero is not None else below))
            squares[below] = 0.0
        return _Block(rows, cols, squares, tested)

    @cached_property
    def _agreed_square(self) -> float:
        """What t² would be for the p value of two entries that differ by the same in every document."""
        from scipy.special import stdtrit  # late: as above

        return float(stdtrit(self.dof, 2.0**-self.dof / 2)) ** 2

    def _computed_again(
        self, variance: Float[np.ndarray, "rows cols"], first: Rows, second: Rows, doubtful: Bool[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "rows cols"]:
        """Put the doubtful variances right; the pairs that have none, as they differ by no more than rounding."""
        zero = doubtful & (self._twin[first][:, None] == self._twin[second])
        zero |= doubtful & self._flat[first][:, None] & self._flat[second]
        rows, cols = (doubtful & ~zero).nonzero()
        for chunk in self._chunks(np.arange(len(rows))):
            a, b = self.common[first][rows[chunk]], self.common[second][cols[chunk]]
            found = self._variances(self.without[a] - self.without[b], self.sizes[a] > 0)
            variance[rows[chunk], cols[chunk]] = found
            zero[rows[chunk], cols[chunk]] = np.sqrt(found) <= self._rounding(a, b)
        return np.asarray(zero)

    def _single(self, index: int, others: Rows, others_better: bool) -> _Block:
        """The tests of an entry that is not a common one."""
        from scipy.special import stdtr, stdtrit  # late: as above

        variance, dof = self.against(index, others)
        distance = np.abs(self.values[index] - self.values[others])
        agreed = (variance == 0) & (distance > self._rounding(index, others))
        tests = (variance > 0) | agreed
        with np.errstate(all="ignore"):
            squares = np.square(distance) / variance
            p = np.where(agreed, 2.0**-dof, 2 * stdtr(dof, -np.sqrt(squares)))
            translated = tests & (agreed | (dof != self.dof))
            squares[translated] = np.square(stdtrit(self.dof, p[translated] / 2))
        untested = ~(self.known[index] & self.known[others]) & (distance != 0)
        shape = (-1, 1) if others_better else (1, -1)
        rows, cols = (others, np.array([index])) if others_better else (np.array([index]), others)
        squares = np.where(tests, squares, 0.0).reshape(shape)
        return _Block(rows, cols, squares, int(tests.sum()), untested.reshape(shape))

    def _chunks(self, pairs: Rows) -> Iterator[Rows]:
        step = max(_CHUNK // max(self.without.shape[1], 1), 1)
        for start in range(0, len(pairs), step):
            yield pairs[start : start + step]


def _bits(value: float) -> int:
    """An integer for each float64 that is not negative, in the same order."""
    return int(np.float64(value).view(np.int64))


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
