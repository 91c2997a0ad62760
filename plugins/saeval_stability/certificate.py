"""Prices as a proof that a matching is the best one, over all pairs.

For any prices v_j >= 0 of the columns (of any sign if there are as many rows) and u_i = max_j (c_ij - v_j), every
one-to-one matching of all rows has a sum of at most Σu + Σv. The difference bounds the error of a given matching.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saeval.plugin import SaevalError, torch
from saeval_stability.candidates import PER_ROW, Bounds, distinct, rows_per_block
from saeval_stability.similarity import Cosines, Floats, Ints, Similarity, Vectors

if TYPE_CHECKING:
    from saeval_stability.matching import Matching

NEGLIGIBLE = 1e-9  # pairs that beat the prices by less do not cause another round; they still count in the gap
FULL_ROWS, PARTIAL_ROWS = 512, 256  # rows per block, against all columns or a subset; smaller blocks need fewer columns


def certify(A: Any, B: Any, matching: Matching, mode: str = "signed", block: int | None = None) -> float:
    """Return a bound on the distance of a matching from the best one: (Σu + Σv − Σ cos) / min(n_A, n_B), in float64.

    It uses only the vectors, the partners and the prices of the larger side, over all pairs, without the solver's
    shortcuts. This takes about twice the time of `match`.

    Args:
        A, B: the arguments of `match`.
        matching: its result.
        mode, block: as in `match`.

    Raises:
        SaevalError: if the partners are not one-to-one, a price of the larger side is negative, or the vectors are
            invalid for `match`.
    """
    similarity: Similarity = Cosines(Vectors(A, "A"), Vectors(B, "B"), mode == "abs")
    partner, v = np.asarray(matching.indices), np.asarray(matching.certificate.v)
    if similarity.shape[0] > similarity.shape[1]:
        similarity, v = similarity.T, np.asarray(matching.certificate.u)
        rows = np.flatnonzero(partner >= 0)
        columns, rows = rows, partner[rows]
    else:
        columns, rows = partner, np.arange(len(partner))
    n, m = similarity.shape
    if not (np.array_equal(np.unique(rows), np.arange(n)) and len(np.unique(columns)) == len(columns) == n):
        raise SaevalError(f"not a matching: each of the {n} rows of the smaller side needs a different partner")
    if columns.min() < 0 or columns.max() >= m or v.shape != (m,) or (n < m and v.min() < 0):
        raise SaevalError(f"not a certificate: the larger side needs {m} prices, none negative, and partners within it")
    prices = torch.as_tensor(v, device=similarity.device)
    u, step = np.empty(n), min(FULL_ROWS, rows_per_block(similarity, block))
    for part in (slice(first, first + step) for first in range(0, n, step)):
        u[part] = (similarity.block(part, None, torch.float64) - prices).amax(1).cpu().numpy()
    return gap(u, v, similarity.values(rows, columns))


def gap(u: Floats, v: Floats, matched: Floats) -> float:
    """(Σu + Σv − Σ matched) / n, summed exactly."""
    return math.fsum((*u, *v, *-matched)) / len(matched)


class Pricing:
    """Finds non-candidate pairs that beat the prices, and computes as few similarities as possible.

    The bounds of an earlier pass settle most rows. Other rows are computed against the columns that could matter. If
    these are many, the row is computed against all columns, and its best ones at the current prices give a new bound.
    Products are in float32 with an error bound; rows that this does not decide are computed again in float64.
    """

    def __init__(self, similarity: Similarity, bounds: Bounds, block: int | None) -> None:
        self.similarity, self.bounds = similarity, bounds
        self.step = rows_per_block(similarity, block)
        self.computed = 0  # number of similarities, over all rounds
        generator = torch.Generator().manual_seed(0)
        self.random = torch.rand(sum(similarity.shape), generator=generator).to(similarity.device)

    def __call__(self, u: Floats, v: Floats) -> tuple[Ints, Floats]:
        """Keys of the pairs that may beat the prices, and per row a bound on c_ij - v_j over all other pairs."""
        bounds, keys = self.bounds, [np.zeros(0, np.int64)]
        over = np.full(len(u), -np.inf)
        current = len(bounds.references)
        for reference, prices in enumerate(list(bounds.references)):
            fall = prices - v  # by how much a column's worth may exceed the bound, since its price fell
            rows = np.flatnonzero(bounds.reference == reference)
            over[rows] = bounds.bound[rows] + fall.max()
            rows = rows[over[rows] > u[rows] + NEGLIGIBLE]
            slack = u[rows] - bounds.bound[rows]
            order = np.argsort(slack, kind="stable")
            rows, slack = rows[order], slack[order]
            n_columns = len(fall) - np.searchsorted(np.sort(fall), slack, side="right")
            n_full = int((n_columns > len(fall) / 4).sum())  # the first rows, since slack is sorted
            for part in _parts(rows[:n_full], min(FULL_ROWS, self.step)):
                best, over[part] = self._compute(part, None, u, v)
                bounds.bound[part], bounds.reference[part] = over[part], current
                keys.append(best)
            for part in _parts(rows[n_full:], min(PARTIAL_ROWS, self.step)):
                close = fall > (u[part] - bounds.bound[part]).min()
                best, over[part] = self._compute(part, np.flatnonzero(close), u, v)
                over[part] = np.maximum(over[part], bounds.bound[part] + fall[~close].max())
                keys.append(best)
        bounds.references.append(v.copy())
        return distinct(*keys), over

    def _compute(self, rows: Ints, columns: Ints | None, u: Floats, v: Floats) -> tuple[Ints, Floats]:
        """Keys of the best pairs of rows and columns, and per row a bound on c_ij - v_j over its other pairs."""
        keys, over, undecided = self._top(rows, columns, u, v, torch.float32)
        if undecided.any():
            again, over[undecided], _ = self._top(rows[undecided], columns, u, v, torch.float64)
            keys = np.concatenate([keys, again])
        return keys, over

    def _top(
        self, rows: Ints, columns: Ints | None, u: Floats, v: Floats, dtype: torch.dtype
    ) -> tuple[Ints, Floats, NDArray[np.bool_]]:
        similarity, m = self.similarity, self.similarity.shape[1]
        device = similarity.device
        j = torch.arange(m, device=device) if columns is None else torch.as_tensor(columns, device=device)
        i = torch.as_tensor(rows, device=device)
        worth = similarity.block(i, None if columns is None else j, dtype)
        worth -= torch.as_tensor(v, device=device)[j].to(dtype)
        self.computed += worth.numel()
        error = similarity.error(dtype) + (2 * float(np.abs(v).max()) + 1) * torch.finfo(dtype).eps
        best, at = worth.topk(min(PER_ROW, len(j)), dim=1)
        price = torch.as_tensor(u[rows], device=device)
        last = best[:, -1].double()
        if best.shape[1] == len(j):
            last = torch.full_like(last, -torch.inf)
        # Many rows may prefer the same few columns, or tie. A random choice among those above the price spreads them.
        crowded = last > price + error + NEGLIGIBLE
        picks = [torch.stack([i[:, None].expand_as(at), j[at]]).flatten(1)]
        if bool(crowded.any()):
            beats = worth[crowded] > (price[crowded, None] + NEGLIGIBLE).to(dtype)
            lot = torch.outer(self.random[i[crowded]], torch.ones(len(j), device=device))
            lot = lot.add_(self.random[-m:][j]).frac_().masked_fill_(~beats, -1.0)
            chance, drawn = lot.topk(min(PER_ROW, len(j)), dim=1)
            line, place = (chance >= 0).nonzero(as_tuple=True)
            picks.append(torch.stack([i[crowded][line], j[drawn[line, place]]]))
        pairs = torch.cat(picks, 1)
        keys = (pairs[0] * m + pairs[1]).cpu().numpy()
        undecided = (last + error > price + NEGLIGIBLE) & ~crowded
        return keys, (last + error).cpu().numpy(), undecided.cpu().numpy()


def _parts(rows: Ints, step: int) -> list[Ints]:
    return [rows[first : first + step] for first in range(0, len(rows), step)]
