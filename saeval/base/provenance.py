"""What was run: versions, commits, machine. Of the package, never of the folder it was called from."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "transformer-lens", "safetensors", "numpy", "pluggy", "pydantic")


@functools.cache
def version() -> str:
    """Version of the installed saeval."""
    try:
        return metadata.version("saeval")
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def commit() -> str | None:
    """Commit of saeval's own checkout, with `+` for uncommitted changes; None for an ordinary install."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    # `status` would refresh the index and lock it, under the feet of a commit that somebody is making.
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return found.stdout.strip()


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Everything about this process that a reader of a result may ask for."""
    return {
        "saeval": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries(),
        "argv": sys.argv,
    }
