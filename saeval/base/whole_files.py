"""Files that are whole or absent, whatever happens to the process or the disk: every file that saeval writes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from saeval.base.errors import SaevalError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FREE_SPACE = "free some space or choose another"
"""How a remedy begins, before the option or variable that names the place."""
_PART = ".part"
_LOCKS = fcntl is not None
"""Whether a file can be renamed and removed while it is open, and locks tell who has it open."""
_MINUTE, _DAY = 60.0, 86400.0


class Unwritable(SaevalError):  # noqa: N818 - a state of the disk
    """A file cannot be written, for a `reason`: the disk is full, the folder is read-only, a file is in the way."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: cannot be written ({reason}); {remedy}")


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], object], remedy: str) -> None:
    """Write under a temporary name, fsync, rename: a reader sees the old file or the new one, never a part.

    `content` may be a function that writes into the open file. `Unwritable` says why it failed and ends with `remedy`;
    then the old file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_UMASK)  # temporary files are private, results are not
                if _LOCKS:  # while it is locked, so that nobody takes it for one of a killed process
                    os.replace(temporary, path)
            if not _LOCKS:
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except IsADirectoryError:
        raise Unwritable(path, "a folder has this name", "move it away") from None
    except OSError as error:
        raise Unwritable(path, error.strerror or str(error), remedy) from None


def sync(folder: Path) -> None:
    """Make the names of files that were written into a folder survive a power cut, where the system can.

    Without it such a file may be the old one afterwards, or absent. One call after many files costs as much as one.
    """
    with suppress(OSError, AttributeError):  # Windows has no O_DIRECTORY, and some file systems cannot
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(folder: Path) -> tuple[int, str]:
    """A new file, open, locked and hidden, as long as this process is at it."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_PART)
        if _locked(handle) is not False and os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # between its making and its lock somebody else tidied it away


def _locked(handle: int) -> bool | None:
    """Lock an open file: False where another process has it, None where this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def tidy(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, and nothing that a living one is writing."""
    with suppress(OSError):
        for path in folder.glob(f".*{_PART}"):
            with suppress(OSError):
                _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    age = time.time() - path.stat().st_mtime
    if not _LOCKS:
        if age > _MINUTE:
            path.unlink()  # fails while it is open
        return
    with path.open("r+b") as file:
        alone = _locked(file.fileno())
        if alone or (alone is None and age > _DAY):
            path.unlink()


_UMASK = os.umask(0)
os.umask(_UMASK)
