"""`Result`: the outcome of one cell, as stored in its JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from saeval.stats.estimate import Estimate, Support

SCHEMA = 1
"""Part of every cell's key."""
FORM = 3
"""The `schema` of a result's file: raised when older files can no longer be read."""
Status = Literal["ok", "undefined", "failed", "missing", "damaged"]


@dataclass
class Result:
    """The outcome of one cell: a metric on an SAE, a control, a group of SAEs or the model.

    `status` is `ok`, or else `reason` says why there are no values: the result is `undefined` or `failed`, `missing`
    (not computed yet), or `damaged` (its files are not those that saeval wrote; the next run computes it again).
    """

    key: str
    status: Status
    cell: Mapping[str, Any]
    reason: str | None = None
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    traceback: str | None = None
    headline: list[str] = field(default_factory=list)
    """Names of the values that its metric shows in a printed table; empty: all."""
    main: list[str] | None = None
    """Names of the values that a narrow table keeps first; None: the first of `headline`."""
    sample: dict[str, Any] | None = None
    """Where a suite's `precision:` stopped: sequences, documents and tokens used, the errors at each check, and the
    values that are `of_prefix`. None if the suite has no `precision:`."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """The arrays of `KEY.npz`: `value/NAME`, the `Array` itself; of a value with an error over documents
    `without/NAME`, the value recomputed without each document, and `sizes/NAME`, the size of each document."""

    layout: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The `leaderboard:` of its suite, which no file of a result has; empty if it is unknown."""

    def record(self) -> dict[str, Any]:
        """Return the content of the JSON file, without its checksums."""
        return {
            "schema": FORM,
            "key": self.key,
            "status": self.status,
            "reason": self.reason,
            "cell": dict(self.cell),
            "values": self.values,
            "components": self.components,
            "provenance": self.provenance,
            **({"headline": self.headline} if self.headline else {}),
            **({"main": self.main} if self.main is not None else {}),
            **({"sample": self.sample} if self.sample else {}),
            **({"traceback": self.traceback.splitlines()} if self.traceback else {}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """Return the result in the content of a file, which must be valid."""
        return cls(
            key=record["key"],
            status=record["status"],
            reason=record["reason"],
            cell=record["cell"],
            values=dict(record["values"]),
            components=dict(record["components"]),
            provenance=dict(record["provenance"]),
            traceback="\n".join(record["traceback"]) if record.get("traceback") else None,
            headline=list(record.get("headline", [])),
            main=list(record["main"]) if record.get("main") is not None else None,
            sample=record.get("sample"),
        )

    @property
    def metric(self) -> str:
        """The metric's name in the suite: its alias if it has one."""
        return str(self.cell.get("alias", self.cell["metric"]))

    @property
    def subject(self) -> str:
        return ", ".join(s["name"] for s in self.cell["subjects"])

    @property
    def notes(self) -> list[str]:
        """Remarks of its metric for readers of its values."""
        return [note for record in self.values.values() if record.get("kind") == "notes" for note in record["notes"]]

    def scalar(self, name: str) -> tuple[Mapping[str, Any] | None, Estimate | None]:
        """Return the record and the `estimate` of a scalar value; None for each that does not exist."""
        record = self.values.get(name)
        return (None, None) if record is None or "kind" in record else (record, self.estimate(name))

    def estimate(self, name: str) -> Estimate | None:
        """Return the value as an `Estimate`; None if its leave-one-document-out values are not stored."""
        record = self.values.get(name, {})
        value, least = record.get("value"), record.get("effective_documents")
        if value is None or f"without/{name}" not in self.arrays:
            return None
        without, sizes = self.arrays[f"without/{name}"], self.arrays[f"sizes/{name}"]
        return Estimate(value, without, sizes, record.get("n") or 0, math.inf if least is None else least)

    def support(self, name: str) -> Support | None:
        """Return the documents behind the value's error; None if it has no error over documents."""
        return support_of(self.values[name])

    @property
    def supports(self) -> list[tuple[Support, str]]:
        """The documents behind the errors of its values, each with its place, such as `ce.delta_ce of mine`."""
        places = ((name, f"{self.metric}.{name} of {self.subject or 'the model'}") for name in self.values)
        return [(support, place) for name, place in places if (support := self.support(name)) is not None]

    def array(self, name: str) -> np.ndarray:
        """Return the numbers of a value that is an `Array`. `KeyError` for any other value."""
        return self.arrays[f"value/{name}"]

    def _repr_html_(self) -> str:
        from saeval.results.notebook import result_section, section_html  # late: it imports this module

        return section_html(result_section(self))

    @property
    def form(self) -> object:
        """Equal for results that differ only in subjects and numbers; unique unless a subclass knows more."""
        return id(self)


class Stored(Protocol):
    """A result whose arrays stay in its file until they are needed."""

    def load(self, names: Sequence[str]) -> list[np.ndarray]:
        """Return the named arrays."""


class StoredEstimate(Estimate):
    """An estimate that reads its per-document values from its result's file on first use."""

    def __init__(self, value: float, n: int, least: float, name: str, result: Stored) -> None:
        self.__dict__.update(value=value, n=n, least=least, _name=name, _result=result)  # frozen

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        name, result = self.__dict__["_name"], self.__dict__["_result"]
        arrays: list[np.ndarray] = result.load([f"without/{name}", f"sizes/{name}"])
        return arrays

    @property
    def without(self) -> np.ndarray:
        return self._arrays[0]

    @property
    def sizes(self) -> np.ndarray:
        return self._arrays[1]


def support_of(record: Mapping[str, Any]) -> Support | None:
    """Return the documents behind the error in a scalar's record; None if the error is not over documents."""
    if record.get("documents") is None:
        return None
    return Support(record["documents"], record["effective_documents"], record["largest_share"])
