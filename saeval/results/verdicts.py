"""`Verdict`: a claim about a row, from the test of its value against a null hypothesis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval.base.formatting import interval, number, with_error
from saeval.results.board import SHOWN, Board, Column, Entry, Row
from saeval.results.leaderboard import of_pages
from saeval.results.paired_tests import ALPHA, holm
from saeval.results.result import Result
from saeval.stats.estimate import LEAST, ROUNDING, t_test


@dataclass(frozen=True)
class Verdict:
    """The test of a value of a trained row, a group or the model against its column's `Null`, and its claim."""

    row: Row
    name: str
    """The row's name, with its hook if several rows have the name."""
    column: Column
    entry: Entry
    p: float
    p_holm: float
    """The p value after Holm's correction over all `tests` of the metric on the board."""
    tests: int

    @property
    def value(self) -> float:
        """The value tested."""
        assert self.entry.value is not None
        return self.entry.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The value's 95% interval, not corrected for several tests."""
        return self.entry.ci95

    @property
    def null(self) -> Mapping[str, Any]:
        """The value's null hypothesis, as `Null.record` writes it."""
        assert self.entry.null is not None
        return self.entry.null

    @property
    def claim(self) -> str:
        """The words of the claim, such as `more harmful than`; empty if there is none."""
        distance = self.value - self.null["value"]
        side = self.null["above"] if distance > 0 else self.null["below"] if distance < 0 else None
        return side if side and self.p_holm < ALPHA else ""

    @property
    def claimed(self) -> bool:
        """True if the null is rejected at 5%, on a side that allows a claim."""
        return bool(self.claim)

    @property
    def qualifier(self) -> str:
        """Words that follow the claim, such as `a tail effect`; empty if there are none."""
        return self.null.get("qualifier") or ""

    @property
    def outcome(self) -> str:
        """The claim about the row without its numbers, or that there is none: `more harmful than noise`."""
        qualifier = f", {self.qualifier}" if self.qualifier and self.claimed else ""
        return f"{self.claim or 'cannot be distinguished from'} {self.null['name']}{qualifier}"

    @property
    def words(self) -> str:
        """The verdict as a sentence without its full stop."""
        ends = f" [{interval(self.interval, self.entry.stderr)}]" if self.interval else ""
        p = "p < 0.0001" if self.p_holm < 1e-4 else f"p = {number(self.p_holm, 2)}"
        correction = f" after Holm's correction over {self.tests} tests" if self.tests > 1 else ""
        numbers = f"{self.column.name}: {with_error(self.value, self.entry.stderr)}{ends}, {p}{correction}"
        return f"{self.name} {'is ' * self.claimed}{self.outcome} ({numbers})"


def verdicts(board: Board) -> list[Verdict]:
    """Return the verdict on each trained row, group and model in each column with a null, in the board's order.

    The test is the t test of the value's error over documents or seeds, or the p value that the metric gave. It is
    two-sided, or one-sided if the null allows a claim on one side only. Holm's correction is over all tests of a
    metric, in shown and other columns, so a metric makes a false claim on a board with a probability of 5% at most.
    """
    columns = [column for column in board.columns if column.null is not None]
    rows = [row for row in board.rows if row.kind in ("sae", "group", "model") and row.control is None]
    families: dict[str, list[tuple[Row, Column, Entry, float]]] = {}
    for column in columns:
        for row in rows:
            entry = row.entries.get(column.name)
            if entry is not None and (p := _p_value(entry)) is not None:
                families.setdefault(column.metric, []).append((row, column, entry, p))
    names = Counter(row.name for row in rows)
    made: dict[tuple[str, int], Verdict] = {}
    for family in families.values():
        for (row, column, entry, p), corrected in zip(family, holm([test[-1] for test in family]), strict=True):
            assert corrected is not None
            name = row.name if names[row.name] == 1 else f"{row.name}@{row.hook_name}"
            made[column.name, id(row)] = Verdict(row, name, column, entry, p, corrected, len(family))
    places = [(column.name, id(row)) for row in rows for column in columns]
    return [made[place] for place in places if place in made]


def verdicts_on(results: Sequence[Result]) -> list[Verdict]:
    """Return the verdicts on results in hand, such as those that a page shows, with the leads of their suite's
    `against:`."""
    return [verdict for board in of_pages(results) for verdict in verdicts(board)]


def untested_on(results: Sequence[Result]) -> list[str]:
    """Return a sentence per reason why values of these results with a null hypothesis are not tested."""
    return [sentence for board in of_pages(results) for sentence in board.untested]


def verdicts_in_words(given: Sequence[Verdict]) -> list[str]:
    """Return a sentence per column and null: the rows of each claim, the first few by name, and how many have none.

    Columns without a claim share one sentence.
    """
    by_null: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in given:
        by_null.setdefault((verdict.column.name, verdict.null["name"]), []).append(verdict)
    sentences, without = [], []
    for (name, null), own in by_null.items():
        claims: dict[str, list[str]] = {}
        for verdict in own:
            if verdict.claimed:
                qualifier = f" ({verdict.qualifier})" if verdict.qualifier else ""
                claims.setdefault(verdict.claim, []).append(f"{verdict.name}{qualifier}")
        if not claims:
            without.append(f"{name}: {null}")
            continue
        parts = [f"{len(rows)} of {len(own)} {_are(rows)} {claim} %s: {_named(rows)}" for claim, rows in claims.items()]
        parts = [part.replace("%s", null if place == 0 else "it") for place, part in enumerate(parts)]
        if rest := len(own) - sum(map(len, claims.values())):
            parts.append(f"{rest} cannot be distinguished from it")
        sentences.append(f"{name}: {'; '.join(parts)} ({_correction(own[0])})")
    if without:
        sentences.append(f"no row can be distinguished from its null ({'; '.join(without)})")
    return sentences


def _are(rows: Sequence[str]) -> str:
    return "is" if len(rows) == 1 else "are"


def _named(rows: Sequence[str]) -> str:
    rest = len(rows) - SHOWN
    return ", ".join(rows[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _correction(verdict: Verdict) -> str:
    return f"5% level, Holm's correction over {verdict.tests} tests" if verdict.tests > 1 else "5% level, one test"


def _p_value(entry: Entry) -> float | None:
    """Return the p value of an entry against its null; None if it cannot be tested, or if no side allows a claim."""
    null = entry.null
    if entry.value is None or null is None or not (null["above"] or null["below"]):
        return None
    if entry.p is not None:
        return entry.p
    error = entry.stderr
    units = entry.support.effective if entry.support is not None else len(entry.seeds or ())
    if error is None or units < LEAST or not math.isfinite(error):
        return None
    distance = entry.value - null["value"]
    p = t_test(distance, error if error > ROUNDING * abs(entry.value) else 0.0, units - 1)
    if p is None or (null["above"] and null["below"]):
        return p
    return p / 2 if (distance > 0) == bool(null["above"]) else 1 - p / 2
