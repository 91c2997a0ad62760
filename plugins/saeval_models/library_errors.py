"""A library's errors about a user's files, as one sentence of saeval's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saeval.plugin import SaevalError


@contextmanager
def library_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Whatever fails inside is a `SaevalError`: what was asked, what the library says of it, what to do."""
    try:
        yield
    except SaevalError:
        raise
    except Exception as error:  # libraries raise what they like at a file that is wrong
        raise SaevalError(f"{what}: {first_sentence(error)}" + (f"; {remedy}" if remedy else "")) from error


def first_sentence(error: BaseException) -> str:
    """The first sentence of a library's message, or its first line: the rest is advice for its own users."""
    line = (str(error).strip().splitlines() or [""])[0].split(". ")[0].rstrip(".:")
    # The message of a failed look-up is the key alone.
    return f"{type(error).__name__} {line}".rstrip() if isinstance(error, LookupError) or not line else line
