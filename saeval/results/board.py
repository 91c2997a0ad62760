"""`Board`: a table of comparable rows, as reports receive it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from saeval.base.formatting import counted, number
from saeval.stats.estimate import FEW, LEAST, UNRELIABLE, Estimate, Support, reliability_warnings

if TYPE_CHECKING:
    from saeval.results.result import Result

T = TypeVar("T")

SHOWN = 6
"""Number of places that a note names."""


@dataclass(frozen=True)
class Column:
    """One value of one configured metric, such as `ce.delta_ce`."""

    name: str
    """`alias.value`, as suites write it."""
    unit: str = ""
    better: str | None = None
    """`lower`, `higher`, or None for a value without a better direction."""
    headline: bool = True
    """True if printed tables show it; JSON and CSV have all columns."""
    main: bool = False
    """True if its metric declares it a main value, which narrow tables keep before others."""
    paired: bool = False
    """True if its values are paired differences to a control."""
    comparable: str = "model"
    """The rows that its numbers may be ranked and tested against: of the same `hook`, `model`, or `everywhere`."""
    null: Mapping[str, Any] | None = field(default=None, compare=False)
    """The null hypothesis of its tests, as `Null.record` writes it; None if it has none."""
    control: Mapping[str, Any] | None = field(default=None, compare=False)
    """The null hypothesis that stands for a control; the column `NAME vs CONTROL` has its tests."""

    certified: tuple[str, str] = field(default=("", ""), compare=False)
    """What the suite's certificate says of it, if there is one: a mark such as `✓`, and the verdict in words."""
    depends: str = field(default="", compare=False)
    """What its values depend on besides SAE, model and text, and why, such as `the number of tokens: REASON`."""

    @property
    def metric(self) -> str:
        """The metric's alias in the suite."""
        return self.name.split(".", 1)[0]

    @property
    def value(self) -> str:
        """The value's name within its metric."""
        return self.name.split(".", 1)[-1]


@dataclass
class Entry:
    """One number of a row. Without a value, `status` and `reason` say why."""

    value: float | None = None
    stderr: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    status: str = "missing"
    reason: str | None = None
    estimate: Estimate | None = None
    draws: int = 1
    """Number of independent draws of a control that were averaged."""
    spread: float = 0.0
    """Variance of the average due to the choice of draws, in squared units; the sampling of documents adds to it."""
    support: Support | None = None
    """The documents behind its error; None if the error is not over documents."""
    detectable: float | None = None
    """Minimum detectable difference, of a paired difference: one test at 5% with 80% power, t.975 + t.80 errors."""
    proportion: bool = False
    """True for a share of independent documents, whose interval lies inside [0, 1]."""
    p: float | None = None
    """The p value against the column's null, if it is not by the t test of the error over documents."""
    null: Mapping[str, Any] | None = None
    """The null hypothesis that it is tested against, as `Null.record` writes it; None without a test."""
    seeds: tuple[str, ...] | None = None
    """The seeds that the error of a group's value is over; None for an error over documents."""

    @property
    def testable(self) -> bool:
        """True if its paired differences can be tested: its values without each of several documents are stored."""
        return self.estimate is not None and (self.support is None or self.support.effective >= LEAST)

    @property
    def untested(self) -> str | None:
        """The reason why a value with a null hypothesis has no test; None if it has one, or has no null."""
        without = self.value is not None and self.stderr is None and self.p is None
        return self.reason if without and self.null and (self.null["above"] or self.null["below"]) else None

    def __post_init__(self) -> None:
        if self.value is not None:
            self.value += 0.0  # no negative zero in any table


class Entries(MutableMapping[str, Entry]):
    """The entries of a row by column name; an entry of a result is built on first access."""

    def __init__(self, columns: Mapping[str, Sequence[str]], make: Callable[[Result, str], Entry]) -> None:
        """`columns`: column names by metric. `make` builds the entry of a value from a result."""
        self._columns, self._make = columns, make
        self._results: dict[str, Result] = {}
        self._made: dict[str, Entry] = {}

    def add(self, result: Result) -> None:
        """Add the entries of a result to the row."""
        self._results[result.metric] = result

    @property
    def results(self) -> list[Result]:
        """The results behind the entries, in the suite's order."""
        return list(self._results.values())

    def __getitem__(self, name: str) -> Entry:
        if name not in self._made:
            metric, _, value = name.partition(".")
            if metric not in self._results or name not in self._columns.get(metric, ()):
                raise KeyError(name)
            self._made[name] = self._make(self._results[metric], value or metric)
        return self._made[name]

    @overload
    def get(self, name: str) -> Entry | None: ...
    @overload
    def get(self, name: str, default: T) -> Entry | T: ...
    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping: for 100,000 entries that are there, in a third of the time."""
        made = self._made.get(name)
        return super().get(name, default) if made is None else made

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._made[name] = entry

    def __delitem__(self, name: str) -> None:
        raise TypeError("a row's entries cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        of_results = [name for metric in self._results for name in self._columns.get(metric, ())]
        yield from dict.fromkeys([*of_results, *self._made])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass
class Row:
    """One subject at one hook: an SAE, a control, a group of SAEs, or the model."""

    name: str
    hook_name: str
    kind: str
    """`sae`, `control`, `group` or `model`."""
    entries: MutableMapping[str, Entry] = field(default_factory=dict)
    """Its numbers by column name; a column may have none."""
    rank: int | None = None
    """1 + the number of SAEs that are significantly better in the column ranked by; None for an unranked row. If the
    column is comparable within a hook only, ranks are among the SAEs at the row's hook."""
    rank_high: int | None = None
    """Number of ranked SAEs − those that are significantly worse. Ties are not transitive, so a rank is an interval."""
    detectable: float | None = None
    """Minimum detectable difference to the top row in the column ranked by, in its unit; None for the top row."""
    support: Support | None = None
    """The documents behind the error of that difference."""
    copies: int = 1
    """Number of draws of a control that the row averages."""
    control: str | None = None
    """A control's name in its suite, without the SAE that it was built from."""
    of: str | None = None
    """The SAE or group that a control was built from."""
    keys: tuple[str, ...] = ()
    """The keys of its subjects, in member order."""
    of_keys: tuple[str | None, ...] = ()
    """The keys of the SAEs that a control was built from; None for an older result, which lacks them."""
    site: str = ""
    """The model's own name of the hook; `hook_name` may be an alias of it."""
    results: list[Result] = field(default_factory=list, repr=False, compare=False)
    """The results behind its numbers; of an average over draws of a control, those of all draws."""


