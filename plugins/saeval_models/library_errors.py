"""Errors of other libraries about a user's files, as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saeval.plugin import SaevalError


@contextmanager
def quietly() -> Iterator[None]:
    """Hide transformers' progress bar, warnings and reports; errors report faults."""
    from transformers.utils import logging  # late: slow to import

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def library_errors(failure: str, remedy: str) -> Iterator[None]:
    """Raise any exception as a `SaevalError`: the failure, the first sentence of the library's message, the remedy."""
    try:
        yield
    except SaevalError:
        raise
    except Exception as error:  # libraries raise arbitrary exceptions for wrong files
        # The rest of a message is advice for the library's own users. That of a LookupError is only the key.
        first, *others = str(error).strip().splitlines() or [""]
        if first.endswith(":") and others:  # a heading, such as that of a config's validators
            first = f"{first} {others[0].strip()}"
        line = first.split(". ")[0].rstrip(".:")
        reason = f"{type(error).__name__} {line}".rstrip() if isinstance(error, LookupError) or not line else line
        raise SaevalError(f"{failure}: {reason}; {remedy}") from error
