"""Progress of a run: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any, Protocol

from saeval.base.console import device
from saeval.base.escapes import line
from saeval.base.formatting import number


class Progress(Protocol):
    """A display that the engine calls on progress: in sequences, and in tokens of the mask.

    The tokens are those of the clean passes that this pass computes: a batch that the preflight has run has 0.
    """

    def started(self, title: str, sequences: int, done: int) -> None: ...
    def advanced(self, sequences: int, tokens: int) -> None: ...
    def finished(self) -> None: ...


class Silence:
    """No progress display."""

    def started(self, title: str, sequences: int, done: int) -> None: ...
    def advanced(self, sequences: int, tokens: int) -> None: ...
    def finished(self) -> None: ...


class Speed:
    """Tokens per second of a pass and the time that it still takes.

    Both are those of the batches from the first one with tokens on: a batch that the preflight has run has none.
    """

    def __init__(self, sequences: int) -> None:
        self._left, self._done, self._tokens = sequences, 0, 0
        self._start = self._last = time.monotonic()

    def advanced(self, sequences: int, tokens: int) -> None:
        if tokens and not self._tokens:
            self._start, self._done = self._last, 0
        self._left, self._done, self._tokens = self._left - sequences, self._done + sequences, self._tokens + tokens
        self._last = time.monotonic()

    @property
    def tokens(self) -> str:
        """Tokens per second in words; empty for a pass without tokens."""
        rate = self._tokens / max(time.monotonic() - self._start, 1e-6)
        return f"{number(rate, 3)} tokens/s" if self._tokens else ""

    @property
    def left(self) -> str:
        """Time left in words, such as `3:05 left` for minutes and seconds; empty before the first batch."""
        if not self._done:
            return ""
        seconds = round(self._left * (time.monotonic() - self._start) / self._done)
        return f"{timedelta(seconds=seconds)} left".removeprefix("0:")


class Lines:
    """Prints a line to standard error at the start and end of each pass, and every ten seconds in between."""

    def __init__(self) -> None:
        self._title, self._done, self._total, self._last = "", 0, 0, 0.0

    def started(self, title: str, sequences: int, done: int) -> None:
        self._title, self._done, self._total, self._last = line(title), done, sequences, time.monotonic()
        self._speed = Speed(sequences - done)
        resumed = f", from sequence {done}" if done else ""
        print(f"pass: {self._title}: {sequences} sequences{resumed}", file=sys.stderr, flush=True)

    def advanced(self, sequences: int, tokens: int) -> None:
        self._done += sequences
        self._speed.advanced(sequences, tokens)
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            parts = [f"{self._done}/{self._total}", self._speed.tokens, self._speed.left]
            print(f"pass: {self._title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def finished(self) -> None:
        parts = [f"{self._done}/{self._total} done", self._speed.tokens]
        print(f"pass: {self._title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)


class Bar:
    """A rich progress bar for each pass."""

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, title: str, sequences: int, done: int) -> None:
        from rich.console import Console  # late: slow to import, and not used in a pipe
        from rich.markup import escape
        from rich.progress import Progress as RichProgress
        from rich.progress import TextColumn

        columns = (*RichProgress.get_default_columns(), TextColumn("{task.fields[speed]}"))
        self._bar, self._speed = (
            RichProgress(*columns, console=Console(file=device(sys.stderr))),
            Speed(sequences - done),
        )
        self._bar.start()
        self._task = self._bar.add_task(escape(line(title)), total=sequences, completed=done, speed="")

    def advanced(self, sequences: int, tokens: int) -> None:
        self._speed.advanced(sequences, tokens)
        self._bar.update(self._task, advance=sequences, speed=self._speed.tokens)

    def finished(self) -> None:
        self._bar.stop()


def progress() -> Progress:
    """Return a `Bar` if standard error is a terminal, else `Lines`."""
    return Bar() if sys.stderr.isatty() else Lines()
