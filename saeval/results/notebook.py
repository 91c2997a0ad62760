"""What a notebook shows of results: the parts of a `Section` as HTML, with pictures of its charts, and no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.base.escapes import html
from saeval.base.formatting import counted, fitting, interval, number, scalar, with_error
from saeval.results import charts
from saeval.results.board import Board, Entry, size_in_words, some
from saeval.results.result import Result
from saeval.results.sections import Chart, Section, Table
from saeval.results.verdicts import verdicts, verdicts_in_words
from saeval.stats.estimate import reach95

LETTERS = 110
"""Letters beside each other in a notebook; columns beyond are left out, and named below the table."""
ROWS = 200
"""Most rows of a table."""
MOST_CHARTS = 3
_STYLE = "padding:2px 10px;text-align:"


def section_html(section: Section) -> str:
    """Return a section as a fragment of HTML: sentences, tables that scroll, pictures of charts, and notes.

    At most 200 rows of a table and 3 charts are in it; a sentence names the number of the others.
    """
    parts = [f"<b>{html(section.title)}</b>", *(f"<p>{html(sentence)}</p>" for sentence in section.summary)]
    parts += [_table(table) for table in section.tables]
    parts += [_picture(chart) for chart in section.charts[:MOST_CHARTS]]
    notes = [*section.notes]
    if (left := len(section.charts) - MOST_CHARTS) > 0:
        notes.append(f"{counted(left, 'more chart')}: results.plot() draws all")
    if notes:
        parts.append("<ul>" + "".join(f"<li>{html(note)}</li>" for note in notes) + "</ul>")
    return f'<div class="saeval">{"".join(parts)}</div>'


def charts_html(shown: Sequence[Chart]) -> str:
    """Return charts as pictures below each other."""
    return f'<div class="saeval">{"".join(map(_picture, shown))}</div>'


def board_section(board: Board) -> Section:
    """Return a board as a section: the columns that fit beside each other, the most important first."""
    rows, shown = board.rows[:ROWS], board.shown
    hooks = list(dict.fromkeys(row.hook_name for row in board.rows))
    left: dict[str, list[str | float | None]] = {}
    if any(row.rank for row in rows):
        left["rank"] = [_rank(row.rank, row.rank_high) for row in rows]
    draws = ["" if row.copies == 1 else f" ×{row.copies}" for row in rows]
    kinds = [" (control)" if row.kind == "control" else "" for row in rows]
    left["SAE"] = [f"{row.name}{copies}{kind}" for row, copies, kind in zip(rows, draws, kinds, strict=True)]
    if len(hooks) > 1:
        left["hook"] = [row.hook_name for row in rows]
    heads = [f"{c.name}{ {'lower': ' ↓', 'higher': ' ↑'}.get(c.better or '', '') }" for c in shown]
    cells = [[_number(row.entries.get(column.name)) for row in rows] for column in shown]
    widths = [max(map(len, [head, *column])) for head, column in zip(heads, cells, strict=True)]
    room = LETTERS - sum(max(map(len, [name, *map(str, column)])) + 2 for name, column in left.items())
    every = list(range(len(shown)))
    chosen = every if board.chosen or not shown else fitting(widths, board.importance, room)
    lines = zip(*left.values(), *(cells[place] for place in chosen), strict=True)
    table = Table("board", "", [*left, *(heads[place] for place in chosen)], [list(line) for line in lines])
    facts = [f"model {board.model}" if board.model else "no model", *size_in_words(board.data)]
    at = f", all at {hooks[0]}" if len(hooks) == 1 and hooks[0] else ""
    errors = "± is one standard error, clustered by document; ↓ lower is better, ↑ higher is better"
    out = [shown[place].name for place in every if place not in chosen]
    notes = [f"{', '.join(facts)}{at}. {errors}.", *board.doubts, *verdicts_in_words(verdicts(board)), *board.notes]
    notes += [f"left out to fit: {some(out)}; results.frame has every value"] if out else []
    notes += [f"{len(board.rows) - ROWS} more rows"] if len(board.rows) > ROWS else []
    return Section("board", board.title, [board.stop] if board.stop else [], [], [table], notes=notes)


def result_section(result: Result) -> Section:
    """Return a result as a section: its numbers, its tables, and a chart of each curve."""
    title = f"{result.metric} of {result.subject or 'the model'}: {result.status}"
    scalars = {name: record for name, record in result.values.items() if "kind" not in record}
    tables = []
    if scalars:
        rows = [_scalar(name, record) for name, record in scalars.items()]
        tables.append(Table("values", "", ["value", "± standard error", "95% interval", "unit", "better"], rows))
    drawn = []
    for name, record in result.values.items():
        if record.get("kind") == "curve" and any(y is not None for y in record["y"]):
            drawn.append(_curve(name, record))
        elif record.get("kind") == "table":
            tables.append(Table(name, name, record["columns"], record["rows"]))
    reasons = [f"{name}: {record['reason']}" for name, record in scalars.items() if record.get("reason")]
    return Section("result", title, [result.reason] if result.reason else [], drawn, tables,
                   notes=[*reasons, *result.notes])  # fmt: skip


def _scalar(name: str, record: Mapping[str, Any]) -> list[str | float | None]:
    span = interval(record["ci95"], record["stderr"]) if record["ci95"] else ""
    return [name, scalar(record), span, record["unit"], record["better"] or "–"]


def _curve(name: str, record: Mapping[str, Any]) -> Chart:
    errors = record.get("stderr") or [None] * len(record["x"])
    records = []
    for x, y, error in zip(record["x"], record["y"], errors, strict=True):
        reach = None if y is None or error is None else reach95(error, 1e9)
        records.append({"x": x, **charts.measured(y, None if reach is None else (y - reach, y + reach), "y")})
    x = charts.quantity("x", record["x_unit"] or "x", [r["x"] for r in records])
    y = charts.quantity("y", record["unit"] or "value", charts.extent(records, "y"))
    spec = charts.single(charts.lines(x, y, band=True), 380, 200)
    band = "band: 1.96 standard errors" if any(error is not None for error in errors) else "no errors"
    return Chart(name, name, f"{band}{charts.lost(records, 'y', y)}", spec, records, f"{name} as a curve")


def _number(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry.value is None:
        return entry.status
    return with_error(entry.value, entry.stderr, entry.ci95 if entry.proportion else None)


def _rank(first: int | None, last: int | None) -> str:
    return "" if first is None else f"{first}" if last in (None, first) else f"{first}–{last}"


def _table(table: Table) -> str:
    head = "".join(f'<th style="{_STYLE}{"left" if not i else "right"}">{html(h)}</th>' for i, h in
                   enumerate(table.headers))  # fmt: skip
    body = []
    for row in table.rows[:ROWS]:
        cells = [number(cell) if isinstance(cell, float) else html("" if cell is None else str(cell)) for cell in row]
        aligned = (
            f'<td style="{_STYLE}{"left" if not i else "right"};white-space:nowrap">{cell}</td>'
            for i, cell in enumerate(cells)
        )
        body.append(f"<tr>{''.join(aligned)}</tr>")
    more = len(table.rows) - ROWS
    after = f"<p>{more} more rows</p>" if more > 0 else ""
    title = f"<p>{html(table.title)}</p>" if table.title else ""
    return (
        f'{title}<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{after}"
    )


def _picture(chart: Chart) -> str:
    from saeval.results.chart_files import svg  # late: a library of 80 MB

    source = b64encode(svg(chart)).decode()
    words = html(f"{chart.title}. {chart.description}")
    return f'<p><img style="max-width:100%" alt="{words}" src="data:image/svg+xml;base64,{source}"></p>'
