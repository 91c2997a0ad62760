"""Evidence: a metric's observation of one batch, with `+`. All sums are float64 on the CPU.

A plugin's own evidence is a dataclass derived from `Evidence` whose fields are arrays and numbers.
The engine can then store it in checkpoints and continue from them.
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
    """The origin of a batch's rows in the stream, passed to `Evidence.stamp`."""

    sequence_ids: Int[np.ndarray, "batch"]
    """Index of each row in the stream."""
    clusters: Int[np.ndarray, "batch"]
    """Document of each row, 0 .. n_clusters - 1."""
    n_clusters: int
    """Number of documents in the stream."""


class Evidence:
    """Base class of evidence: `a + b` is the evidence of both batches. Subclasses are dataclasses of arrays."""

    def __add__(self, other: Self) -> Self:
        """Return the sum, field by field; override it if two batches are joined otherwise."""
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is recorded as undefined
            summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**summed)

    def stamp(self, stamp: Stamp) -> Self:
        """Return the evidence with the origin of its rows, by default unchanged; the engine calls it on each batch."""
        return self

    def state(self) -> dict[str, np.ndarray]:
        """Return the fields as arrays, from which `from_state` restores an equal value, bit for bit."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """Return the value with this `state`."""
        return cls(**{name: array.item() if array.ndim == 0 else array for name, array in state.items()})

    def components(self) -> dict[str, Any]:
        """Return the raw sums for the result file, from which values can be recomputed, as a small JSON mapping."""
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio(Evidence):
    """A ratio of two sums over the mask, Σ numerator / Σ denominator, with the sums of each cluster.

    Before the engine calls `stamp`, each sequence is its own cluster. Trailing dimensions are
    independent ratios: `evidence[k]` is the k-th.
    """

    numerator: Float[np.ndarray, "clusters *k"]
    """Sum of numerators per cluster."""
    denominator: Float[np.ndarray, "clusters *k"]
    """Sum of denominators per cluster."""
    n: Int[np.ndarray, "clusters"]
    """Number of tokens per cluster."""

    @classmethod
    def of(
        cls,
        numerator: Float[Tensor, "batch seq *k"],
        denominator: Float[Tensor, "batch seq *k"],
        mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> Self:
        """Return the sums of one batch over `mask`, or over all positions. Values outside the mask are ignored."""
        top, n = _row_sums(numerator, mask)
        bottom, _ = _row_sums(denominator, mask)
        return cls(top, bottom, n)

    def stamp(self, stamp: Stamp) -> Self:
        if len(self.n) != len(stamp.clusters):
            raise ValueError(f"evidence has {len(self.n)} rows for a batch of {len(stamp.clusters)} sequences")

        def scattered(rows: np.ndarray) -> np.ndarray:
            total = np.zeros((stamp.n_clusters, *rows.shape[1:]), dtype=rows.dtype)
            with np.errstate(invalid="ignore"):
                np.add.at(total, stamp.clusters, rows)
            return total

        joined = {name: scattered(vars(self)[name]) for name in ("numerator", "denominator", "n")}
        return dataclasses.replace(self, **joined)

    def __getitem__(self, k: int) -> Self:
        return dataclasses.replace(self, numerator=self.numerator[:, k], denominator=self.denominator[:, k])

    def __len__(self) -> int:
        return int(self.numerator.shape[1])

    @property
    def value(self) -> Estimate:
        """The ratio of the sums; NaN if the denominators sum to 0. `ValueError` for several ratios."""
        if self.numerator.ndim != 1:
            shape = list(self.numerator.shape[1:])
            raise ValueError(
                f"this evidence holds ratios of shape {shape}, but .value needs a single one: reduce values "
                f"[batch, seq, d] to [batch, seq] first, as in x.square().sum(-1), or take one, as in evidence[0].value"
            )
        with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf and 0 / 0 are NaN, recorded as undefined
            top, bottom = float(self.numerator.sum()), float(self.denominator.sum())
            value = top / bottom if bottom else float("nan")
            rest = (top - self.numerator) / (bottom - self.denominator)
        return Estimate(value, np.where(self.n > 0, rest, value), self.n.astype(np.float64), int(self.n.sum()))

    def components(self) -> dict[str, Any]:
        return {
            "numerator": self.numerator.sum(0).tolist(),
            "denominator": self.denominator.sum(0).tolist(),
            "n": int(self.n.sum()),
        }


class Mean(Ratio):
    """A mean over the mask: a sum and a count per cluster."""

    @classmethod
    def of(  # type: ignore[override]
        cls, x: Float[Tensor, "batch seq *k"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Self:
        """Return sum and count of `x` over `mask`, or over all positions. Values outside the mask are ignored.

        `x` may also be `[batch]`: one value per sequence or pair.
        """
        top, n = _row_sums(x, mask)
        count = n.astype(np.float64).reshape(-1, *([1] * (top.ndim - 1)))
        return cls(top, np.broadcast_to(count, top.shape).copy(), n)


def _row_sums(x: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 sums over positions, `[batch, *k]`, and the number of positions, `[batch]`."""
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
    """Count, sum and optionally summed outer product of vectors over the mask."""

    n: int
    """Number of vectors."""
    sum: Float[np.ndarray, "d"]
    """Σ x, in units of x."""
    outer: Float[np.ndarray, "d d"] | float = 0.0
    """Σ x xᵀ; 0.0 without `covariance=True`."""

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"], covariance: bool = False) -> Self:
        """Return the moments of one batch; with `covariance=True` including the `[d, d]` second moment."""
        rows = x.detach()[mask]
        total = rows.sum(0, dtype=torch.float64).cpu().numpy()
        outer = (rows.double().T @ rows.double()).cpu().numpy() if covariance else 0.0
        return cls(rows.shape[0], total, outer)

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Mean vector, in units of x; zeros if `n` is 0."""
        return self.sum / max(self.n, 1)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Covariance, with divisor `n`. `ValueError` without `covariance=True`."""
        if isinstance(self.outer, float):
            raise ValueError("these moments were computed without covariance=True")
        return self.outer / max(self.n, 1) - np.outer(self.mean, self.mean)

    def components(self) -> dict[str, Any]:
        return {"n": self.n}


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram(Evidence):
    """Counts of values between fixed edges. Values beyond the outer edges count in the outer bins."""

    edges: Float[np.ndarray, "bins+1"]
    """Edges of the bins, ascending. Bins are half-open, [edge, next edge)."""
    counts: Int[np.ndarray, "bins"]
    """Number of values per bin."""

    @classmethod
    def of(
        cls, x: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], edges: Float[np.ndarray, "bins+1"]
    ) -> Self:
        """Return the counts of `x` over `mask`. `ValueError` for NaN."""
        counts = np.bincount(binned(x, mask, edges), minlength=len(edges) - 1)
        return cls(np.asarray(edges, dtype=np.float64), counts)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms with different edges cannot be added")
        return type(self)(self.edges, self.counts + other.counts)

    def quantile(self, q: float) -> float:
        """Return the lower edge of the bin of the q-quantile; NaN for no values. Exact if each bin has one value."""
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
    """Return the bin of each value in the mask, [edge, next edge) or an outer one. `ValueError` for NaN."""
    values = x.detach()[mask].double().cpu().numpy()
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} values are NaN")
    return np.clip(np.searchsorted(np.asarray(edges), values, side="right") - 1, 0, len(edges) - 2)


