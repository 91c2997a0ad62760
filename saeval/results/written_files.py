"""The files that a report wrote into a folder, so that the next one removes those that it does not write again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from saeval.base.errors import log
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import FREE_SPACE, write_whole

LIST = ".saeval-report.json"


def leave_only(folder: Path, written: Iterable[Path]) -> list[Path]:
    """Remove the files of the last report into `folder` that are not `written` again, and list these.

    Return the removed. A file stays if it is not as that report wrote it, or is not a plain file in the folder itself.
    Raises `Unwritable` if the list cannot be written.
    """
    here = {path.name: path for path in written if path.parent == folder}
    removed = []
    for name, digest in _listed(folder).items():
        path = folder / name
        if name in here or path.name != name or path.parent != folder or path.is_symlink() or not path.is_file():
            continue
        try:
            if _digest(path) == digest:
                path.unlink()
                removed.append(path)
        except OSError as error:
            log.debug("%s stays: %s", path, error)
    files = {name: _digest(path) for name, path in sorted(here.items())}
    if files or removed:
        write_whole(folder / LIST, sealed({"files": files}), f"{FREE_SPACE} --to")
    return removed


def _listed(folder: Path) -> dict[str, str]:
    """The names of files and their hashes; none without a list, or with one that is damaged."""
    try:
        files = unsealed((folder / LIST).read_bytes())["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, DamagedError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.debug("%s: no list of files (%s)", folder, error)
        return {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
