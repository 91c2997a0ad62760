"""Errors of other libraries about a user's files, as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saeval.plugin import SaevalError


@contextmanager
def library_errors(failure: str, remedy: str) -> Iterator[None]:
    """Raise any exception as a `SaevalError`: the failure, the first sentence of the library's message, the remedy."""
    try:
        yield
    except SaevalError:
        raise
    except Exception as error:  # libraries raise arbitrary exceptions for wrong files
        # The rest of a message is advice for the library's own users. That of a LookupError is only the key.
        line = (str(error).strip().splitlines() or [""])[0].split(". ")[0].rstrip(".:")
        reason = f"{type(error).__name__} {line}".rstrip() if isinstance(error, LookupError) or not line else line
        raise SaevalError(f"{failure}: {reason}; {remedy}") from error