def nth(q: float, total: Any) -> Any:
    """Return the rank, from 1, of the q-quantile among `total` values, elementwise; q is clipped to 0 .. 1."""
    # 0.55 * 100, for example, is slightly above 55.
    return np.maximum(1, np.ceil(min(max(q, 0.0), 1.0) * np.asarray(total) - 1e-9))


@dataclasses.dataclass(frozen=True, eq=False)
class Ever(Evidence):
    """Flags of the entries of the last dimension that were true on any token of the mask."""

    true: Bool[np.ndarray, "d"]
    """True for each entry that was true at least once."""
    n: int
    """Number of tokens."""

    @classmethod
    def of(cls, x: Bool[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Self:
        """Return the flags of one batch."""
        rows = x.detach()[mask]
        return cls(rows.any(0).cpu().numpy(), rows.shape[0])

    def __add__(self, other: Self) -> Self:
        return type(self)(self.true | other.true, self.n + other.n)

    @property
    def count(self) -> int:
        """Number of entries that were ever true."""
        return int(self.true.sum())

    @property
    def share(self) -> float:
        """Share of the entries that were ever true, 0 to 1. It grows with `n`, so report both."""
        return self.count / max(self.true.size, 1)

    def components(self) -> dict[str, Any]:
        return {"count": self.count, "of": int(self.true.size), "n": self.n}


_PER_TOKEN = ("rows", "sequence_ids", "positions")
"""Fields of a sample with one entry per token."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample(Evidence):
    """A uniform sample of tokens of the mask: those with the smallest keyed hashes.

    The choice depends on (seed, sequence id, position) alone, so it is the same for any batch size
    and order, and after an interruption.
    """

    rows: np.ndarray
    """Sampled values, `[n, *k]`."""
    sequence_ids: Int[np.ndarray, "n"]
    """Index in the stream of each one's row."""
    positions: Int[np.ndarray, "n"]
    """Position of each in its row."""
    size: int
    """Largest number of values kept."""
    seed: int = 0

    @classmethod
    def of(cls, x: Tensor, mask: Bool[Tensor, "batch seq"], size: int, seed: int = 0) -> Self:
        """Return at most `size` values of `x`, `[batch, seq, *k]`, from the tokens of the mask."""
        row, position = (index.cpu().numpy() for index in mask.nonzero(as_tuple=True))
        rows = x.detach()[mask]
        if rows.dtype in (torch.bfloat16, torch.float16):
            rows = rows.float()  # numpy has no bfloat16
        return cls(rows.cpu().numpy(), row, position, size, seed)

    def stamp(self, stamp: Stamp) -> Self:
        return dataclasses.replace(self, sequence_ids=stamp.sequence_ids[self.sequence_ids])._smallest()

    def __add__(self, other: Self) -> Self:
        joined: dict[str, Any] = {name: np.concatenate([vars(self)[name], vars(other)[name]]) for name in _PER_TOKEN}
        return dataclasses.replace(self, **joined)._smallest()

    def _smallest(self) -> Self:
        priority = hashed(self.seed, self.sequence_ids, self.positions)
        keep = np.argsort(priority, kind="stable")[: self.size]
        return dataclasses.replace(self, **{name: vars(self)[name][keep] for name in _PER_TOKEN})

    def components(self) -> dict[str, Any]:
        return {"n": len(self.rows), "size": self.size, "seed": self.seed}


EvidenceTree: TypeAlias = "Evidence | dict[str, Evidence]"


def stamped(observed: Any, stamp: Stamp) -> EvidenceTree:
    """Return an observation after `stamp`; `TypeError` if it is not evidence."""
    if isinstance(observed, Evidence):
        return storable(observed.stamp(stamp))
    if isinstance(observed, dict) and observed and all(isinstance(v, Evidence) for v in observed.values()):
        return storable({name: value.stamp(stamp) for name, value in observed.items()})
    raise TypeError(f"observe returned {type(observed).__name__}; return an Evidence such as Mean, or a dict of them")


def storable(total: EvidenceTree) -> EvidenceTree:
    """Return `total`; `TypeError` if its state cannot be stored. Called rarely, since a state may be costly."""
    for evidence in total.values() if isinstance(total, dict) else [total]:
        for name, array in evidence.state().items():
            if np.asarray(array).dtype.hasobject:
                kind = type(evidence).__name__
                raise TypeError(f"'{name}' of {kind} is not an array or number, so it cannot be stored; convert it")
    return total


def _sum(left: Evidence, right: Evidence) -> Evidence:
    total = left + right
    if not isinstance(total, Evidence):
        raise TypeError(f"the sum of two Evidence objects is {type(total).__name__}; `__add__` must return an Evidence")
    return total


def added(total: EvidenceTree, part: EvidenceTree) -> EvidenceTree:
    """Return the sum of both; dicts are added by name."""
    if isinstance(total, dict) and isinstance(part, dict):
        if total.keys() != part.keys():
            raise TypeError(f"observe returned {sorted(part)} after {sorted(total)}: names must not change")
        return {name: _sum(total[name], part[name]) for name in total}
    if isinstance(total, Evidence) and isinstance(part, Evidence):
        return _sum(total, part)
    raise TypeError("observe returned an Evidence for one batch and a dict for another")


@dataclasses.dataclass(frozen=True, eq=False)
class Spread(Evidence):
    """Sums of vectors and of their squared norms over the mask, per cluster.

    Since Σ‖x − μ‖² = Σ‖x‖² − 2 μ·Σx + n‖μ‖², one pass suffices for each cluster's share of the variance, although
    the mean is known only at its end. Sums are float64.
    """

    sum: Float[np.ndarray, "clusters d"]
    """Σ x per cluster, in units of x."""
    squares: Float[np.ndarray, "clusters"]
    """Σ ‖x‖² per cluster, in squared units of x."""
    n: Int[np.ndarray, "clusters"]
    """Number of tokens per cluster."""

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Self:
        """Return the sums of one batch over `mask`; values outside it are ignored."""
        x = x.detach().double()
        sums = Mean.of(torch.cat([x, x.square().sum(-1, keepdim=True)], -1), mask)
        return cls(sums.numerator[:, :-1], sums.numerator[:, -1], sums.n)

    def stamp(self, stamp: Stamp) -> Self:
        joined = Ratio(np.column_stack([self.sum, self.squares]), np.zeros(len(self.n)), self.n).stamp(stamp)
        return dataclasses.replace(self, sum=joined.numerator[:, :-1], squares=joined.numerator[:, -1], n=joined.n)

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Mean vector, in units of x; zeros if there are no tokens."""
        mean: np.ndarray = self.sum.sum(0) / max(int(self.n.sum()), 1)
        return mean

    def around(self, point: Float[np.ndarray, "d"]) -> Float[np.ndarray, "clusters"]:
        """Return each cluster's sum of squared distances from `point`; all 0 if their sum is float64 rounding."""
        sums: np.ndarray = self.squares - 2 * self.sum @ point + self.n * (point @ point)
        return sums if sums.sum() > 1e-13 * self.squares.sum() else np.zeros_like(sums)

    def components(self) -> dict[str, Any]:
        return {"n": int(self.n.sum())}
