"""Columns `score - control`: how far each trained row is ahead of a control, paired, positive where it is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from saeval.base.errors import suggestion
from saeval.results.all_pairs import Pairs
from saeval.results.board import Column, Entry, Row
from saeval.results.paired_tests import Difference
from saeval.stats.estimate import Support

Tests: TypeAlias = Callable[[str, Sequence[Entry | None], Callable[[], dict[str, list[Any]]]], dict[str, list[Any]]]
"""What tests of some entries give, in plain data: computed, or from an earlier time. The text says which test it is."""
Wanted = Sequence[str] | Mapping[str, Sequence[str]]


def afresh(_: str, __: Sequence[Entry | None], compute: Callable[[], dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Compute them."""
    return compute()


def columns_of(wanted: Wanted, rank_by: str | None) -> list[tuple[str, str]]:
    """(control, column) in order: a plain list of controls is about the column that rows are ranked by."""
    if isinstance(wanted, Mapping):
        return [(control, column) for control, columns in wanted.items() for column in columns]
    return [(control, rank_by) for control in wanted if rank_by]


def against(
    rows: Sequence[Row], columns: Sequence[Column], wanted: Wanted, rank_by: str | None, tests: Tests = afresh
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
            new = Column(f"{name} vs {control}", column.unit, "higher", column.headline, paired=True)
            made.setdefault(name, []).append(new)
            trained = [row for row in rows if row.kind == "sae"]
            for row, entry in zip(trained, _ahead(trained, rows, control, column, new, tests), strict=True):
                row.entries[new.name] = entry
            for row in rows:
                if row.kind != "sae":
                    row.entries[new.name] = Entry(status="for SAEs only")
    return made, warnings


def _ahead(
    trained: Sequence[Row], rows: Sequence[Row], control: str, column: Column, new: Column, tests: Tests
) -> list[Entry]:
    """How far each row is ahead of its control."""
    controls: dict[str, list[Row]] = {}
    for row in rows:
        if row.control == control:
            controls.setdefault(row.site, []).append(row)

    def computed() -> dict[str, list[Any]]:
        entries: list[Entry] = []
        beside: dict[int, tuple[Entry, list[int]]] = {}
        for place, row in enumerate(trained):
            found = _beside(row, controls.get(row.site, []), control, column)
            entries.append(found)
            if found.value is not None:
                beside.setdefault(id(found), (found, []))[1].append(place)
        for other, places in beside.values():  # all rows of one control at once
            own = [trained[place].entries[column.name] for place in places]
            for place, entry, ahead in zip(places, own, Pairs([other, *own]).differences(0)[1:], strict=True):
                entries[place] = _entry(-ahead if column.better == "lower" else ahead, entry.n)
        return {"entries": [_plain(entry) for entry in entries]}

    every = [row for row in rows if row.kind == "sae" or row.control == control]
    places = [(row.name, row.hook_name, row.kind, row.site, row.of) for row in every]
    found = tests(f"{new.name}\n{column.better} {places}", [row.entries.get(column.name) for row in every], computed)
    return [_from_plain(*plain) for plain in found["entries"]]


def _beside(row: Row, here: Sequence[Row], control: str, column: Column) -> Entry:
    """The control's entry beside which a row's is; one without a value says why there is none."""
    found = [r for r in here if r.of == row.name] or [r for r in here if r.of is None]  # its own, else the hook's
    if len(found) != 1:
        count = "several controls" if found else "no control"
        others = " is built from this SAE; add the SAE to the control's 'of:'" if here and not found else ""
        return Entry(status="undefined", reason=f"{count} '{control}' at {row.hook_name}{others}")
    own, other = (r.entries.get(column.name, Entry()) for r in (row, found[0]))
    for entry in (own, other):
        if entry.value is None:
            return Entry(status=entry.status, reason=entry.reason)
    return other


def _entry(ahead: Difference, n: int | None) -> Entry:
    return Entry(
        ahead.value, ahead.stderr, ahead.ci95, n, "ok", ahead.reason,
        support=ahead.support, detectable=ahead.detectable,
    )  # fmt: skip


def _plain(entry: Entry) -> list[Any]:
    support = entry.support and entry.support.parts
    return [entry.value, entry.stderr, entry.ci95, entry.n, entry.status, entry.reason, support, entry.detectable]


def _from_plain(value: Any, stderr: Any, ci95: Any, n: Any, status: str, reason: Any, support: Any, able: Any) -> Entry:
    interval = (ci95[0], ci95[1]) if ci95 else None
    known = Support(*support) if support else None
    return Entry(value, stderr, interval, n, status, reason, support=known, detectable=able)
