"""Ranks as intervals: which rows of a table are surely better, by paired tests of all pairs."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from saeval.results.all_pairs import Pairs
from saeval.results.board import Column, Row
from saeval.results.paired_tests import ALPHA

_KINDS = {"sae": 0, "group": 1, "control": 2}


def rank(rows: list[Row], column: Column | None, within_hooks: bool = False) -> None:
    """Order rows, best first, trained before controls, and give the trained ones their interval of ranks.

    For m rows that is [1 + the rows surely better, m - the rows surely worse]. "Surely" is by Holm-corrected paired
    t tests over all pairs, so all intervals hold together with 95% (Mogstad, Romano, Shaikh and Wilhelm 2024). Not by
    which row is tied with which: a may be tied with b and b with c while a is better than c. Where a row is not known
    without each document, or no row can be tested (one document), the values decide.

    `within_hooks`: the same among the rows at each hook. Rows are ordered by hook first, hooks by the numbers in their
    names, such as that of the block. An SAE that is alone at its hook has no rank. Each hook's tests have a share of
    the 5% by their number, so all intervals still hold together.
    """
    if column is None:
        return
    name, sign = column.name, -1.0 if column.better == "higher" else 1.0

    def value(row: Row) -> float:
        entry = row.entries.get(name)
        return sign * entry.value if entry is not None and entry.value is not None else math.inf

    sites = sorted(dict.fromkeys(row.site for row in rows if within_hooks), key=_numbers)
    places = {site: place for place, site in enumerate(sites)}
    rows.sort(key=lambda r: (places.get(r.site, 0), _KINDS.get(r.kind, 3), value(r)))
    trained = [r for r in rows if r.kind == "sae" and math.isfinite(value(r))]
    if column.better is None or not trained:
        return
    hooks: dict[int, list[Row]] = {}
    for row in trained:
        hooks.setdefault(places.get(row.site, 0), []).append(row)
    pairs = sum(math.comb(len(here), 2) for here in hooks.values())
    for here in hooks.values():
        if len(hooks) == 1 or len(here) > 1:
            _rank(here, name, ALPHA * math.comb(len(here), 2) / pairs if pairs else ALPHA)


def _numbers(site: str) -> list[int]:
    return list(map(int, re.findall("[0-9]{1,9}", site)))


def _rank(trained: list[Row], name: str, level: float) -> None:
    """Rank comparable rows, the best first."""
    entries = [row.entries[name] for row in trained]
    if not any(entry.testable for entry in entries):
        entries = [replace(entry, estimate=None) for entry in entries]

    pairs = Pairs(entries)
    better, worse = pairs.sure(level)
    for row, surely_better, surely_worse, to_first in zip(trained, better, worse, pairs.differences(0), strict=True):
        row.rank, row.rank_high = 1 + int(surely_worse), len(trained) - int(surely_better)
        if row is not trained[0]:
            row.detectable, row.support = to_first.detectable, to_first.support
