"""Typed values out of the small files beside an SAE's weights: each is of its kind, or one sentence says what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from saeval.plugin import SaevalError

LEAST, MOST = 1e-12, 1e12
"""Norms, factors and thresholds beyond these are faults: folded into float32 weights they give zeros or infinities."""
_SHOWN = 80

T = TypeVar("T")


class Fields:
    """The values of one object in a file, by key.

    Every reader raises `SaevalError` with the file, the key, what is expected there and what was found. Numbers are
    numbers: true is not 1, `"8"` is not 8, and NaN and infinity are nothing. A missing key takes a reader's
    `default` where it has one; null is a value like another, and refused unless the reader says otherwise.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], within: str = "") -> None:
        """`within` is where in the file the object is, for messages: `trainer`."""
        self.path = path
        self.values = values
        self._within = f"{within}." if within else ""

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fault(self, key: str, expected: str, limits: str = "") -> SaevalError:
        """The error that says what was found where `expected` should be."""
        found = shown(self.values[key]) if key in self.values else "nothing"
        return SaevalError(f"{self.path}: expected {expected} in '{self._within}{key}'{limits}, found {found}")

    def maybe(self, read: Callable[[str], T], key: str) -> T | None:
        """`read(key)`; None where the key is missing or null."""
        return read(key) if key in self else None

    def inside(self, key: str) -> Fields:
        """The object at a key, without any values where it is missing or null."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, dict):
            raise self.fault(key, "an object")
        return Fields(self.path, found or {}, f"{self._within}{key}")

    def whole(self, key: str) -> int:
        """A positive whole number."""
        found = self.values.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise self.fault(key, "a positive whole number")
        if found > MOST:
            raise self.fault(key, "a positive whole number", f" ({MOST:g} at the most)")
        return found

    def count(self, key: str) -> int:
        """A whole number, 0 or more."""
        found = self.values.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise self.fault(key, "a whole number of 0 or more")
        return found

    def k(self, d_sae: int, key: str = "k") -> int:
        """How many of `d_sae` features are active: a whole number from 1 to `d_sae`."""
        found = self.whole(key)
        if found > d_sae:
            raise SaevalError(
                f"{self.path}: '{self._within}{key}' is {shown(found)}, more than the {d_sae} features there are"
            )
        return found

    def positive(self, key: str) -> float:
        """A positive number that float32 can be multiplied and divided by."""
        found = self.values.get(key)
        if not isinstance(found, int | float) or isinstance(found, bool) or not LEAST <= found <= MOST:
            raise self.fault(key, "a positive number", f" ({LEAST:g} to {MOST:g})")
        return float(found)

    def amount(self, key: str) -> float:
        """0 or a positive number, as `positive`."""
        found = self.values.get(key)
        if not isinstance(found, int | float) or isinstance(found, bool) or not (found == 0 or LEAST <= found <= MOST):
            raise self.fault(key, "a positive number or 0", f" ({LEAST:g} to {MOST:g})")
        return float(found)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        found = self.values.get(key, default)
        if not isinstance(found, bool):
            raise self.fault(key, "true or false")
        return found

    def text(self, key: str) -> str | None:
        """Text; None where there is none, or where it is null or empty."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, str):
            raise self.fault(key, "text")
        return found or None

    def choice(self, key: str, known: Collection[str], default: str | None = None) -> str:
        """One of the words in `known`."""
        found = self.values.get(key, default)
        if not isinstance(found, str) or found not in known:
            word = found if isinstance(found, str) and len(found) <= _SHOWN else shown(found)
            what = f"{self._within}{key} '{word}' is not supported" if key in self else f"there is no '{key}'"
            raise SaevalError(f"{self.path}: {what}; supported: {', '.join(known)}")
        return found

    def facts(self, readers: Mapping[str, Callable[[str], Any] | None]) -> dict[str, Any]:
        """What the file says of itself at these keys, each through its reader (as it is found where that is None)."""
        there = ((key, read) for key, read in readers.items() if key in self)
        return {key: self.values[key] if read is None else read(key) for key, read in there}


def shown(found: Any) -> str:
    """A value for a sentence, as Python writes it, cut where it is long."""
    try:
        text = repr(found)
    except ValueError:  # Python refuses to write whole numbers of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
