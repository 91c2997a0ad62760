"""What goes wrong, by whose fault: the user's (`SaevalError`), or the data's (`Undefined`)."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from saeval.base.escapes import line, terminal


class _Shown(logging.Filter):
    """Names in a message may come from anywhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = terminal(record.getMessage()), ()
        return True


log = logging.getLogger("saeval")
log.addFilter(_Shown())

OK, SOME_FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all well; some cells failed; the user's mistake; Ctrl-C."""


class SaevalError(Exception):
    """A mistake of the user's: one sentence that says what was found and what to do. Exit code 2, no traceback."""

    def __str__(self) -> str:
        return terminal(super().__str__())  # it quotes checkpoints and files


class UnknownNameError(SaevalError):
    """No plugin supplies this name. `by` requests it; `failures` are plugins that may have, and did not load."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, by: str | None = None, failures: Iterable[object] = ()
    ) -> None:
        self.kind, self.failures = kind, list(failures)
        asked = f" (asked for by {by})" if by else ""
        broken = "".join(f" (plugin {failure})" for failure in self.failures)
        super().__init__(f"unknown {kind} '{name}'{asked}{suggestion(name, known)}{broken}")


class Undefined(Exception):  # noqa: N818 - a state of the data, not an error
    """A value that does not exist for this data, such as the L0 of a substitute without features.

    Raised by a metric or a quantity, it makes the cell `undefined` with this reason, not `failed`.
    """


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a suite: where it stands (`file:line:col`, or nothing) and what is wrong."""

    message: str
    where: str = ""

    def __str__(self) -> str:
        message = line(self.message)  # a value that it quotes may hold line breaks
        return f"{self.where}: {message}" if self.where else message


class SuiteError(SaevalError):
    """Everything wrong with a suite, all at once, one line a problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(str(p) for p in self.problems))


@contextmanager
def blamed(what: str, origin: object, *, values: bool = False) -> Iterator[None]:
    """Errors of a plugin's own code outside cells, as one `SaevalError` that names the plugin.

    With `values`, a `ValueError` is about what the user asked for, and its words are kept.
    """
    try:
        yield
    except SaevalError:
        raise
    except (Exception, SystemExit) as error:
        if values and isinstance(error, ValueError):
            raise
        log.debug("%s failed", what, exc_info=error)
        raise SaevalError(f"{what} (plugin {origin}) failed: {said(error)}") from error


def said(error: BaseException) -> str:
    """An error's class and words on one line, whatever its `__str__` does."""
    try:
        words = line(" ".join(str(error).split()))
    except Exception:
        words = ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def quoted_value(value: object) -> str:
    """A wrong value for a message: its repr, where that is not too long for one."""
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits, a list that holds itself, a foreign object
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


_MOST = 200
"""Letters of a wrong value that a message shows."""


def shown(value: object) -> str:
    """A wrong value for one sentence: itself where it is short, else its type."""
    text = quoted_value(value)
    plain = len(text) <= 80 and "\n" not in text and " at 0x" not in text
    return text if plain else f"an object of type {type(value).__name__}"


def expand_user(path: Path | str) -> Path:
    """A path with its `~` expanded, existing or not; `SaevalError` where the system cannot even look for it."""
    try:
        found = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            found.stat()
    except (OSError, RuntimeError, ValueError) as error:  # too long, nobody's home, a zero byte, no permission
        shown = repr(str(path)[:80] + "..." * (len(str(path)) > 80))
        raise SaevalError(f"{shown} cannot be looked for ({getattr(error, 'strerror', None) or error})") from None
    return found


def searched_in(path: Path | str) -> str:
    """` in /the/folder` for a relative path: where it was looked for; nothing for an absolute one."""
    return "" if os.path.isabs(os.path.expanduser(path)) else f" in {Path.cwd()}"


def lone_surrogate(text: str) -> str | None:
    """The first half of a surrogate pair without its other half, as `\\ud800`: a string with one is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def suggestion(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """`; did you mean 'ce'?` for the nearest known word, else `otherwise`, by default the list of all known words."""
    words = sorted(set(known))
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    if otherwise is not None:
        return otherwise
    return f"; known: {', '.join(words)}" if words else ""
