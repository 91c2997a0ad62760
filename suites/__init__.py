"""The suites that ship with saeval."""

from __future__ import annotations

from pathlib import Path

from saeval.plugin import RegisteredSuite, hookimpl


@hookimpl
def saeval_suites() -> list[RegisteredSuite]:
    """Return the YAML files beside this one, each described by the comment in its first line."""
    suites = []
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        suites.append(
            RegisteredSuite(path.stem, path, first.removeprefix("#").strip() if first.startswith("#") else "")
        )
    return suites
