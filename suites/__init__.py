"""The suites that ship with saeval."""

from __future__ import annotations

from pathlib import Path

from saeval.plugin import RegisteredSuite, hookimpl


@hookimpl
def saeval_suites() -> list[RegisteredSuite]:
    """Every YAML file beside this one; its first line's comment is its description."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found.append(RegisteredSuite(path.stem, path, first.removeprefix("#").strip() if first.startswith("#") else ""))
    return found
