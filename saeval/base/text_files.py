"""Text files of users: UTF-8 with or without a byte order mark, and of limited size."""

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
"""Largest file that is read as a whole, such as a config, a suite or an index of weights."""
LONG = 2**20
"""Longest text, in bytes, that is held in memory as a whole."""
_CHUNK = 2**18
_NEWLINE = rb"(?:\r\n|\r(?!\n)|\n)"


class FileError(SaevalError):
    """A text file cannot be used. `reason` is the message without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file without its byte order mark, with lines ending in `\\n`.

    `SaevalError` if it is not UTF-8, not a regular file or has more than `most` bytes; `OSError` as of `open`.
    """
    size = check_regular_file(path)
    if size > most:
        raise FileError(path, f"{size:,} bytes, but at most {most:,} are read; check the path")
    with path.open("rb") as file:
        check_encoding(path, file.read(4))
        file.seek(0)
        content = file.read(most + 1)
    text = content.removeprefix(BYTE_ORDER_MARK)
    return _decoded(path, text, len(content) - len(text))


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file, with the errors of `read_text`; `SaevalError` also for broken JSON."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:  # also numbers with thousands of digits, and lists nested too deeply
        raise FileError(path, f"broken JSON ({json_error(error)}); copy it again") from None


def json_error(error: Exception) -> str:
    """Return in a few words why text could not be read as JSON, from the error of `json.loads`."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    # Python raises a plain ValueError for these, with advice for programmers.
    return "a number with thousands of digits" if "integer string conversion" in str(error) else str(error)


def check_regular_file(path: Path) -> int:
    """Return the size of a regular file in bytes; `OSError` if there is none.

    `SaevalError` for a folder, a pipe or a device, since reading these may never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise FileError(path, f"expected a file, found {kind}; check the path")
    return status.st_size


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_encoding(path: Path, first: bytes) -> None:
    """Raise `SaevalError` if a file's first bytes, up to 4, are those of UTF-16 or UTF-32."""
    # UTF-16 text without a mark has a zero among its first two bytes if its first character is ASCII.
    wide = first[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(first) > 1 and first[:2].count(0) == 1)
    if wide or first == b"\x00\x00\xfe\xff":
        name = "UTF-32" if first in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff") or first[1:] == b"\0\0\0" else "UTF-16"
        raise FileError(path, f"{name} text, expected UTF-8; save it again as UTF-8")


@dataclass(frozen=True)
class Passage:
    """A long part of a text file, from byte `start` to byte `end`. Iteration yields its text in pieces."""

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
    """Yield the text of a file, or its pieces between separators; pieces of more than 1 MiB come as a `Passage`.

    The file is read during iteration, so memory does not depend on its size. Line ends of the text and of the
    separator are `\\n`, whatever they are in the file. `SaevalError` as of `read_text`.
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
    """Return the text with every line ending in `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _between(file: BinaryIO, start: int, separator: str) -> Iterator[tuple[int, int]]:
    """Yield the first byte and the end of each piece; nothing else may move the file's position meanwhile."""
    parts = normalized_newlines(separator).encode().split(b"\n")
    pattern = re.compile(_NEWLINE.join(map(re.escape, parts)))
    longest = sum(map(len, parts)) + 2 * (len(parts) - 1)
    file.seek(start)
    begin, place, buffer, added = start, start, b"", b"more"
    while added:
        added = file.read(_CHUNK)
        buffer += added
        searched = 0
        # A match at the end of the buffer may be longer, if its last byte is the first of `\r\n`.
        while (match := pattern.search(buffer, searched)) and (match.end() < len(buffer) or not added):
            yield begin, place + match.start()
            begin, searched = place + match.end(), match.end()
        done = max(searched, len(buffer) - longest - 1)
        place, buffer = place + done, buffer[done:]
    yield begin, place + len(buffer)


def _decoded(path: Path, content: bytes, start: int) -> str:
    try:
        return normalized_newlines(content.decode())
    except UnicodeDecodeError as error:
        raise _undecodable(path, start + error.start) from None


def _undecodable(path: Path, byte: int) -> FileError:
    return FileError(path, f"not UTF-8 text (at byte {byte}); save it again as UTF-8")
