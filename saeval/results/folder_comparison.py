"""`FolderComparison`: two runs, in what they are configured differently, and the difference of each number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError, suggestion
from saeval.base.formatting import counted
from saeval.results.board import Board, Column, Entry, Row, limit_notice, some
from saeval.results.comparability import (
    FieldDifference,
    classes,
    configurations,
    differences,
    of_cells,
    one_sided,
    rows_of,
)
from saeval.results.index import StaleError
from saeval.results.leaderboard import boards_on
from saeval.results.paired_tests import ALPHA, Difference, difference, distinct, holm
from saeval.results.result import Result
from saeval.results.store import Store
from saeval.stats.estimate import LEAST

_NOTHING = 1e-15
"""Difference of two sums that should be 0."""
ENVIRONMENT = ("saeval", "commit", "python", "libraries", "device", "dtypes", "batch_size")
"""Fields of the provenance that may move numbers without being part of their configuration."""


@dataclass(frozen=True)
class Matched:
    """One value of a subject that both runs have."""

    row_a: Row
    row_b: Row
    column: Column
    a: Entry
    b: Entry
    difference: Difference
    """a - b."""
    paired: bool
    """True if both are over the same documents, which the difference is then paired by."""
    p_holm: float | None = None
    """The test's p value, corrected for all distinct tests of the comparison; None without a test."""

    @property
    def subject(self) -> str:
        """The name that both runs give the subject."""
        return self.row_a.name

    @property
    def sure(self) -> bool | None:
        """True if the difference is significant at the 5% level after correction; None without a test."""
        return None if self.p_holm is None else self.p_holm < ALPHA

    @property
    def equal(self) -> bool:
        """True if both runs have the same number, but for rounding."""
        return abs(self.difference.value) <= max(self.difference.rounding, _NOTHING)

    @property
    def better(self) -> str | None:
        """`a` or `b`, the run with the better value; None for equal values and those without a better direction."""
        if self.column.better is None or self.equal:
            return None
        return "b" if (self.difference.value > 0) == (self.column.better == "lower") else "a"

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if self.equal or self.sure is None:
            return "equal" if self.equal else "not_tested"
        if not self.sure:
            return "inseparable"
        return {"b": "better", "a": "worse"}.get(self.better or "", "different")


OUTCOMES = {
    "better": "better",
    "worse": "worse",
    "different": "different without a better direction",
    "inseparable": "not distinguishable",
    "equal": "equal",
    "not_tested": "not tested",
}
"""What the second run's number can be, beside the first one's, in words."""


