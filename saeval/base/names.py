"""The grammar of names that people choose: of suites, metrics, SAEs, groups and controls."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from saeval.base.escapes import CONTROL, FORBIDDEN, MAX_BYTES, RESERVED, line


def unfit(name: str) -> str | None:
    """Why a name cannot stand in a table, in a phrase; None where it can: it is one line without control characters."""
    if not name.strip():
        return "it is empty"
    if found := CONTROL.search(name):
        return f"it has the control character '{line(found[0])}' at place {found.start() + 1}"
    return None


def unfit_for_files(name: str) -> str | None:
    """Why a name cannot be that of a file on every system, in a phrase; None where it can."""
    if reason := unfit(name):
        return reason
    if wrong := next((letter for letter in name if letter in FORBIDDEN), None):
        return f"it has '{wrong}', which file names cannot have on every system"
    if name[0] in ". " or name[-1] in ". ":
        return "it begins or ends with a dot or a space"
    if RESERVED.fullmatch(name):
        return "it is the name of a device on Windows"
    if len(name.encode()) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return None


WILDCARDS = frozenset("*?[")


def names_matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means, in their order: the name itself where there is one, else those it matches.

    Where it matches none as a glob, its brackets are brackets: `a[lr=1e-4]/*` means what is below that folder.
    """
    known = list(names)
    if pattern in known:
        return [name for name in known if name == pattern]
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    plain = pattern.replace("[", "[[]")
    return found or [name for name in known if fnmatch.fnmatchcase(name, plain)]


def names_matching_any(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that any of the patterns means, in their order."""
    known = list(names)
    found = {name for pattern in patterns for name in names_matching(pattern, known)}
    return [name for name in known if name in found]
