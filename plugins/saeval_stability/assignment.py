"""The sparse assignment problem: compiled shortest augmenting paths, with prices that are reused when pairs are added.

Rows bid for columns. Rows have prices x and columns y, with x_i + y_j >= value_ij for every pair, equality for matched
pairs, and y_j = 0 for unmatched columns. Then no matching among the given pairs is better. The method is that of Jonker
and Volgenant (1987): bids first, then shortest paths for the rows that bids leave unmatched.
"""

from __future__ import annotations

import heapq

import numba
import numpy as np
from scipy.sparse import csr_array

# A chain of bids ends if it raises a price by less than this; two tied rows would outbid each other forever.
SMALLEST_RAISE = 1e-9
BIDS_PER_ROW = 100
TIGHT = 1e-12
SWEEPS = 20


@numba.njit(cache=True, nogil=True)
def _bid(free, start, column, value, y, partner, owner):  # type: ignore[no-untyped-def]
    """Assign each free row its best column, at the price that makes its second-best column as good.

    A row that loses its column bids next. Returns the rows that are still free.
    """
    left = np.empty(len(free), np.int64)
    n_left = 0
    bids = BIDS_PER_ROW * len(free)
    for row in free:
        while True:
            first, second, at = -np.inf, -np.inf, -1
            for e in range(start[row], start[row + 1]):
                worth = value[e] - y[column[e]]
                if worth > first or (worth == first and owner[at] != -1 and owner[column[e]] == -1):
                    first, second, at = worth, first, column[e]
                elif worth > second:
                    second = worth
            ousted = owner[at]
            stop = bids == 0 or first - second < SMALLEST_RAISE or second == -np.inf
            if ousted != -1 and stop:
                left[n_left] = row
                n_left += 1
                break
            if ousted != -1:
                y[at] += first - second
                partner[ousted] = -1
                bids -= 1
            partner[row] = at
            owner[at] = row
            if ousted == -1:
                break
            row = ousted
    return left[:n_left]


@numba.njit(cache=True, nogil=True)
def _augment(free, start, node, value, x, y, mate, owner, may_stay_free):  # type: ignore[no-untyped-def]
    """Match each free node of one side along the shortest path to a free node of the other, and adjust the prices.

    With `may_stay_free` (used for columns), nodes of this side may stay unmatched at price 0: a path may also end at
    the node that is cheapest to unmatch, and free nodes of price 0 are skipped. Without it (rows), all are matched.
    """
    distance = np.full(len(owner), np.inf)
    before = np.full(len(owner), -1, np.int64)
    done = np.zeros(len(owner), np.bool_)
    reached = np.empty(len(owner), np.int64)
    for source in free:
        shortest = x[source] if may_stay_free else np.inf
        if shortest <= 0.0:
            continue
        end, n_reached, here, so_far = -1, 0, source, 0.0
        heap = [(np.inf, -1)]
        while here != -1:
            for e in range(start[here], start[here + 1]):
                r = node[e]
                length = so_far + max(x[here] + y[r] - value[e], 0.0)
                if done[r] or length >= distance[r] or length >= shortest:
                    continue
                if distance[r] == np.inf:
                    reached[n_reached] = r
                    n_reached += 1
                distance[r] = length
                before[r] = here
                if owner[r] == -1:
                    shortest, end = length, r
                else:
                    heapq.heappush(heap, (length, r))
            here = -1
            while here == -1 and heap[0][0] < shortest:
                so_far, r = heapq.heappop(heap)
                if not done[r] and so_far == distance[r]:
                    done[r] = True
                    here = owner[r]
                    if may_stay_free and so_far + x[here] < shortest:
                        shortest, end = so_far + x[here], r
        for r in reached[:n_reached]:
            if done[r] and distance[r] < shortest:
                y[r] += shortest - distance[r]
                x[owner[r]] -= shortest - distance[r]
        x[source] -= shortest
        if end != -1:
            if owner[end] != -1:
                mate[owner[end]] = -1
            r = end
            while r != -1:
                here = before[r]
                mate[here], owner[r], r = r, here, mate[here]
        for r in reached[:n_reached]:
            distance[r] = np.inf
            done[r] = False


@numba.njit(cache=True, nogil=True)
def _settle(start, row, value, x, y, owner):  # type: ignore[no-untyped-def]
    """Lower the price of each matched column as far as the other rows allow, and raise its row's price.

    Augmenting paths only raise prices. Without this step, prices drift over the rounds; the optimum is the same, but
    many more pairs are needed to prove it.
    """
    for _ in range(SWEEPS):
        moved = 0.0
        for j in range(len(y)):
            if owner[j] == -1:
                continue
            least = 0.0
            for e in range(start[j], start[j + 1]):
                if row[e] != owner[j]:
                    least = max(least, value[e] - x[row[e]])
            if least < y[j]:
                moved = max(moved, y[j] - least)
                x[owner[j]] += y[j] - least
                y[j] = least
        if moved < SMALLEST_RAISE:
            break


class Assignment:
    """The best assignment of n rows to m >= n columns among the given pairs, updated when pairs are added.

    `partner[i]` is the column of row i, `owner[j]` the row of column j or -1; `x` and `y` are the prices.
    """

    def __init__(self, n: int, m: int) -> None:
        self.partner = np.full(n, -1, np.int64)
        self.owner = np.full(m, -1, np.int64)
        self.x = np.zeros(n)
        self.y = np.zeros(m)

    def solve(self, pairs: csr_array) -> None:
        """Solve for `pairs` `[n, m]` with sorted indices, in which every row can have a partner (not checked)."""
        n, m = pairs.shape
        start, column = pairs.indptr.astype(np.int64), pairs.indices.astype(np.int64)
        value, rows = pairs.data, np.arange(n)
        self.x = np.maximum.reduceat(value - self.y[column], start[:-1])
        matched = np.flatnonzero(self.partner >= 0)
        keys = np.repeat(rows, np.diff(start)) * m + column
        position = np.searchsorted(keys, matched * m + self.partner[matched])
        slack = self.x[matched] + self.y[self.partner[matched]] - value[position]
        released = matched[slack > TIGHT]
        self.owner[self.partner[released]] = -1
        self.partner[released] = -1
        free = _bid(rows[self.partner < 0], start, column, value, self.y, self.partner, self.owner)
        self.x = np.maximum.reduceat(value - self.y[column], start[:-1])
        _augment(free, start, column, value, self.x, self.y, self.partner, self.owner, False)
        by_column = pairs.tocsc()
        start_c, row = by_column.indptr.astype(np.int64), by_column.indices.astype(np.int64)
        if n < m:
            free = np.flatnonzero((self.owner < 0) & (self.y > 0))
            _augment(free, start_c, row, by_column.data, self.y, self.x, self.owner, self.partner, True)
            self.y[self.owner < 0] = 0.0
            np.maximum(self.y, 0.0, out=self.y)  # rounding can leave -1e-17
        _settle(start_c, row, by_column.data, self.x, self.y, self.owner)
        self.x = np.maximum.reduceat(value - self.y[column], start[:-1])