@dataclass
class Board:
    """A table of comparable rows, which all have the same model and data."""

    title: str
    model: str
    """The model's name; empty if the suite has no model."""
    data: Mapping[str, Any]
    """The facts that identify the data: source, fingerprint, and numbers of sequences, documents and tokens."""
    columns: list[Column]
    rows: list[Row]
    rank_by: str | None
    """Name of the column that rows are ranked by."""
    limited: bool = False
    """True for a run with `--limit`, whose numbers are not comparable with others."""
    warnings: list[str] = field(default_factory=list)
    """Unmet requests of the suite's `leaderboard:`, missing results, findings of the preflight, remarks of metrics."""
    left_out: list[str] = field(default_factory=list)
    """Those of `warnings` that are about missing or damaged results."""
    apart: str = ""
    """Why its rows are not in the first board of those given together, with the fields that differ; empty for the first
    board."""
    sample: Mapping[str, Any] | None = None
    """Where the suite's `precision:` stopped, as in `Result.sample`; None if the suite has no `precision:`."""
    within_hooks: bool = False
    """True if rows are ordered by hook, and ranks are among the SAEs at one hook."""
    chosen: bool = False
    """True if a user named the shown columns, so that a table has them all, whatever its width."""

    @property
    def shown(self) -> list[Column]:
        """The columns of a printed table."""
        return [column for column in self.columns if column.headline]

    @property
    def importance(self) -> list[list[int]]:
        """The places of the shown columns in two tiers: the one ranked by and the main values; the others."""
        shown = self.shown
        ranked = [place for place, column in enumerate(shown) if column.name == self.rank_by]
        main = [place for place, column in enumerate(shown) if column.main and place not in ranked]
        others = [place for place in range(len(shown)) if place not in ranked and place not in main]
        return [[*ranked, *main], others]

    def _repr_html_(self) -> str:
        from saeval.results.notebook import board_section, section_html  # late: it imports this module

        return section_html(board_section(self))

    @property
    def doubts(self) -> list[str]:
        """Reasons why errors of shown columns or of differences to the top row are unreliable, each with its worst
        place. Every format has these sentences; JSON and CSV have the reason of each value too."""
        values: list[tuple[Support, str]] = []
        tests: list[tuple[Support, str]] = []
        errors = False
        for row in self.rows:
            for column in self.shown:
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
    def asides(self) -> list[str]:
        """Sentences to print to standard error with a format that has no notes, such as CSV: missing and damaged
        results, unreliable errors."""
        return [*([self.apart] if self.apart else []), *self.left_out, *self.doubts]

    @property
    def stop(self) -> str:
        """Where the suite's `precision:` stopped, in words; empty if the suite has none."""
        return stop_in_words(self.sample)

    @property
    def tokens(self) -> str:
        """The number of tokens, for values that depend on it; empty if it is not known or a `precision:` may cut it."""
        return tokens_in_words(self.data, self.sample)

    @property
    def dependences(self) -> list[str]:
        """A sentence for each thing that shown columns depend on besides SAE, model and text, with their names."""
        shown = [(column.name, column.depends) for column in self.shown if not column.paired]
        return dependences_in_words(shown, self.tokens)

    @property
    def notes(self) -> list[str]:
        """The warnings, dependences, and reasons for missing numbers, each once with its places."""
        notes: dict[str, dict[str, None]] = {}
        shown, tested = self.shown, [column for column in self.columns if column.headline or column.paired]
        for row in self.rows:
            for column in shown:
                entry = row.entries.get(column.name)
                if entry is not None and entry.value is None and entry.reason:
                    places = notes.setdefault(f"{entry.status}: {entry.reason}", {})
                    places.setdefault(f"{column.metric} of {row.name}")
        return [*self.warnings, *self.certified, *self.dependences, *_with_places(notes), *self._untested(tested)]

    @property
    def certified(self) -> list[str]:
        """A sentence for each verdict of the suite's certificate on shown columns, with their names."""
        by_verdict: dict[tuple[str, str], list[str]] = {}
        for column in self.shown:
            if column.certified[0] and not column.paired:
                by_verdict.setdefault(column.certified, []).append(column.name)
        return [f"certificate: {mark} {words} ({some(own)})" for (mark, words), own in by_verdict.items()]

    @property
    def untested(self) -> list[str]:
        """Reasons why values with a null hypothesis are not tested, each once with its places."""
        return self._untested(self.columns)

    def _untested(self, columns: Sequence[Column]) -> list[str]:
        reasons: dict[str, dict[str, None]] = {}
        for row in (row for row in self.rows if row.kind != "control"):
            for column in columns:
                entry = row.entries.get(column.name)
                if entry is not None and entry.untested:
                    reasons.setdefault(f"not tested: {entry.untested}", {})[f"{column.name} of {row.name}"] = None
        return _with_places(reasons)


