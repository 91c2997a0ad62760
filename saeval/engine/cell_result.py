"""Computes a cell's values from its evidence, and fills its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from saeval.base.errors import Undefined
from saeval.base.names import names_matching_any
from saeval.engine.evaluator import Evaluator
from saeval.interfaces.documentation import documented_bounds, documented_dependences
from saeval.plan.cell import Cell, copies
from saeval.results.records import check_values
from saeval.results.result import Result
from saeval.results.store import finite
from saeval.stats.estimate import Estimate
from saeval.stats.evidence import EvidenceTree
from saeval.stats.values import Array, Curve, Notes, Scalar, Value, named_values


def concluded(cell: Cell, total: EvidenceTree | None, evaluator: Evaluator) -> dict[str, Value]:
    """Conclude a cell: return its values by name. `Undefined` if it has none, or whatever its metric raises."""
    if cell.observe is not None and total is None:
        raise Undefined("there are no rows to observe")
    totals = [total] if cell.observe is not None else []
    returned = evaluator.conclude(cell.metric.conclude, totals, cell.conclude, cell.foreign)  # type: ignore[attr-defined]
    values = named_values(cell.metric.name, returned)
    metric: Any = type(cell.metric)
    documented = documented_bounds(metric)
    for name, value in values.items():
        if isinstance(value, Scalar | Curve):
            exact = (bounds for names, bounds in documented if name in names)
            ranges = (bounds for names, bounds in documented if names_matching_any(names, [name]))
            value.within(*next(exact, None) or next(ranges, (-math.inf, math.inf)))
    if sentences := copies(cell):
        values.setdefault("same_weights", Notes(sentences))
    return values


def has_error(value: Value) -> bool:
    """True if a value has a standard error."""
    if isinstance(value, Curve):
        return any(isinstance(y, Estimate) for y in value.y)
    return isinstance(value, Scalar) and value.estimate is not None


def of_prefix(
    cell: Cell, values: Mapping[str, Value], total: EvidenceTree | None, evaluator: Evaluator
) -> tuple[dict[str, Value], list[str]]:
    """Return `values`, with those without a standard error computed from the prefix's `total`, and the names of these.

    Such values (dead features, quantiles, histograms) may depend on the number of rows. The row at which an adaptive
    pass stops depends on its numbers; the length of the prefix does not.
    """
    taken = [name for name, value in values.items() if not has_error(value)]
    if not taken:
        return dict(values), taken
    try:
        early: Mapping[str, Value] = concluded(cell, total, evaluator)
    except Undefined as reason:
        early = {name: Scalar.undefined(f"over the first rows: {reason}") for name in taken}
    taken = [name for name in taken if name in early and not has_error(early[name])]
    return {name: early[name] if name in taken else value for name, value in values.items()}, taken


def fill(result: Result, values: Mapping[str, Value], metric: Any = None) -> None:
    """Put values into a result, `undefined` if none has a number. `TypeError` for a value that cannot be stored.

    A value says what it depends on, if the documentation of the class `metric` does.
    """
    result.values = finite({name: value.record() for name, value in values.items()})
    for names, depends in documented_dependences(metric) if metric is not None else ():
        for name, record in result.values.items():
            if names_matching_any(names, [name]):
                record.setdefault("depends", depends)
    check_values(result.values)
    result.arrays = _stored_arrays(values)
    if all(record.get("value", 0) is None for record in result.values.values()):
        result.status = "undefined"
        result.reason = next((r["reason"] for r in result.values.values() if "reason" in r), None)


def _stored_arrays(values: Mapping[str, Value]) -> dict[str, np.ndarray]:
    """Return the arrays stored beside the JSON: array values, and each estimate without each document in turn."""
    arrays = {}
    for name, value in values.items():
        if isinstance(value, Scalar) and value.estimate is not None and value.value is not None:
            arrays[f"without/{name}"] = value.estimate.without
            arrays[f"sizes/{name}"] = value.estimate.sizes
        elif isinstance(value, Array):
            arrays[f"value/{name}"] = value.data
    return arrays


def components(total: EvidenceTree | None) -> dict[str, Any]:
    """Return the raw sums of evidence for the result file."""
    if total is None:
        return {}
    sums = {name: part.components() for name, part in total.items()} if isinstance(total, dict) else total.components()
    plain: dict[str, Any] = finite(sums)
    return plain
