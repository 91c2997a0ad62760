"""Leaderboards and comparisons as LaTeX, as a fragment of HTML, and as Parquet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saeval.plugin import Board, Column, Comparison, Row, escapes, limit_notice
from saeval_reports import comparisons
from saeval_reports.tables import (
    arrow,
    facts,
    flat_rows,
    least_difference,
    legend,
    notes,
    number,
    rank,
    shown_rows,
    stop,
)

if TYPE_CHECKING:
    import pandas as pd


def _headers(board: Board) -> list[str]:
    hooks = {row.hook_name for row in board.rows}
    ranks = ["rank"] if any(row.rank for row in board.rows) else []
    return [*ranks, "SAE", *(["hook"] if len(hooks) > 1 else []), *(f"{c.name}{arrow(c)}" for c in board.shown)]


def _cells(board: Board, row: Row) -> list[str]:
    """Return the cells below `_headers`, not escaped."""
    several = len({row.hook_name for row in board.rows}) > 1
    ranks = [rank(row)] if any(row.rank for row in board.rows) else []
    name = row.name if row.copies == 1 else f"{row.name} ×{row.copies}"
    numbers = [number(row.entries.get(column.name)) for column in board.shown]
    return [*ranks, name, *([row.hook_name] if several else []), *numbers]


def _below(board: Board) -> str:
    """Return the meaning of the table's signs in a paragraph."""
    hooks = {row.hook_name for row in board.rows}
    where = f"All at {next(iter(hooks))}. " if len(hooks) == 1 and hooks != {""} else ""
    controls = "; controls, in italics, were not trained" if any(row.kind == "control" for row in board.rows) else ""
    return f"{where}{legend(board)}{controls}.{least_difference(board)}"


def _above(board: Board) -> list[str]:
    limit = [limit_notice(board.data)] if board.limited else []
    return [*limit, f"{facts(board)}.", *([f"Adaptive: {stop(board)}"] if board.stop else [])]


def latex(boards: Sequence[Board]) -> str:
    """Return a `table` per board for LaTeX with the package booktabs; notes are comments."""
    return "\n\n".join(map(_latex, boards))


def _latex(board: Board) -> str:
    texts = 2 + (len({row.hook_name for row in board.rows}) > 1) - (not any(row.rank for row in board.rows))
    rows = [_latex_row(_cells(board, row), texts, row.kind == "control") for row in shown_rows(board)]
    caption = " ".join([f"{board.title}:", *_above(board)])
    return latex_table(_headers(board), rows, texts, caption, _below(board), notes(board))


def latex_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], texts: int, caption: str, below: str, comments: Sequence[str]
) -> str:
    """Return a LaTeX table of escaped cells, the first `texts` columns at the left; all else is escaped here."""
    alignment = "l" * texts + "r" * (len(headers) - texts)
    lines = [
        *(f"% {escapes.line(comment)}" for comment in comments),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escapes.latex(caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(map(escapes.latex, headers)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\par\smallskip\footnotesize {escapes.latex(below)}",
        r"\end{table}",
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *lines])


def _latex_row(cells: Sequence[str], texts: int, control: bool = False) -> list[str]:
    """Return escaped cells: the first `texts` as they are, in italics for a control, then numbers with a minus sign."""
    names = [
        rf"\textit{{{escapes.latex(cell)}}}" if control and cell else escapes.latex(cell) for cell in cells[:texts]
    ]
    return [*names, *(escapes.latex(re.sub(r"^-(?=\d)", "−", cell)) for cell in cells[texts:])]


def html(boards: Sequence[Board]) -> str:
    """Return a fragment of HTML: a section with a table, its legend and notes per board, without any style."""
    return "\n".join(map(_html, boards))


def _html(board: Board) -> str:
    rows = [f'<tr class="{escapes.html(row.kind)}">{_row(_cells(board, row))}</tr>' for row in shown_rows(board)]
    return html_table(board.title, _above(board), _headers(board), rows, _below(board), notes(board))


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{escapes.html(cell)}</{tag}>" for cell in cells)


def html_table(
    title: str, above: Sequence[str], headers: Sequence[str], rows: Sequence[str], below: str, items: Sequence[str]
) -> str:
    """Return a section with a table of `rows`, which are HTML already; all else is escaped here."""
    lines = [
        '<section class="saeval">',
        f"<h2>{escapes.html(title)}</h2>",
        *(f"<p>{escapes.html(sentence)}</p>" for sentence in above),
        "<table>",
        "<thead><tr>" + "".join(f'<th scope="col">{escapes.html(header)}</th>' for header in headers) + "</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody>",
        "</table>",
        f"<p>{escapes.html(below)}</p>",
        *(["<ul>", *(f"<li>{escapes.html(item)}</li>" for item in items), "</ul>"] if items else []),
        "</section>",
    ]
    return "\n".join(lines)


def parquet(boards: Sequence[Board]) -> bytes:
    """Return the rows of CSV as a Parquet file that pandas reads with the types of `frame`."""
    return _as_parquet(frame(boards))


def frame(boards: Sequence[Board]) -> pd.DataFrame:
    """Return the rows of CSV as a data frame: numbers are float64, counts Int64, all else strings or booleans."""
    return _typed(flat_rows(boards))


_COUNTS = {"board", "rank", "rank_low", "rank_high", "tokens", "documents"}
_SWITCHES = {"limited", "stopped_adaptively", "sure"}
_TEXTS = {
    "suite", "model", "data", "name", "hook_name", "kind", "missing", "unreliable", "value", "unit", "direction", "a",
    "hook_a", "b", "hook_b", "better", "reason", "verdict_a", "verdict_b",
}  # fmt: skip


def _typed(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd  # late: slow to import

    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pd.array([record.get(name) for record in records], dtype=_dtype(name)) for name in names}
    return pd.DataFrame(columns)


def _dtype(name: str) -> Any:
    if name in _COUNTS:
        return "Int64"
    if name in _SWITCHES:
        return "boolean"
    return "string" if name in _TEXTS or name.endswith(".verdict") else "float64"


def _as_parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def compare_latex(comparison: Comparison) -> str:
    """Return a comparison as a LaTeX table."""
    rows = [_latex_row(cells, 1) for cells in _compared(comparison)]
    return latex_table(
        _titles(comparison),
        rows,
        1,
        _caption(comparison),
        comparisons.legend(comparison),
        comparisons.notes(comparison),
    )


def compare_html(comparison: Comparison) -> str:
    """Return a comparison as a fragment of HTML."""
    rows = [f"<tr>{_row(cells)}</tr>" for cells in _compared(comparison)]
    above = [*([comparison.limit] if comparison.limit else []), comparisons.facts(comparison)]
    title = f"{comparison.title}: {' against '.join(comparisons.names(comparison))}"
    items = comparisons.notes(comparison)
    return html_table(title, above, _titles(comparison), rows, comparisons.legend(comparison), items)


def compare_parquet(comparison: Comparison) -> bytes:
    """Return the records of a comparison as a Parquet file."""
    return _as_parquet(_typed(comparison.records()))


def _compared(comparison: Comparison) -> list[list[str]]:
    return [[_value(row.column), *comparisons.cells(row)] for row in comparison]


def _value(column: Column) -> str:
    return f"{column.name}{arrow(column)}"


def _titles(comparison: Comparison) -> list[str]:
    return ["value", *comparisons.names(comparison), *comparisons.HEADERS]


def _caption(comparison: Comparison) -> str:
    limit = [comparison.limit] if comparison.limit else []
    names = " against ".join(comparisons.names(comparison))
    return " ".join([f"{comparison.title}: {names};", *limit, comparisons.facts(comparison)])
