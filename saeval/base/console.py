"""The command line's streams: what is printed reaches any terminal, in any encoding, and no device stops the work."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from saeval.base.errors import SaevalError
from saeval.base.escapes import terminal

_ASCII = str.maketrans({
    "±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "↓": "v", "↑": "^", "→": "->", "⏎": "\\n",
    "⇥": "\\t", "‖": "||", "Σ": "sum ", "²": "^2", "³": "^3", "≤": "<=", "≥": ">=", "≈": "~", "“": '"', "”": '"',
    "’": "'", "\u0302": "^", "μ": "mu", "∞": "inf", "·": ".", "√": "sqrt",
})  # fmt: skip
"""What saeval's own text says in ASCII where a console lacks the sign."""


_MOVES = re.compile(r"\r(?!\n)|\n*(\x1b\[A)+\Z")
"""How progress bars of libraries begin their line again, and go up to it; nothing foreign begins what is written."""


class Shown:
    """A stream for people: control characters are shown, and signs that its encoding lacks are spelled in ASCII.

    `needed` is whether what is written there is the verb's answer: then a device that takes no more is a `SaevalError`.
    Otherwise (progress, warnings) it is no reason to stop.
    """

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self.stream = stream
        self.needed = needed
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self.failed:  # already reported
            with self._answering():
                self.stream.write(self._spelled(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        if not self.failed:
            with self._answering():
                self.stream.flush()

    def _spelled(self, text: str) -> str:
        plain = terminal(text)
        if not self.needed and (start := _MOVES.match(text)):
            plain = start[0] + terminal(text[start.end() :])
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            plain.encode(encoding)
        except UnicodeEncodeError:
            letters = (c if _has(encoding, c) else c.translate(_ASCII) for c in plain)
            return "".join(letters).encode(encoding, "backslashreplace").decode(encoding)
        except LookupError:  # a stream of some notebook's, with an encoding of its own name
            pass
        return plain

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = True
            if not self.needed:
                return
            if isinstance(error, BrokenPipeError):
                raise
            reason = error.strerror or error
            message = f"standard output cannot be written ({reason}); free some space, or send it elsewhere"
            raise SaevalError(message) from None

    def abandon(self) -> None:
        """Leave what could not be written: the interpreter would try again at its exit, and fail."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


def _has(encoding: str, letter: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def shown() -> Iterator[None]:
    """Standard output and error as `Shown` meanwhile."""
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
    """The stream itself, for what draws with a terminal's own codes; it must not fail at a sign that it lacks."""
    own = stream.stream if isinstance(stream, Shown) else stream
    with suppress(AttributeError, ValueError):
        own.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return own


__all__ = ["Shown", "device", "shown"]
