"""Rules for the names that users choose: of suites, metrics, SAEs, groups and controls."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence

from saeval.base.escapes import CONTROL, FORBIDDEN, MAX_BYTES, RESERVED, line


def unfit(name: str) -> str | None:
    """Return why a name cannot be shown in a table, in a phrase; None if it is one line without control characters."""
    if not name.strip():
        return "it is empty"
    if match := CONTROL.search(name):
        return f"it has the control character '{line(match[0])}' at position {match.start() + 1}"
    return None


def unfit_for_files(name: str) -> str | None:
    """Return why a name cannot be a file name on every system, in a phrase; None if it can."""
    if reason := unfit(name):
        return reason
    if wrong := next((letter for letter in name if letter in FORBIDDEN), None):
        return f"it has '{wrong}', which file names cannot contain on every system"
    if name[0] in ". " or name[-1] in ". ":
        return "it begins or ends with a dot or a space"
    if RESERVED.fullmatch(name):
        return "it is the name of a device on Windows"
    if len(name.encode()) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return None


def without_repetition(names: Sequence[str], widths: Sequence[int], beside: Sequence[str]) -> list[str]:
    """Return names, without parts between slashes that are not needed to tell them apart, if any is too wide.

    `beside` is what stands next to each name, such as its hook; names only have to differ where it is the same. Parts
    go that several names beside the same text have: first those that all names have or that stand in `beside`, then
    those of most names, until all fit.
    """
    shown = list(names)
    if _fit(shown, widths):
        return shown
    split = [name.split("/") for name in names]
    found = Counter((part, text) for parts, text in zip(split, beside, strict=True) for part in dict.fromkeys(parts))
    count: Counter[str] = Counter()
    for (part, _), number in found.items():
        count[part] += number
    in_all = {part for part in count if len(split) > 1 and count[part] == len(split)}
    repeated = in_all | {part for part in count if any(part in text for text in beside)}
    several = {part for (part, _), number in found.items() if number > 1} | repeated
    distinct = len({*zip(names, beside, strict=True)})
    for part in sorted(several, key=lambda part: (part not in repeated, -count[part], -len(part), part)):
        if part not in repeated and _fit(shown, widths):
            break
        fewer = [[p for p in parts if p != part] or parts for parts in split]
        shorter = ["/".join(parts) for parts in fewer]
        if len({*zip(shorter, beside, strict=True)}) == distinct:
            split, shown = fewer, shorter
    return shown


def _fit(names: Sequence[str], widths: Sequence[int]) -> bool:
    return all(len(name) <= width for name, width in zip(names, widths, strict=True))


WILDCARDS = frozenset("*?[")


def names_matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches, in order: a name equal to it, else those that it matches as a glob.

    If it matches none, its brackets are taken literally: `a[lr=1e-4]/*` then matches everything in that folder.
    """
    names = list(names)
    if pattern in names:
        return [name for name in names if name == pattern]
    matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    literal = pattern.replace("[", "[[]")
    return matches or [name for name in names if fnmatch.fnmatchcase(name, literal)]


def names_matching_any(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that any of the patterns matches, in order."""
    names = list(names)
    matches = {name for pattern in patterns for name in names_matching(pattern, names)}
    return [name for name in names if name in matches]
