"""`Board`: a table of comparable rows, as reports are given it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeval.base.formatting import counted, number
from saeval.stats.estimate import FEW, LEAST, UNRELIABLE, Estimate, Support, reliability_warnings

if TYPE_CHECKING:
    from saeval.results.result import Result

SHOWN = 6
"""Places that a note names."""


@dataclass(frozen=True)
class Column:
    """One value of one configured metric."""

    name: str
    """`alias.value`, as suites write it."""
    unit: str = ""
    better: str | None = None
    headline: bool = True
    """Shown in a printed table; the others are in JSON and CSV."""
    paired: bool = False
    """Its values are paired differences."""

    @property
    def metric(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def value(self) -> str:
        return self.name.split(".", 1)[-1]


@dataclass
class Entry:
    """One number of a row; without a value, `reason` says why."""

    value: float | None = None
    stderr: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    status: str = "missing"
    reason: str | None = None
    estimate: Estimate | None = None
    draws: int = 1
    """Independent draws of a control that were averaged."""
    spread: float = 0.0
    """Variance of the average over draws; sampling of documents does not contain it."""
    support: Support | None = None
    """What its error rests on; None where that is not documents."""
    detectable: float | None = None
    """Of a paired difference: the smallest that one test detects with 80% power, t.975 + t.80 standard errors."""

    @property
    def testable(self) -> bool:
        """True if its paired differences may have a test: it is known without each of several documents."""
        return self.estimate is not None and (self.support is None or self.support.effective >= LEAST)

    def __post_init__(self) -> None:
        if self.value is not None:
            self.value += 0.0  # no negative zero in any table


class Entries(MutableMapping[str, Entry]):
    """The entries of a row by the names of their columns; those of results are made when they are asked for."""

    def __init__(self, columns: Mapping[str, Sequence[str]], make: Callable[[Result, str], Entry]) -> None:
        """`columns`: the columns of each metric. `make` gives a result's entry of a value."""
        self._columns, self._make = columns, make
        self._results: dict[str, Result] = {}
        self._made: dict[str, Entry] = {}

    def add(self, result: Result) -> None:
        """The row has this result."""
        self._results[result.metric] = result

    def __getitem__(self, name: str) -> Entry:
        if name not in self._made:
            metric, _, value = name.partition(".")
            if metric not in self._results or name not in self._columns.get(metric, ()):
                raise KeyError(name)
            self._made[name] = self._make(self._results[metric], value or metric)
        return self._made[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._made[name] = entry

    def __delitem__(self, name: str) -> None:
        raise TypeError("a row's entries stay")

    def __iter__(self) -> Iterator[str]:
        own = [name for metric in self._results for name in self._columns.get(metric, ())]
        yield from dict.fromkeys([*own, *self._made])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass
class Row:
    """One subject at one hook."""

    name: str
    hook_name: str
    kind: str
    entries: MutableMapping[str, Entry] = field(default_factory=dict)
    rank: int | None = None
    """1 + the trained rows that are surely better in the column ranked by."""
    rank_high: int | None = None
    """The number of trained rows less those surely worse; ties are not transitive, so a rank is an interval."""
    detectable: float | None = None
    """Minimum detectable difference to the top row in the column ranked by, in its unit; None for that row."""
    support: Support | None = None
    """What the error of that difference rests on."""
    copies: int = 1
    control: str | None = None
    """A control's name in its suite, without its parent."""
    of: str | None = None
    """The SAE that a control was built from."""
    site: str = ""
    """The one name of its hook, of which `hook_name` may be another spelling."""


@dataclass
class Board:
    """A table of comparable rows."""

    title: str
    model: str
    """Its name; empty where the suite has no model."""
    data: Mapping[str, Any]
    columns: list[Column]
    rows: list[Row]
    rank_by: str | None
    limited: bool = False
    warnings: list[str] = field(default_factory=list)
    """What the layout asked for and the results do not have."""
    left_out: list[str] = field(default_factory=list)
    """Of `warnings`, those on results that are not there."""
    sample: Mapping[str, Any] | None = None
    """Where the suite's `precision:` stopped, as in `Result.sample`; None where all rows were taken."""

    @property
    def shown(self) -> list[Column]:
        """The columns for people; `columns` has them all."""
        return [column for column in self.columns if column.headline]

    @property
    def doubts(self) -> list[str]:
        """Why errors of shown columns, and of differences to the top row, are unreliable: each reason's worst place."""
        return self._doubts(self.shown)

    @property
    def asides(self) -> list[str]:
        """For standard error beside a text without notes, such as CSV: results left out, errors of any column."""
        return [*self.left_out, *self._doubts(self.columns)]

    def _doubts(self, columns: Sequence[Column]) -> list[str]:
        values: list[tuple[Support, str]] = []
        tests: list[tuple[Support, str]] = []
        errors = False
        for row in self.rows:
            for column in columns:
                entry = row.entries.get(column.name)
                if entry is None or entry.stderr is None:
                    continue
                errors = True
                if (support := entry.support) is not None and support.unreliable:
                    (tests if column.paired else values).append((support, f"{column.name} of {row.name}"))
        tests += [(row.support, f"{row.name} beside the top row") for row in self.rows if row.support is not None]
        sentences = reliability_warnings(values, tests)
        documents = document_count(self.data)
        if not sentences and errors and documents is not None and 1 < documents < FEW:
            sentences = [f"fewer than {FEW} documents ({documents}): {UNRELIABLE}"]
        return sentences

    @property
    def stop(self) -> str:
        """The same in words; empty where the suite asks for no precision."""
        return stop_in_words(self.sample)

    @property
    def notes(self) -> list[str]:
        """Why numbers are missing, each reason once."""
        notes: dict[str, dict[str, None]] = {}
        shown = self.shown
        for row in self.rows:
            for column in shown:
                entry = row.entries.get(column.name)
                if entry is not None and entry.value is None and entry.reason:
                    places = notes.setdefault(f"{entry.status}: {entry.reason}", {})
                    places.setdefault(f"{column.metric} of {row.name}")
        return [*self.warnings, *(f"{reason} ({_some(list(places))})" for reason, places in notes.items())]


def _some(places: Sequence[str]) -> str:
    """The first few; each row has its own reason in JSON and CSV."""
    rest = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def limit_notice(data: Mapping[str, Any]) -> str:
    """What every table and page of a run with `--limit` says first; empty for a whole run."""
    limit = data.get("limit")
    if limit is None:
        return ""
    return f"Limited run: only the first {limit} sequences were used. Its numbers are not comparable with others."


def damaged_in_words(results: Sequence[Result]) -> str:
    """What every table and page made without them says of damaged results; empty where there are none."""
    damaged = sum(result.status == "damaged" for result in results)
    if not damaged:
        return ""
    counted = f"{damaged} of {len(results)} results {'are' if damaged > 1 else 'is'} damaged and left out"
    return f"{counted}, also of ranks; run the suite again to compute {'them' if damaged > 1 else 'it'} again."


_UNITS = ("sequence", "document", "token")


def size_in_words(data: Mapping[str, Any]) -> list[str]:
    """How many sequences, documents and tokens a run had, in words, as far as they are known."""
    known = {**data, "documents": document_count(data)}
    counts = [(known[f"{noun}s"], noun) for noun in _UNITS if known.get(f"{noun}s") is not None]
    return [counted(count, noun) if isinstance(count, int) else f"{count} {noun}s" for count, noun in counts]


def document_count(data: Mapping[str, Any]) -> int | None:
    """How many documents a run had; older results say `clusters`."""
    found: int | None = data.get("clusters", data.get("documents"))
    return found


def stop_in_words(sample: Mapping[str, Any] | None) -> str:
    """Where a run with `precision:` stopped, and why."""
    if sample is None:
        return ""
    wanted = ", ".join(f"{name} ± {target:g}" for name, target in sample["precision"].items())
    taken = f"{sample['sequences']} of {sample['of']['sequences']} sequences"
    counts = f"{sample['tokens']} tokens ({taken}, {sample['documents']} of {sample['of']['documents']} documents)"
    if sample["stopped_adaptively"]:
        return f"stopped adaptively after {counts}, every subject within {wanted}"
    last = sample["looks"][-1] if sample["looks"] else None
    if last is None:
        return f"did not stop early, after {counts}: too few documents to look at the errors before the end"
    worst = ", ".join(
        f"{name} ± {number(error, 2) if error is not None else '?'} of {last['largest_of'][name]}"
        for name, error in last["errors"].items()
    )
    return f"did not stop early, after {counts}: wanted {wanted}, but had {worst} at {last['sequences']} sequences"
