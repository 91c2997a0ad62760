"""`Origin`: who supplies a thing, and what makes its code the same; part of every key."""

from __future__ import annotations

import functools
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Who supplies a thing: `distribution:entry-point`, or the file of `--plugin`."""

    distribution: str
    entry_point: str
    version: str = ""
    editable: bool = False

    def __str__(self) -> str:
        return f"{self.distribution}:{self.entry_point}"

    @property
    def own(self) -> bool:
        """Whether it ships with saeval, whose tests prove that its functions write into nothing."""
        return self.distribution == "saeval"


def code_identity(thing: object, origin: Origin) -> str:
    """What makes the code behind a name the same: the distribution's version, or its package's source when editable."""
    if not origin.editable:
        return f"{origin.distribution}=={origin.version}"
    return f"{origin.distribution}:{_source_identity(thing) or origin.version}"


def _source_identity(thing: Any) -> str:
    """Hash of the package that a function or class is written in; empty where no file has it, as in a notebook."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = inspect.unwrap(thing)  # a decorator's own file says nothing of what it decorates
    if not isinstance(thing, type | FunctionType):
        thing = type(thing)
    try:
        file = inspect.getsourcefile(thing)
        return _source_hash(Path(file).resolve()) if file else ""
    except (TypeError, OSError):
        return ""


@functools.cache
def _source_hash(source: Path) -> str:
    """Hash of a module's whole package, or of the module alone where it stands in none."""
    package = source.parent
    if not (package / "__init__.py").exists():
        files = [source]
    else:
        while (package.parent / "__init__.py").exists():
            package = package.parent
        files = sorted(package.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
