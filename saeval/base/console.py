"""The command line's streams: output that suits any terminal and encoding, and survives a full or closed device."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO, cast

from saeval.base.errors import SaevalError
from saeval.base.escapes import terminal

_ASCII = str.maketrans({
    "±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "↓": "v", "↑": "^", "→": "->", "⏎": "\\n",
    "⇥": "\\t", "‖": "||", "Σ": "sum ", "²": "^2", "³": "^3", "≤": "<=", "≥": ">=", "≈": "~", "“": '"', "”": '"',
    "’": "'", "\u0302": "^", "μ": "mu", "∞": "inf", "·": ".", "√": "sqrt",
})  # fmt: skip
"""ASCII spellings of saeval's own signs, for consoles that lack them."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Handler of letters that an encoding lacks, for `str.encode`."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end].translate(_ASCII)
    return letters.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_in_ascii.__name__, _in_ascii)

_MOVES = re.compile(r"\r(?!\n)|\n*(\x1b\[A)+\Z")
"""Cursor moves of libraries' progress bars at the start of a write, where no foreign text can be."""


@dataclass(eq=False)
class Shown:
    """A stream for people: it escapes control characters and spells signs that its encoding lacks in ASCII.

    `needed` is True for the stream of a verb's answer: a write that fails is then a `SaevalError`. For progress and
    warnings it is False, and the run continues.
    """

    stream: TextIO
    needed: bool
    failed: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self.failed:  # already reported
            with self._handling_failure():
                self.stream.write(self._spelled(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        if not self.failed:
            with self._handling_failure():
                self.stream.flush()

    def _spelled(self, text: str) -> str:
        plain = terminal(text)
        if not self.needed and (start := _MOVES.match(text)):
            plain = start[0] + terminal(text[start.end() :])
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            return plain.encode(encoding, _in_ascii.__name__).decode(encoding)
        except LookupError:  # a notebook's stream with an unknown encoding
            return plain

    @contextmanager
    def _handling_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = True
            if not self.needed:
                return
            if isinstance(error, BrokenPipeError):
                raise
            reason = error.strerror or error
            message = f"standard output cannot be written ({reason}); free some space, or redirect it"
            raise SaevalError(message) from None

    def abandon(self) -> None:
        """Discard unwritten output, which the interpreter would try to write again at exit, and fail."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextmanager
def shown() -> Iterator[None]:
    """Context manager that wraps standard output and error in `Shown`."""
    before = sys.stdout, sys.stderr
    streams = [Shown(s, needed) if s is not None else None for s, needed in zip(before, (True, False), strict=True)]
    sys.stdout, sys.stderr = cast("list[TextIO]", streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            if stream is not None and stream.failed:
                stream.abandon()


def device(stream: TextIO) -> TextIO:
    """Return the wrapped stream, for libraries that draw with terminal codes; signs that it lacks are escaped."""
    inner = stream.stream if isinstance(stream, Shown) else stream
    with suppress(AttributeError, ValueError):
        inner.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return inner


DEFAULT_WIDTH = 80


def terminal_width() -> int:
    """Return the width that a printed table has to fit: `COLUMNS`, or that of the terminal; 80 without a terminal."""
    return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns


def default_format() -> str:
    """Return the format of a table that nobody chose: `text` on a terminal, else `md`."""
    return "text" if sys.stdout is not None and sys.stdout.isatty() else "md"
