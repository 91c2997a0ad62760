"""`Cell`: one metric, configured, on one subject or group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saeval.base.fingerprint import tensors_sha256
from saeval.interfaces.live_objects import LiveSAE
from saeval.interfaces.metric import Metric
from saeval.interfaces.substitute import Subject
from saeval.plan.nodes import Node, flattened
from saeval.suite.schema import MetricEntry


@dataclass(frozen=True, eq=False)
class Cell:
    """One metric, configured, on one subject or group."""

    key: str
    metric: Metric
    entry: MetricEntry
    subjects: list[Subject]
    observe: Mapping[str, Any] | None
    conclude: Mapping[str, Any]
    record: Mapping[str, Any]
    """The field `cell` of its result."""
    order: int = 0
    streamed: bool = False
    """True if its numbers depend on the rows."""
    foreign: bool = False
    """True if its metric comes from a third-party plugin."""

    @property
    def stage(self) -> int:
        """The first pass in which all its per-batch requests are available."""
        return max((n.available for a in (self.observe or {}).values() for n in flattened(a)), default=0)

    def nodes(self) -> list[Node]:
        """The nodes that `observe` and `conclude` request."""
        arguments = [*(self.observe or {}).values(), *self.conclude.values()]
        return [n for a in arguments for n in flattened(a)]


def subject_record(subject: Subject) -> dict[str, Any]:
    """Return the record of a subject in a result; `site` is the hook's one name if the suite uses another."""
    facts = dict(subject.facts or {}) | ({"site": subject.hook_name} if subject.asked_hook else {})
    facts |= {"d_sae": subject.d_sae} if subject.kind == "sae" and subject.d_sae else {}
    return {"name": subject.name, "hook_name": subject.shown_hook, "kind": subject.kind, "key": subject.key, **facts}


def copies(cell: Cell) -> list[str]:
    """Return a sentence for each member of the cell's group with the same weights as an earlier member.

    They stay in the group, since it is unknown which of the two was meant.
    """
    if cell.metric.subject != "group":
        return []
    first_by_weights: dict[str, Subject] = {}
    sentences = []
    for subject in cell.subjects:
        first = first_by_weights.setdefault(_weights_key(subject), subject)
        if first is not subject:
            copy = f"'{subject.name}' has the weights of '{first.name}', so an SAE is compared with itself"
            sentences.append(f"group '{cell.entry.over}': {copy}; leave one of them out")
    return sentences


def _weights_key(subject: Subject) -> str:
    """Return a key that two SAEs share if they have the same weights."""
    if (subject.facts or {}).get("format") != "live":
        return subject.key  # a hash of the files' content
    live = subject.load()
    assert isinstance(live, LiveSAE)
    return tensors_sha256(live.weights) if live.weights else f"object {id(live.module)}"
