"""The pass over all pairs: the best columns of each row, good rows of each column, and bounds on all other pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import torch
from saeval_stability.similarity import Floats, Ints, Similarity

if TYPE_CHECKING:
    from torch import Tensor

PER_ROW = 32
PER_COLUMN = 8
GROUP = 32
BLOCK = 1 << 26  # bytes per block
OPEN = 0.25  # if a larger share of rows or columns is undecided, a second full pass is cheaper


@dataclass
class Bounds:
    """Bounds on pairs (i, j) that are no candidates: similarity <= bound[i] + references[reference[i]][j]."""

    bound: Floats
    reference: Ints
    references: list[Floats]


def rows_per_block(similarity: Similarity, block: int | None, dtype: torch.dtype = torch.float32) -> int:
    return block or max(1, BLOCK // (similarity.shape[1] * dtype.itemsize))


def candidates(similarity: Similarity, block: int | None) -> tuple[Ints, Floats, Bounds]:
    """One pass over all pairs in blocks of rows.

    Returns the candidate pairs as sorted keys i·m + j, their similarities, and bounds on all other pairs. The
    candidates include the best pair of each row and column, up to float32 rounding, and (i, i), so that every row can
    have a partner. A coarse pass decides most rows and columns; those that it does not decide are computed again.
    """
    n, m = similarity.shape
    first = _Pass(similarity, similarity.coarse, block)
    bound, keys, values = first.of_row, first.keys, values_of(similarity, first.keys)
    if similarity.coarse != torch.float32:
        rows = np.flatnonzero(bound > _best(values, keys // m, n))
        columns = np.flatnonzero(first.of_column > _best(values, keys % m, m))
        if max(len(rows) / n, len(columns) / m) > OPEN:
            second = _Pass(similarity, torch.float32, block)
            bound, more = second.of_row, second.keys
        else:
            best, bound[rows] = _best_of(similarity, rows, block)
            best_rows, _ = _best_of(similarity.T, columns, block)
            more = distinct(rows[:, None] * m + best, best_rows * m + columns[:, None])
        new = np.setdiff1d(more, keys, assume_unique=True)
        keys, values = merged(keys, values, new, values_of(similarity, new))
    return keys, values, Bounds(bound, np.zeros(n, np.int64), [np.zeros(m)])


class _Pass:
    """One pass over all pairs: `keys` of candidates, and upper bounds on the other pairs of each row and column."""

    def __init__(self, similarity: Similarity, dtype: torch.dtype, block: int | None) -> None:
        n, m = similarity.shape
        per_row = min(PER_ROW, m)
        device = similarity.device
        best = torch.empty(n, per_row, dtype=torch.int32, device=device)
        bound = torch.full((n,), -torch.inf, dtype=torch.float64, device=device)
        columns = _BestOfColumns(m, min(PER_COLUMN, n), dtype, device)
        group = max(1, min(GROUP, n // 256))
        step = rows_per_block(similarity, block, dtype)
        step = step // group * group or step  # a multiple of the group size
        buffer = torch.empty(min(step, n), m, dtype=dtype, device=device)
        for first in range(0, n, step):
            part = similarity.block(slice(first, first + step), None, dtype, buffer[: n - first])
            values, indices = part.topk(per_row, dim=1)
            best[first : first + step] = indices
            if per_row < m:
                bound[first : first + step] = similarity.at_most(values[:, -1])
            columns.add(part, first, min(group, len(part)))
        keys = [np.arange(n)[:, None] * m + best.cpu().numpy(), np.arange(n) * (m + 1)]
        keys += [row * m + np.arange(m) for row in columns.row.cpu().numpy()]
        self.keys = distinct(*keys)
        self.of_row: Floats = bound.cpu().numpy()
        self.of_column: Floats = similarity.at_most(columns.rest()).cpu().numpy()


class _BestOfColumns:
    """The best row of each column, and good rows beside it: per column, the best rows of the k best groups of rows.

    Groups are consecutive rows. One maximum per group is cheap; a top-k along the columns of a block would cost as
    much as the product.
    """

    def __init__(self, m: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.value = torch.full((k, m), -torch.inf, dtype=dtype, device=device)
        self.second = self.value.clone()  # the second-best entry of each group
        self.row = torch.zeros((k, m), dtype=torch.int64, device=device)

    def add(self, part: Tensor, first: int, group: int) -> None:
        whole = len(part) // group * group
        self._add(part[:whole], first, group)
        if whole < len(part):
            self._add(part[whole:], first + whole, len(part) - whole)

    def _add(self, part: Tensor, first: int, group: int) -> None:
        k, m = self.value.shape
        groups = part.view(-1, group, m)
        self.value, pick = torch.cat([self.value, groups.amax(1)]).topk(k, dim=0)
        old = pick.clamp(max=k - 1)
        self.row, self.second = self.row.gather(0, old), self.second.gather(0, old)
        is_new = pick >= k
        column = is_new.nonzero()[:, 1]
        chosen = pick[is_new] - k
        best, at = groups[chosen, :, column].topk(min(2, group), dim=1)
        self.row[is_new] = first + chosen * group + at[:, 0]
        self.second[is_new] = best[:, 1] if group > 1 else -torch.inf

    def rest(self) -> Tensor:
        """An upper bound on the entries of each column outside `row`."""
        return torch.maximum(self.value[-1], self.second.amax(0))


def distinct(*keys: Ints) -> Ints:
    """All keys, sorted and unique. np.unique would take longer than the sparse assignment."""
    ordered = np.sort(np.concatenate([k.ravel() for k in keys]))
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def values_of(similarity: Similarity, keys: Ints) -> Floats:
    """The similarities of pairs given as keys."""
    return similarity.values(*np.divmod(keys, similarity.shape[1]))


def merged(keys: Ints, values: Floats, new: Ints, added: Floats) -> tuple[Ints, Floats]:
    """The union of two disjoint sets of pairs, sorted by key."""
    keys = np.concatenate([keys, new])
    order = np.argsort(keys, kind="stable")
    return keys[order], np.concatenate([values, added])[order]


def _best(values: Floats, line: Ints, n: int) -> Floats:
    best = np.full(n, -np.inf)
    np.maximum.at(best, line, values)
    return best


def _best_of(similarity: Similarity, rows: Ints, block: int | None) -> tuple[Ints, Floats]:
    """The best columns `[len(rows), k]` of each row in float32, and an upper bound per row on the others."""
    k, step = min(PER_ROW, similarity.shape[1]), rows_per_block(similarity, block)
    best, bound = np.empty((len(rows), k), np.int64), np.full(len(rows), -np.inf)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        which = torch.as_tensor(rows[part], device=similarity.device)
        values, indices = similarity.block(which, None, torch.float32).topk(k, dim=1)
        best[part] = indices.cpu().numpy()
        if k < similarity.shape[1]:
            bound[part] = similarity.at_most(values[:, -1]).cpu().numpy()
    return best, bound
