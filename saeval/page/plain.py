"""Plain data for the page's scripts: short numbers, escaped text, and JSON that no HTML parser can leave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from saeval.base import escapes

DIGITS = 7
"""Significant digits of a value; its error has `OF_ERRORS`."""
OF_ERRORS = 4
_UNSAFE = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


def short(value: float | None, digits: int = DIGITS) -> float | int | None:
    """Return a number with at most so many significant digits; None if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def plain(value: Any, longest: int | None = None) -> Any:
    """Return JSON data with all text on one line and without control characters, and numbers that JSON has.

    Lists of more than `longest` items become a sentence that counts them.
    """
    if isinstance(value, str):
        return escapes.line(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return {escapes.line(str(key)): plain(item, longest) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if longest is not None and len(value) > longest:
            return f"{len(value)} items"
        return [plain(item, longest) for item in value]
    return escapes.line(str(value))


def as_json(value: Any) -> str:
    """Return JSON for a `<script type="application/json">` element: nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def forms(text: str) -> dict[str, str]:
    """Return a text as Markdown, LaTeX and CSV cells, each only if it differs from the text."""
    written = {"md": escapes.markdown(text), "tex": escapes.latex(text), "csv": escapes.csv(text)}
    return {name: form for name, form in written.items() if form != text}
