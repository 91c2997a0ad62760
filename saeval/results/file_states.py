"""States of files: size, times and inode, which show a change without opening the file. Imports nothing slow."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "index"
"""Subfolder of a results folder that can be rebuilt from its files."""
ABSENT, UNREAD = -1, -3
"""In place of the numbers of a file that does not exist, and of one that was not read."""
SETTLED = 2_000_000_000
"""Nanoseconds: a file changed later than this before it was read may change again within a tick of its clock."""


@dataclass(frozen=True)
class Basis:
    """The files of some results, in the state in which they were read."""

    keys: list[str]
    with_arrays: list[str]
    """Those of `keys` whose arrays were read too."""
    digest: str

    @classmethod
    def of(cls, folder: Path, keys: list[str], with_arrays: list[str]) -> Basis:
        """Return their present state."""
        states = [states_of(result_files(folder, *names)) for names in ((keys, ".json"), (with_arrays, ".npz"))]
        return cls(keys, with_arrays, hashlib.sha256(b"".join(states)).hexdigest())


def result_files(folder: Path, keys: Iterable[str], suffix: str) -> list[str]:
    """Return the paths of one file of each result."""
    start = f"{folder}{os.sep}"  # paths of 100,000 files as `Path` cost more than it costs to look at them
    return [f"{start}{key}{suffix}" for key in keys]


def states_of(paths: Sequence[str]) -> array[int]:
    """Return size, times and inode of each file, in one flat array."""
    found = array("q")
    stat, add = os.stat, found.extend
    for path in paths:
        try:
            add(facts(stat(path)))
        except OSError:
            add((ABSENT, ABSENT, ABSENT, ABSENT))
    return found


def facts(state: os.stat_result) -> tuple[int, int, int, int]:
    """Return the part of a file's state that is compared."""
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino & 0x7FFFFFFFFFFFFFFF


def code(folders: Iterable[Path | str] = ()) -> str:
    """Return a hash that changes with the code of saeval, and of the packages in these folders."""
    every = {str(Path(__file__).parents[1]), *map(str, folders)}
    paths = sorted(str(path) for folder in every for path in Path(folder).rglob("*.py"))
    return hashlib.sha256(repr((paths, states_of(paths).tolist())).encode()).hexdigest()


def content_of(path: str) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a file and its state just before: for 200,000 files twice as fast as a file object."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(handle)
        content = os.read(handle, state.st_size + 1)
        if len(content) != state.st_size:  # a huge file, or one that is being written
            parts = [content]
            while part := os.read(handle, 1 << 24):
                parts.append(part)
            content = b"".join(parts)
        return content, state
    finally:
        os.close(handle)
