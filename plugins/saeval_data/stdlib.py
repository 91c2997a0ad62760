"""The running Python's standard library as a corpus: each module is a document."""

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
# Near-identical tables: a held-out one would be trivially easy to predict.
_TABLES = {"encodings", "pydoc_data"}
_FOREIGN = {"site-packages", "dist-packages", "__pycache__", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}


def stdlib_modules(split: str, *, tests: bool = True) -> Iterator[tuple[str, str]]:
    """Yield `(module path, source text)` of one split, sorted by path.

    `held_out` is the fifth of the library's modules whose path hashes below `HELD_OUT_SHARE`. `train` is all other
    modules and the library's test suite if it is installed; `tests=False` leaves the test suite out, so that all
    installations have about the same documents. The split depends only on the path, so it is the same in all Pythons.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_sources(root)):
        relative = path.relative_to(root)
        parts = set(relative.parts)
        if not tests and parts & _TESTS:
            continue
        name = relative.as_posix()
        held_out = not parts & _TESTS and hash_share(name) < HELD_OUT_SHARE
        if held_out != (split == "held_out"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield name, text


def _sources(root: Path) -> Iterator[Path]:
    """Yield the library's own .py files, without entering the folders of installed packages."""
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in _FOREIGN | _TABLES and not f.startswith("config-")]
        for name in names:
            # _sysconfigdata differs from machine to machine
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def hash_share(name: str) -> float:
    """Return a number from 0 to 1 by the hash of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


class PythonStdlib(Source):
    """The running Python's standard library, one document per module; needs no download.

    A fifth of the modules, chosen by a hash of their paths, is evaluated; the others are the fit split. The text
    differs slightly between Python versions, so results record its fingerprint and the version.
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
        """The hash of names and contents of both splits, and the facts: size of the evaluated split and version."""
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