def _with_places(reasons: Mapping[str, Mapping[str, None]]) -> list[str]:
    return [f"{reason} ({some(list(places))})" for reason, places in reasons.items()]


def some(places: Sequence[str]) -> str:
    """Return the first few places in words; in JSON and CSV each row has its own reason."""
    rest = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def tokens_in_words(data: Mapping[str, Any], sample: Mapping[str, Any] | None) -> str:
    """Return the number of tokens of a run; empty if it is not known, or if a `precision:` may have cut it."""
    count = data.get("tokens") if sample is None else None
    return f"{count:,} tokens" if isinstance(count, int) else ""


def dependences_in_words(values: Iterable[tuple[str, str | None]], here: str) -> list[str]:
    """Return a sentence for each thing that values depend on besides SAE, model and text, with their names.

    `values` are names with what they depend on, if anything; `here` is what that is for these values, if it is known.
    """
    by_reason: dict[str, list[str]] = {}
    for name, depends in values:
        if depends:
            by_reason.setdefault(depends, []).append(name)
    return [
        f"{some(names)} {'depend' if len(names) > 1 else 'depends'} on {reason}{f'; here {here}' if here else ''}. "
        f"Compare {'them' if len(names) > 1 else 'it'} only where that is equal"
        for reason, names in by_reason.items()
    ]


def limit_notice(data: Mapping[str, Any]) -> str:
    """Return the warning that starts every table and page of a run with `--limit`; empty for a whole run."""
    limit = data.get("limit")
    if limit is None:
        return ""
    return f"Limited run: only the first {limit} sequences were used. Its numbers are not comparable with others."


def damaged_in_words(results: Sequence[Result]) -> str:
    """Return the warning of every table and page that leaves out damaged results; empty if there are none."""
    damaged = sum(result.status == "damaged" for result in results)
    if not damaged:
        return ""
    verb, pronoun = ("are", "them") if damaged > 1 else ("is", "it")
    left_out = f"{damaged} of {len(results)} results {verb} damaged and left out, also from ranks"
    return f"{left_out}; run the suite again to compute {pronoun} again."


_UNITS = ("sequence", "document", "token")


def size_in_words(data: Mapping[str, Any]) -> list[str]:
    """Return the numbers of sequences, documents and tokens of a run in words, each only if the run recorded it."""
    sizes = {**data, "documents": document_count(data)}
    counts = [(sizes[f"{noun}s"], noun) for noun in _UNITS if sizes.get(f"{noun}s") is not None]
    return [counted(count, noun) if isinstance(count, int) else f"{count} {noun}s" for count, noun in counts]


def document_count(data: Mapping[str, Any]) -> int | None:
    """Return the number of documents of a run, which older results call `clusters`; None if it is not recorded."""
    count: int | None = data.get("clusters", data.get("documents"))
    return count


def stop_in_words(sample: Mapping[str, Any] | None) -> str:
    """Return where a run with `precision:` stopped, and why; empty for None."""
    if sample is None:
        return ""
    wanted = ", ".join(f"{name} ± {target:g}" for name, target in sample["precision"].items())
    taken = f"{sample['sequences']} of {sample['of']['sequences']} sequences"
    counts = f"{sample['tokens']} tokens ({taken}, {sample['documents']} of {sample['of']['documents']} documents)"
    if sample["stopped_adaptively"]:
        return f"stopped adaptively after {counts}, every subject within {wanted}"
    last = sample["looks"][-1] if sample["looks"] else None
    if last is None:
        return f"did not stop early, after {counts}: too few documents to check the errors before the end"
    worst = ", ".join(
        f"{name} ± {number(error, 2) if error is not None else '?'} of {last['largest_of'][name]}"
        for name, error in last["errors"].items()
    )
    return f"did not stop early, after {counts}: wanted {wanted}, but had {worst} at {last['sequences']} sequences"
