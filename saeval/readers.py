"""The verbs that read finished results and print: `leaderboard` and `compare`. They import what they need when it is.

A text that was kept takes less time than the imports that make one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from saeval.errors import OK, SaevalError
from saeval.escapes import line
from saeval.texts import KeptText

if TYPE_CHECKING:
    from saeval.registry import Registry


def _registry(arguments: argparse.Namespace) -> Registry:
    from saeval.plugins import Plugins  # late: as the module says
    from saeval.registry import Registry

    return Registry(Plugins(arguments.plugin))


def leaderboard(arguments: argparse.Namespace) -> int:
    kept = None
    if len(arguments.folders) == 1:
        kept = KeptText(arguments.folders[0], arguments.include_limited, arguments.format, arguments.plugin)
        if (earlier := kept.read()) is not None:
            text, left_out = earlier
            _say_left_out(left_out, arguments.format)
            print(text)
            return OK
    from saeval.leaderboard import boards_on  # late: as the module says
    from saeval.reports import writer
    from saeval.rows import uncollected

    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    with uncollected():
        found, bases = boards_on(arguments.folders, include_limited=arguments.include_limited)
        left_out = [sentence for board in found for sentence in board.left_out]
        _say_left_out(left_out, arguments.format)
        text = write(found)
    if kept and registry.reports[arguments.format].keeps:
        kept.keep(text, left_out, bases[0], registry.plugins.folders)
    print(text)
    return OK


def _say_left_out(left_out: Sequence[str], form: str) -> None:
    """What is missing or damaged, where the format has no place for notes."""
    if form != "md":
        for sentence in dict.fromkeys(left_out):
            print(line(sentence), file=sys.stderr)


def compare(arguments: argparse.Namespace) -> int:
    from saeval import comparison  # late: as the module says
    from saeval.leaderboard import boards, boards_of_two
    from saeval.reports import writer

    write = writer(_registry(arguments).reports, arguments.format, "compare")
    folders, limited, a, b = arguments.folders, arguments.include_limited, arguments.a, arguments.b
    if arguments.format == "md":  # no other has a place for what others lack, which is then said of the whole folder
        with suppress(SaevalError):  # the whole folder says better what is wrong
            two = boards_of_two(folders, a, b, include_limited=limited)
            print(write(comparison.compare(two, a, b, arguments.metric)))
            return OK
    found = boards(folders, include_limited=limited, every_column=True)
    _say_left_out([sentence for board in found for sentence in board.left_out], arguments.format)
    print(write(comparison.compare(found, a, b, arguments.metric)))
    return OK
