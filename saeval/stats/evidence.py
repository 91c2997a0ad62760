"""Evidence: what a metric observes of one batch, a value with `+`. All sums are float64 on the CPU.

A plugin's own evidence is a dataclass derived from `Evidence` whose fields are arrays and numbers:
storing, checkpoints and resume then come for free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch
from saeval.stats.estimate import Estimate
from saeval.stats.randomness import hashed

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Where the rows of a batch come from: its sequence ids and clusters, and the stream's cluster count."""

    sequence_ids: Int[np.ndarray, "batch"]
    clusters: Int[np.ndarray, "batch"]
    n_clusters: int


class Evidence:
    """Base of all evidence: `a + b` is the evidence of both batches. Subclasses are dataclasses of arrays."""

    def __add__(self, other: Self) -> Self:
        """Sum field by field; override where that is not what joining two batches means."""
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which no value stays
            summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in _fields(self)}
        return type(self)(**summed)

    def stamp(self, stamp: Stamp) -> Self:
        """Told by the engine where the rows come from; evidence without clusters stays as it is."""
        return self

    def state(self) -> dict[str, np.ndarray]:
        """The fields as arrays, from which `from_state` restores an equal value, bit for bit."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in _fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """The value whose `state` this is."""
        return cls(**{name: array.item() if array.ndim == 0 else array for name, array in state.items()})

    def components(self) -> dict[str, Any]:
        """The raw sums for the result file, from which its values can be recomputed; small, as JSON can hold it."""
        return {}


def _fields(evidence: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(evidence)


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio(Evidence):
    """A ratio of two sums over the mask, kept for each cluster: the sum of numerators over that of denominators.

    Before the engine stamps it every sequence is a cluster of its own. Trailing dimensions are
    independent ratios: `evidence[k]` is the k-th.
    """

    numerator: Float[np.ndarray, "clusters *k"]
    denominator: Float[np.ndarray, "clusters *k"]
    n: Int[np.ndarray, "clusters"]

    @classmethod
    def of(
        cls,
        numerator: Float[Tensor, "batch seq *k"],
        denominator: Float[Tensor, "batch seq *k"],
        mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> Self:
        """Sums of both over `mask`; without one, over all positions. Values outside the mask are never read."""
        top, n = _row_sums(numerator, mask)
        below, _ = _row_sums(denominator, mask)
        return cls(top, below, n)

    def stamp(self, stamp: Stamp) -> Self:
        if len(self.n) != len(stamp.clusters):
            raise ValueError(f"evidence has {len(self.n)} rows for a batch of {len(stamp.clusters)} sequences")

        def scattered(rows: np.ndarray) -> np.ndarray:
            total = np.zeros((stamp.n_clusters, *rows.shape[1:]), dtype=rows.dtype)
            with np.errstate(invalid="ignore"):
                np.add.at(total, stamp.clusters, rows)
            return total

        return dataclasses.replace(
            self,
            numerator=scattered(self.numerator),
            denominator=scattered(self.denominator),
            n=scattered(self.n),
        )

    def __getitem__(self, k: int) -> Self:
        return dataclasses.replace(self, numerator=self.numerator[:, k], denominator=self.denominator[:, k])

    def __len__(self) -> int:
        return int(self.numerator.shape[1])

    @property
    def value(self) -> Estimate:
        """The ratio of the sums as an `Estimate`; NaN where the denominators sum to 0."""
        if self.numerator.ndim != 1:
            shape = list(self.numerator.shape[1:])
            raise ValueError(
                f"this evidence holds ratios of shape {shape}, and .value is of one: reduce values [batch, seq, d] to "
                f"[batch, seq] before they are summed, as in x.square().sum(-1), or take one, as in evidence[0].value"
            )
        with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf and 0 / 0 are NaN, which no value stays
            top, below = float(self.numerator.sum()), float(self.denominator.sum())
            value = top / below if below else float("nan")
            rest = (top - self.numerator) / (below - self.denominator)
        return Estimate(value, np.where(self.n > 0, rest, value), self.n.astype(np.float64), int(self.n.sum()))

    def components(self) -> dict[str, Any]:
        return {
            "numerator": self.numerator.sum(0).tolist(),
            "denominator": self.denominator.sum(0).tolist(),
            "n": int(self.n.sum()),
        }


class Mean(Ratio):
    """A mean over the mask: one (sum, count) for each cluster."""

    @classmethod
    def of(  # type: ignore[override]
        cls, x: Float[Tensor, "batch seq *k"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Self:
        """Sum and count of `x` over `mask`; without one, over all. Values outside the mask are never read.

        `x` may also be `[batch]`, one value a sequence or pair.
        """
        top, n = _row_sums(x, mask)
        count = n.astype(np.float64).reshape(-1, *([1] * (top.ndim - 1)))
        return cls(top, np.broadcast_to(count, top.shape).copy(), n)


def _row_sums(x: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Float64 sums over positions, `[batch, *k]`, and how many positions counted, `[batch]`."""
    x = x.detach()
    if x.ndim == 1:
        x = x[:, None]
        mask = mask[:, None] if mask is not None and mask.ndim == 1 else mask
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask is {list(mask.shape)}, values are {list(x.shape)}: expected [batch, seq, ...]")
    wide = mask.reshape(*mask.shape, *([1] * (x.ndim - 2)))
    sums = torch.where(wide, x, torch.zeros((), dtype=x.dtype, device=x.device)).double().sum(1)
    return sums.cpu().numpy(), mask.sum(1).cpu().numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class Moments(Evidence):
    """Count, sum and, where asked for, summed outer product of vectors over the mask."""

    n: int
    """How many vectors were counted."""
    sum: Float[np.ndarray, "d"]
    """Σ x, in units of x."""
    outer: Float[np.ndarray, "d d"] | float = 0.0
    """Σ x xᵀ; 0 where it was not asked for."""

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"], covariance: bool = False) -> Self:
        """`covariance=True` also keeps the d x d second moment."""
        rows = x.detach()[mask]
        total = rows.sum(0, dtype=torch.float64).cpu().numpy()
        outer = (rows.double().T @ rows.double()).cpu().numpy() if covariance else 0.0
        return cls(rows.shape[0], total, outer)

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Mean vector; zeros where nothing was counted."""
        return self.sum / max(self.n, 1)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Centred covariance, divided by the count."""
        if isinstance(self.outer, float):
            raise ValueError("these moments were taken without covariance=True")
        return self.outer / max(self.n, 1) - np.outer(self.mean, self.mean)

    def components(self) -> dict[str, Any]:
        return {"n": self.n}


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram(Evidence):
    """Counts between fixed, ascending edges. Values below the first or above the last count in the outer bins."""

    edges: Float[np.ndarray, "bins+1"]
    counts: Int[np.ndarray, "bins"]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        edges: Float[np.ndarray, "bins+1"],
    ) -> Self:
        """Bins are half-open, [edge, next edge)."""
        counts = np.bincount(binned(x, mask, edges), minlength=len(edges) - 1)
        return cls(np.asarray(edges, dtype=np.float64), counts)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms with different edges cannot be added")
        return type(self)(self.edges, self.counts + other.counts)

    def quantile(self, q: float) -> float:
        """Lower edge of the bin that holds the q-quantile: exact where every bin holds one value."""
        total = self.counts.sum()
        if total == 0:
            return float("nan")
        return float(self.edges[int(np.searchsorted(np.cumsum(self.counts), nth(q, total)))])

    def components(self) -> dict[str, Any]:
        filled = np.flatnonzero(self.counts)
        return {"from": self.edges[filled].tolist(), "counts": self.counts[filled].tolist()}


