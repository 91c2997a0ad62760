"""The running Python's standard library as a corpus: every module is a document."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from saeval.plugin import Document, SaevalError, Source

HELD_OUT_SHARE = 0.2
# Tables rather than prose: near-copies of each other, so a held-out one would be trivially easy.
_TABLES = {"encodings", "pydoc_data"}
_FOREIGN = {"site-packages", "dist-packages", "__pycache__", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}


def stdlib_modules(split: str, *, tests: bool = True) -> Iterator[tuple[str, str]]:
    """Yield `(module path, source text)` of one split, sorted by path.

    `held_out` is the fifth of the library's own modules whose path hashes below
    `HELD_OUT_SHARE`; `train` is every other module and the library's test-suite where it is
    installed (not with `tests=False`, so that all installations have about the same documents).
    The split depends on the path alone, so it is the same for all Pythons.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_sources(root)):
        relative = path.relative_to(root)
        parts = set(relative.parts)
        if not tests and parts & _TESTS:
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


def _sources(root: Path) -> Iterator[Path]:
    """The library's own .py files. Folders of others are not entered: an installation may hold many."""
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in _FOREIGN | _TABLES and not f.startswith("config-")]
        for name in names:
            # _sysconfigdata differs from machine to machine
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


class PythonStdlib(Source):
    """The running Python's own library: held-out modules are evaluated, the other modules are the fit split.

    It varies a little with the Python version, so its fingerprint and the version are recorded.
    """

    name = "python-stdlib"
    splits_itself: ClassVar[bool] = True

    def fingerprint(self) -> str:
        return self._surveyed[0]

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        if self._surveyed[1]["modules"] == 0:
            root = sysconfig.get_paths()["stdlib"]
            raise SaevalError(
                f"data 'python-stdlib': no module sources under {root}; use a Python that ships its .py files"
            )
        for name, text in stdlib_modules("held_out" if split == "evaluation" else "train", tests=False):
            yield Document(name, text)

    def facts(self) -> Mapping[str, Any]:
        return self._surveyed[1]

    @cached_property
    def _surveyed(self) -> tuple[str, Mapping[str, Any]]:
        """Hash over names and contents of both splits, and the size of the evaluated one."""
        digest = hashlib.sha256()
        documents = size = 0
        for split in ("held_out", "train"):
            for name, text in stdlib_modules(split, tests=False):
                content = text.encode()
                digest.update(f"{split}\0{name}\0{len(content)}\0".encode())
                digest.update(content)
                if split == "held_out":
                    documents, size = documents + 1, size + len(content)
        return digest.hexdigest(), {"python": platform.python_version(), "modules": documents, "bytes": size}
