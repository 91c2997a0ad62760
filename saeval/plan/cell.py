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
    """The `cell` of its result."""
    order: int = 0
    streamed: bool = False
    """Whether its numbers depend on the rows."""
    foreign: bool = False
    """Whether somebody else than saeval wrote its metric."""

    @property
    def stage(self) -> int:
        """The first pass that can feed it."""
        return max((n.available for a in (self.observe or {}).values() for n in flattened(a)), default=0)

    def nodes(self) -> list[Node]:
        arguments = [*(self.observe or {}).values(), *self.conclude.values()]
        return [n for a in arguments for n in flattened(a)]


def subject_record(subject: Subject) -> dict[str, Any]:
    """What a result says of a subject; `site` is its hook's one name, where the suite calls it otherwise."""
    facts = dict(subject.facts or {}) | ({"site": subject.hook_name} if subject.asked_hook else {})
    return {"name": subject.name, "hook_name": subject.shown_hook, "kind": subject.kind, "key": subject.key, **facts}


def copies(cell: Cell) -> list[str]:
    """A sentence for each member of the cell's group whose weights an earlier member has, too.

    They stay in the group: which of two names was meant is not known here.
    """
    if cell.metric.subject != "group":
        return []
    first: dict[str, Subject] = {}
    found = []
    for subject in cell.subjects:
        same = first.setdefault(_weights(subject), subject)
        if same is not subject:
            told = f"'{subject.name}' has the weights of '{same.name}', so an SAE is compared with itself"
            found.append(f"group '{cell.entry.over}': {told}; leave one of them out")
    return found


def _weights(subject: Subject) -> str:
    """What two SAEs have in common if they have the same weights."""
    if (subject.facts or {}).get("format") != "live":
        return subject.key  # of the files' content, wherever they lie
    live = subject.load()
    assert isinstance(live, LiveSAE)
    return tensors_sha256(live.weights) if live.weights else f"object {id(live.module)}"
