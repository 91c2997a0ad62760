"""Leaderboards as text for a terminal, in tables that fit its width."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from rich.cells import cell_len, set_cell_size

from saeval.plugin import Board, Column, Row, escapes, formatting, limit_notice, terminal_width, without_repetition
from saeval_reports.tables import (
    arrow,
    facts,
    least_difference,
    legend,
    mark,
    notes,
    number,
    rank,
    shown_rows,
    some,
    stop,
)

GAP = 2
NAME_SHARE = 0.4
"""Share of the width that names may take before they are shortened."""
NAME_SHARE_BESIDE_HOOKS = 0.25
"""The same where another column has the hooks."""
LEAST_NAME = 16
"""Width to which names are shortened at most, unless two would become the same."""
_HOW = "--columns NAME ... shows those named, --wide all."


@dataclass(frozen=True)
class TextColumn:
    """A column of a text table: its header, which may break after `.`, `_` and spaces, and its cells."""

    header: str
    cells: Sequence[str]
    right: bool = True
    """True to align the cells at the right, as numbers."""

    @cached_property
    def width(self) -> int:
        """Its width in places of a terminal."""
        return max(map(cell_len, [*(piece.rstrip() for piece in _pieces(self.header)), *self.cells]))

    def head(self) -> list[str]:
        """Return the header in lines that fit its width."""
        lines = [""]
        for piece in _pieces(self.header):
            if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > self.width:
                lines.append("")
            lines[-1] += piece
        return [line.rstrip() for line in lines]

    def pad(self, cell: str) -> str:
        """Return a cell at the width of the column."""
        return " " * (self.width - cell_len(cell)) + cell if self.right else set_cell_size(cell, self.width)


def _pieces(header: str) -> list[str]:
    return re.findall(r"[^._ ]+[._ ]?(?:[↓↑]?(?: ?[✓†✗?])?$)?|[._ ]", header) or [""]


def text_table(columns: Sequence[TextColumn]) -> str:
    """Return a table with a line for each row, below its headers."""
    heads = [column.head() for column in columns]
    height = max(map(len, heads))
    rows = [*zip(*([""] * (height - len(head)) + head for head in heads), strict=True)]
    rows += [tuple("─" * column.width for column in columns), *zip(*(c.cells for c in columns), strict=True)]
    gap = " " * GAP
    return "\n".join(gap.join(c.pad(cell) for c, cell in zip(columns, row, strict=True)).rstrip() for row in rows)


def fitting(columns: Sequence[TextColumn], tiers: Sequence[Sequence[int]], width: int) -> list[int]:
    """Return the places of columns that fit a width together, as `formatting.fitting` chooses them."""
    return formatting.fitting([column.width for column in columns], tiers, width, GAP)


def shortened(names: Sequence[str], width: int, beside: Sequence[str] | None = None) -> list[str]:
    """Return names with `…` for parts of those wider than `width`, or more where two would become the same.

    Names only have to differ where what stands `beside` them does not. Left out are parts of paths that they have in
    common, then the middle, or else what all the wide names begin and end with.
    """
    beside = beside or [""] * len(names)
    names = without_repetition(names, [width] * len(names), beside)
    wide = list(dict.fromkeys(name for name in names if cell_len(name) > width))
    if not wide:
        return list(names)
    start = _shared(wide)
    end = min(_shared([name[::-1] for name in wide]), *(len(name) - start for name in wide))
    core = {name: f"{'…' * bool(start)}{name[start : len(name) - end]}{'…' * bool(end)}" for name in wide}
    pairs = len({*zip(names, beside, strict=True)})
    for most in range(width, max(map(cell_len, wide))):
        for shown in ({name: name for name in wide}, core if len(wide) > 1 else {}):
            short = [_elided(shown.get(name, name), most) for name in names]
            if len({*zip(short, beside, strict=True)}) == pairs:
                return short
    return list(names)


def _shared(names: Sequence[str]) -> int:
    """Return the number of letters that all names begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))


