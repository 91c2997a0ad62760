"""What the page shows of one row on demand: components, curves, tables, arrays, provenance and its command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from saeval.base.escapes import line, terminal
from saeval.page.plain import OF_ERRORS, plain, short
from saeval.results.board import Board, Row, size_in_words, stop_in_words
from saeval.results.result import Result

MOST_ROWS = 200
"""Rows of a table, and points of a curve, that the page carries for each SAE."""
LONGEST = 12
"""Items of a list among components that the page carries; it counts those of longer ones."""
BINS = 40


class Shared:
    """Plain data that many rows repeat, such as versions: each once, by its place."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, item: Any) -> int:
        """Return the place of an equal item, which is added if it is new."""
        text = repr(item)
        if text not in self._places:
            self._places[text] = len(self.items)
            self.items.append(item)
        return self._places[text]


def details_data(board: Board, shared: Shared) -> list[list[dict[str, Any]]]:
    """Return the results of each row, in the board's order. Of a control's draws, those of the first."""
    return [[_result(result, shared) for result in _first_draw(row)] for row in board.rows]


def _first_draw(row: Row) -> Sequence[Result]:
    subjects = row.results[0].cell["subjects"] if row.results else ()
    keys = [subject.get("key") for subject in subjects]
    return [r for r in row.results if [subject.get("key") for subject in r.cell["subjects"]] == keys]


def _result(result: Result, shared: Shared) -> dict[str, Any]:
    cell = result.cell
    values = [(name, record) for name, record in result.values.items() if "kind" in record]
    data: dict[str, Any] = {
        "metric": line(result.metric),
        "key": result.key,
        "status": result.status,
        "reason": line(result.reason or ""),
        "of": shared.place(plain(_configuration(result))),
        "components": plain(result.components, LONGEST),
        "curves": [_curve(name, record, shared) for name, record in values if record["kind"] == "curve"],
        "tables": [_table(name, record) for name, record in values if record["kind"] == "table"],
        "arrays": [made for name, r in values if r["kind"] == "array" and (made := _array(name, r, result))],
        "notes": [line(note) for note in result.notes],
        "provenance": {line(str(k)): shared.place(plain(v, LONGEST)) for k, v in result.provenance.items()},
        "command": shared.place(command(result)),
    }
    if result.traceback:
        data["traceback"] = terminal(result.traceback)
    if cell.get("over"):
        data["over"] = line(str(cell["over"]))
    return {name: item for name, item in data.items() if item not in ("", [], {}, None)}


def _configuration(result: Result) -> dict[str, Any]:
    """Return which configuration made the result: metric, parameters, suite, model and data."""
    cell = result.cell
    data = cell.get("data") or {}
    stop = {"adaptive": words} if (words := stop_in_words(result.sample)) else {}
    return {
        "metric": f"{cell['metric']} {cell.get('metric_version', '')}".strip(),
        "parameters": dict(cell.get("params") or {}),
        "suite": cell.get("suite"),
        "model": cell.get("model"),
        "size": ", ".join(size_in_words(data)),
        "data": {name: value for name, value in data.items() if value not in (None, {}, [])},
        **stop,
    }


def command(result: Result) -> str:
    """Return the command that computed a result, for a shell; empty if it is not known."""
    words = [str(word) for word in result.provenance.get("argv") or []]
    if not words:
        return ""
    path = PurePath(words[0])
    of_saeval = path.stem == "saeval" or (path.name == "__main__.py" and "saeval" in path.parts)
    return line(shlex.join(["saeval", *words[1:]] if of_saeval else ["python", *words]))


def _curve(name: str, record: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    count = len(record["x"])
    places = range(count) if count <= MOST_ROWS else sorted({round(i) for i in np.linspace(0, count - 1, MOST_ROWS)})
    ends = [pair or (None, None) for pair in record.get("ci95") or [None] * count]
    return {
        "name": line(name),
        "unit": line(record["unit"] or ""),
        "x_unit": line(record["x_unit"] or ""),
        "x": shared.place([short(record["x"][i], OF_ERRORS + 1) for i in places]),
        "y": [short(record["y"][i], OF_ERRORS + 1) for i in places],
        "low": [short(ends[i][0], OF_ERRORS + 1) for i in places],
        "high": [short(ends[i][1], OF_ERRORS + 1) for i in places],
    }


def _table(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    rows = record["rows"]
    more = {"more": len(rows) - MOST_ROWS} if len(rows) > MOST_ROWS else {}
    columns = [line(str(column)) for column in record["columns"]]
    return {"name": line(name), "columns": columns, "rows": plain(rows[:MOST_ROWS]), **more}


def _array(name: str, record: Mapping[str, Any], result: Result) -> dict[str, Any] | None:
    """Return the histogram of an array of numbers; None if its file has no such array."""
    if f"value/{name}" not in result.arrays:
        return None
    array = result.array(name)
    about = {
        "name": line(name),
        "unit": line(record["unit"] or ""),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
    }
    if array.dtype.kind not in "iufb" or not array.size:
        return about
    numbers = array.astype(np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return about
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite(high - low):
        return about
    # Numbers that are equal up to rounding leave no room for bins.
    room = 1e-6 * max(abs(low), abs(high), 1.0)
    middle = (low + high) / 2
    counts, edges = np.histogram(
        numbers, BINS, (low, high) if high - low > room else (middle - room / 2, middle + room / 2)
    )
    return {
        **about,
        "counts": [int(count) for count in counts],
        "from": short(float(edges[0])),
        "to": short(float(edges[-1])),
        "mean": short(float(numbers.mean())),
        "median": short(float(np.median(numbers))),
        "not finite": int(array.size - numbers.size),
    }
