"""What makes the numbers of two runs comparable: model, data, mask and metrics, and the fields in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted
from saeval.results.board import some
from saeval.results.result import Result

_FIELDS = 8
"""Fields that a sentence names."""
_LENGTH = 40
"""Letters of a value that a sentence quotes."""
_FOLLOW = {f"data.{name}" for name in ("fingerprint", "documents", "clusters", "tokens", "corpus", "left_out", "bytes")}
"""Sizes and hashes, which differ because another field does."""


@dataclass(frozen=True)
class FieldDifference:
    """A field with another value in each of two records; None in a record that lacks it."""

    name: str
    """Its keys, joined by dots: `data.context`."""
    a: Any
    b: Any

    @property
    def words(self) -> str:
        """The field and both values, such as `data.context (128; 64)`."""
        return f"{self.name} ({shown(self.a)}; {shown(self.b)})"


@dataclass(frozen=True)
class OneSided(FieldDifference):
    """Things, such as metrics, that only one of two runs has: their names in `a` or in `b`, None in the other."""

    @property
    def words(self) -> str:
        """The things in words, such as `metrics only in the first: kl`."""
        return f"{self.name} only in the {'second' if self.a is None else 'first'}: {shown(self.b or self.a)}"


def one_sided(name: str, a: Iterable[str], b: Iterable[str]) -> list[FieldDifference]:
    """Return the names that only one of two collections has: at most one difference each."""
    a, b = list(a), list(b)
    only = [[key for key in own if key not in other] for own, other in ((a, b), (b, a))]
    return [
        OneSided(name, *(own if side == place else None for side in (0, 1))) for place, own in enumerate(only) if own
    ]


def shown(value: Any) -> str:
    """Return a value of a record for people: hashes and long values cut, `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return some([shown(item) for item in value])
    text = str(value)
    if len(text) == 64 and not text.strip("0123456789abcdef"):
        return text[:8]
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."


def differences(a: Any, b: Any, name: str = "") -> list[FieldDifference]:
    """Return the fields in which two nested mappings differ, in the order of the first; a list is one value."""
    if isinstance(a, Mapping | None) and isinstance(b, Mapping | None) and (a or b):
        a, b = a or {}, b or {}
        keys = dict.fromkeys([*a, *b])
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{name}.{k}" if name else str(k))]
    return [] if a == b else [FieldDifference(name, a, b)]


def in_words(fields: Sequence[FieldDifference]) -> str:
    """Return the first fields with their values, and the number of the others."""
    more = f" and {counted(len(fields) - _FIELDS, 'more field')}" if len(fields) > _FIELDS else ""
    return ", ".join(field.words for field in fields[:_FIELDS]) + more


def of_cells(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[FieldDifference]:
    """Return the fields of model and data in which two cells differ, without those that follow from others."""
    data = differences(a["data"], b["data"], "data")
    telling = [field for field in data if field.name not in _FOLLOW]
    return [*differences(a["model"] or {}, b["model"] or {}, "model"), *(telling or data)]


def ground(cell: Mapping[str, Any]) -> str:
    """Return a hash of the model and data of a cell: numbers on different ones are not comparable."""
    return digest_of([cell["model"], *rows_of(cell)])


def rows_of(cell: Mapping[str, Any]) -> list[Any]:
    """Return what determines the rows of a cell's data."""
    return [cell["data"].get(name) for name in ("fingerprint", "stopping", "limit")]


def configuration(result: Result) -> dict[str, Any]:
    """Return what the formula of a result's metric depends on: its numbers are comparable with no others."""
    return {name: result.cell.get(name) for name in ("metric", "metric_version", "params", "supplied_by")}


def configurations(results: Iterable[Result]) -> dict[str, dict[str, Any]]:
    """Return the configuration of each metric, by its name in the suite."""
    first: dict[object, Result] = {}
    for result in results:
        first.setdefault(result.form, result)
    return {result.metric: configuration(result) for result in first.values()}


def classes(runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return a number for the configurations of each run; runs of one number have no metric in two configurations."""
    merged: list[dict[str, Any]] = []
    numbers = []
    for own in runs:
        fits = (
            n for n, kind in enumerate(merged) if all(kind.get(name, facts) == facts for name, facts in own.items())
        )
        number = next(fits, len(merged))
        merged += [{}] if number == len(merged) else []
        merged[number].update(own)
        numbers.append(number)
    return numbers
