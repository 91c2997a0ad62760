"""Exact one-to-one matching of two sets of features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from saeval.plugin import Chart, PageTable, SaevalError, Section, charts, section_html
from saeval_stability.assignment import Assignment
from saeval_stability.candidates import candidates, merged, values_of
from saeval_stability.certificate import NEGLIGIBLE, Pricing, gap
from saeval_stability.similarity import Cosines, Floats, Ints, Similarity, Vectors, listed


@dataclass(frozen=True)
class Nearest:
    """The most similar row of the other side for each row of one side; not one-to-one.

    `indices` (int64) and `cosines` (float64) are `[n]`. Of several equally similar rows, any one is returned.
    """

    indices: Ints
    cosines: Floats

    @property
    def mean(self) -> float:
        """Mean of the best similarities, in [-1, 1] for cosines."""
        return math.fsum(self.cosines) / len(self.cosines)

    @property
    def collision_rate(self) -> float:
        """1 − |unique partners| / n, in [0, 1): the share of rows whose partner an earlier row already has."""
        return 1.0 - len(np.unique(self.indices)) / len(self.indices)


@dataclass(frozen=True)
class Certificate:
    """Proof that no one-to-one matching has a larger sum.

    `u` `[n_A]` and `v` `[n_B]` are prices with u_i + v_j >= c_ij for all pairs, up to `gap`; those of the larger side
    are non-negative. `gap` = (Σu + Σv − Σ cos) / min(n_A, n_B) bounds how far the mean similarity of the matched pairs
    is below the best possible one. `rounds` is the number of times the solver ran, `candidates` the number of pairs it
    was given, and `computed` the number of similarities computed again after the first pass, as a share of all pairs.
    """

    gap: float
    u: Floats
    v: Floats
    rounds: int
    candidates: int
    computed: float


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching of A with B.

    `indices` int64 `[n_A]`: the partner in B of each row of A, -1 if it has none (A is then the larger side).
    `cosines` float64 `[n_A]`: the similarity with the partner (|cos| in mode "abs"), NaN if there is none.
    `a_to_b` and `b_to_a`: the best match of each row, not one-to-one.
    """

    indices: Ints
    cosines: Floats
    certificate: Certificate
    a_to_b: Nearest
    b_to_a: Nearest

    @property
    def total(self) -> float:
        """Σ of the matched similarities, summed exactly."""
        return math.fsum(self.cosines[self.indices >= 0])

    @property
    def over_smaller(self) -> float:
        """`total` / min(n_A, n_B): the mean of the matched similarities."""
        return self.total / min(len(self.certificate.u), len(self.certificate.v))

    @property
    def over_larger(self) -> float:
        """`total` / max(n_A, n_B): features without a partner count as 0."""
        return self.total / max(len(self.certificate.u), len(self.certificate.v))

    def _repr_html_(self) -> str:
        """What a notebook shows: the matching in numbers, and how often each cosine occurs."""
        found = self.indices >= 0
        both = (len(self.certificate.u), len(self.certificate.v))
        rows: list[list[str | float | None]] = [
            ["matched pairs", str(int(found.sum()))],
            ["mean similarity of the pairs", self.over_smaller],
            ["the same, features without a partner as 0", self.over_larger],
            ["mean of the best matches, A to B", self.a_to_b.mean],
            ["mean of the best matches, B to A", self.b_to_a.mean],
            ["partners that another row has too, A to B", self.a_to_b.collision_rate],
            ["another matching is better by at most", self.certificate.gap],
        ]
        span = (float(self.cosines[found].min()) - 0.01, float(self.cosines[found].max()) + 0.01)  # they may be equal
        counts, edges = np.histogram(self.cosines[found], bins=40, range=span)
        records = [
            {"from": float(low), "to": float(high), "pairs": int(count)}
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
        ]
        x = charts.quantity("from", "similarity of a pair", [float(edges[0]), float(edges[-1])], log=False)
        y = charts.quantity("pairs", "pairs", [float(counts.max())], zero=True, log=False)
        bars = {"mark": "bar", "encoding": {"x": x, "x2": {"field": "to"}, "y": y}}
        spec = charts.single([bars], 380, 160)
        chart = Chart("similarities", "Similarities of the matched pairs", f"{int(found.sum())} pairs", spec, records,
                      "A histogram of the similarities of matched pairs")  # fmt: skip
        table = PageTable("matching", "", ["", "value"], rows)
        note = "random vectors match, too: compare with a matching of random ones before it is called large"
        title = f"Matching of {both[0]} and {both[1]} features"
        return section_html(Section("matching", title, [], [chart], [table], notes=[note]))


