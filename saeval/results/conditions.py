"""`--fail-if`: conditions on a comparison, such as `ce.delta_ce worse`, decided by corrected tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeval.base.errors import SaevalError, suggestion
from saeval.base.formatting import counted, number
from saeval.results.board import Column, some
from saeval.results.comparison import Comparison
from saeval.results.folder_comparison import FolderComparison, Matched, corrected
from saeval.results.paired_tests import ALPHA

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


@dataclass(frozen=True)
class Judgement:
    """What the tests of some conditions say, in sentences."""

    failures: list[str]
    """The subjects for which a condition holds, a sentence for each."""
    power: list[str]
    """For each condition, how its numbers are paired, and the differences that its tests can find."""


def judged(conditions: Sequence[str], compared: FolderComparison | Comparison) -> Judgement:
    """Return for which subjects the conditions hold: the second folder, or SAE, is surely worse, say.

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
    tested, tests = corrected([value for value in trained if value.column.name in names])
    own = [
        (condition, [value for value in tested if value.column.name == column.name])
        for condition, column in zip(parsed, chosen, strict=True)
    ]
    return Judgement(
        [
            f"--fail-if '{condition.text}' holds for {_in_words(value)}"
            for condition, values in own
            for value in values
            if condition.holds(value)
        ],
        [f"--fail-if '{condition.text}': {_power(values, max(tests, 1))}" for condition, values in own],
    )


def _power(values: Sequence[Matched], tests: int) -> str:
    """Return how the numbers of a condition are paired, and what its tests can find, as a sentence.

    The differences are those of a test at 5% divided by the number of tests, which Holm's correction never goes below.
    """
    unit = "seed" if any(value.a.seeds for value in values) else "document"
    paired = all(value.paired for value in values)
    pairing = f"paired by {unit}" if paired else "not paired, since the documents differ, which makes the test weaker"
    level = ALPHA / tests
    found = sorted(size for value in values if (size := value.difference.detectable_at(level)) is not None)
    ends = list(dict.fromkeys(number(size, 2) for size in (found[:1] + found[-1:])))
    sizes = f"{' to '.join(ends)} {values[0].column.unit}".rstrip()
    agree = "all numbers are equal" if all(value.equal for value in values) else "all documents agree"
    over = f"({counted(tests, 'test')} at 5%, Holm)"
    power = f"a true difference of {sizes} is found with 80% probability {over}" if found else agree
    blind = [value.subject for value in values if _blind(value, level)]
    weak = f"; it could hardly have found anything for {some(blind)}: {_WEAK}" if blind else ""
    return f"{pairing}; {power}{weak}"


_WEAK = "not even a change as large as the first number itself"


def _blind(value: Matched, level: float) -> bool:
    """Return True if the test could not have found a change as large as the first number.

    Without an error, all documents agree, and the least p value is that of the sign test.
    """
    size = value.difference.detectable_at(level)
    if size is not None:
        return size > abs(value.a.value or 0.0)
    return not value.equal and (value.difference.p_value or 1.0) > level


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
