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
from saeval_reports.terminal import TextColumn, headers, shortened

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


MEASURE = 82.5
"""Width of a table in digits: those of \\footnotesize (4.25 pt) in the 345 pt of an article's text."""
BETWEEN = 1.5
"""Width between two columns in digits, with a \\tabcolsep of 3 pt."""
_WIDTHS = {**dict.fromkeys(".,:;il|![]() ", 0.6), **dict.fromkeys("mwMW±", 1.5)}
"""Widths of signs that are not as wide as a digit, in digits."""
NAME = 30
"""Width to which names are shortened at most, unless two would become the same."""
BESIDE_HOOKS = 20
"""The same where another column has the hooks."""
LONG = 40
"""Number of rows above which a table may break over pages."""


def latex(boards: Sequence[Board]) -> str:
    """Return tables for LaTeX with the package booktabs: one or more per board, none wider than the text of a page."""
    labels = [_label(board.title) for board in boards]
    return "\n\n".join(
        _latex(board, f"{label}-board-{place}" if labels.count(label) > 1 else label)
        for place, (board, label) in enumerate(zip(boards, labels, strict=True), 1)
    )


def _latex(board: Board, label: str) -> str:
    rows = shown_rows(board)
    cells = list(zip(*(_cells(board, row) for row in rows), strict=True)) if rows else [()] * len(_headers(board))
    texts = len(cells) - len(board.shown)
    short = headers(board.columns)
    titles = [*_headers(board)[:texts], *(short[column.name] for column in board.shown)]
    hooks = cells[titles.index("hook")] if "hook" in titles[:texts] else None
    columns = [
        TextColumn(
            title, shortened(own, BESIDE_HOOKS, hooks) if hooks and title == "SAE" else shortened(own, NAME), False
        )
        for title, own in zip(titles[:texts], cells[:texts], strict=True)
    ]
    columns += [TextColumn(title, own) for title, own in zip(titles[texts:], cells[texts:], strict=True)]
    italic = [row.kind == "control" for row in rows]
    order = [place for tier in board.importance for place in tier]
    columns = [*columns[:texts], *(columns[texts + place] for place in order)]
    below = [_below(board), *notes(board)]
    return latex_tables(columns, texts, italic, board.title, " ".join(_above(board)), label, below)


def latex_tables(
    columns: Sequence[TextColumn],
    texts: int,
    italic: Sequence[bool],
    title: str,
    facts: str,
    label: str,
    below: Sequence[str],
) -> str:
    """Return columns of plain text, the most important first, as LaTeX tables that each begin with the first `texts`.

    All text is escaped here. There are as many tables as it takes to fit all columns in `MEASURE`. The caption of each
    has the title and the facts; the sentences of `below` are printed below the last one.
    """
    fixed, others = columns[:texts], columns[texts:]
    room = MEASURE - sum(_digits(column) + BETWEEN for column in fixed)
    parts: list[list[TextColumn]] = [[]]
    for column in others:
        if parts[-1] and sum(_digits(c) + BETWEEN for c in parts[-1]) + _digits(column) > room:
            parts.append([])
        parts[-1].append(column)
    labels = [label, *(f"{label}-{place}" for place in range(2, len(parts) + 1))]
    long = len(italic) > LONG
    packages = [r"\usepackage{booktabs}", *([r"\usepackage{longtable}"] if long else [])]
    lines = [f"% Needs {' and '.join(packages)}."]
    for place, (part, own) in enumerate(zip(parts, labels, strict=True), 1):
        which = f", part {place} of {len(parts)}" if len(parts) > 1 else ""
        head = rf"\caption{{{escapes.latex(f'{title}{which}: {facts}')}}}\label{{{own}}}"
        last = place == len(parts)
        said = [*map(escapes.latex, below)] if last else [f"Notes are below Table~\\ref{{{labels[-1]}}}."]
        lines += _latex_table([*fixed, *part], texts, italic, head, said, long)
    return "\n".join(lines)


def _digits(column: TextColumn) -> float:
    """Return the width of a column in digits."""
    texts = [text.replace(" ± ", "±") for text in (*column.head(), *column.cells)]
    return max(sum(_WIDTHS.get(sign, 1.0) for sign in text) for text in texts)


def _latex_table(
    columns: Sequence[TextColumn], texts: int, italic: Sequence[bool], head: str, below: Sequence[str], long: bool
) -> list[str]:
    alignment = "".join("r" if column.right else "l" for column in columns)
    titles = [r"\toprule", " & ".join(map(_latex_head, columns)) + r" \\", r"\midrule"]
    rows = [
        " & ".join(_latex_row(columns, place, texts if control else 0)) + r" \\" for place, control in enumerate(italic)
    ]
    small = r"\footnotesize\setlength{\tabcolsep}{3pt}"
    words = [r"\raggedright", *(rf"{sentence}\par" for sentence in below)]
    if long:
        table = [rf"\begin{{longtable}}{{{alignment}}}", rf"{head}\\", *titles, r"\endfirsthead", *titles, r"\endhead"]
        table += [r"\bottomrule", r"\endfoot", *rows, r"\end{longtable}"]
        return ["{" + small, *table, *words, "}"]
    table = [head, rf"\begin{{tabular}}{{{alignment}}}", *titles, *rows, r"\bottomrule", r"\end{tabular}"]
    notes_ = [r"\par\smallskip", r"\begin{minipage}{\linewidth}", *words, r"\end{minipage}"]
    return [r"\begin{table}[htbp]", r"\centering" + small, *table, *notes_, r"\end{table}"]


def _latex_head(column: TextColumn) -> str:
    """Return a column's header, in a small table of its own if it has several lines."""
    lines = [*map(escapes.latex, column.head())]
    alignment = "r" if column.right else "l"
    broken = rf"\begin{{tabular}}[b]{{@{{}}{alignment}@{{}}}}" + r"\\ ".join(lines) + r"\end{tabular}"
    return lines[0] if len(lines) == 1 else broken


def _latex_row(columns: Sequence[TextColumn], place: int, italic: int) -> list[str]:
    """Return the escaped cells of a row, the first `italic` in italics; numbers have a minus sign, and no spaces around
    ±."""
    cells = [
        escapes.latex(_HYPHEN.sub("−", c.cells[place]).replace(" ± ", "±") if c.right else c.cells[place])
        for c in columns
    ]
    return [rf"\textit{{{cell}}}" if cell and place < italic else cell for place, cell in enumerate(cells)]


_HYPHEN = re.compile(r"(?<![^\s\[(])-(?=\d)")
"""The sign of a negative number."""


def _label(*names: str) -> str:
    """Return a label of letters, digits and hyphens, such as `tab:quickstart`."""
    return "tab:" + (re.sub(r"[^A-Za-z0-9]+", "-", " ".join(names)).strip("-") or "saeval")


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
    """Return a comparison as LaTeX tables."""
    titles = ["value", *shortened(comparisons.names(comparison), NAME), *comparisons.HEADERS]
    rows = _compared(comparison)
    columns = [
        TextColumn(title, shortened(cells, NAME) if place == 0 else cells, right=0 < place < len(rows[0]) - 1)
        for place, (title, *cells) in enumerate(zip(titles, *rows, strict=True))
    ]
    below = [comparisons.legend(comparison), *comparisons.notes(comparison)]
    label = _label(comparison.title, *comparisons.names(comparison))
    title = f"{comparison.title}: {' against '.join(comparisons.names(comparison))}"
    facts = " ".join([*([comparison.limit] if comparison.limit else []), comparisons.facts(comparison)])
    return latex_tables(columns, 1, [False] * len(rows), title, facts, label, below)


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
