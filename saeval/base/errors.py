"""Errors of the user (`SaevalError`) and undefined values (`Undefined`), with helpers for messages."""

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
    """Escapes control characters, since names in a message may come from anywhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = terminal(record.getMessage()), ()
        return True


log = logging.getLogger("saeval")
log.addFilter(_Shown())

OK, SOME_FAILED, WRONG, CONDITION, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: success; some cells failed; a mistake of the user; a condition of `--fail-if` holds; Ctrl-C."""


class SaevalError(Exception):
    """A mistake of the user. The message says what is wrong and what to do; the exit code is 2, without traceback."""

    def __str__(self) -> str:
        return terminal(super().__str__())  # a message may quote checkpoints and files


class UnknownNameError(SaevalError):
    """An unknown name, requested by `by`. `failures` are plugins that did not load and might supply it."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, by: str | None = None, failures: Iterable[object] = ()
    ) -> None:
        self.kind, self.failures = kind, list(failures)
        requested = f" (requested by {by})" if by else ""
        broken = "".join(f" (plugin {failure})" for failure in self.failures)
        super().__init__(f"unknown {kind} '{name}'{requested}{suggestion(name, known)}{broken}")


class Undefined(Exception):  # noqa: N818 - a state of the data, not an error
    """A value that does not exist for this data, such as the L0 of a substitute without features.

    If a metric or a quantity raises it, the cell is `undefined` with this reason, not `failed`.
    """


@dataclass(frozen=True)
class Problem:
    """One problem of a suite."""

    message: str
    """A sentence on what is wrong."""
    where: str = ""
    """Its place, `file:line:col`; empty if unknown."""

    def __str__(self) -> str:
        message = line(self.message)  # a value that it quotes may hold line breaks
        return f"{self.where}: {message}" if self.where else message


class SuiteError(SaevalError):
    """All problems of a suite, one per line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(str(p) for p in self.problems))


@contextmanager
def blamed(what: str, origin: object, *, values: bool = False) -> Iterator[None]:
    """Context manager that turns errors of a plugin's code into a `SaevalError` that names the plugin.

    With `values`, a `ValueError` is about a value that the user gave and is raised unchanged.
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
    """Return an error's class and message on one line."""
    try:
        words = line(" ".join(str(error).split()))
    except Exception:  # its `__str__` failed
        words = ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def quoted_value(value: object) -> str:
    """Return the repr of a wrong value for a message, cut at 200 characters."""
    try:
        text = repr(value)
    except Exception:  # a number with thousands of digits, a list that contains itself, an object of another library
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


_MOST = 200
"""Number of characters of a wrong value that a message shows."""


def shown(value: object) -> str:
    """Return the repr of a wrong value if it is short, else its type."""
    text = quoted_value(value)
    plain = len(text) <= 80 and "\n" not in text and " at 0x" not in text
    return text if plain else f"an object of type {type(value).__name__}"


def expand_user(path: Path | str) -> Path:
    """Return a path with its `~` expanded, existing or not; `SaevalError` if the system cannot access it."""
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            expanded.stat()
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user, a zero byte, no permission
        shown = repr(str(path)[:80] + "..." * (len(str(path)) > 80))
        raise SaevalError(f"{shown} cannot be accessed ({getattr(error, 'strerror', None) or error})") from None
    return expanded


def searched_in(path: Path | str) -> str:
    """Return ` in /the/folder`, the current folder, for a relative path; empty for an absolute one."""
    return "" if os.path.isabs(os.path.expanduser(path)) else f" in {Path.cwd()}"


def lone_surrogate(text: str) -> str | None:
    """Return the first unpaired surrogate of a string, as `\\ud800`; None if it is valid text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def suggestion(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return `; did you mean 'ce'?` for the nearest known word, else `otherwise`, by default a list of known words."""
    words = sorted(set(known))
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    if otherwise is not None:
        return otherwise
    return f"; known: {', '.join(words)}" if words else ""