def binned(
    x: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], edges: Float[np.ndarray, "bins+1"]
) -> Int[np.ndarray, "n"]:
    """The bin of each value of the mask, [edge, next edge) or an outer one. `ValueError` where one is NaN."""
    values = x.detach()[mask].double().cpu().numpy()
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} values are NaN")
    return np.clip(np.searchsorted(np.asarray(edges), values, side="right") - 1, 0, len(edges) - 2)


def nth(q: float, total: Any) -> Any:
    """Which of `total` values, counted from 1, is their q-quantile, 0 to 1 and no further; elementwise."""
    # The product of, say, 0.55 and 100 is a little above 55.
    return np.maximum(1, np.ceil(min(max(q, 0.0), 1.0) * np.asarray(total) - 1e-9))


@dataclasses.dataclass(frozen=True, eq=False)
class Ever(Evidence):
    """Which of the last dimension's entries were ever true on the mask, and over how many tokens."""

    true: Bool[np.ndarray, "d"]
    n: int

    @classmethod
    def of(cls, x: Bool[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Self:
        rows = x.detach()[mask]
        return cls(rows.any(0).cpu().numpy(), rows.shape[0])

    def __add__(self, other: Self) -> Self:
        return type(self)(self.true | other.true, self.n + other.n)

    @property
    def count(self) -> int:
        """How many entries were ever true."""
        return int(self.true.sum())

    @property
    def share(self) -> float:
        """Share of the entries that were ever true; depends on `n`, so state it."""
        return self.count / max(self.true.size, 1)

    def components(self) -> dict[str, Any]:
        return {"count": self.count, "of": int(self.true.size), "n": self.n}


@dataclasses.dataclass(frozen=True, eq=False)
class Sample(Evidence):
    """A uniform sample of rows of the mask: those whose keyed hash is smallest.

    Which rows it holds depends on (seed, sequence id, position) alone, so batch size, order and
    resume cannot change it.
    """

    rows: np.ndarray
    sequence_ids: Int[np.ndarray, "n"]
    positions: Int[np.ndarray, "n"]
    size: int
    seed: int = 0

    @classmethod
    def of(cls, x: Tensor, mask: Bool[Tensor, "batch seq"], size: int, seed: int = 0) -> Self:
        """`x` is `[batch, seq, *k]`; at most `size` of its masked rows are kept."""
        row, position = (index.cpu().numpy() for index in mask.nonzero(as_tuple=True))
        rows = x.detach()[mask]
        if rows.dtype in (torch.bfloat16, torch.float16):
            rows = rows.float()  # numpy knows no bfloat16
        return cls(rows.cpu().numpy(), row, position, size, seed)

    def stamp(self, stamp: Stamp) -> Self:
        return dataclasses.replace(self, sequence_ids=stamp.sequence_ids[self.sequence_ids])._smallest()

    def __add__(self, other: Self) -> Self:
        return dataclasses.replace(
            self,
            rows=np.concatenate([self.rows, other.rows]),
            sequence_ids=np.concatenate([self.sequence_ids, other.sequence_ids]),
            positions=np.concatenate([self.positions, other.positions]),
        )._smallest()

    def _smallest(self) -> Self:
        priority = hashed(self.seed, self.sequence_ids, self.positions)
        keep = np.argsort(priority, kind="stable")[: self.size]
        return dataclasses.replace(
            self, rows=self.rows[keep], sequence_ids=self.sequence_ids[keep], positions=self.positions[keep]
        )

    def components(self) -> dict[str, Any]:
        return {"n": len(self.rows), "size": self.size, "seed": self.seed}


EvidenceTree: TypeAlias = "Evidence | dict[str, Evidence]"


def stamped(observed: Any, stamp: Stamp) -> EvidenceTree:
    """An observation with its clusters; `TypeError` for what is no evidence."""
    if isinstance(observed, Evidence):
        return storable(observed.stamp(stamp))
    if isinstance(observed, dict) and observed and all(isinstance(v, Evidence) for v in observed.values()):
        return storable({name: value.stamp(stamp) for name, value in observed.items()})
    raise TypeError(f"observe returned {type(observed).__name__}; return an Evidence such as Mean, or a dict of them")


def storable(total: EvidenceTree) -> EvidenceTree:
    """`total`; `TypeError` where its state holds what no file can. A state may be costly: it is asked for seldom."""
    for evidence in total.values() if isinstance(total, dict) else [total]:
        for name, array in evidence.state().items():
            if np.asarray(array).dtype.hasobject:
                kind = type(evidence).__name__
                raise TypeError(f"'{name}' of {kind} is no array or number, so it could not be stored; make it one")
    return total


def _sum(one: Evidence, other: Evidence) -> Evidence:
    total = one + other
    if not isinstance(total, Evidence):
        raise TypeError(f"the sum of two evidences is {type(total).__name__}; `__add__` returns an evidence")
    return total


def added(total: EvidenceTree, part: EvidenceTree) -> EvidenceTree:
    """The evidence of both; dicts are added name by name."""
    if isinstance(total, dict) and isinstance(part, dict):
        if total.keys() != part.keys():
            raise TypeError(f"observe returned {sorted(part)} after {sorted(total)}: names may not change")
        return {name: _sum(total[name], part[name]) for name in total}
    if isinstance(total, Evidence) and isinstance(part, Evidence):
        return _sum(total, part)
    raise TypeError("observe returned an Evidence once and a dict another time")


@dataclasses.dataclass(frozen=True, eq=False)
class Spread(Evidence):
    """Sums of vectors and of their squared norms over the mask, for each cluster.

    Since Σ‖x − μ‖² = Σ‖x‖² − 2 μ·Σx + n‖μ‖², one pass gives each cluster's share of the variance, though
    the mean is not known before its end. Sums are float64.
    """

    sum: Float[np.ndarray, "clusters d"]
    """Σ x of each cluster, in units of x."""
    squares: Float[np.ndarray, "clusters"]
    """Σ ‖x‖² of each cluster."""
    n: Int[np.ndarray, "clusters"]
    """Tokens of each cluster."""

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Self:
        """Sums over `mask`; values outside it are never read."""
        x = x.detach().double()
        sums = Mean.of(torch.cat([x, x.square().sum(-1, keepdim=True)], -1), mask)
        return cls(sums.numerator[:, :-1], sums.numerator[:, -1], sums.n)

    def stamp(self, stamp: Stamp) -> Self:
        joined = Ratio(np.column_stack([self.sum, self.squares]), np.zeros(len(self.n)), self.n).stamp(stamp)
        return dataclasses.replace(self, sum=joined.numerator[:, :-1], squares=joined.numerator[:, -1], n=joined.n)

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Mean vector; zeros where nothing was counted."""
        found: np.ndarray = self.sum.sum(0) / max(int(self.n.sum()), 1)
        return found

    def around(self, point: Float[np.ndarray, "d"]) -> Float[np.ndarray, "clusters"]:
        """Each cluster's sum of squared distances from `point`; zeros where all of them are lost in rounding."""
        found: np.ndarray = self.squares - 2 * self.sum @ point + self.n * (point @ point)
        return found if found.sum() > 1e-13 * self.squares.sum() else np.zeros_like(found)

    def components(self) -> dict[str, Any]:
        return {"n": int(self.n.sum())}
