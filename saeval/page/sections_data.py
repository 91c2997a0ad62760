"""Sections of reports as plain data for the page: charts, tables and passages of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saeval.base.formatting import number
from saeval.page.plain import plain
from saeval.results.sections import Chart, Passage, Section, Table

MOST_ROWS = 500
"""Rows of a table on the page: thousands would take seconds to lay out."""


def section_data(section: Section) -> dict[str, Any]:
    """Return one section; its charts are drawn when they come into view."""
    return {
        "title": plain(section.title),
        "summary": plain(section.summary),
        "charts": [_chart(chart) for chart in section.charts],
        "tables": [_table(table) for table in section.tables],
        "passages": [_passage(passage) for passage in section.passages],
        "notes": plain(section.notes),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "title": plain(chart.title),
        "subtitle": plain(chart.subtitle),
        "description": plain(chart.description),
        "spec": plain({**chart.spec, "data": {"values": list(chart.data)}}),
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": plain(table.title),
        "headers": plain(table.headers),
        "rows": [[_cell(cell) for cell in row] for row in table.rows[:MOST_ROWS]],
        "of": len(table.rows),
        "numeric": _numeric(table.rows),
        "notes": plain(table.notes),
        "folded": table.folded,
    }


def _cell(cell: str | float | None) -> Any:
    return number(cell) if cell is None or isinstance(cell, float) else plain(str(cell))


def _numeric(rows: Sequence[Sequence[str | float | None]]) -> list[bool]:
    """Return for each column whether all its cells are numbers or empty."""
    return [all(cell is None or isinstance(cell, int | float) for cell in column) for column in zip(*rows, strict=True)]


def _passage(passage: Passage) -> dict[str, Any]:
    most = max((abs(activation) for activation in passage.activations), default=0.0) or 1.0
    tokens = zip(passage.tokens, passage.activations, strict=True)
    return {
        "heading": plain(passage.heading),
        "label": plain(passage.label),
        "tokens": [[plain(token), number(a, 3), round(abs(a) / most, 2)] for token, a in tokens],
    }
