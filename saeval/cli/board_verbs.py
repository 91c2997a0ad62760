"""The verbs that print tables of finished results: `leaderboard` and `compare`.

Imports are late, since reading a cached text takes less time than importing the modules that write one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from saeval.base.errors import OK, SaevalError
from saeval.base.escapes import line
from saeval.results.kept_text import KeptText

if TYPE_CHECKING:
    from saeval.registry.registry import Registry

# Products of small matrices are faster on one thread, and many times faster beside another job; read by numpy's import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _registry(arguments: argparse.Namespace) -> Registry:
    from saeval.registry.discovery import Plugins  # late: see the module's docstring
    from saeval.registry.registry import Registry

    return Registry(Plugins(arguments.plugin))


def leaderboard(arguments: argparse.Namespace) -> int:
    chosen = (arguments.include_limited, arguments.format, arguments.plugin)
    kept = KeptText(arguments.folders[0], *chosen) if len(arguments.folders) == 1 else None
    if (text_and_asides := kept.read() if kept else None) is None:
        from saeval.results.index_rows import uncollected  # late: see the module's docstring

        with uncollected():  # until all objects of the board are gone
            text_and_asides = _boards_as_text(arguments, kept)
    text, asides = text_and_asides
    print_asides(asides)
    print(text)
    return OK


def _boards_as_text(arguments: argparse.Namespace, kept: KeptText | None) -> tuple[str, list[str]]:
    """Return the text of the boards, and the sentences for standard error."""
    from saeval.registry.registry import writer  # late: see the module's docstring
    from saeval.results.leaderboard import boards_on  # late

    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    boards, bases = boards_on(arguments.folders, include_limited=arguments.include_limited)
    # Markdown has its own notes. The asides of 16,000 rows, for all columns, would take half of a table's time.
    asides = [sentence for board in boards for sentence in board.asides] if arguments.format != "md" else []
    text = write(boards)
    if kept and registry.reports[arguments.format].keeps:
        kept.keep(text, asides, bases[0](), registry.plugins.folders)
    return text, asides


def print_asides(asides: Sequence[str]) -> None:
    """Print the notes that a format has no place for to standard error."""
    for sentence in dict.fromkeys(asides):
        print(line(sentence), file=sys.stderr)


def compare(arguments: argparse.Namespace) -> int:
    from saeval.registry.registry import writer  # late: see the module's docstring
    from saeval.results import comparison  # late
    from saeval.results.index import StaleError  # late
    from saeval.results.leaderboard import boards, boards_of_two  # late

    write = writer(_registry(arguments).reports, arguments.format, "compare")
    folders, limited, a, b = arguments.folders, arguments.include_limited, arguments.a, arguments.b
    if arguments.format == "md":  # other formats need the asides of the whole folder
        with suppress(SaevalError):  # the whole folder gives the better error message
            two = boards_of_two(folders, a, b, include_limited=limited)
            if not any(column.null for board in two for column in board.columns):  # verdicts need all rows
                print(write(comparison.compare(two, a, b, arguments.metric)))
                return OK
    how = {"include_limited": limited, "every_column": True}
    try:
        compared = comparison.compare(boards(folders, **how), a, b, arguments.metric)
    except StaleError:  # damaged arrays of one of the two, which no leaderboard tests
        compared = comparison.compare(boards(folders, **how, every_array=True), a, b, arguments.metric)
    print_asides(compared.asides if arguments.format != "md" else [])
    print(write(compared))
    return OK
