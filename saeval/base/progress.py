"""Progress of a run: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any, Protocol

from saeval.base.console import device
from saeval.base.escapes import html, line
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


class Together:
    """Shows several runs that compute at the same time as one: their titles, and the sum of their sequences."""

    def __init__(self, display: Progress) -> None:
        self.display = display
        self._open: dict[Progress, tuple[str, int, int]] = {}
        """The title, number of sequences and number of those that are done, of each run that has begun a pass."""

    def part(self) -> Progress:
        """Return the display of one of the runs."""
        return _Part(self)

    def started(self, part: Progress, title: str, sequences: int, done: int) -> None:
        if self._open:
            self.display.finished()
        self._open[part] = title, sequences, done
        titles = ", ".join(dict.fromkeys(title for title, _, _ in self._open.values()))
        counts = [(all_, done) for _, all_, done in self._open.values()]
        self.display.started(titles, sum(all_ for all_, _ in counts), sum(done for _, done in counts))

    def advanced(self, part: Progress, sequences: int, tokens: int) -> None:
        title, all_, done = self._open[part]
        self._open[part] = title, all_, done + sequences
        self.display.advanced(sequences, tokens)

    def finished(self, part: Progress) -> None:
        if all(done >= all_ for _, all_, done in self._open.values()):
            self.close()

    def close(self) -> None:
        """End the display, if a run has begun."""
        if self._open:
            self._open.clear()
            self.display.finished()


class _Part:
    def __init__(self, whole: Together) -> None:
        self._whole = whole

    def started(self, title: str, sequences: int, done: int) -> None:
        self._whole.started(self, title, sequences, done)

    def advanced(self, sequences: int, tokens: int) -> None:
        self._whole.advanced(self, sequences, tokens)

    def finished(self) -> None:
        self._whole.finished(self)


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
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        words = "{task.completed:.0f}/{task.total:.0f} sequences{task.fields[speed]}{task.fields[left]}"
        columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn(words))
        self._speed = Speed(sequences - done)
        self._bar = RichProgress(*columns, console=Console(file=device(sys.stderr)))
        self._bar.start()
        self._task = self._bar.add_task(escape(line(title)), total=sequences, completed=done, speed="", left="")

    def advanced(self, sequences: int, tokens: int) -> None:
        self._speed.advanced(sequences, tokens)
        facts = {"speed": self._speed.tokens, "left": self._speed.left}
        self._bar.update(
            self._task, advance=sequences, **{name: f", {word}" * bool(word) for name, word in facts.items()}
        )

    def finished(self) -> None:
        self._bar.stop()


class Notebook:
    """One line below a notebook's cell, which each pass updates."""

    def __init__(self) -> None:
        self._shown: Any = None

    def started(self, title: str, sequences: int, done: int) -> None:
        self._title, self._total, self._done, self._last = html(title), sequences, done, 0.0
        self._speed = Speed(sequences - done)
        self._show()

    def advanced(self, sequences: int, tokens: int) -> None:
        self._done += sequences
        self._speed.advanced(sequences, tokens)
        if time.monotonic() - self._last > 0.5:
            self._show()

    def finished(self) -> None:
        self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display  # late: only notebooks have it

        self._last = time.monotonic()
        facts = [f"{self._done}/{self._total} sequences", self._speed.tokens]
        facts += [self._speed.left] if self._done < self._total else []
        bar = f'<progress value="{self._done}" max="{max(self._total, 1)}"></progress>'
        content: Any = HTML(f"{bar} {self._title}: {', '.join(filter(None, facts))}")
        if self._shown is None:
            self._shown = display(content, display_id=True)
        else:
            self._shown.update(content)


def in_notebook() -> bool:
    """True in a cell of a notebook: IPython runs with a kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def progress() -> Progress:
    """Return a `Bar` if standard error is a terminal, else `Lines`."""
    return Bar() if sys.stderr.isatty() else Lines()


def shown(asked: Progress | bool | None) -> Progress:
    """Return the display that a call from Python asks for: True or an object; by default one in a notebook alone."""
    if isinstance(asked, bool) or asked is None:
        wanted = in_notebook() if asked is None else asked
        return (Notebook() if in_notebook() else progress()) if wanted else Silence()
    return asked
