"""The grammar of names that people choose: of suites, metrics, SAEs, groups and controls."""

from __future__ import annotations

from saeval.escapes import CONTROL, FORBIDDEN, MAX_BYTES, RESERVED, line


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


__all__ = ["unfit", "unfit_for_files"]
