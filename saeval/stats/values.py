"""Values that a metric concludes: `Scalar` with its `Null`, `Curve`, `Table`, `Array`, `Notes`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from saeval.stats.estimate import ROUNDING, Estimate, Support

_PLAIN = "a plain number, such as a count over all tokens, not a mean over documents"
_SHARE = "a share of units that are not independent draws, such as all features of an SAE"

_SUPPORT = ("documents", "effective_documents", "largest_share")

Better: TypeAlias = Literal["lower", "higher"] | None
Comparable: TypeAlias = Literal["hook", "model", "everywhere"]


@dataclass(frozen=True)
class Null:
    """The null hypothesis that a `Scalar` is tested against, and the claim that its rejection allows.

    Tables and pages print the claim as "ROW is ABOVE NAME", for example "mine is more harmful than isotropic noise",
    if the test is significant after Holm's correction over the rows of the table.
    """

    name: str
    """The comparison that the null stands for, such as `isotropic noise`."""
    value: float = 0.0
    """The number that is expected under the null."""
    above: str | None = None
    """Words of the claim if the value is above it, such as `more harmful than`; None if that allows no claim."""
    below: str | None = None
    p: float | None = None
    """Two-sided p value, one-sided if only one side allows a claim, of a test that is not the t test of the value's
    error over documents: such as a rank among draws, or an error over SAEs."""
    qualifier: str | None = None
    """Words that follow the claim, such as `a tail effect`; the same for many results, so without numbers."""
    control: str | None = None
    """A control that the null stands for: its own row has the expected number, and the column `NAME vs CONTROL` the
    test."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not (self.p is None or 0 <= self.p <= 1):
            raise ValueError(f"Null '{self.name}': 'value' is {self.value}, 'p' is {self.p}; p is from 0 to 1, or None")

    def record(self) -> dict[str, Any]:
        record = {"name": self.name, "value": self.value, "above": self.above, "below": self.below}
        optional = {"qualifier": self.qualifier, "control": self.control}
        return {**record, **{name: words for name, words in optional.items() if words}}


class Scalar:
    """One number with its unit, its direction and, for an `Estimate`, its standard error.

    `Scalar(value, unit="nats", better="lower")` takes an `Estimate` or a plain number. A number
    that is not finite is recorded as undefined; to give the reason use `Scalar.undefined`.

    `stderr` is for a plain number with an error of another kind, such as one over SAEs: it is shown, but
    takes part in no paired test. `ci95` goes with it, or replaces the interval of an estimate. `support`
    has the documents behind such an error, if it is over documents. `n` is the number of observations.

    `proportion` marks a share of independent documents or draws, an accuracy for example. The interval of an estimate
    then lies inside [0, 1], and tables show it where ± one standard error would mislead, such as for 4 of 4.
    `ValueError` for a number outside [0, 1].

    `seeds` names the seeds of an estimate over SAEs, whose `without` leaves out one seed at a time.

    `comparable` says which rows the number may be ranked and tested against: those of the same `hook`, of the same
    `model`, or `everywhere`. `null` has the null hypothesis that the number is tested against.
    """

    def __init__(
        self,
        value: Estimate | float | None,
        *,
        unit: str = "",
        better: Better = None,
        n: int | None = None,
        reason: str | None = None,
        stderr: float | None = None,
        ci95: tuple[float, float] | None = None,
        support: Support | None = None,
        proportion: bool = False,
        seeds: Sequence[str] | None = None,
        comparable: Comparable = "model",
        null: Null | None = None,
    ) -> None:
        self.estimate = value if isinstance(value, Estimate) else None
        number = None if value is None else float(value)
        if number is not None and not math.isfinite(number):
            number, reason = None, reason or f"the value is {number}"
        if proportion and number is not None and not -ROUNDING <= number <= 1 + ROUNDING:
            raise ValueError(f"a proportion is {number}; it must lie in 0 .. 1")
        self.value, self.unit, self.better, self.reason = number, unit, _direction(better), reason
        self.n = n if n is not None else (self.estimate.n if self.estimate else None)
        if comparable not in get_args(Comparable):
            raise ValueError(f"'comparable' is {comparable!r}; it must be 'hook', 'model' or 'everywhere'")
        self.comparable, self.null, self.proportion = comparable, null, proportion
        self.stderr = self.estimate.stderr if self.estimate else stderr
        if ci95 is not None and proportion:
            ci95 = max(ci95[0], 0.0), min(ci95[1], 1.0)
        if self.estimate and ci95 is None:
            ci95 = self.estimate.proportion_ci95 if proportion else self.estimate.ci95
        self.ci95 = ci95
        self.seeds = list(seeds) if seeds is not None else None
        self.support = self.estimate.support if self.estimate and seeds is None else support

    def within(self, low: float, high: float) -> None:
        """End the interval at the bounds of the value's range: no true value lies beyond them."""
        self.ci95 = _within(self.ci95, self.value, low, high)

    @classmethod
    def undefined(cls, reason: str, *, unit: str = "", better: Better = None) -> Scalar:
        """Return a value that does not exist for this data, with the reason."""
        return cls(None, unit=unit, better=better, reason=reason)

    def record(self) -> dict[str, Any]:
        """Return `{value, stderr, ci95, n, unit, better}`, and `reason` if any of the first three is missing."""
        stderr, interval = (self.stderr, self.ci95) if self.value is not None else (None, None)
        reason = self.reason
        if stderr is not None and not math.isfinite(stderr):
            stderr, interval, reason = None, None, reason or "the value does not exist without one of the documents"
        if self.value is not None and stderr is None:
            reason = reason or ("fewer than two documents" if self.estimate else _SHARE if self.proportion else _PLAIN)
        elif interval is None and self.estimate is not None and stderr:
            reason = reason or "one document holds nearly all tokens, so there is no interval"
        return {
            "value": self.value,
            "stderr": stderr,
            "ci95": list(interval) if interval and all(map(math.isfinite, interval)) else None,
            "n": self.n,
            "unit": self.unit,
            "better": self.better,
            **(dict(zip(_SUPPORT, self.support, strict=True)) if self.support and self.value is not None else {}),
            **({"reason": reason} if reason else {}),
            **({"proportion": True} if self.proportion else {}),
            **({"seeds": self.seeds} if self.seeds is not None else {}),
            **({"comparable": self.comparable} if self.comparable != "model" else {}),
            **({"null": self.null.record(), "p": self.null.p} if self.null is not None else {}),
        }

    def __repr__(self) -> str:
        return f"Scalar({self.estimate or self.value}{', ' + self.unit if self.unit else ''})"


