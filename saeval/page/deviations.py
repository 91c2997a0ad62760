"""The deviations that each document causes, for boards with more pairs of rows than a page can list.

The page computes the error of a paired difference from them: the root of the sum of squares of two rows' deviations
from each other. Errors agree with those of `paired_tests.difference` to three digits.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from saeval.base.escapes import line
from saeval.page.plain import OF_ERRORS, short
from saeval.results.board import Board, Column, Entry, Row
from saeval.stats.estimate import LEAST, t_quantile

MOST = 2_000_000
"""Deviations that a page carries, two bytes each. The column ranked by comes first."""
_STEPS = 32767


def deviations_data(board: Board, listed: Collection[str] = (), most: int = MOST) -> list[dict[str, Any]]:
    """Return the deviations of the shown columns, without those in `listed`, while there is room for them."""
    columns = [c for c in board.columns if not c.paired and c.headline and line(c.name) not in listed]
    columns.sort(key=lambda column: column.name != board.rank_by)
    made = []
    for column in columns:
        data = _column(column, board.rows)
        if data is None or (most := most - len(data["rows"]) * data["documents"]) < 0:
            continue
        made.append(data)
    return made


def _column(column: Column, rows: list[Row]) -> dict[str, Any] | None:
    """Return a column: `rows` with deviations, `codes` (little-endian 16-bit steps of `scale`, in base64), `reach`.

    `reach` is the t quantile by which an error becomes half of an interval. Only rows over the same documents have
    deviations; None if there are no two.
    """
    entries = [row.entries.get(column.name) for row in rows]
    sizes = [_documents(entry) for entry in entries]
    counted = Counter(one for one in sizes if one is not None)
    if not counted or counted.most_common(1)[0][1] < 2:
        return None
    most = counted.most_common(1)[0][0]
    places = [place for place, one in enumerate(sizes) if one == most]
    estimates = [entry.estimate for place in places if (entry := entries[place]) and entry.estimate is not None]
    here = estimates[0].present
    count = int(here.sum())
    deviations = np.array([estimate.deviations[here] for estimate in estimates]) * np.sqrt((count - 1) / count)
    deviations -= deviations.mean(axis=0)  # what all share is in no difference
    scale = np.abs(deviations).max(axis=1) / _STEPS
    codes = np.rint(deviations / np.where(scale > 0, scale, 1.0)[:, None]).astype("<i2")
    return {
        "name": line(column.name),
        "within_hooks": column.comparable == "hook",
        "documents": count,
        "rows": places,
        "reach": short(t_quantile(most[1] - 1, 0.975), OF_ERRORS + 2),
        "scale": [short(float(step), OF_ERRORS + 2) for step in scale],
        "codes": base64.b64encode(codes.tobytes()).decode(),
    }


def _documents(entry: Entry | None) -> tuple[bytes, float] | None:
    """Return the sizes of an entry's documents and their effective number; None if its differences need more."""
    if entry is None or entry.value is None or entry.estimate is None or entry.draws > 1 or entry.seeds is not None:
        return None
    estimate = entry.estimate
    if estimate.clusters < 2 or estimate.effective < LEAST or not np.isfinite(estimate.without).all():
        return None
    return estimate.sizes.tobytes(), estimate.effective
