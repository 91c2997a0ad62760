"""`Result`: one cell's outcome, as it stands in its JSON file."""

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
"""The `schema` of a result's file: raised when an older file cannot be read as a new one."""
Status = Literal["ok", "undefined", "failed", "missing", "damaged"]


@dataclass
class Result:
    """A finished cell. `undefined` and `failed` ones say why in `reason`.

    A `missing` one is not computed yet; the files of a `damaged` one are not what saeval wrote, so nothing of them is
    shown, and the next run computes it again.
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
    """The values that its metric would have shown first; empty: all."""
    sample: dict[str, Any] | None = None
    """Where a suite's `precision:` stopped: sequences, documents and tokens taken, what each look found, and which
    values are `of_prefix`. None where the run takes all rows."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Kept beside the JSON: values without each document, `without/NAME`, the documents' `sizes/NAME`; `value/NAME`."""

    def record(self) -> dict[str, Any]:
        """The content of the JSON file, but for its checksums."""
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
            **({"sample": self.sample} if self.sample else {}),
            **({"traceback": self.traceback.splitlines()} if self.traceback else {}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """The result in a file's content that has been checked."""
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
            sample=record.get("sample"),
        )

    @property
    def metric(self) -> str:
        """The metric's name in the suite: its alias where it has one."""
        return str(self.cell.get("alias", self.cell["metric"]))

    @property
    def subject(self) -> str:
        return ", ".join(s["name"] for s in self.cell["subjects"])

    @property
    def notes(self) -> list[str]:
        """What its metric says that whoever reads its numbers must know."""
        return [note for record in self.values.values() if record.get("kind") == "notes" for note in record["notes"]]

    def scalar(self, name: str) -> tuple[Mapping[str, Any] | None, Estimate | None]:
        """The record of a value that is one number, and its `estimate`."""
        record = self.values.get(name)
        return (None, None) if record is None or "kind" in record else (record, self.estimate(name))

    def estimate(self, name: str) -> Estimate | None:
        """The value as an `Estimate`, where what it is without each document was kept."""
        record = self.values.get(name, {})
        value, least = record.get("value"), record.get("effective_documents")
        if value is None or f"without/{name}" not in self.arrays:
            return None
        without, sizes = self.arrays[f"without/{name}"], self.arrays[f"sizes/{name}"]
        return Estimate(value, without, sizes, record.get("n") or 0, math.inf if least is None else least)

    def support(self, name: str) -> Support | None:
        """What the value's error over documents rests on; None where it has none."""
        return support_of(self.values[name])

    @property
    def supports(self) -> list[tuple[Support, str]]:
        """What the errors of its values rest on, each with its place."""
        known = ((self.support(name), f"{self.metric}.{name} of {self.subject or 'the model'}") for name in self.values)
        return [(support, place) for support, place in known if support is not None]

    def array(self, name: str) -> np.ndarray:
        """The numbers of a value that is an `Array`."""
        return self.arrays[f"value/{name}"]

    @property
    def form(self) -> object:
        """The same for results that differ in their subjects and numbers alone; here, one of its own."""
        return id(self)


class Stored(Protocol):
    """A result whose arrays are in a file."""

    def load(self, names: Sequence[str]) -> list[np.ndarray]:
        """Some of its arrays."""


class StoredEstimate(Estimate):
    """An estimate whose documents are read from its result's file when they are first asked for."""

    def __init__(self, value: float, n: int, least: float, name: str, result: Stored) -> None:
        self.__dict__.update(value=value, n=n, least=least, _name=name, _result=result)  # frozen

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        name, result = self.__dict__["_name"], self.__dict__["_result"]
        found: list[np.ndarray] = result.load([f"without/{name}", f"sizes/{name}"])
        return found

    @property
    def without(self) -> np.ndarray:
        return self._arrays[0]

    @property
    def sizes(self) -> np.ndarray:
        return self._arrays[1]


def support_of(record: Mapping[str, Any]) -> Support | None:
    """What the error in a scalar's record rests on; None where that is not documents."""
    if record.get("documents") is None:
        return None
    return Support(record["documents"], record["effective_documents"], record["largest_share"])
