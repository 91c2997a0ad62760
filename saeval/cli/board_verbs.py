"""The verbs that read finished results and print: `leaderboard` and `compare`.

They import late what they need: reading a kept text takes less time than the imports that make one.
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
    from saeval.registry.discovery import Plugins  # late: as the module says
    from saeval.registry.registry import Registry

    return Registry(Plugins(arguments.plugin))


def leaderboard(arguments: argparse.Namespace) -> int:
    kept = None
    if len(arguments.folders) == 1:
        kept = KeptText(arguments.folders[0], arguments.include_limited, arguments.format, arguments.plugin)
        if (earlier := kept.read()) is not None:
            text, asides = earlier
            say_aside(asides)
            print(text)
            return OK
    from saeval.results.index_rows import uncollected  # late: as the module says

    with uncollected():  # until all objects of the board are gone
        text, asides = _made(arguments, kept)
    say_aside(asides)
    print(text)
    return OK


def _made(arguments: argparse.Namespace, kept: KeptText | None) -> tuple[str, list[str]]:
    """Return the text of the boards, and the sentences for standard error."""
    from saeval.registry.registry import writer  # late: as the module says
    from saeval.results.leaderboard import boards_on  # late

    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    found, bases = boards_on(arguments.folders, include_limited=arguments.include_limited)
    # A table says what it shows; to judge 16,000 rows of columns that it does not show would take half of its time.
    asides = [sentence for board in found for sentence in board.asides] if arguments.format != "md" else []
    text = write(found)
    if kept and registry.reports[arguments.format].keeps:
        kept.keep(text, asides, bases[0], registry.plugins.folders)
    return text, asides


def say_aside(asides: Sequence[str]) -> None:
    """Print to standard error what a format without notes leaves out."""
    for sentence in dict.fromkeys(asides):
        print(line(sentence), file=sys.stderr)


def compare(arguments: argparse.Namespace) -> int:
    from saeval.registry.registry import writer  # late: as the module says
    from saeval.results import comparison  # late
    from saeval.results.leaderboard import boards, boards_of_two  # late

    write = writer(_registry(arguments).reports, arguments.format, "compare")
    folders, limited, a, b = arguments.folders, arguments.include_limited, arguments.a, arguments.b
    if arguments.format == "md":  # no other has a place for what others lack, which is then said of the whole folder
        with suppress(SaevalError):  # the whole folder says better what is wrong
            two = boards_of_two(folders, a, b, include_limited=limited)
            print(write(comparison.compare(two, a, b, arguments.metric)))
            return OK
    found = boards(folders, include_limited=limited, every_column=True)
    made = comparison.compare(found, a, b, arguments.metric)
    say_aside(made.asides if arguments.format != "md" else [])
    print(write(made))
    return OK
