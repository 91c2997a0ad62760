"""Charts of any metric's values: a row for each SAE, its number with its interval, controls in another mark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saeval.base.formatting import counted
from saeval.results import charts
from saeval.results.board import Board, Column, Row, document_count
from saeval.results.families import Mark, Palette, key_of
from saeval.results.sections import Chart

MOST_NAMED = 90
"""Most rows that are named on the axis; more stand closer together."""
TALLEST = 1500
"""Height in pixels of the rows of a chart that does not name them."""
KINDS = {
    "sae": "SAE",
    "control": "control, not trained",
    "group": "group of SAEs",
    "hook": "hook without an SAE",
    "model": "model",
}
_L0 = "l0"
_OTHER = Mark(charts.NEUTRAL, "diamond")
_OF_KINDS = {KINDS["sae"]: Mark(charts.COLOURS[0], "circle"), KINDS["group"]: Mark(charts.COLOURS[0], "square")}
"""Marks of rows that have no family of their own, or where all have the same."""


def value_charts(board: Board, metric: str, value: str = "", palette: Palette | None = None) -> list[Chart]:
    """Return a chart of the shown values of a configured metric, or of one `value`; none if no row has a number.

    Rows are ordered by hook and by L0, where the board has one, controls last. No line joins rows. A number that would
    flatten the others stands at the edge, with its value beside it. `palette` has the colours and shapes of families
    (default: of the board's SAEs).
    """
    palette = palette or Palette.of(result for row in board.rows for result in row.results)
    columns = [column for column in board.columns if column.metric == metric and not column.paired]
    chosen = [column for column in columns if (column.value == value if value else column.headline)]
    columns = chosen if value else chosen or columns
    rows = [row for row in board.rows if any(row.entries.get(column.name) is not None for column in columns)]
    if not columns or not any(_value(row, column) is not None for row in rows for column in columns):
        return []
    rows = sorted(rows, key=lambda row: _place(board, row))
    named = _labels(rows)
    records: list[dict[str, Any]] = []
    parts, remarks = [], []
    for at, column in enumerate(columns):
        made = [_record(row, column, named[id(row)], at, palette) for row in rows]
        own, far = charts.clipped(made, "number", [r for r in made if r["kind"] == KINDS["sae"]])
        records += own
        first = at % 3 == 0
        parts.append(_part(own, column, at, list(named.values()), first, palette, board.tokens))
        if far:
            remarks.append(f"{counted(far, 'value')} of {column.value} beyond the edge, in figures")
    documents = document_count(board.data)
    subtitle = [
        f"{counted(len({row.name for row in rows if row.kind == 'sae'}), 'SAE')} of {board.model or 'no model'}"
    ]
    subtitle += [counted(documents, "document")] if documents else []
    errors = any(record["number_low"] is not None for record in records)
    subtitle += [charts.BARS if errors else "no error bars: the values have no error over documents"]
    subtitle += [_order_in_words(board, rows)]
    text = ", ".join(column.value for column in columns)
    suffix = f" at {rows[0].hook_name}" if len({row.hook_name for row in rows}) == 1 and rows[0].hook_name else ""
    return [
        Chart(
            f"{metric}-values", f"{metric} of each SAE{suffix}", "; ".join([*subtitle, *remarks]),
            {"concat": parts, "columns": 3, "spacing": 16}, records,
            f"A dot for each SAE and control with its 95% interval: {text}",
        )
    ]  # fmt: skip


def _part(
    records: Sequence[dict[str, Any]],
    column: Column,
    at: int,
    order: Sequence[str],
    first: bool,
    palette: Palette,
    tokens: str,
) -> dict[str, Any]:
    arrow = {"lower": ", lower is better", "higher": ", higher is better"}.get(column.better or "", "")
    at_tokens = f", at {tokens}" if column.depends and tokens else ""
    title = f"{column.value}, {column.unit}{arrow}{at_tokens}".strip(", ")
    x = charts.quantity("shown", title, charts.extent(records, "shown"))
    y = charts.names("row", None, order)
    few = len(order) <= MOST_NAMED
    if not (first and few):
        y["axis"] = y["axis"] | {"labels": False, "title": None}
    groups = [*palette.marks, *KINDS.values()] if len(palette.marks) > 1 else list(KINDS.values())
    groups = [group for group in groups if any(r["family"] == group for r in records)]
    marks = _OF_KINDS | palette.marks if len(palette.marks) > 1 else _OF_KINDS
    colour, shape = (
        channel("family", None, groups, [marks.get(group, _OTHER)[i] for group in groups])
        for i, channel in enumerate((charts.colour, charts.shape))
    )
    for made in (colour, shape):
        made["legend"] = {"orient": "bottom", "columns": 4, "labelLimit": 260} if len(groups) > 1 else None
    layers = [
        *charts.dots(x, y, bars="x", size=55 if few else 12, color=colour, shape=shape),
        *charts.written(x, y, "beyond", mark={"dy": 0, "dx": 7}),
        *charts.no_number(y, "shown"),
    ]
    step = 16 if few else max(TALLEST / len(order), 1)
    part = charts.single(layers, 250, {"step": step})
    return part | {"transform": [{"filter": f"datum.panel == {at}"}], "title": {"text": column.name, "fontSize": 11}}


def _record(row: Row, column: Column, name: str, at: int, palette: Palette) -> dict[str, Any]:
    entry = row.entries.get(column.name)
    value, ci95 = (entry.value, entry.ci95) if entry is not None else (None, None)
    reason = "" if value is not None else "not measured" if entry is None else f"{entry.status}: {entry.reason or ''}"
    kind = KINDS.get(row.kind, row.kind)
    several = len(palette.marks) > 1 and row.kind in ("sae", "group")
    family = palette.family(key_of(s) for r in row.results[:1] for s in r.cell["subjects"]) if several else None
    return {
        "row": name, "name": row.name, "hook": row.hook_name, "kind": kind, "family": family or kind,
        "value": column.name, "panel": at, **charts.measured(value, ci95, "number"), "reason": reason.strip(": "),
    }  # fmt: skip


def _value(row: Row, column: Column) -> float | None:
    entry = row.entries.get(column.name)
    return entry.value if entry is not None else None


def _labels(rows: Sequence[Row]) -> dict[int, str]:
    """A distinct label for each row: its name, and its hook if the rows have several."""
    several = len({row.hook_name for row in rows}) > 1
    whole = {id(row): f"{row.name}@{row.hook_name}" if several else row.name for row in rows}
    longest = 60 if several else charts.LONGEST
    short = charts.labels([whole[id(row)] for row in rows if row.kind == "sae"], longest)
    others = [name for name in whole.values() if name not in short]
    short |= {
        name: label if label not in short.values() else name for name, label in charts.labels(others, longest).items()
    }
    return {place: short[name] for place, name in whole.items()}


def _order_in_words(board: Board, rows: Sequence[Row]) -> str:
    hooks = "hook and " * (len({row.hook_name for row in rows}) > 1)
    has_l0 = any(column.value == _L0 for column in board.columns)
    controls = any(row.kind == "control" for row in rows)
    return f"rows from the top by {hooks}{'L0, the sparsest first' if has_l0 else 'name'}{', controls last' * controls}"


def _place(board: Board, row: Row) -> tuple[Any, ...]:
    """The place of a row: SAEs before others, by hook with its numbers as numbers, then by L0, then by name."""
    l0 = next((v for c in board.columns if c.value == _L0 and (v := _value(row, c)) is not None), None)
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", row.hook_name)]
    return row.kind == "control", parts, l0 is None, l0 or 0.0, row.name
