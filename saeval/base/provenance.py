"""Provenance of a run: versions, commit and machine, of the package, not of the current folder."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "transformer-lens", "safetensors", "numpy", "pluggy", "pydantic", "gguf")


@functools.cache
def version() -> str:
    """Return the version of the installed saeval."""
    try:
        return metadata.version("saeval")
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def commit() -> str | None:
    """Return the commit of saeval's checkout, with `+` for uncommitted changes; None for an ordinary install."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    # Without this option `status` locks the index, which could make a concurrent commit fail.
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


@functools.cache
def libraries() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on, by name; those not installed are left out."""
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def environment() -> dict[str, Any]:
    """Return the facts about this process that are recorded with results."""
    return {
        "saeval": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries(),
        "argv": sys.argv,
    }
