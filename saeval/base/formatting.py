"""Numbers as text for people, the same in all tables, pages and messages; never a negative zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROUNDING = 1e-9
"""A standard error below this share of its value, or of 1 if the value is not larger than it, is rounding."""


def number(value: float | None, digits: int = 4) -> str:
    """Format a number to `digits` significant digits, or to a whole one below a million; `–` if None or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if 10**digits <= abs(value) < 10**6:
        return f"{value:.0f}"
    return f"{value:z.{digits}g}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 cell`, `2 cells`, `0 clean passes`."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def scalar(record: Mapping[str, Any]) -> str:
    """Format a stored scalar with its standard error or, for a proportion, perhaps its interval; `undefined`."""
    if record["value"] is None:
        return "undefined"
    return with_error(record["value"], record["stderr"], record["ci95"] if record.get("proportion") else None)


def with_error(value: float, stderr: float | None, proportion: Sequence[float] | None = None) -> str:
    """Format a value to the second digit of its standard error, `0.289 ± 0.011`; without one, to four digits.

    If that takes more than six decimals, both share a power of ten: `(3.4 ± 1.2)e-08`. `proportion` is the interval of
    a proportion. It replaces an error that is 0, or that misleads because one side of it is twice as long as the
    other: `1 [0.51, 1]`.
    """
    if proportion is not None and stderr is not None:
        below, above = value - proportion[0], proportion[1] - value
        if (stderr <= ROUNDING or max(below, above) > 2 * min(below, above)) and below + above > 0:
            places = max(decimals(below + above), 1)
            middle, low, high = (_rounded(x, places) for x in (value, *proportion))
            return f"{middle} [{low}, {high}]"
    if stderr is None or not (math.isfinite(stderr) and math.isfinite(value)):
        return number(value)
    if stderr <= ROUNDING * abs(value):
        return f"{number(value)} ± 0"
    if max(stderr, abs(value)) <= ROUNDING and abs(value) <= stderr:
        return "0 ± 0"
    digits = decimals(stderr)
    if digits > 6:
        exponent = math.floor(math.log10(max(stderr, abs(value))))
        digits, value, stderr = digits + exponent, value / 10.0**exponent, stderr / 10.0**exponent
        return f"({value:z.{digits}f} ± {stderr:.{digits}f})e{exponent:03d}"
    return f"{value:z.{digits}f} ± {stderr:.{digits}f}"


def _rounded(share: float, places: int) -> str:
    return f"{share:.0f}" if share in (-1, 0, 1) else f"{share:z.{places}f}"


def decimals(stderr: float) -> int:
    """Return the number of decimals that shows two digits of a standard error."""
    return max(0, 1 - math.floor(math.log10(stderr)))


def interval(ends: tuple[float, float] | list[float], stderr: float | None) -> str:
    """Format an interval, with both ends to the second digit of the standard error: `0.27 to 0.31`."""
    if not stderr or not math.isfinite(stderr) or decimals(stderr) > 6:
        return " to ".join(number(end, 3) for end in ends)
    return " to ".join(f"{end:z.{max(decimals(stderr), 1)}f}" for end in ends)


def fitting(widths: Sequence[int], tiers: Sequence[Sequence[int]], room: int, gap: int = 2) -> list[int]:
    """Return the places of columns of these widths that fit a room together, with a gap between them; at least one.

    `tiers` has their places, the most important first. Within a tier a column that is too wide leaves its room to the
    next; those of a tier are only taken if all columns of the tiers before it fit.
    """
    chosen: list[int] = []
    for tier in tiers:
        for place in tier:
            needed = widths[place] + gap * bool(chosen)
            if needed <= room or not chosen:
                chosen.append(place)
                room -= needed
        if not set(tier) <= set(chosen):
            break
    return sorted(chosen)
