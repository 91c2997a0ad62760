"""Typed values from the config files beside an SAE's weights; an error for each value of a wrong type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from saeval.plugin import SaevalError

LEAST, MOST = 1e-12, 1e12
"""Limits of norms, factors and thresholds: beyond them, float32 weights would become zero or infinite."""
_SHOWN = 80

T = TypeVar("T")


class Fields:
    """The values of one object in a file, by key.

    Each reader raises `SaevalError` with the file, the key, the expected type and the actual value. Types are strict:
    true is not 1, `"8"` is not 8, and NaN and infinity are refused. A missing key has the reader's `default`, if it
    has one; null is refused unless the reader says otherwise.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], within: str = "") -> None:
        """`within` is the object's key in the file, for messages: `trainer`."""
        self.path = path
        self.values = values
        self._within = f"{within}." if within else ""

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fault(self, key: str, expected: str, limits: str = "") -> SaevalError:
        """Return the error for a value that is not the `expected` one; `limits` follows its key in the message."""
        actual = shown(self.values[key]) if key in self.values else "nothing"
        return SaevalError(f"{self.path}: expected {expected} in '{self._within}{key}'{limits}, found {actual}")

    def maybe(self, read: Callable[[str], T], key: str) -> T | None:
        """Return `read(key)`, or None if the key is missing or null."""
        return read(key) if key in self else None

    def inside(self, key: str) -> Fields:
        """Return the object at a key; an empty one if it is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fault(key, "an object")
        return Fields(self.path, value or {}, f"{self._within}{key}")

    def whole(self, key: str) -> int:
        """Return a positive whole number."""
        value = self.count(key, 1, "a positive whole number")
        if value > MOST:
            raise self.fault(key, "a positive whole number", f" (at most {MOST:g})")
        return value

    def count(self, key: str, least: int = 0, expected: str = "a whole number of 0 or more") -> int:
        """Return a whole number of `least` or more."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.fault(key, expected)
        return value

    def k(self, d_sae: int, key: str = "k") -> int:
        """Return the number of active features: a whole number from 1 to `d_sae`."""
        value = self.whole(key)
        if value > d_sae:
            raise SaevalError(f"{self.path}: '{self._within}{key}' is {shown(value)}, more than the {d_sae} features")
        return value

    def positive(self, key: str) -> float:
        """Return a positive number that is safe to multiply and divide float32 weights by."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not LEAST <= value <= MOST:
            raise self.fault(key, "a positive number", f" ({LEAST:g} to {MOST:g})")
        return float(value)

    def amount(self, key: str) -> float:
        """Return 0 or a positive number, with the limits of `positive`."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (value == 0 or LEAST <= value <= MOST):
            raise self.fault(key, "a positive number or 0", f" ({LEAST:g} to {MOST:g})")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """Return text; None if it is missing, null or empty."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fault(key, "text")
        return value or None

    def choice(self, key: str, supported: Collection[str], default: str | None = None) -> str:
        """Return one of the `supported` words."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in supported:
            word = value if isinstance(value, str) and len(value) <= _SHOWN else shown(value)
            fault = f"{self._within}{key} '{word}' is not supported" if key in self else f"there is no '{key}'"
            raise SaevalError(f"{self.path}: {fault}; supported: {', '.join(supported)}")
        return value

    def facts(self, readers: Mapping[str, Callable[[str], Any] | None]) -> dict[str, Any]:
        """Return the values at these keys, without missing ones; a reader of None takes the value unchecked."""
        present = ((key, read) for key, read in readers.items() if key in self)
        return {key: self.values[key] if read is None else read(key) for key, read in present}


def shown(value: Any) -> str:
    """Return a value's `repr` for a message, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than a few thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
