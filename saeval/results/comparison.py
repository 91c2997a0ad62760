"""`Comparison`: two subjects side by side, each value with the paired difference and its test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeval.base.errors import SaevalError, suggestion
from saeval.results.board import Board, Column, Entry, Row, limit_notice, size_in_words
from saeval.results.paired_tests import ALPHA, Difference, difference, distinct, holm
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
    """The paired test's p value, corrected for all distinct tests of the comparison; None where there is none."""
    better: str | None
    """Which one the values favour; None where they are equal or the value has no direction."""

    @property
    def sure(self) -> bool | None:
        """Whether the difference is more than chance at the 5% level; None where that is not known."""
        return None if self.p_holm is None else self.p_holm < ALPHA


@dataclass
class Comparison(Sequence[Compared]):
    """The values that both subjects have, in the leaderboard's order."""

    title: str
    model: str
    data: str
    a: Row
    b: Row
    rows: list[Compared]
    notes: list[str] = field(default_factory=list)
    """What only one of them has, and why."""
    stop: str = ""
    """Where an adaptive run stopped, in words."""
    limit: str = ""
    """That the run was limited, in words; empty for a whole run."""
    tests: int = 0
    """How many distinct tests the p values are corrected for."""
    counts: Sequence[str] = ()
    """How many sequences, documents and tokens the differences rest on, in words."""
    left_out: Sequence[str] = ()
    """Which results are not there, of the whole board."""

    @property
    def doubts(self) -> list[str]:
        """Why errors of the differences are unreliable: each reason's worst value."""
        known = ((row.difference.support, row.column.name) for row in self.rows)
        return reliability_warnings((), ((support, name) for support, name in known if support is not None))

    @property
    def asides(self) -> list[str]:
        """For standard error beside a text without notes, such as CSV."""
        return [*self.left_out, *self.doubts, *self.notes]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """A flat record a value: both numbers, the difference a - b with its error and test, the better one."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Compared) -> dict[str, Any]:
        low, high = row.difference.ci95 or (None, None)
        support = row.difference.support
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
            "limited": bool(self.limit),
        }

    def to_frame(self) -> pd.DataFrame:
        """The records as a table."""
        import pandas as pd  # late: slow to import

        return pd.DataFrame(self.records())


def compare(boards: Sequence[Board], a: str, b: str, metrics: Sequence[str] = ()) -> Comparison:
    """Two rows of one board, named `name` or `name@hook`; `metrics` chooses metrics or `metric.value`s, all by default.

    Raises `SaevalError` for unknown or ambiguous names, for subjects whose data differ, and where they have no
    value in common.
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
                reason = _owned(board, column, row) or _why(entry, board)
                lacking.setdefault((column.metric, row.name, reason), []).append(column.name)
    notes = [
        f"{names[0] if len(names) == 1 else f'{metric} ({len(names)} values)'}: {name} has no value ({reason})"
        for (metric, name, reason), names in lacking.items()
    ]
    if not both:
        reasons = dict.fromkeys(note.split(": ", 1)[1] for note in notes)
        detail = f": {'; '.join(reasons)}" if reasons else ""
        raise SaevalError(f"'{row_a.name}' and '{row_b.name}' have no value in common{detail}")
    differences = [difference(one, other) for _, one, other in both]
    same = distinct(differences)
    adjusted = holm([d.p_value if same[index] == index else None for index, d in enumerate(differences)])
    corrected = [None if twin is None else adjusted[twin] for twin in same]
    rows = [
        Compared(column, one, other, found, p, _better(column, found, row_a, row_b))
        for (column, one, other), found, p in zip(both, differences, corrected, strict=True)
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
    )


_NOT_RUN = Entry(status="the metric was not run on it")


def _why(entry: Entry, board: Board) -> str:
    """Why there is no value, and how to get it."""
    if entry.status in ("missing", "damaged"):
        cause = f" ({entry.reason})" if entry.reason else ""
        return f"its result is {entry.status}{cause}; run '{board.title}' again"
    return f"{entry.status}: {entry.reason}" if entry.reason else entry.status


