"""The running Python's standard library as a corpus: every module is a document."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_SHARE = 0.2
# Tables rather than prose: near-copies of each other, so a held-out one would be trivially easy.
_TABLES = {"encodings", "pydoc_data"}
_FOREIGN = {"site-packages", "dist-packages", "__pycache__", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}


def stdlib_modules(split: str) -> Iterator[tuple[str, str]]:
    """Yield `(module path, source text)` of one split, sorted by path.

    `held_out` is the fifth of the library's own modules whose path hashes below
    `HELD_OUT_SHARE`; `train` is every other module and the library's test-suite where it is
    installed. The split depends on the path alone, so it is the same for all Pythons.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = set(relative.parts)
        if parts & (_FOREIGN | _TABLES) or relative.parts[0].startswith("config-"):
            continue
        if relative.name.startswith("_sysconfigdata"):  # differs from machine to machine
            continue
        name = relative.as_posix()
        held_out = not parts & _TESTS and _share(name) < HELD_OUT_SHARE
        if held_out != (split == "held_out"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield name, text


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
