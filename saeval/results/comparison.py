"""`Comparison`: two subjects side by side, each value with the paired difference and its test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeval.base.errors import SaevalError, suggestion
from saeval.results.board import Board, Column, Entry, Row, limit_notice, size_in_words
from saeval.results.paired_tests import ALPHA, Difference, difference, distinct, holm
from saeval.results.verdicts import Verdict, verdicts
from saeval.stats.estimate import reliability_warnings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Compared:
    """One value of both subjects."""

    column: Column
    a: Entry
    b: Entry
    difference: Difference
    """a - b."""
    p_holm: float | None
    """The paired test's p value, corrected for all distinct tests of the comparison; None without a test."""
    better: str | None
    """The name of the subject with the better value; None if both are equal, without a test, and if the value has no
    better direction."""

    @property
    def sure(self) -> bool | None:
        """True if the difference is significant at the 5% level after correction; None without a test."""
        return None if self.p_holm is None else self.p_holm < ALPHA


@dataclass
class Comparison(Sequence[Compared]):
    """Two subjects side by side: a sequence of the values that both have, in the leaderboard's order."""

    title: str
    model: str
    data: str
    a: Row
    b: Row
    rows: list[Compared]
    notes: list[str] = field(default_factory=list)
    """The values that only one of them has, and why the other lacks them."""
    stop: str = ""
    """Where an adaptive run stopped, in words."""
    limit: str = ""
    """The warning about a run with `--limit`; empty for a whole run."""
    tests: int = 0
    """Number of distinct tests that the p values are corrected for."""
    counts: Sequence[str] = ()
    """Numbers of sequences, documents and tokens behind the differences, in words."""
    left_out: Sequence[str] = ()
    """Missing and damaged results of the whole board, in words."""
    verdicts: Sequence[Verdict] = ()
    """The verdicts on the two, corrected over all rows of their board."""

    @property
    def doubts(self) -> list[str]:
        """Reasons why errors of the differences are unreliable, each with the value that it affects most."""
        supports = ((row.difference.support, row.column.name) for row in self.rows)
        return reliability_warnings((), ((support, name) for support, name in supports if support is not None))

    @property
    def asides(self) -> list[str]:
        """Sentences to print to standard error with a format that has no notes, such as CSV."""
        return [*self.left_out, *self.doubts, *self.notes]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """Return a flat record per value: both numbers, the difference a - b and its test, the better subject."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Compared) -> dict[str, Any]:
        low, high = row.difference.ci95 or (None, None)
        support = row.difference.support
        words = {id(v.row): v.words for v in self.verdicts if v.column is row.column}
        return {
            "value": row.column.name,
            "unit": row.column.unit,
            "direction": row.column.better,
            "a": self.a.name,
            "hook_a": self.a.hook_name,
            "b": self.b.name,
            "hook_b": self.b.hook_name,
            "value_a": row.a.value,
            "value_b": row.b.value,
            "difference": row.difference.value,
            "stderr": row.difference.stderr,
            "ci95_low": low,
            "ci95_high": high,
            "p": row.difference.p_value,
            "p_holm": row.p_holm,
            "detectable": row.difference.detectable,
            "documents": support.documents if support else None,
            "effective_documents": support.effective if support else None,
            "largest_share": support.largest_share if support else None,
            "unreliable": support.doubt or None if support else None,
            "better": row.better,
            "sure": row.sure,
            "reason": row.difference.reason,
            "verdict_a": words.get(id(self.a)),
            "verdict_b": words.get(id(self.b)),
            "limited": bool(self.limit),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the records as a data frame, one row per value."""
        import pandas as pd  # late: slow to import

        return pd.DataFrame(self.records())


def compare(boards: Sequence[Board], a: str, b: str, metrics: Sequence[str] = ()) -> Comparison:
    """Compare two rows of one board, named `name` or `name@hook`, in some metrics or `metric.value`s (default: all).

    Raises `SaevalError` for unknown or ambiguous names, for subjects with different data or models, and for subjects
    that have no value in common.
    """
    board, row_a, row_b = _chosen(boards, a, b)
    columns = _columns(board, metrics)
    both: list[tuple[Column, Entry, Entry]] = []
    lacking: dict[tuple[str, str, str], list[str]] = {}
    for column in columns:
        entry_a, entry_b = (row.entries.get(column.name, _NOT_RUN) for row in (row_a, row_b))
        if entry_a.value is not None and entry_b.value is not None:
            both.append((column, entry_a, entry_b))
            continue
        for row, entry, other in ((row_a, entry_a, entry_b), (row_b, entry_b, entry_a)):
            if entry.value is None and (other.value is not None or metrics):
                reason = _other_owner(board, column, row) or _why(entry, board)
                lacking.setdefault((column.metric, row.name, reason), []).append(column.name)
    notes = [
        f"{names[0] if len(names) == 1 else f'{metric} ({len(names)} values)'}: {name} has no value ({reason})"
        for (metric, name, reason), names in lacking.items()
    ]
    if not both:
        reasons = dict.fromkeys(note.split(": ", 1)[1] for note in notes)
        detail = f": {'; '.join(reasons)}" if reasons else ""
        raise SaevalError(f"'{row_a.name}' and '{row_b.name}' have no value in common{detail}")
    apart = [row_a.site != row_b.site and column.comparable == "hook" for column, _, _ in both]
    differences = [
        Difference((a.value or 0.0) - (b.value or 0.0), reason=_APART) if other else difference(a, b)
        for (_, a, b), other in zip(both, apart, strict=True)
    ]
    same = distinct(differences)
    adjusted = holm([d.p_value if same[index] == index else None for index, d in enumerate(differences)])
    corrected = [None if twin is None else adjusted[twin] for twin in same]
    rows = [
        Compared(column, a, b, paired, p, None if p is None else _better(column, paired, row_a, row_b))
        for (column, a, b), paired, p in zip(both, differences, corrected, strict=True)
    ]
    limit = limit_notice(board.data)
    return Comparison(
        board.title,
        board.model,
        str(board.data.get("use") or ""),
        row_a,
        row_b,
        rows,
        notes,
        board.stop,
        limit,
        sum(twin == index for index, twin in enumerate(same)),
        size_in_words(board.data),
        board.left_out,
        [v for v in verdicts(board) if v.column in columns and (v.row is row_a or v.row is row_b)],
    )