def _owned(board: Board, column: Column, row: Row) -> str:
    """Whose value a column is, where it is of no row of this kind: a group's or the model's is of no SAE."""
    owners = [other for other in board.rows if any(c.metric == column.metric for c in map(Column, other.entries))]
    if not owners or any(other.kind == row.kind or {other.kind, row.kind} <= _SUBJECTS for other in owners):
        return ""
    names = " and ".join(f"{'the ' * (owner.kind in _A_THING)}{owner.kind} '{owner.name}'" for owner in owners[:2])
    return f"it belongs to {names}"


_SUBJECTS = frozenset({"sae", "control"})
_A_THING = frozenset({"group", "model"})


def _better(column: Column, found: Difference, a: Row, b: Row) -> str | None:
    if column.better is None or abs(found.value) <= found.rounding:
        return None
    winner = b if (found.value > 0) == (column.better == "lower") else a
    return _placed(winner) if a.name == b.name else winner.name


def _placed(row: Row) -> str:
    return f"{row.name}@{row.hook_name}"


def _chosen(boards: Sequence[Board], a: str, b: str) -> tuple[Board, Row, Row]:
    """The one board and its two rows that the names mean; of several hooks, the one that both share."""
    found_a, found_b = _found(boards, a), _found(boards, b)
    pairs = [
        (board, one, other) for board, one in found_a for there, other in found_b if board is there and one is not other
    ]
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if pair[1].site == pair[2].site] or pairs
    if len(pairs) == 1:
        return pairs[0]
    if pairs and len({id(board) for board, _, _ in pairs}) > 1:
        raise SaevalError(f"'{a}' and '{b}' were both run on several data sets or models; give one folder")
    if pairs:
        places = list(dict.fromkeys(_placed(row) for pair in pairs for row in pair[1:]))
        raise SaevalError(f"'{a}' against '{b}' may mean several rows; name two of {', '.join(places)}")
    if any(one is other for _, one in found_a for _, other in found_b):
        others = [row.name for board, _ in found_a for row in board.rows if row.name not in (a, b)]
        raise SaevalError(f"'{a}' and '{b}' are the same row; compare it with another: {', '.join(others) or 'none'}")
    (here, _), (there, _) = found_a[0], found_b[0]
    if here.data.get("stopping") != there.data.get("stopping"):
        raise SaevalError(
            f"'{a}' and '{b}' did not stop together ({here.stop or 'all rows'}; {there.stop or 'all rows'}): a paired "
            f"difference needs the same rows; put both into one suite"
        )
    what = "models" if here.data.get("fingerprint") == there.data.get("fingerprint") else "data"
    raise SaevalError(
        f"the {what} of the two differ: '{a}' was run on {_ground(here)}, '{b}' on {_ground(there)}; "
        f"a paired difference needs the same documents and model"
    )


def _ground(board: Board) -> str:
    facts = [
        *size_in_words(board.data),
        f"fingerprint {str(board.data.get('fingerprint'))[:8]}",
        f"model {board.model}" if board.model else "no model",
    ]
    return f"{board.data.get('use')} ({', '.join(facts)})"


def _found(boards: Sequence[Board], name: str) -> list[tuple[Board, Row]]:
    every = [(board, row) for board in boards for row in board.rows]
    found = [(board, row) for board, row in every if name in (row.name, _placed(row), f"{row.name}@{row.site}")]
    if not found:
        names = [row.name for _, row in every] + ([_placed(row) for _, row in every] if "@" in name else [])
        raise SaevalError(f"no subject '{name}' in these results{suggestion(name, names)}")
    return found


def _columns(board: Board, metrics: Sequence[str]) -> list[Column]:
    for name in metrics:
        if not any(name in (c.name, c.metric) for c in board.columns):
            known = [c.name for c in board.columns] + [c.metric for c in board.columns]
            raise SaevalError(f"no value '{name}' in these results{suggestion(name, known)}")
    return [c for c in board.columns if not metrics or c.name in metrics or c.metric in metrics]
