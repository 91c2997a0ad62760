"""Text files as users save them: UTF-8, with or without a byte order mark; no larger than they should be."""

from __future__ import annotations

import codecs
import io
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from saeval.base.errors import SaevalError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8 text."""
MOST_BYTES = 64 * 2**20
"""The largest file that is read as a whole: a config, a suite, an index of weights."""
LONG = 2**20
"""Bytes of a text beyond which it is not held as a whole."""
_CHUNK = 2**18
_NEWLINE = rb"(?:\r\n|\r(?!\n)|\n)"


class FileError(SaevalError):
    """A text file that cannot be used: `reason`, and the remedy, without its path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without its byte order mark, lines ending in `\\n`.

    `SaevalError` where it is not UTF-8, no ordinary file or of more than `most` bytes, `OSError` where it cannot be
    read.
    """
    size = check_regular_file(path)
    if size > most:
        raise FileError(path, f"{size:,} bytes, where at most {most:,} are read; check the path")
    with path.open("rb") as file:
        check_encoding(path, file.read(4))
        file.seek(0)
        content = file.read(most + 1)
    text = content.removeprefix(BYTE_ORDER_MARK)
    return _decoded(path, text, len(content) - len(text))


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """What a JSON file holds, its text read as by `read_text`; `SaevalError` also where it is broken JSON."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and too deeply nested lists
        raise FileError(path, f"broken JSON ({json_error(error)}); copy it again") from None


def json_error(error: Exception) -> str:
    """Why text was not read as JSON, in few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    # Python raises a bare ValueError for these, with advice to its programmers.
    return "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)


def check_regular_file(path: Path) -> int:
    """The size of an ordinary file; `SaevalError` for a folder, a pipe or a device, `OSError` where nothing is there.

    Reading the others may never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise FileError(path, f"expected a file, found {kind}; check the path")
    return found.st_size


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_encoding(path: Path, first: bytes) -> None:
    """`SaevalError` where a file's first bytes are those of UTF-16 or UTF-32."""
    # Without a mark, one of the first two bytes of UTF-16 text is zero where its first character is of ASCII.
    wide = first[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(first) > 1 and first[:2].count(0) == 1)
    if wide or first == b"\x00\x00\xfe\xff":
        name = "UTF-32" if first in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff") or first[1:] == b"\0\0\0" else "UTF-16"
        raise FileError(path, f"{name} text, expected UTF-8; save it again as UTF-8")


@dataclass(frozen=True)
class Passage:
    """A long part of a text file, from byte `start` to byte `end`: an iterable of its text in pieces."""

    path: Path
    start: int
    end: int

    def __iter__(self) -> Iterator[str]:
        characters = codecs.getincrementaldecoder("utf-8")()
        lines = io.IncrementalNewlineDecoder(None, translate=True)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for place in range(self.start, self.end, _CHUNK):
                content = file.read(min(_CHUNK, self.end - place))
                before = len(characters.getstate()[0])
                try:
                    text = characters.decode(content, place + len(content) >= self.end)
                except UnicodeDecodeError as error:
                    raise _undecodable(self.path, place - before + error.start) from None
                yield lines.decode(text, place + len(content) >= self.end)


def text_passages(path: Path, separator: str | None = None) -> Iterator[str | Passage]:
    """The text of a file, or its pieces between separators; those of more than `LONG` bytes as passages.

    The file is read as it is iterated, so memory does not depend on its size. Line ends of the text and of the
    separator are `\\n`, whichever they are in the file. `SaevalError` as of `read_text`.
    """
    size = check_regular_file(path)
    with path.open("rb") as file, path.open("rb", buffering=0) as pieces:
        first = file.read(4)
        check_encoding(path, first)
        start = len(BYTE_ORDER_MARK) if first.startswith(BYTE_ORDER_MARK) else 0
        for begin, end in [(start, size)] if separator is None else _between(file, start, separator):
            if end - begin > LONG:
                yield Passage(path, begin, end)
            else:
                pieces.seek(begin)
                yield _decoded(path, pieces.read(end - begin), begin)


def normalized_newlines(text: str) -> str:
    """The text with every line ending in `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _between(file: BinaryIO, start: int, separator: str) -> Iterator[tuple[int, int]]:
    """First byte and end of each piece; the file is read on from where it stands when the next is asked for."""
    parts = normalized_newlines(separator).encode().split(b"\n")
    pattern = re.compile(_NEWLINE.join(map(re.escape, parts)))
    longest = sum(map(len, parts)) + 2 * (len(parts) - 1)
    file.seek(start)
    begin, place, buffer, added = start, start, b"", b"more"
    while added:
        added = file.read(_CHUNK)
        buffer += added
        searched = 0
        # A match that ends where the buffer does may be longer, where its last byte is the first of `\r\n`.
        while (found := pattern.search(buffer, searched)) and (found.end() < len(buffer) or not added):
            yield begin, place + found.start()
            begin, searched = place + found.end(), found.end()
        kept = max(searched, len(buffer) - longest - 1)
        place, buffer = place + kept, buffer[kept:]
    yield begin, place + len(buffer)


def _decoded(path: Path, content: bytes, start: int) -> str:
    try:
        return normalized_newlines(content.decode())
    except UnicodeDecodeError as error:
        raise _undecodable(path, start + error.start) from None


def _undecodable(path: Path, byte: int) -> FileError:
    return FileError(path, f"not UTF-8 text (at byte {byte}); save it again as UTF-8")
