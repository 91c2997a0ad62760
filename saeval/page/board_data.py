"""A `Board` as plain data for the page: its rows, their properties, and each column as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeval.base.escapes import line
from saeval.base.formatting import with_error
from saeval.base.names import without_repetition
from saeval.page.plain import OF_ERRORS, forms, plain, short
from saeval.results.board import Board, Column, Entry, Row
from saeval.results.families import Palette, key_of

NOT_DECLARED = (
    "name",
    "hook_name",
    "kind",
    "key",
    "sha256",
    "control",
    "of",
    "of_key",
    "copy",
    "site",
    "declared_hook",
)
"""Facts of a subject that identify it, or that the row shows anyway."""


SHORT = 24
"""Letters of a name beside which charts have room for a hook."""


def board_data(board: Board, palette: Palette) -> dict[str, Any]:
    """Return the rows and columns of a board; columns have one item for each row, in the board's order.

    `marks` has the colour and shape of each family, which is a property of rows if there are several.
    """
    columns = [_column(column, board.rows) for column in board.columns]
    properties = _properties(board.rows, palette)
    names, hooks = [line(row.name) for row in board.rows], [line(row.hook_name) for row in board.rows]
    shorts = without_repetition(names, [SHORT] * len(names), hooks)
    rows = [{**_row(row), "short": name} for row, name in zip(board.rows, shorts, strict=True)]
    texts = {row[name] for row in rows for name in ("name", "hook")} | {column["name"] for column in columns}
    texts |= {f"{row['name']} ×{row['copies']}" for row in rows if row["copies"] > 1}
    texts |= {value for one in properties for value in [one["name"], *one["values"]] if isinstance(value, str)}
    return {
        "title": line(board.title),
        "model": line(board.model),
        "rank_by": line(board.rank_by or ""),
        "within_hooks": board.within_hooks,
        "tokens": board.tokens,
        "dependences": [line(sentence) for sentence in board.dependences],
        "rows": rows,
        "columns": columns,
        "properties": properties,
        "marks": {line(name): list(mark) for name, mark in palette.marks.items()},
        "forms": {text: own for text in sorted(texts) if (own := forms(text))},
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": line(row.name),
        "hook": line(row.hook_name),
        "kind": row.kind,
        "rank": row.rank,
        "rank_high": row.rank_high,
        "copies": row.copies,
        "control": line(row.control) if row.control else None,
        "of": line(row.of) if row.of else None,
    }


def _column(column: Column, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a column: `value`, `error`, `reach` (half of the 95% interval, or both ends), `n`, `documents`, `text`.

    `said` has the status and the reason of each entry that has one, by the row's place.
    """
    entries = [row.entries.get(column.name) for row in rows]
    said = {str(place): [e.status, line(e.reason or "")] for place, e in enumerate(entries) if e and _remarkable(e)}
    return {
        "name": line(column.name),
        "unit": line(column.unit),
        "better": column.better,
        "shown": column.headline,
        "paired": column.paired,
        "depends": line(column.depends),
        "certified": [line(text) for text in column.certified if not column.paired and column.certified[0]],
        "value": [short(e.value) if e else None for e in entries],
        "error": [short(e.stderr, OF_ERRORS) if e else None for e in entries],
        "reach": [_reach(e) if e else None for e in entries],
        "n": _same([e.n if e else None for e in entries]),
        "documents": _same([e.support.documents if e and e.support else None for e in entries]),
        "text": [_text(e) for e in entries],
        "said": said,
    }


def _remarkable(entry: Entry) -> bool:
    return entry.value is None or bool(entry.reason)


def _text(entry: Entry | None) -> str | None:
    if entry is None or entry.value is None:
        return None
    return with_error(entry.value, entry.stderr, entry.ci95 if entry.proportion else None)


def _reach(entry: Entry) -> Any:
    if entry.value is None or entry.ci95 is None:
        return None
    low, high = entry.ci95
    below, above = entry.value - low, high - entry.value
    even = abs(below - above) <= 1e-3 * (below + above)
    return short((below + above) / 2, OF_ERRORS) if even else [short(low), short(high)]


def _same(items: Sequence[Any]) -> Any:
    """Return the one item that all rows with any have, or else all items."""
    known = {item for item in items if item is not None}
    return next(iter(known)) if len(known) == 1 else list(items) if known else None


def _properties(rows: Sequence[Row], palette: Palette) -> list[dict[str, Any]]:
    """Return every declared fact of the rows' subjects that is text, a number or a flag, by name."""
    facts = [{**_family(row, palette), **_declared(row), **_groups(row)} for row in rows]
    names = dict.fromkeys(name for own in facts for name in own)
    return [{"name": line(name), "values": [plain(own.get(name)) for own in facts]} for name in names]


def _family(row: Row, palette: Palette) -> dict[str, Any]:
    subjects = [subject for result in row.results[:1] for subject in result.cell["subjects"]]
    family = palette.family(map(key_of, subjects)) if len(palette.marks) > 1 and subjects else None
    return {"family": family} if family is not None else {}


def _declared(row: Row) -> dict[str, Any]:
    """Return the facts in which all of a row's subjects agree; nested ones get names such as `details.l1`."""
    subjects = [subject for result in row.results[:1] for subject in result.cell["subjects"]]
    flat = [dict(_flat(subject)) for subject in subjects]
    first, *others = flat or [{}]
    return {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in facts.items():
        if not prefix and name in NOT_DECLARED:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{name}", value


def _groups(row: Row) -> dict[str, Any]:
    """Return what a control stands beside: the kind of control, and the SAE that it was built from."""
    facts = {"control": row.control, "control of": row.of}
    return {name: value for name, value in facts.items() if value}
