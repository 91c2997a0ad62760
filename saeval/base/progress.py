"""Progress of a run: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from saeval.base.console import device
from saeval.base.escapes import line


class Progress(Protocol):
    """A display that the engine calls on progress, in sequences."""

    def started(self, title: str, sequences: int, done: int) -> None: ...
    def advanced(self, sequences: int) -> None: ...
    def finished(self) -> None: ...


class Silence:
    """No progress display."""

    def started(self, title: str, sequences: int, done: int) -> None: ...
    def advanced(self, sequences: int) -> None: ...
    def finished(self) -> None: ...


class Lines:
    """Prints a line to standard error at the start and end of each pass, and every ten seconds in between."""

    def __init__(self) -> None:
        self._title, self._done, self._total, self._last = "", 0, 0, 0.0

    def started(self, title: str, sequences: int, done: int) -> None:
        self._title, self._done, self._total, self._last = line(title), done, sequences, time.monotonic()
        resumed = f", from sequence {done}" if done else ""
        print(f"pass: {self._title}: {sequences} sequences{resumed}", file=sys.stderr, flush=True)

    def advanced(self, sequences: int) -> None:
        self._done += sequences
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            print(f"pass: {self._title}: {self._done}/{self._total}", file=sys.stderr, flush=True)

    def finished(self) -> None:
        print(f"pass: {self._title}: {self._done}/{self._total} done", file=sys.stderr, flush=True)


class Bar:
    """A rich progress bar for each pass."""

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, title: str, sequences: int, done: int) -> None:
        from rich.console import Console  # late: slow to import, and not used in a pipe
        from rich.markup import escape
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(console=Console(file=device(sys.stderr)))
        self._bar.start()
        self._task = self._bar.add_task(escape(line(title)), total=sequences, completed=done)

    def advanced(self, sequences: int) -> None:
        self._bar.advance(self._task, sequences)

    def finished(self) -> None:
        self._bar.stop()


def progress() -> Progress:
    """Return a `Bar` if standard error is a terminal, else `Lines`."""
    return Bar() if sys.stderr.isatty() else Lines()
