"""What a class says of itself in its docstring: the text that `ls` and `show` print, and a metric's values."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

DIRECTIONS = ("lower is better", "higher is better", "no better direction")


def documentation(thing: Any) -> str:
    """The docstring of a class or function; empty if the only one is that of a base class of plugins."""
    if isinstance(thing, type):
        owner = next((cls for cls in thing.__mro__ if vars(cls).get("__doc__")), object)
        if owner is object or owner.__module__.startswith("saeval.interfaces."):
            return ""
    return inspect.getdoc(thing) or ""


def description(thing: Any) -> str:
    """One line: the text `description`, else the first line of the documentation; empty if there is neither."""
    own = getattr(thing, "description", None)
    return own if isinstance(own, str) else documentation(thing).split("\n")[0]


@dataclass(frozen=True)
class Documented:
    """What a metric's documentation says of a value: one line of its section `Values:`."""

    names: tuple[str, ...]
    """Names, or patterns of names (`kl_*`)."""
    equation: str
    unit: str
    range: str
    better: str
    """`lower is better`, `higher is better` or `no better direction`."""


def documented_values(metric: Any) -> list[Documented]:
    """The values that a metric's docstring describes: `NAMES: EQUATION; UNIT; RANGE; DIRECTION.` under `Values:`.

    Empty for a metric without such a section. `ValueError` for a line that is not of that form.
    """
    lines = iter((inspect.getdoc(metric) or "").split("\n"))
    if not any(line.strip() == "Values:" for line in lines):
        return []
    entries: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            entries.append(line.strip())
        elif line.strip() and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            raise ValueError(f"metric '{metric.name}': indent '{line.strip()}' by four spaces more than 'Values:'")
    return [_documented(metric.name, entry) for entry in entries]


def _documented(metric: str, entry: str) -> Documented:
    names, _, rest = entry.partition(": ")
    parts = [part.strip() for part in rest.rstrip(".").rsplit(";", 3)]
    if len(parts) != 4 or parts[3] not in DIRECTIONS:
        form = f"NAMES: EQUATION; UNIT; RANGE; DIRECTION.', with the direction {', '.join(DIRECTIONS[:2])}"
        raise ValueError(f"metric '{metric}': '{entry}' is not '{form} or {DIRECTIONS[2]}")
    return Documented(tuple(names.split(", ")), *parts)