_APART = "comparable within a hook only"
_NOT_RUN = Entry(status="the metric was not run on it")


def _why(entry: Entry, board: Board) -> str:
    """Return why there is no value, and how to get it."""
    if entry.status in ("missing", "damaged"):
        cause = f" ({entry.reason})" if entry.reason else ""
        return f"its result is {entry.status}{cause}; run '{board.title}' again"
    return f"{entry.status}: {entry.reason}" if entry.reason else entry.status


def _other_owner(board: Board, column: Column, row: Row) -> str:
    """Return the groups or models that a column belongs to; empty if rows of this kind can have a value in it."""
    owners = [r for r in board.rows if any(c.metric == column.metric for c in map(Column, r.entries))]
    if not owners or any(owner.kind == row.kind or {owner.kind, row.kind} <= _SUBSTITUTES for owner in owners):
        return ""
    names = " and ".join(f"{'the ' * (owner.kind in _WITH_ARTICLE)}{owner.kind} '{owner.name}'" for owner in owners[:2])
    return f"it belongs to {names}"


_SUBSTITUTES = frozenset({"sae", "control"})
_WITH_ARTICLE = frozenset({"group", "model"})


def _better(column: Column, paired: Difference, a: Row, b: Row) -> str | None:
    if column.better is None or abs(paired.value) <= paired.rounding:
        return None
    winner = b if (paired.value > 0) == (column.better == "lower") else a
    return _at_hook(winner) if a.name == b.name else winner.name


def _at_hook(row: Row) -> str:
    return f"{row.name}@{row.hook_name}"


def _chosen(boards: Sequence[Board], a: str, b: str) -> tuple[Board, Row, Row]:
    """Return the one board and the two rows that the names mean; of several hooks, the one that both share."""
    rows_a, rows_b = _rows_named(boards, a), _rows_named(boards, b)
    pairs = [(here, x, y) for here, x in rows_a for there, y in rows_b if here is there and x is not y]
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if pair[1].site == pair[2].site] or pairs
    if len(pairs) == 1:
        return pairs[0]
    if pairs and len({id(board) for board, _, _ in pairs}) > 1:
        raise SaevalError(f"'{a}' and '{b}' were both run on several data sets or models; give one folder")
    if pairs:
        places = list(dict.fromkeys(_at_hook(row) for pair in pairs for row in pair[1:]))
        raise SaevalError(f"'{a}' against '{b}' may mean several rows; name two of {', '.join(places)}")
    if any(x is y for _, x in rows_a for _, y in rows_b):
        others = [row.name for board, _ in rows_a for row in board.rows if row.name not in (a, b)]
        raise SaevalError(f"'{a}' and '{b}' are the same row; compare it with another: {', '.join(others) or 'none'}")
    (here, _), (there, _) = rows_a[0], rows_b[0]
    if here.data.get("stopping") != there.data.get("stopping"):
        raise SaevalError(
            f"'{a}' and '{b}' did not stop together ({here.stop or 'all rows'}; {there.stop or 'all rows'}): a paired "
            f"difference needs the same rows; put both into one suite"
        )
    what = "models" if here.data.get("fingerprint") == there.data.get("fingerprint") else "data"
    raise SaevalError(
        f"the {what} of the two differ: '{a}' was run on {_data_and_model(here)}, '{b}' on {_data_and_model(there)}; "
        f"a paired difference needs the same documents and model"
    )


def _data_and_model(board: Board) -> str:
    facts = [
        *size_in_words(board.data),
        f"fingerprint {str(board.data.get('fingerprint'))[:8]}",
        f"model {board.model}" if board.model else "no model",
    ]
    return f"{board.data.get('use')} ({', '.join(facts)})"


def _rows_named(boards: Sequence[Board], name: str) -> list[tuple[Board, Row]]:
    rows = [(board, row) for board in boards for row in board.rows]
    matches = [(board, row) for board, row in rows if name in (row.name, _at_hook(row), f"{row.name}@{row.site}")]
    matches = matches or [(board, row) for board, row in rows if f"{name} ({len(row.keys)})" == row.name]  # of a group
    if not matches:
        names = [row.name for _, row in rows] + ([_at_hook(row) for _, row in rows] if "@" in name else [])
        raise SaevalError(f"no subject '{name}' in these results{suggestion(name, names)}")
    return matches


def _columns(board: Board, metrics: Sequence[str]) -> list[Column]:
    for name in metrics:
        if not any(name in (c.name, c.metric) for c in board.columns):
            names = [c.name for c in board.columns] + [c.metric for c in board.columns]
            raise SaevalError(f"no value '{name}' in these results{suggestion(name, names)}")
    return [c for c in board.columns if not metrics or c.name in metrics or c.metric in metrics]
