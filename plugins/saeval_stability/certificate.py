"""Prices as a proof that a matching is the best one, over all pairs.

For any prices v_j >= 0 of the columns (of any sign when there are as many rows) and u_i = max_j (c_ij - v_j), every
one-to-one matching of all rows has a sum of at most sum u + sum v: what a given one lacks is a bound on its error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saeval.plugin import SaevalError, torch
from saeval_stability.candidates import PER_ROW, Bounds, distinct, rows_per_block
from saeval_stability.similarity import Cosines, Similarity, Vectors

if TYPE_CHECKING:
    from saeval_stability.matching import Matching

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEGLIGIBLE = 1e-9  # a pair that beats the prices by less is no reason to solve again; it still counts in the gap
FULL_ROWS, PARTIAL_ROWS = 512, 256  # computed at a time: fewer where few columns are concerned, to keep them few


def certify(A: Any, B: Any, matching: Matching, mode: str = "signed", block: int | None = None) -> float:
    """How far a matching of A with B may be from the best one: (Σu + Σv − Σ cos) / min(n_A, n_B), all in float64.

    Computed from the vectors, the partners and the prices of the larger side alone, over all pairs, with none of the
    solver's shortcuts: about twice the time of `match`.

    Raises:
        SaevalError: if the partners are not one-to-one, a price of the larger side is negative, or the vectors are
            not what `match` takes.
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
        raise SaevalError(f"not a matching: each of the {n} rows of the smaller side needs a partner of its own")
    if columns.min() < 0 or columns.max() >= m or v.shape != (m,) or (n < m and v.min() < 0):
        raise SaevalError(f"not a certificate: the larger side needs {m} prices, none negative, and partners within it")
    prices = torch.as_tensor(v, device=similarity.device)
    step = min(FULL_ROWS, rows_per_block(similarity, block))
    u = [
        (similarity.block(slice(first, first + step), None, torch.float64) - prices).amax(1).cpu().numpy()
        for first in range(0, n, step)
    ]
    return gap(np.concatenate(u), v, similarity.values(rows, columns))


def gap(u: Floats, v: Floats, matched: Floats) -> float:
    """(Σu + Σv − Σ matched) / n, summed exactly."""
    return math.fsum((*u, *v, *-matched)) / len(matched)


class Pricing:
    """Finds pairs that beat the prices among those that are no candidates yet, computing as few as it can.

    Most rows are settled by the bounds of an earlier pass. Rows that are not are computed against the columns that
    could matter; where these are many, against all, and the row's best columns at today's prices give it a new bound.
    Products are in float32 with their error bound; rows that are too close to tell are computed again in float64.
    """

    def __init__(self, similarity: Similarity, bounds: Bounds, block: int | None) -> None:
        self.similarity, self.bounds = similarity, bounds
        self.step = rows_per_block(similarity, block)
        self.computed = 0  # pairs, in all rounds
        generator = torch.Generator().manual_seed(0)
        self.luck = torch.rand(sum(similarity.shape), generator=generator).to(similarity.device)

    def __call__(self, u: Floats, v: Floats) -> tuple[Ints, Floats]:
        """The pairs that may beat the prices, as keys, and for each row a bound on c_ij - v_j over all other pairs."""
        bounds, keys = self.bounds, [np.zeros(0, np.int64)]
        over = np.full(len(u), -np.inf)
        today = len(bounds.references)
        for reference, prices in enumerate(list(bounds.references)):
            fall = prices - v  # how much more a column may be worth than the bound knew
            rows = np.flatnonzero(bounds.reference == reference)
            over[rows] = bounds.bound[rows] + fall.max()
            rows = rows[over[rows] > u[rows] + NEGLIGIBLE]
            slack = u[rows] - bounds.bound[rows]
            order = np.argsort(slack, kind="stable")
            rows, slack = rows[order], slack[order]
            concerned = len(fall) - np.searchsorted(np.sort(fall), slack, side="right")
            n_full = int((concerned > len(fall) / 4).sum())  # the first ones: slack rises
            for part in _parts(rows[:n_full], min(FULL_ROWS, self.step)):
                found, over[part] = self._compute(part, None, u, v)
                bounds.bound[part], bounds.reference[part] = over[part], today
                keys.append(found)
            for part in _parts(rows[n_full:], min(PARTIAL_ROWS, self.step)):
                close = fall > (u[part] - bounds.bound[part]).min()
                found, over[part] = self._compute(part, np.flatnonzero(close), u, v)
                over[part] = np.maximum(over[part], bounds.bound[part] + fall[~close].max())
                keys.append(found)
        bounds.references.append(v.copy())
        return distinct(*keys), over

    def _compute(self, rows: Ints, columns: Ints | None, u: Floats, v: Floats) -> tuple[Ints, Floats]:
        """Keys of the best pairs of these rows, and bounds on what their other pairs with these columns are worth."""
        keys, over = [], np.empty(len(rows))
        todo = np.arange(len(rows))
        for dtype in (torch.float32, torch.float64):
            if not len(todo):
                break
            found, over[todo], unclear = self._top(rows[todo], columns, u, v, dtype)
            keys.append(found)
            todo = todo[unclear]
        return np.concatenate(keys), over

    def _top(
        self, rows: Ints, columns: Ints | None, u: Floats, v: Floats, dtype: torch.dtype
    ) -> tuple[Ints, Floats, NDArray[np.bool_]]:
        similarity, m = self.similarity, self.similarity.shape[1]
        device = similarity.device
        every = torch.arange(m, device=device) if columns is None else torch.as_tensor(columns, device=device)
        i = torch.as_tensor(rows, device=device)
        worth = similarity.block(i, None if columns is None else every, dtype)
        worth -= torch.as_tensor(v, device=device)[every].to(dtype)
        self.computed += worth.numel()
        error = similarity.error(dtype) + (2 * float(np.abs(v).max()) + 1) * torch.finfo(dtype).eps
        best, at = worth.topk(min(PER_ROW, len(every)), dim=1)
        price = torch.as_tensor(u[rows], device=device)
        last = best[:, -1].double()
        if best.shape[1] == len(every):
            last = torch.full_like(last, -torch.inf)
        # Many rows may want the same few columns, or tie: a random choice among what beats the price spreads them.
        crowded = last > price + error + NEGLIGIBLE
        picks = [torch.stack([i[:, None].expand_as(at), every[at]]).flatten(1)]
        if bool(crowded.any()):
            beats = worth[crowded] > (price[crowded, None] + NEGLIGIBLE).to(dtype)
            lot = torch.outer(self.luck[i[crowded]], torch.ones(len(every), device=device))
            lot = lot.add_(self.luck[-m:][every]).frac_().masked_fill_(~beats, -1.0)
            chance, drawn = lot.topk(min(PER_ROW, len(every)), dim=1)
            line, place = (chance >= 0).nonzero(as_tuple=True)
            picks.append(torch.stack([i[crowded][line], every[drawn[line, place]]]))
        pairs = torch.cat(picks, 1)
        keys = (pairs[0] * m + pairs[1]).cpu().numpy()
        unclear = (last + error > price + NEGLIGIBLE) & ~crowded
        return keys, (last + error).cpu().numpy(), unclear.cpu().numpy()


def _parts(rows: Ints, step: int) -> list[Ints]:
    return [rows[first : first + step] for first in range(0, len(rows), step)]
