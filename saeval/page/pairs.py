"""Paired differences of all pairs of rows of a board, in its shown columns, as plain data."""

from __future__ import annotations

from typing import Any

from saeval.base.escapes import line
from saeval.page.plain import OF_ERRORS, short
from saeval.results.board import Board, Column, Row
from saeval.results.paired_tests import difference

MOST = 20_000
"""Differences that a page carries: 1 MB, and a second or two of computing. The column ranked by comes first."""
APART = "comparable within a hook only"


def pairs_data(board: Board, most: int = MOST) -> list[dict[str, Any]]:
    """Return the differences of each column, for the pairs (0, 1), (0, 2), ... of rows in the board's order.

    Columns follow while there is room for all their pairs: the one ranked by, then the shown ones, then the others.
    """
    columns = [column for column in board.columns if not column.paired]
    order = sorted(columns, key=lambda c: (c.name != board.rank_by, not c.headline, c.better is None))
    each = len(board.rows) * (len(board.rows) - 1) // 2
    return [_column(column, board.rows) for column in order[: most // each if each else 0]]


def _column(column: Column, rows: list[Row]) -> dict[str, Any]:
    """Return `difference`, `error` and `reach` (or both ends of the interval) of each pair, and why they have none."""
    values: list[Any] = []
    errors: list[Any] = []
    reaches: list[Any] = []
    reasons: dict[str, str] = {}
    for place, a in enumerate(rows):
        for b in rows[place + 1 :]:
            value, error, reach, reason = _difference(column, a, b)
            if reason:
                reasons[str(len(values))] = reason
            values.append(value)
            errors.append(error)
            reaches.append(reach)
    return {"name": line(column.name), "difference": values, "error": errors, "reach": reaches, "reasons": reasons}


def _difference(column: Column, a: Row, b: Row) -> tuple[Any, Any, Any, str]:
    one, other = a.entries.get(column.name), b.entries.get(column.name)
    if one is None or other is None or one.value is None or other.value is None:
        return None, None, None, ""
    if column.comparable == "hook" and a.site != b.site:
        return short(one.value - other.value), None, None, APART
    paired = difference(one, other)
    ends = paired.ci95
    reach: Any = None
    if ends is not None:
        even = abs(ends[1] + ends[0] - 2 * paired.value) <= 1e-3 * (ends[1] - ends[0])
        reach = short((ends[1] - ends[0]) / 2, OF_ERRORS) if even else [short(end) for end in ends]
    return short(paired.value), short(paired.stderr, OF_ERRORS), reach, line(paired.reason or "")