def match(A: Any, B: Any, mode: Literal["signed", "abs"] = "signed", block: int | None = None) -> Matching:
    """Return the one-to-one matching of the rows of A with the rows of B that maximises Σ cos (mode "abs": Σ |cos|).

    Every row of the smaller side is matched, at a negative cosine if necessary. The result is exact, with a proof over
    all pairs: a sparse assignment problem (shortest augmenting paths) is solved for candidates from one blockwise
    pass; then pairs that beat its prices are added, and it is solved again, until there are none.

    Args:
        A, B: `[n_A, d]` and `[n_B, d]`, tensors or arrays of finite real numbers. Rows are normalised; a row of zeros
            has cosine 0 with every row. The computation runs on the device of A, the CPU or a CUDA device.
        mode: "signed", or "abs" to ignore the sign of directions.
        block: number of rows of the smaller side per block; the default fills about 64 MB. It affects only memory and
            time.

    Raises:
        SaevalError: for values that are not finite, shapes that do not fit, or an unknown mode.
    """
    if mode not in ("signed", "abs"):
        raise SaevalError(f"mode must be 'signed' or 'abs', found {mode!r}")
    a = Vectors(A, "A")
    b = Vectors(B, "B").to(a.raw.device)
    if a.raw.shape[1] != b.raw.shape[1]:
        raise SaevalError(
            f"A and B must have rows of the same length, found {list(a.raw.shape)} and {list(b.raw.shape)}; "
            "features of different hooks or models cannot be compared by direction"
        )
    return solve(Cosines(a, b, mode == "abs"), block)


def match_sparse(
    rows: Any, cols: Any, values: Any, shape: tuple[int, int], default: Any = 0.0, block: int | None = None
) -> Matching:
    """Return the one-to-one matching that maximises a sum of similarities, of which only some are listed.

    Args:
        rows, cols, values: lists of equal length, tensors or arrays: similarity `values[k]` of row `rows[k]` of A with
            row `cols[k]` of B. Values must be finite and of order 1, since differences below 1e-9 count as ties. No
            pair may be listed twice.
        shape: (n_A, n_B).
        default: the similarity of the pairs not listed: a number, or a pair of vectors (r `[n_A]`, c `[n_B]`) for
            r_i · c_j, such as the Pearson correlation −(μ_i/σ_i)(μ_j/σ_j) of features that never fire together.
        block: as in `match`.

    Returns the same as `match`, with the similarities in `cosines`.

    Raises:
        SaevalError: for values that are not finite, indices outside the shape, lists of unequal length, or a pair
            listed twice.
    """
    return solve(listed(rows, cols, values, shape, default), block)


def solve(similarity: Similarity, block: int | None = None) -> Matching:
    """The best matching for any similarity that can be computed in blocks; `match` and `match_sparse` call this."""
    if block is not None and block < 1:
        raise SaevalError(f"block must be at least 1 row, found {block}")
    if similarity.shape[0] > similarity.shape[1]:
        return _transposed(solve(similarity.T, block))
    n, m = similarity.shape
    keys, values, bounds = candidates(similarity, block)
    pricing, assignment, rounds = Pricing(similarity, bounds, block), Assignment(n, m), 0
    pairs = _pairs(keys, values, n, m)
    a_to_b, b_to_a = _nearest(pairs)
    while True:
        assignment.solve(pairs)
        rounds += 1
        u, v = assignment.x, assignment.y
        new, over = pricing(u, v)
        new = np.setdiff1d(new, keys, assume_unique=True)
        added = values_of(similarity, new)
        excess = added - u[new // m] - v[new % m]
        keys, values = merged(keys, values, new, added)
        if not (excess > NEGLIGIBLE).any():
            break
        pairs = _pairs(keys, values, n, m)
    np.maximum.at(over, new // m, added - v[new % m])
    u = np.maximum(u, over)
    matched = values_of(similarity, np.arange(n) * m + assignment.partner)
    certificate = Certificate(gap(u, v, matched), u, v, rounds, len(keys), pricing.computed / (n * m))
    return Matching(assignment.partner, matched, certificate, a_to_b, b_to_a)


def _pairs(keys: Ints, values: Floats, n: int, m: int) -> csr_array:
    return csr_array((values, keys % m, np.searchsorted(keys, np.arange(n + 1) * m)), shape=(n, m))


def _nearest(pairs: csr_array) -> tuple[Nearest, Nearest]:
    """The best match of each row and of each column; the pass over all pairs made these candidates."""
    nearest = []
    for by in (pairs, pairs.tocsc()):
        best = np.maximum.reduceat(by.data, by.indptr[:-1])
        lengths = np.diff(by.indptr)
        hits = np.flatnonzero(by.data == np.repeat(best, lengths))
        _, first = np.unique(np.repeat(np.arange(len(best)), lengths)[hits], return_index=True)
        nearest.append(Nearest(by.indices[hits[first]].astype(np.int64), best))
    return nearest[0], nearest[1]


def _transposed(matching: Matching) -> Matching:
    """The same matching with A and B exchanged."""
    proof = matching.certificate
    indices = np.full(len(proof.v), -1, np.int64)
    cosines = np.full(len(proof.v), np.nan)
    indices[matching.indices] = np.arange(len(matching.indices))
    cosines[matching.indices] = matching.cosines
    transposed = Certificate(proof.gap, proof.v, proof.u, proof.rounds, proof.candidates, proof.computed)
    return Matching(indices, cosines, transposed, matching.b_to_a, matching.a_to_b)
