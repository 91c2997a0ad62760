"""Adaptive stopping: at which rows a run may stop, and when its errors are small enough."""

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
    """A row of the stream at which a run may stop: how many rows and documents come before it."""

    sequences: int
    documents: int


def stopping_points(clusters: Int[np.ndarray, "n"]) -> list[StoppingPoint]:
    """The points at which a run over rows of these documents may stop, all before its end.

    The first takes every row before the 65th document first appears, so all that the stream shows of its first
    64 documents; the next ones those of the first 128, 256, ... Where the documents run out, each further point has
    twice the rows of the one before. Whole documents, one after the other, are never cut by the former points.
    """
    first = np.sort(np.unique(clusters, return_index=True)[1])
    ends: list[int] = []
    while (documents := FIRST << len(ends)) < len(first):
        ends.append(int(first[documents]))
    while ends and 2 * ends[-1] < len(clusters):
        ends.append(2 * ends[-1])
    return [StoppingPoint(end, int((first < end).sum())) for end in ends]


def precise(history: Sequence[Mapping[str, float | None]], targets: Mapping[str, float]) -> bool:
    """The stopping rule: True if the run stops at the last point of `history`.

    `history` holds for each stopping point so far, in order, the largest standard error over all subjects of each value
    of `targets`, in its unit; None where the value of some subject has none yet. The run stops where every error is at
    most its target at the last two points: an error that is small once by chance stops nothing.
    """
    return len(history) > 1 and all(
        (error := errors_then.get(name)) is not None and error <= target
        for errors_then in history[-2:]
        for name, target in targets.items()
    )


def largest(errors: Mapping[str, float | None]) -> tuple[float | None, str | None]:
    """The largest error and whose it is; None for one that is missing, which is larger than any, or where all are."""
    if not errors:
        return None, None
    whose = max(errors, key=lambda subject: math.inf if (e := errors[subject]) is None else e)
    return errors[whose], whose


@dataclass(frozen=True)
class Stopping:
    """What a suite's `precision:` asks for."""

    targets: Mapping[str, float]
    """Largest standard error by `metric.value`, in the value's unit."""
    asked: Mapping[str, Sequence[str]]
    """Names of `targets` by the key of the cell that has them."""
    key: str
    """Hash of what determines where a run stops: the targets, and every cell that they are about."""


def stopping(suite: Suite, cells: list[Cell], problems: list[Problem]) -> tuple[Stopping | None, list[Cell]]:
    """The suite's adaptive stopping, and its cells as they are with it; None where it has none, or with problems.

    The keys of all cells that see rows depend on it: where one stops is decided by all.
    """
    targets = suite.body.precision
    named: dict[str, list[str]] = {}
    for name in targets:
        alias = name.partition(".")[0]
        found = [cell for cell in cells if cell.entry.alias == alias]
        if found and found[0].observe is None:
            message = f"precision: metric '{alias}' observes no rows, so more of them make nothing more precise"
            problems.append(suite.problem(message, "precision", name, key=True))
        for cell in found:
            named.setdefault(cell.key, []).append(name)
    if not targets or problems:
        return None, cells
    about = sorted([key, name.partition(".")[2], targets[name]] for key, names in named.items() for name in names)
    stop = digest_of([FIRST, about])[:24]
    asked, stopped = {}, []
    for cell in cells:
        record = {**cell.record, "data": {**cell.record["data"], "precision": dict(targets), "stopping": stop}}
        key = digest_of([cell.key, stop])[:24] if cell.streamed else cell.key
        stopped.append(replace(cell, key=key, record=record))
        if cell.streamed:
            asked[key] = named.get(cell.key, [])
    return Stopping(dict(targets), asked, stop), stopped
