"""Rules for the names that users choose: of suites, metrics, SAEs, groups and controls."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

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
