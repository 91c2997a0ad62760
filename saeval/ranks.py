"""Ranks as intervals: which rows of a table are surely better, by paired tests of every two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from saeval.board import Column, Row
from saeval.differences import ALPHA, difference, holm

_KINDS = {"sae": 0, "group": 1, "control": 2}


def rank(rows: list[Row], column: Column | None) -> None:
    """Order rows, best first, trained before controls, and give the trained ones their interval of ranks."""
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
    _intervals(trained, name)
    top, *others = trained
    for row in others:
        row.detectable = difference(row.entries[name], top.entries[name]).detectable


def _intervals(ordered: Sequence[Row], name: str) -> None:
    """[1 + the rows surely better, m - the rows surely worse] for m rows, the best value first.

    "Surely" is by Holm-corrected paired t tests over all pairs, so all intervals hold together with
    95% (Mogstad, Romano, Shaikh and Wilhelm 2024). Not by which row is tied with which: a may be
    tied with b and b with c while a is better than c. Where a row is not known without each document,
    the values decide.
    """
    for row in ordered:
        row.rank, row.rank_high = 1, len(ordered)
    pairs = list(itertools.combinations(ordered, 2))
    tests = [difference(better.entries[name], worse.entries[name]) for better, worse in pairs]
    for (better, worse), test, p in zip(pairs, tests, holm([t.p_value for t in tests]), strict=True):
        sure = p < ALPHA if p is not None else test.certain or (not test.paired and test.value != 0)
        if sure:
            assert worse.rank is not None
            assert better.rank_high is not None
            worse.rank += 1
            better.rank_high -= 1
