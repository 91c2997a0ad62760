"""Names that a suite or an option means: a name as it stands, or a glob of names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

WILDCARDS = frozenset("*?[")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means, in their order: the name itself where there is one, else those it matches.

    Where it matches none as a glob, its brackets are brackets: `a[lr=1e-4]/*` means what is below that folder.
    """
    known = list(names)
    if pattern in known:
        return [name for name in known if name == pattern]
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    plain = pattern.replace("[", "[[]")
    return found or [name for name in known if fnmatch.fnmatchcase(name, plain)]


def meant(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that any of the patterns means, in their order."""
    known = list(names)
    found = {name for pattern in patterns for name in matching(pattern, known)}
    return [name for name in known if name in found]


__all__ = ["WILDCARDS", "matching", "meant"]
