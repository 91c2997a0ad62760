"""Members of a group that are one SAE under several names."""

from __future__ import annotations

from saeval.cell import Cell
from saeval.fingerprint import tensors_sha256
from saeval.live import LiveSAE
from saeval.substitute import Subject


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
