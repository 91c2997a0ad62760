"""What a class says of itself in its docstring: the text that `ls` and `show` print, and a metric's values."""

from __future__ import annotations

import functools
import inspect
import math
import re
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
    """A line of the section `Values:` of a metric's documentation: the definition of values."""

    names: tuple[str, ...]
    """Names, or patterns of names (`kl_*`)."""
    equation: str
    unit: str
    range: str
    better: str
    """`lower is better`, `higher is better` or `no better direction`."""
    depends: str = ""
    """What the value depends on besides the SAE, the model and the text, such as `the number of tokens: REASON`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The range as numbers; infinite where it is open, or not a number (`0 .. d_sae`)."""
        low, dots, high = self.range.replace("−", "-").replace("∞", "inf").partition(" .. ")
        if not dots:
            low, high = (low[1:], "") if low[:1] in ("≥", ">") else ("", low[1:] if low[:1] in ("≤", "<") else "")
        return _number(low, -math.inf), _number(high.partition(",")[0], math.inf)


@dataclass(frozen=True)
class Claim:
    """A line of the section `Claims:` of a metric's documentation: the claims that values allow."""

    names: tuple[str, ...]
    """Names of values, or patterns of names."""
    may: str
    """The claim that a value allows."""
    null: str
    """The null hypothesis that the claim is tested against."""
    needs: str
    """The documents, SAEs and seeds that it needs at least."""
    never: str
    """The claim that a value does not allow."""


def documented_values(metric: Any) -> list[Documented]:
    """The values that a metric's docstring describes: `NAMES: EQUATION; UNIT; RANGE; DIRECTION.` under `Values:`.

    `, depends on WHAT: WHY` may follow the direction.
    Empty for a metric without such a section. `ValueError` for a line that is not of that form.
    """
    return [_documented(metric.name, entry) for entry in _section(metric, "Values:")]


@functools.lru_cache(maxsize=512)
def documented_bounds(metric: type) -> tuple[tuple[tuple[str, ...], tuple[float, float]], ...]:
    """Return the names and the range of each line of `documented_values`; nothing if a line is malformed."""
    try:
        return tuple((line.names, line.bounds) for line in documented_values(metric))
    except ValueError:
        return ()


@functools.lru_cache(maxsize=512)
def documented_dependences(metric: type) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the names and the dependence of each line of `documented_values` that has one."""
    try:
        return tuple((line.names, line.depends) for line in documented_values(metric) if line.depends)
    except ValueError:
        return ()


def documented_claims(metric: Any) -> list[Claim]:
    """The claims that a metric's docstring describes: `NAMES: CLAIM; null: ...; needs: ...; not: ....` under `Claims:`.

    Empty for a metric without such a section. `ValueError` for a line that is not of that form.
    """
    return [_claim(metric.name, entry) for entry in _section(metric, "Claims:")]


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


def _section(metric: Any, heading: str) -> list[str]:
    """Return the entries of a section of a docstring, each on one line."""
    lines = iter((inspect.getdoc(metric) or "").split("\n"))
    if not any(line.strip() == heading for line in lines):
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
            raise ValueError(f"metric '{metric.name}': indent '{line.strip()}' by four spaces more than '{heading}'")
    return entries


def _claim(metric: str, entry: str) -> Claim:
    names, _, rest = entry.partition(": ")
    parts = [part.strip() for part in re.split("; (?:null|needs|not): ", rest.rstrip("."))]
    labels = re.findall("; (null|needs|not): ", rest)
    if labels != ["null", "needs", "not"] or not all(parts):
        raise ValueError(f"metric '{metric}': '{entry}' is not 'NAMES: CLAIM; null: ...; needs: ...; not: ....'")
    return Claim(tuple(names.split(", ")), *parts)


def _documented(metric: str, entry: str) -> Documented:
    names, _, rest = entry.partition(": ")
    parts = [part.strip() for part in rest.rstrip(".").rsplit(";", 3)]
    direction, comma, depends = parts[-1].partition(", depends on ")
    if len(parts) != 4 or direction not in DIRECTIONS or (comma and not depends):
        form = f"NAMES: EQUATION; UNIT; RANGE; DIRECTION.', with the direction {', '.join(DIRECTIONS[:2])}"
        raise ValueError(f"metric '{metric}': '{entry}' is not '{form} or {DIRECTIONS[2]}")
    return Documented(tuple(names.split(", ")), parts[0], parts[1], parts[2], direction, depends)
