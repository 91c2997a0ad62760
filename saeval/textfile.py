"""Text files as users save them: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import io
from pathlib import Path

from saeval.errors import SaevalError

MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8 text."""


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a UTF-8 file, without its byte order mark, lines ending in `\\n`.

    `SaevalError` where it is not UTF-8 or has more than `most` bytes, `OSError` where it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(-1 if most is None else most + 1)  # a device has no size, and no end
    if most is not None and len(content) > most:
        raise SaevalError(f"{path}: has more than {most} bytes, so it is not what this should be; check the path")
    check_encoding(path, content[:4])
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise SaevalError(f"{path}: not UTF-8 text (at byte {error.start}); save it again as UTF-8") from None


def check_encoding(path: Path, first: bytes) -> None:
    """`SaevalError` where a file's first bytes are those of UTF-16 or UTF-32."""
    # Without a mark, one of the first two bytes of UTF-16 text is zero where its first character is of ASCII.
    wide = first[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(first) > 1 and first[:2].count(0) == 1)
    if wide or first == b"\x00\x00\xfe\xff":
        name = "UTF-32" if first in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff") or first[1:] == b"\0\0\0" else "UTF-16"
        raise SaevalError(f"{path}: {name} text, expected UTF-8; save it again as UTF-8")
