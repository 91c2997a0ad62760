"""Columns `score - control`: the paired lead of each trained row over a control, positive if the row is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.base.errors import suggestion
from saeval.results.all_pairs import Pairs
from saeval.results.board import Column, Entry, Row
from saeval.results.paired_tests import OTHER_SEEDS, Difference
from saeval.stats.values import Null

Wanted = Sequence[str] | Mapping[str, Sequence[str]]


def columns_of(wanted: Wanted, rank_by: str | None) -> list[tuple[str, str]]:
    """Return (control, column) pairs in order; a plain list of controls refers to the column that ranks the rows."""
    if isinstance(wanted, Mapping):
        return [(control, column) for control, columns in wanted.items() for column in columns]
    return [(control, rank_by) for control in wanted if rank_by]


def against(
    rows: Sequence[Row], columns: Sequence[Column], wanted: Sequence[tuple[str, str]]
) -> tuple[dict[str, list[Column]], list[str]]:
    """Add the entries to the trained rows; return the new columns by the column they follow, and warnings.

    `wanted` has pairs of a control and a column. The row of a group is compared with the group's twin.
    """
    made: dict[str, list[Column]] = {}
    warnings = []
    known = {row.control: None for row in rows if row.control}
    for control, name in wanted:
        column = next((c for c in columns if c.name == name), None)
        if column is None:
            near = suggestion(name, [c.name for c in columns])
            warnings.append(f"against '{control}': there is no column '{name}'{near[:200]}")
        elif column.better is None:
            warnings.append(f"against '{control}': '{name}' has no better direction, so nothing is ahead in it")
        elif control not in known:
            warnings.append(f"against '{control}': there is no such control{suggestion(control, known)}")
        else:
            null = Null(f"the control {control}", above="better than", below="worse than").record()
            if column.control and column.control["control"] == control:
                null = dict(column.control)
            new = dataclasses.replace(
                column, name=f"{name} vs {control}", better="higher", main=False, paired=True, null=null, control=None
            )
            made.setdefault(name, []).append(new)
            of_groups = any(row.kind == "group" and name in row.entries for row in rows)
            kind, nouns = ("group", "groups") if of_groups else ("sae", "SAEs")
            trained = [row for row in rows if row.kind == kind]
            for row, entry in zip(trained, _ahead(trained, rows, control, column, null), strict=True):
                row.entries[new.name] = entry
            for row in rows:
                if row.kind != kind:
                    row.entries[new.name] = Entry(status=f"for {nouns} only")
    return made, warnings


def _ahead(
    trained: Sequence[Row], rows: Sequence[Row], control: str, column: Column, null: Mapping[str, Any]
) -> list[Entry]:
    """Return the lead of each row over its control."""
    controls: dict[str, list[Row]] = {}
    for row in rows:
        if row.control == control:
            controls.setdefault(row.site, []).append(row)

    entries: list[Entry] = []
    beside: dict[int, tuple[Entry, list[int]]] = {}
    for place, row in enumerate(trained):
        entry = _beside(row, controls.get(row.site, []), control, column)
        entries.append(entry)
        if entry.value is not None:
            beside.setdefault(id(entry), (entry, []))[1].append(place)
    for other, places in beside.values():  # all rows of one control at once
        own = [trained[place].entries[column.name] for place in places]
        for place, entry, ahead in zip(places, own, Pairs([other, *own]).differences(0)[1:], strict=True):
            entries[place] = _entry(-ahead if column.better == "lower" else ahead, entry, null)
    return entries


def _beside(row: Row, here: Sequence[Row], control: str, column: Column) -> Entry:
    """Return the entry of a row's control; if there is none, an entry without a value that gives the reason."""
    own_controls = [
        r for r in here if r.of_keys == row.keys or (row.kind == "sae" and r.of == row.name and None in r.of_keys)
    ]
    named = [r for r in own_controls if r.of == row.name]  # one SAE may have two names
    found = named or own_controls or [r for r in here if r.of is None]  # else the hook's
    if len(found) != 1:
        count = "several controls" if found else "no control"
        others = " is built from this SAE; add the SAE to the control's 'of:'" if here and not found else ""
        others = " is built from this group" if others and row.kind == "group" else others
        return Entry(status="undefined", reason=f"{count} '{control}' at {row.hook_name}{others}")
    own, other = (r.entries.get(column.name, Entry()) for r in (row, found[0]))
    for entry in (own, other):
        if entry.value is None:
            return Entry(status=entry.status, reason=entry.reason)
    return other if own.seeds == other.seeds else Entry(status="undefined", reason=OTHER_SEEDS)


def _entry(ahead: Difference, own: Entry, null: Mapping[str, Any]) -> Entry:
    support = ahead.support if own.seeds is None else None
    return Entry(
        ahead.value, ahead.stderr, ahead.ci95, own.n, "ok", ahead.reason,
        support=support, detectable=ahead.detectable, p=ahead.p_value, null=null, seeds=own.seeds,
    )  # fmt: skip
