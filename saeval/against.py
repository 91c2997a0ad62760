"""Columns `score - control`: how far each trained row is ahead of a control, paired, positive where it is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeval.board import Column, Entry, Row
from saeval.differences import difference
from saeval.errors import suggestion

Wanted = Sequence[str] | Mapping[str, Sequence[str]]


def columns_of(wanted: Wanted, rank_by: str | None) -> list[tuple[str, str]]:
    """(control, column) in order: a plain list of controls is about the column that rows are ranked by."""
    if isinstance(wanted, Mapping):
        return [(control, column) for control, columns in wanted.items() for column in columns]
    return [(control, rank_by) for control in wanted if rank_by]


def against(
    rows: Sequence[Row], columns: Sequence[Column], wanted: Wanted, rank_by: str | None
) -> tuple[dict[str, list[Column]], list[str]]:
    """Add the entries to the trained rows; returns the new columns by the one they belong to, and what was in vain."""
    made: dict[str, list[Column]] = {}
    warnings = []
    known = {row.control: None for row in rows if row.control}
    for control, name in columns_of(wanted, rank_by):
        column = next((c for c in columns if c.name == name), None)
        if column is None:
            near = suggestion(name, [c.name for c in columns])
            warnings.append(f"against '{control}': there is no column '{name}'{near[:200]}")
        elif column.better is None:
            warnings.append(f"against '{control}': '{name}' has no better direction, so nothing is ahead in it")
        elif control not in known:
            warnings.append(f"against '{control}': there is no such control{suggestion(control, known)}")
        else:
            new = Column(f"{name} vs {control}", column.unit, "higher", column.headline)
            made.setdefault(name, []).append(new)
            for row in rows:
                trained = row.kind == "sae"
                row.entries[new.name] = _ahead(row, rows, control, column) if trained else Entry(status="for SAEs only")
    return made, warnings


def _ahead(row: Row, rows: Sequence[Row], control: str, column: Column) -> Entry:
    here = [r for r in rows if r.control == control and r.site == row.site]
    found = [r for r in here if r.of == row.name] or [r for r in here if r.of is None]  # its own, else the hook's
    if len(found) != 1:
        count = "several controls" if found else "no control"
        others = f" is {row.name}'s own" if here and not found else ""
        return Entry(status="undefined", reason=f"{count} '{control}' at {row.hook_name}{others}")
    own, other = (r.entries.get(column.name, Entry()) for r in (row, found[0]))
    for entry in (own, other):
        if entry.value is None:
            return Entry(status=entry.status, reason=entry.reason)
    ahead = difference(own, other)
    ahead = -ahead if column.better == "lower" else ahead
    return Entry(
        ahead.value, ahead.stderr, ahead.ci95, own.n, "ok", ahead.reason,
        support=ahead.support, detectable=ahead.detectable,
    )  # fmt: skip
