"""`Origin`: the plugin that supplies an object, and the identity of its code, which is part of every key."""

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
    """The plugin that supplies an object: `distribution:entry-point`, or the file of `--plugin`."""

    distribution: str
    entry_point: str
    version: str = ""
    editable: bool = False

    def __str__(self) -> str:
        return f"{self.distribution}:{self.entry_point}"

    @property
    def own(self) -> bool:
        """True if it ships with saeval, whose tests show that its functions do not change their arguments."""
        return self.distribution == "saeval"


def code_identity(definition: object, origin: Origin) -> str:
    """Return the identity of an object's code: the distribution's version, or a hash of its package if editable."""
    if not origin.editable:
        return f"{origin.distribution}=={origin.version}"
    return f"{origin.distribution}:{_source_identity(definition) or origin.version}"


def _source_identity(definition: Any) -> str:
    """Return a hash of the package that defines a function or class; empty if it has no file, as in a notebook."""
    while isinstance(definition, functools.partial):
        definition = definition.func
    definition = inspect.unwrap(definition)  # the file of the decorated function, not of the decorator
    if not isinstance(definition, type | FunctionType):
        definition = type(definition)
    try:
        file = inspect.getsourcefile(definition)
        return _source_hash(Path(file).resolve()) if file else ""
    except (TypeError, OSError):
        return ""


@functools.cache
def _source_hash(source: Path) -> str:
    """Return a hash of a module's top-level package, or of the module if it is in none."""
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