def _elided(name: str, most: int) -> str:
    if cell_len(name) <= most:
        return name
    start, end = (most - 1) // 2, (most - 1) - (most - 1) // 2
    return f"{set_cell_size(name, start)}…{set_cell_size(name[::-1], end)[::-1]}"


def paragraph(text: str, width: int, first: str = "") -> str:
    """Return text in lines of a width, the later ones indented under the first, which starts with `first`."""
    return textwrap.fill(
        escapes.line(text), max(width, 20), initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def headers(columns: Sequence[Column]) -> dict[str, str]:
    """Return a short header for each column by its name: the value's name where no other metric has it."""
    distinct = {column.name: column for column in columns if not column.paired}
    values = Counter(column.value for column in distinct.values())

    def short(column: Column) -> str:
        return column.value if not column.paired and values[column.value] == 1 else column.name

    return {column.name: f"{escapes.line(short(column))}{arrow(column)}{mark(column)}" for column in columns}


def text(boards: Sequence[Board]) -> str:
    """Return a table per board that fits the terminal: ranks, names and the values that matter most, then notes."""
    width = terminal_width()
    return "\n\n".join(_text(board, width) for board in boards)


def _text(board: Board, width: int) -> str:
    rows, shown = shown_rows(board), board.shown
    hooks = dict.fromkeys(row.hook_name for row in board.rows)
    controls = any(row.kind == "control" for row in rows)
    left = [TextColumn("rank", [_rank(row) for row in rows])] if controls or any(row.rank for row in rows) else []
    most = max(LEAST_NAME, int(width * NAME_SHARE))
    places = [escapes.line(row.hook_name) for row in rows]
    of_name = most if len(hooks) < 2 else max(LEAST_NAME, int(width * NAME_SHARE_BESIDE_HOOKS))
    names = shortened([_name(row) for row in rows], of_name, places if len(hooks) > 1 else None)
    left.append(TextColumn("SAE", names, right=False))
    if len(hooks) > 1:
        left.append(TextColumn("hook", shortened(places, most), right=False))
    short = headers(board.columns)
    columns = [TextColumn(short[c.name], [number(row.entries.get(c.name)) for row in rows]) for c in shown]
    room = width - sum(column.width + GAP for column in left)
    tiers = board.importance
    chosen = fitting(columns, tiers, room) if columns and not board.chosen else list(range(len(columns)))
    table = text_table([*left, *(columns[place] for place in chosen)])
    parts = [paragraph(limit_notice(board.data), width)] if board.limited else []
    parts += [paragraph(f"{board.title}: {facts(board)}.", width)]
    parts += [paragraph(f"Adaptive: {stop(board)}", width)] if board.stop else []
    where = f"All at {next(iter(hooks))}. " if len(hooks) == 1 and "" not in hooks else ""
    untrained = "; a control was not trained" if controls else ""
    below = paragraph(f"{where}{legend(board)}{untrained}.{least_difference(board)}", width)
    kept_out = [shown[place].name for tier in tiers for place in tier if place not in chosen]
    others = len(board.columns) - len(shown)
    also = f"; {others} more {'exist' if others > 1 else 'exists'}" if others else ""
    more = [f"left out to fit {width} columns: {some(kept_out, 6)}{also}. {_HOW}"] if kept_out else []
    more = more or ([f"{formatting.counted(others, 'more value')}. {_HOW}"] if others else [])
    items = [paragraph(note, width, "- ") for note in (*notes(board), *more)]
    return "\n\n".join([*parts, table, below, *(["\n".join(items)] if items else [])])


def _rank(row: Row) -> str:
    return "control" if row.kind == "control" else rank(row)


def _name(row: Row) -> str:
    return escapes.line(row.name) if row.copies == 1 else f"{escapes.line(row.name)} ×{row.copies}"
