"""The columns of printed tables that a user asks for: by name, or all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saeval.base.errors import SaevalError, suggestion
from saeval.results.board import Board, Column


def choose(boards: Sequence[Board], names: Sequence[str], every: bool = False) -> None:
    """Let printed tables show the columns named, in this order, or `every` one; without either, nothing changes.

    A name is `metric.value`, or that of a metric, which means all its values. `SaevalError` for a name of no column.
    """
    if not names and not every:
        return
    for name in names:
        if not any(_means(name, column) for board in boards for column in board.columns):
            columns = [column for board in boards for column in board.columns]
            known = dict.fromkeys([*(c.name for c in columns), *(c.metric for c in columns)])
            near = suggestion(name, known, "; --format json has all values of these results")
            raise SaevalError(f"--columns: no value '{name}' in these results{near}")
    for board in boards:
        wanted = [column for name in names for column in board.columns if _means(name, column)]
        places = {column.name: place for place, column in reversed(list(enumerate(wanted)))}
        ordered = sorted(board.columns, key=lambda column: places.get(column.name, len(wanted)))
        board.columns = [replace(column, headline=every or column.name in places) for column in ordered]
        board.chosen = True


def _means(name: str, column: Column) -> bool:
    return name in (column.name, column.metric)
