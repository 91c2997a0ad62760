"""Zip archives of arrays and tensors: whether what is in them is what was written."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path


def damaged_member(path: Path) -> str | None:
    """The first member whose length or checksum is not the archive's; None where all agree, or the file is no archive.

    Readers that map a file into memory never look at checksums, so that a flipped bit would be a weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
        return None  # what is wrong with the archive itself is said by its reader
