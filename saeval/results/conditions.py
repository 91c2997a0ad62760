"""`--fail-if`: conditions on a comparison, such as `ce.delta_ce worse`, decided by corrected tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeval.base.errors import SaevalError, suggestion
from saeval.base.formatting import number
from saeval.results.board import Column
from saeval.results.comparison import Comparison
from saeval.results.folder_comparison import FolderComparison, Matched, corrected

WORDS = ("worse", "better", "differs")


@dataclass(frozen=True)
class Condition:
    """A value, and what its second number must surely be for the condition to hold."""

    text: str
    value: str
    word: str

    @classmethod
    def parsed(cls, text: str) -> Condition:
        """Return the condition in `VALUE worse`, `VALUE better` or `VALUE differs`; `SaevalError` otherwise."""
        value, _, word = text.strip().rpartition(" ")
        if not value.strip() or word not in WORDS:
            raise SaevalError(f"--fail-if '{text}': expected VALUE {'|'.join(WORDS)}, such as 'ce.delta_ce worse'")
        return cls(text, value.strip(), word)

    def column(self, columns: Sequence[Column]) -> Column:
        """Return the one column that the value names; `SaevalError` if there is none, or if it has no direction."""
        named = {c.name: c for c in columns if self.value in (c.name, c.metric)}
        exact = named.get(self.value) or (next(iter(named.values())) if len(named) == 1 else None)
        if exact is None and named:
            raise SaevalError(
                f"--fail-if '{self.text}': '{self.value}' has several values; name one of {', '.join(named)}"
            )
        if exact is None:
            near = suggestion(self.value, [c.name for c in columns])
            raise SaevalError(f"--fail-if '{self.text}': no value '{self.value}' in these results{near}")
        if self.word != "differs" and exact.better is None:
            raise SaevalError(
                f"--fail-if '{self.text}': {exact.name} has no better direction; use '{exact.name} differs'"
            )
        return exact

    def holds(self, value: Matched) -> bool:
        """Return True if the second number surely is so; `SaevalError` if the numbers differ and have no test."""
        if value.equal:
            return False
        if value.sure is None:
            why = value.difference.reason or "no test"
            raise SaevalError(
                f"--fail-if '{self.text}': the difference in {value.column.name} of '{value.subject}' cannot be tested "
                f"({why}); choose a value with an error over documents"
            )
        return value.sure and (self.word == "differs" or value.better == ("a" if self.word == "worse" else "b"))


def failures(conditions: Sequence[str], compared: FolderComparison | Comparison) -> list[str]:
    """Return a sentence per subject for which a condition holds: the second folder, or SAE, is surely worse, say.

    Holm's correction is over all tests of the conditions' values. Controls are not tested between folders. Raises
    `SaevalError` for a condition that names nothing, or that cannot be decided.
    """
    parsed = [Condition.parsed(text) for text in conditions]
    values = _of_two(compared) if isinstance(compared, Comparison) else compared.values
    lost = {} if isinstance(compared, Comparison) else compared.lost
    columns = list({value.column.name: value.column for value in values}.values())
    chosen = [condition.column(columns) for condition in parsed]
    trained = [v for v in values if isinstance(compared, Comparison) or v.row_a.kind in ("sae", "group", "model")]
    for condition, column in zip(parsed, chosen, strict=True):
        if rows := [row for row in lost.get(column.name, []) if row.kind in ("sae", "group", "model")]:
            raise SaevalError(
                f"--fail-if '{condition.text}': the second run has no {column.name} of '{rows[0].name}'; compute it, "
                f"or remove the SAE from the first run"
            )
        if not any(value.column.name == column.name for value in trained):
            raise SaevalError(f"--fail-if '{condition.text}': no SAE has a {column.name} in both")
    names = {column.name for column in chosen}
    tested, _ = corrected([value for value in trained if value.column.name in names])
    return [
        f"--fail-if '{condition.text}' holds for {_in_words(value)}"
        for condition, column in zip(parsed, chosen, strict=True)
        for value in tested
        if value.column.name == column.name and condition.holds(value)
    ]


def _of_two(comparison: Comparison) -> list[Matched]:
    """Return the values of a comparison of two subjects in the form of one of two folders."""
    return [
        Matched(comparison.a, comparison.b, row.column, row.a, row.b, row.difference, True, row.p_holm)
        for row in comparison
    ]


def _in_words(value: Matched) -> str:
    names = dict.fromkeys([value.row_a.name, value.row_b.name])
    p = f"p = {number(value.p_holm, 2)}" if value.p_holm and value.p_holm >= 1e-4 else "p < 0.0001"
    return f"{' against '.join(names)}: {number(value.a.value)}, then {number(value.b.value)} ({p}, Holm)"
