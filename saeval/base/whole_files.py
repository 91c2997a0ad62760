"""Atomic writes: each file that saeval writes is whole or absent, whatever happens to the process or the disk."""

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
"""Start of a remedy, followed by the option or variable that sets the path."""
_PART = ".part"
_LOCKS = fcntl is not None
"""True if open files can be renamed and removed, and locks show which files are open."""
_MINUTE, _DAY = 60.0, 86400.0


class Unwritable(SaevalError):  # noqa: N818 - a state of the disk
    """A file cannot be written, for a `reason` such as a full disk or a read-only folder."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: cannot be written ({reason}); {remedy}")


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], object], remedy: str) -> None:
    """Write a file atomically (temporary name, fsync, rename): readers see the old file or the new one, never a part.

    `content` may be a function that writes to the open file. On failure the old file is unchanged, and `Unwritable`,
    a `SaevalError`, says why and ends with `remedy`.
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
                if _LOCKS:  # while it is locked, so that `tidy` does not remove it
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
    """Make the names of files written into a folder survive a power cut, if the system supports it.

    Without it a file may be old or absent afterwards. One call after many writes costs no more than after one.
    """
    with suppress(OSError, AttributeError):  # Windows has no O_DIRECTORY, and some file systems do not support it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(folder: Path) -> tuple[int, str]:
    """Return a new hidden file, open and locked by this process."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_PART)
        if _locked(handle) is not False and os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process tidied it away before it was locked


def _locked(handle: int) -> bool | None:
    """Lock an open file; return False if another process holds the lock, None if the file system has no locks."""
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
    """Remove files that killed processes left half-written in a folder, but none that is being written."""
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
