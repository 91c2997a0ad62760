"""Numbers as text for people, the same in all tables, pages and messages; never a negative zero."""

from __future__ import annotations

import math

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


def with_error(value: float, stderr: float | None) -> str:
    """Format a value to the second digit of its standard error, `0.289 ± 0.011`; without one, to four digits.

    If that takes more than six decimals, both share a power of ten: `(3.4 ± 1.2)e-08`.
    """
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


def decimals(stderr: float) -> int:
    """Return the number of decimals that shows two digits of a standard error."""
    return max(0, 1 - math.floor(math.log10(stderr)))


def interval(ends: tuple[float, float] | list[float], stderr: float | None) -> str:
    """Format an interval, with both ends to the second digit of the standard error: `0.27 to 0.31`."""
    if not stderr or not math.isfinite(stderr) or decimals(stderr) > 6:
        return " to ".join(number(end, 3) for end in ends)
    return " to ".join(f"{end:z.{max(decimals(stderr), 1)}f}" for end in ends)