def _within(
    interval: tuple[float, float] | None, value: float | None, low: float, high: float
) -> tuple[float, float] | None:
    """Return the part of an interval inside a range; the whole one if its value is outside, by rounding for example."""
    if interval is None or value is None or not low <= value <= high:
        return interval
    return max(interval[0], low), min(interval[1], high)


@dataclass
class Curve:
    """A curve through points: one `y`, a number or an `Estimate`, for each `x`. `ValueError` if lengths differ."""

    x: Sequence[float]
    y: Sequence[Estimate | float]
    x_unit: str = ""
    unit: str = ""
    better: Better = None
    _bounds: tuple[float, float] = field(default=(-math.inf, math.inf), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _direction(self.better)
        if len(self.x) != len(self.y):
            raise ValueError(f"a Curve has {len(self.x)} x and {len(self.y)} y; give one y per x")

    def within(self, low: float, high: float) -> None:
        """End the intervals at the bounds of the values' range."""
        self._bounds = low, high

    def record(self) -> dict[str, Any]:
        scalars = [Scalar(value) for value in self.y]
        for scalar in scalars:
            scalar.within(*self._bounds)
        points = [scalar.record() for scalar in scalars]
        return {
            "kind": "curve",
            "x": [float(value) for value in self.x],
            "y": [point["value"] for point in points],
            "stderr": [point["stderr"] for point in points],
            "ci95": [point["ci95"] for point in points],
            "x_unit": self.x_unit,
            "unit": self.unit,
            "better": self.better,
        }


@dataclass
class Table:
    """Rows of named columns; cells are numbers, strings or None. `ValueError` if a row has another length."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} of a Table has {len(row)} cells for {len(self.columns)} columns")

    def record(self) -> dict[str, Any]:
        return {"kind": "table", "columns": list(self.columns), "rows": [[_plain(c) for c in r] for r in self.rows]}


@dataclass
class Array:
    """An array too large for the result's JSON, such as one number per feature; stored in the arrays file beside it.

    It holds numbers, booleans or text; `TypeError` for Python objects.
    """

    data: np.ndarray
    unit: str = ""

    def __post_init__(self) -> None:
        self.data = np.asarray(self.data)
        if self.data.dtype.hasobject:
            raise TypeError("an Array holds numbers, booleans or text, not Python objects")

    def record(self) -> dict[str, Any]:
        return {"kind": "array", "shape": list(self.data.shape), "dtype": str(self.data.dtype), "unit": self.unit}


@dataclass
class Notes:
    """Sentences that every table and page built on these values must show, such as a warning."""

    notes: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.notes, str):
            raise TypeError(f"Notes are a list of sentences, got the text {self.notes!r}; write Notes([...])")

    def record(self) -> dict[str, Any]:
        return {"kind": "notes", "notes": list(self.notes)}


def _direction(better: Better) -> Better:
    if better not in ("lower", "higher", None):
        raise ValueError(f"'better' is {better!r}; it must be 'lower', 'higher' or None")
    return better


def _plain(cell: Any) -> Any:
    if isinstance(cell, Estimate):
        cell = cell.value
    if isinstance(cell, np.generic):
        cell = cell.item()
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


Value: TypeAlias = Scalar | Curve | Table | Array | Notes


def named_values(name: str, returned: Value | Mapping[str, Value] | Estimate | float) -> dict[str, Value]:
    """Return the values that `conclude` returned, by name; a single value gets the metric's `name`."""
    if isinstance(returned, Value):
        return {name: returned}
    if isinstance(returned, Estimate | float | int):
        return {name: Scalar(returned)}
    if isinstance(returned, Mapping) and all(isinstance(v, Value) for v in returned.values()):
        return dict(returned)
    raise TypeError(
        f"conclude returned {type(returned).__name__}; return a Scalar, a Curve, a Table, an Array or a dict of them"
    )
