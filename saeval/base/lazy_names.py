"""Modules that only export names of others, each imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def on_first_use(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a module that imports the names in `__all__` below `if TYPE_CHECKING:`."""

    @cache
    def homes() -> dict[str, tuple[str, str]]:
        import ast  # late: `import saeval` alone should be fast
        import inspect

        imports = (n for n in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))) if type(n) is ast.ImportFrom)
        return {alias.asname or alias.name: (node.module or "", alias.name) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in sys.modules[module].__all__:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        home, own = homes()[name]
        return getattr(__import__(home, fromlist=[own]), own)

    return get, lambda: sorted(sys.modules[module].__all__)
