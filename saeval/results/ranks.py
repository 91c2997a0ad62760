"""Ranks as intervals: which rows of a table are surely better, by paired tests of every two."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from saeval.results.all_pairs import Pairs
from saeval.results.board import Column, Row
from saeval.results.control_columns import Tests, afresh
from saeval.stats.estimate import Support

_KINDS = {"sae": 0, "group": 1, "control": 2}


def rank(rows: list[Row], column: Column | None, tests: Tests = afresh) -> None:
    """Order rows, best first, trained before controls, and give the trained ones their interval of ranks.

    For m rows that is [1 + the rows surely better, m - the rows surely worse]. "Surely" is by Holm-corrected paired
    t tests over all pairs, so all intervals hold together with 95% (Mogstad, Romano, Shaikh and Wilhelm 2024). Not by
    which row is tied with which: a may be tied with b and b with c while a is better than c. Where a row is not known
    without each document, or no row can be tested (one document), the values decide.
    """
    if column is None:
        return
    name, sign = column.name, -1.0 if column.better == "higher" else 1.0

    def value(row: Row) -> float:
        entry = row.entries.get(name)
        return sign * entry.value if entry is not None and entry.value is not None else math.inf

    rows.sort(key=lambda r: (_KINDS.get(r.kind, 3), value(r)))
    trained = [r for r in rows if r.kind == "sae" and math.isfinite(value(r))]
    if column.better is None or not trained:
        return
    entries = [row.entries[name] for row in trained]
    if not any(entry.testable for entry in entries):
        entries = [replace(entry, estimate=None) for entry in entries]

    def tested() -> dict[str, list[Any]]:
        pairs = Pairs(entries)
        better, worse = pairs.sure()
        to_first = pairs.differences(0)
        return {
            "better": better.tolist(),
            "worse": worse.tolist(),
            "detectable": [one.detectable for one in to_first],
            "supports": [one.support and one.support.parts for one in to_first],
        }

    found = tests(f"ranks of {name}", entries, tested)
    columns = (found[part] for part in ("better", "worse", "detectable", "supports"))
    for row, better, worse, detectable, support in zip(trained, *columns, strict=True):
        row.rank, row.rank_high = 1 + worse, len(trained) - better
        if row is not trained[0]:
            row.detectable, row.support = detectable, Support(*support) if support else None