@dataclass
class FolderComparison:
    """Two runs side by side: first in what they differ, then each value of the subjects that both have."""

    a: str
    """The first folder."""
    b: str
    fields: list[FieldDifference]
    """The fields of model, data, metrics and subjects that differ."""
    environment: list[FieldDifference]
    """The fields of versions, devices and dtypes that differ."""
    values: list[Matched]
    notes: list[str]
    """What cannot be compared, and why; what only one of the runs has."""
    same_documents: bool
    tests: int
    """Number of distinct tests that the p values are corrected for."""
    limit: str = ""
    """The warning about runs with `--limit`; empty for whole runs."""
    lost: dict[str, list[Row]] = field(default_factory=dict)
    """Rows of the first run, by the columns in which the second has no value."""
    only_a: int = 0
    """Number of numbers that only the first run has."""
    only_b: int = 0

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of values of each of the `OUTCOMES`."""
        found = Counter(value.outcome for value in self.values)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def summary(self) -> str:
        """How many numbers were compared, what the second one is how often, and how many only one run has."""
        kinds = Counter(row.kind for row in {id(value.row_a): value.row_a for value in self.values}.values())
        rows = " and ".join(counted(count, _NOUNS.get(kind, kind)) for kind, count in kinds.items())
        columns = counted(len({value.column.name for value in self.values}), "value")
        always = ("better", "worse", "inseparable")
        parts = [f"{OUTCOMES[name]} in {count}" for name, count in self.outcomes.items() if count or name in always]
        found = f"Compared: {counted(len(self.values), 'pair')} of numbers ({rows} × {columns})."
        only = [(self.only_a, "first"), (self.only_b, "second")]
        one = [f"Only in the {run}: {counted(count, 'number')}." for count, run in only if count]
        return " ".join([found, f"The second run is {', '.join(parts)}.", *one])

    @property
    def asides(self) -> list[str]:
        """Sentences to print to standard error with a format that has no notes, such as CSV."""
        limit = [self.limit] if self.limit else []
        return [*limit, *(f"configured differently: {d.words}" for d in self.fields), self.summary, *self.notes]

    def records(self) -> list[dict[str, Any]]:
        """Return a flat record per value."""
        return [_record(value) for value in self.values]


_NOUNS = {"sae": "SAE"}


def _record(value: Matched) -> dict[str, Any]:
    low, high = value.difference.ci95 or (None, None)
    return {
        "name": value.subject,
        "hook_name": value.row_a.hook_name,
        "kind": value.row_a.kind,
        "value": value.column.name,
        "unit": value.column.unit,
        "direction": value.column.better,
        "value_a": value.a.value,
        "value_b": value.b.value,
        "difference": value.difference.value,
        "stderr": value.difference.stderr,
        "ci95_low": low,
        "ci95_high": high,
        "p": value.difference.p_value,
        "p_holm": value.p_holm,
        "detectable": value.difference.detectable,
        "paired": value.paired,
        "outcome": value.outcome,
        "better": value.better,
        "sure": value.sure,
        "reason": value.difference.reason,
    }


@dataclass
class _Run:
    folder: str
    boards: list[Board]
    cell: Mapping[str, Any]
    metrics: Mapping[str, Any]
    subjects: Mapping[str, Any]
    environment: Mapping[str, Any]

    def rows(self) -> Iterator[tuple[Board, Row]]:
        return ((board, row) for board in self.boards for row in board.rows)


def _read(folder: Path | str, include_limited: bool) -> _Run:
    how = {"include_limited": include_limited}
    try:
        boards, _ = boards_on([folder], **how)
    except StaleError:  # damaged arrays, which no leaderboard tests
        boards, _ = boards_on([folder], **how, every_array=True)
    store = Store(folder)
    listed = store.listed(include_limited)["cells"]
    if not listed or not boards:
        raise SaevalError(f"{folder}: this run has no cells to compare")
    results = [Result(entry["key"], "missing", entry["cell"]) for entry in listed]
    stored = next((r for entry in listed if (r := store.read(entry["key"])) and r.provenance), None)
    provenance = stored.provenance if stored else {}
    environment = {name: provenance[name] for name in ENVIRONMENT if name in provenance}
    subjects = {f"{s['name']}@{s['hook_name']}": s for r in results for s in r.cell["subjects"]}
    return _Run(str(folder), boards, listed[0]["cell"], configurations(results), subjects, environment)


def compare_folders(
    a: Path | str, b: Path | str, metrics: Sequence[str] = (), *, include_limited: bool = False
) -> FolderComparison:
    """Compare two results folders in some metrics or `metric.value`s (default: all).

    Raises `SaevalError` for a folder without results, for an unknown value, and if no subject has a value in both.
    """
    run_a, run_b = _read(a, include_limited), _read(b, include_limited)
    fields = of_cells(run_a.cell, run_b.cell)
    fields += one_sided("metrics", run_a.metrics, run_b.metrics)
    for name in (name for name in run_a.metrics if name in run_b.metrics):
        fields += differences(run_a.metrics[name], run_b.metrics[name], f"metrics.{name}")
    fields += _of_subjects(run_a.subjects, run_b.subjects)
    changed = {name for name in run_a.metrics if classes([{name: run_a.metrics[name]}, run_b.metrics]) != [0, 0]}
    same_documents = rows_of(run_a.cell) == rows_of(run_b.cell)
    same_model = _weights(run_a.cell) == _weights(run_b.cell)
    columns = [column for column in _columns((run_b, run_a), metrics) if column.metric not in changed]
    if metrics:  # a printed table shows what was asked for
        columns = [replace(column, headline=True) for column in columns]
    in_a, in_b = _numbers(run_a, run_b, columns), _numbers(run_b, run_a, columns)
    if not in_a.both:
        raise SaevalError(f"'{a}' and '{b}' have no value of one subject in common")
    values, tests = corrected([_matched(*pair, same_documents, same_model) for pair in in_a.both])
    changed_words = [f"{name} is another metric in {b}, so its numbers are not compared" for name in sorted(changed)]
    left_out = [
        f"{run.folder}: {sentence}" for run in (run_a, run_b) for board in run.boards for sentence in board.left_out
    ]
    environment = differences(run_a.environment, run_b.environment)
    notes = [*changed_words, *in_a.notes, *in_b.notes, *left_out]
    only_a, only_b = (sum(map(len, numbers.lost.values())) for numbers in (in_a, in_b))
    limit = next((words for run in (run_a, run_b) if (words := limit_notice(run.cell["data"]))), "")
    lost = (in_a.lost, only_a, only_b)
    return FolderComparison(str(a), str(b), fields, environment, values, notes, same_documents, tests, limit, *lost)


def corrected(values: Sequence[Matched]) -> tuple[list[Matched], int]:
    """Return the values with p values corrected over all their distinct tests, and the number of these tests.

    Two values of one subject may be the same test, such as `fvu` and `explained_variance`.
    """
    places: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(id(value.row_a), []).append(place)
    first: list[int | None] = [None] * len(values)
    for own in places.values():
        for place, twin in zip(own, distinct([values[p].difference for p in own]), strict=True):
            first[place] = None if twin is None else own[twin]
    p_values = [v.difference.p_value if first[place] == place else None for place, v in enumerate(values)]
    adjusted = holm(p_values)
    made = [
        Matched(v.row_a, v.row_b, v.column, v.a, v.b, v.difference, v.paired, None if twin is None else adjusted[twin])
        for v, twin in zip(values, first, strict=True)
    ]
    return made, sum(p is not None for p in p_values)


_OWN = ("key", "sha256", "file_checksum")


def _of_subjects(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[FieldDifference]:
    """Return the subjects that only one run has, and the declared fields of the others that differ."""
    fields = one_sided("subjects", a, b)
    for name in (name for name in a if name in b):
        own = differences(a[name], b[name], f"subjects.{name}")
        telling = [d for d in own if d.name.rpartition(".")[2] not in _OWN]
        fields += telling or own[:1]
    return fields


def _weights(cell: Mapping[str, Any]) -> Any:
    model = cell["model"] or {}
    return model.get("weights") or model


def _columns(runs: Sequence[_Run], metrics: Sequence[str]) -> list[Column]:
    """Return the columns of the runs that the names mean, or all; `SaevalError` for a name of none."""
    columns = {column.name: column for run in runs for board in run.boards for column in board.columns}
    for name in metrics:
        if not any(name in (c.name, c.metric) for c in columns.values()):
            known = dict.fromkeys([*columns, *(c.metric for c in columns.values())])
            raise SaevalError(f"no value '{name}' in these results{suggestion(name, known)}")
    return [c for c in columns.values() if not metrics or {c.name, c.metric} & set(metrics)]


@dataclass
class _Numbers:
    """The numbers of one run by row, of which the other run has some."""

    both: list[tuple[Row, Row, Column]] = field(default_factory=list)
    lost: dict[str, list[Row]] = field(default_factory=dict)
    """The rows of the numbers that the other run lacks, by column."""
    notes: list[str] = field(default_factory=list)
    """Why it lacks them on subjects that it has, in metrics that it has."""


def _numbers(a: _Run, b: _Run, columns: Sequence[Column]) -> _Numbers:
    """Return the numbers of `a`, in its order, and what `b` has of them."""
    numbers, wanted = _Numbers(), {column.name: column for column in columns}
    others = {(row.name, row.hook_name): row for _, row in b.rows()}
    lacking: dict[tuple[str, str], list[str]] = {}
    for board, row in a.rows():
        other = others.get((row.name, row.hook_name))
        for column in (wanted[column.name] for column in board.columns if column.name in wanted):
            entry, theirs = row.entries.get(column.name), other.entries.get(column.name) if other else None
            if entry is None or entry.value is None:
                continue
            if other is not None and theirs is not None and theirs.value is not None:
                numbers.both.append((row, other, column))
                continue
            numbers.lost.setdefault(column.name, []).append(row)
            if other is not None and column.metric in b.metrics:
                why = "the metric was not run on it" if theirs is None else theirs.reason or theirs.status
                lacking.setdefault((row.name, why), []).append(column.name)
    alike: dict[tuple[str, str], list[str]] = {}
    for (name, why), names in lacking.items():
        alike.setdefault((some(names), why), []).append(name)
    numbers.notes = [f"{b.folder} lacks {names} of {some(rows)} ({why})" for (names, why), rows in alike.items()]
    return numbers


OTHER_MODEL = "comparable within a model only, and the models differ"
NO_ERROR = "one of the values has no error over documents"


def _matched(row_a: Row, row_b: Row, column: Column, same_documents: bool, same_model: bool) -> Matched:
    a, b = row_a.entries[column.name], row_b.entries[column.name]
    apart = not same_model and column.comparable != "everywhere"
    tested = _difference(a, b, same_documents, apart)
    return Matched(row_a, row_b, column, a, b, tested, same_documents and not apart)


def _difference(a: Entry, b: Entry, same_documents: bool, apart: bool) -> Difference:
    """Return a - b: paired if the documents are the same, else with the errors of both as of independent samples."""
    assert a.value is not None
    assert b.value is not None
    value = a.value - b.value
    if apart:
        return Difference(value, reason=OTHER_MODEL)
    if same_documents:
        return difference(a, b)
    parts = [(e.stderr, e.support.effective) for e in (a, b) if e.stderr is not None and e.support is not None]
    if len(parts) < 2 or any(count < LEAST or not math.isfinite(error) for error, count in parts):
        return Difference(value, reason=NO_ERROR)
    proportions = a.proportion and b.proportion
    return Difference(value, tuple((error**2, count - 1.0) for error, count in parts), of_proportions=proportions)
