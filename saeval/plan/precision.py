"""Adaptive stopping: the rows at which a run may stop, and the rule by which it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from saeval.base.errors import Problem
from saeval.base.fingerprint import digest_of
from saeval.plan.cell import Cell
from saeval.suite.schema import Suite

FIRST = 64
"""Documents before the first stopping point."""


class StoppingPoint(NamedTuple):
    """A point of the stream at which a run may stop: the number of rows and documents before it."""

    sequences: int
    documents: int


def stopping_points(clusters: Int[np.ndarray, "n"]) -> list[StoppingPoint]:
    """Return the points before the end at which a run may stop; `clusters` holds the document of each row.

    The first point has all rows before the first row of the 65th document, the next ones all before that of the 129th,
    the 257th, ... When the documents run out, each further point has twice the rows of the one before. If the rows of
    each document are adjacent, points of the first kind never split a document.
    """
    first_rows = np.sort(np.unique(clusters, return_index=True)[1])
    ends: list[int] = []
    while (documents := FIRST << len(ends)) < len(first_rows):
        ends.append(int(first_rows[documents]))
    while ends and 2 * ends[-1] < len(clusters):
        ends.append(2 * ends[-1])
    return [StoppingPoint(end, int((first_rows < end).sum())) for end in ends]


def precise(history: Sequence[Mapping[str, float | None]], targets: Mapping[str, float]) -> bool:
    """The stopping rule: True if the run stops at the last point of `history`.

    `history` holds one mapping per stopping point so far, in order: the largest standard error over all subjects of
    each value in `targets`, in its unit, or None if a subject has no error yet. The run stops if each error is at most
    its target at the last two points, so that an error that is small once by chance does not stop it.
    """
    return len(history) > 1 and all(
        (error := errors_then.get(name)) is not None and error <= target
        for errors_then in history[-2:]
        for name, target in targets.items()
    )


def largest(errors: Mapping[str, float | None]) -> tuple[float | None, str | None]:
    """Return the largest error and its subject. A missing error counts as the largest; both are None without errors."""
    if not errors:
        return None, None
    largest_of = max(errors, key=lambda subject: math.inf if (e := errors[subject]) is None else e)
    return errors[largest_of], largest_of


@dataclass(frozen=True)
class Stopping:
    """The adaptive stop that a suite's `precision:` requests."""

    targets: Mapping[str, float]
    """Largest allowed standard error by `metric.value`, in the value's unit."""
    asked: Mapping[str, Sequence[str]]
    """Names of `targets` by the key of the cell that has them."""
    key: str
    """Hash of everything that determines where a run stops: the targets and the cells that have them."""


def stopping(suite: Suite, cells: list[Cell], problems: list[Problem]) -> tuple[Stopping | None, list[Cell]]:
    """Return the suite's adaptive stopping, None without one or with problems, and its cells with their new keys.

    The keys of all cells that see rows depend on the stopping, since all cells together decide where a run stops.
    """
    targets = suite.body.precision
    named: dict[str, list[str]] = {}
    for name in targets:
        alias = name.partition(".")[0]
        matching = [cell for cell in cells if cell.entry.alias == alias]
        if matching and matching[0].observe is None:
            message = f"precision: metric '{alias}' observes no rows, so more rows do not make it more precise"
            problems.append(suite.problem(message, "precision", name, key=True))
        for cell in matching:
            named.setdefault(cell.key, []).append(name)
    if not targets or problems:
        return None, cells
    words = sorted([key, name.partition(".")[2], targets[name]] for key, names in named.items() for name in names)
    stop = digest_of([FIRST, words])[:24]
    asked, stopped = {}, []
    for cell in cells:
        record = {**cell.record, "data": {**cell.record["data"], "precision": dict(targets), "stopping": stop}}
        key = digest_of([cell.key, stop])[:24] if cell.streamed else cell.key
        stopped.append(replace(cell, key=key, record=record))
        if cell.streamed:
            asked[key] = named.get(cell.key, [])
    return Stopping(dict(targets), asked, stop), stopped
