"""The verbs that print tables of finished results: `leaderboard` and `compare`.

Imports are late, since reading a cached text takes less time than importing the modules that write one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from saeval.base.errors import CONDITION, OK, SaevalError
from saeval.cli import tables
from saeval.cli.result_lookup import is_folder
from saeval.results.kept_text import KeptText

if TYPE_CHECKING:
    from saeval.registry.registry import Registry
    from saeval.results.comparison import Comparison
    from saeval.results.folder_comparison import FolderComparison

# Products of small matrices are faster on one thread, and many times faster beside another job; read by numpy's import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _registry(arguments: argparse.Namespace) -> Registry:
    from saeval.registry.discovery import Plugins  # late: see the module's docstring
    from saeval.registry.registry import Registry

    return Registry(Plugins(arguments.plugin))


def leaderboard(arguments: argparse.Namespace) -> int:
    tables.complete(arguments)
    chosen = (arguments.include_limited, arguments.format, arguments.plugin, tables.shape(arguments))
    kept = KeptText(arguments.folders[0], *chosen) if len(arguments.folders) == 1 else None
    content_and_asides: tuple[str | bytes, list[str]] | None = kept.read() if kept else None
    if content_and_asides is None:
        from saeval.results.index_rows import uncollected  # late: see the module's docstring

        with uncollected():  # until all objects of the board are gone
            content_and_asides = _boards_written(arguments, kept)
    content, asides = content_and_asides
    tables.print_asides(asides)
    tables.put(content, arguments)
    return OK


def _boards_written(arguments: argparse.Namespace, kept: KeptText | None) -> tuple[str | bytes, list[str]]:
    """Return the boards in the chosen format, and the sentences for standard error."""
    from saeval.registry.registry import writer  # late: see the module's docstring
    from saeval.results.column_choice import choose  # late
    from saeval.results.leaderboard import boards_on  # late

    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    report = registry.reports[arguments.format]
    boards, bases = boards_on(arguments.folders, include_limited=arguments.include_limited)
    choose(boards, arguments.columns, arguments.wide)
    asides = [] if report.annotated else [sentence for board in boards for sentence in board.asides]
    content = write(boards)
    if kept and report.keeps and isinstance(content, str):
        kept.keep(content, asides, bases[0](), registry.plugins.folders)
    return content, asides


def compare(arguments: argparse.Namespace) -> int:
    tables.complete(arguments)
    words = arguments.words
    if len(words) == 2 and all(is_folder(Path(word)) for word in words):
        return _folders_compared(arguments)
    if len(words) < 3:
        lacking = [word for word in words if not is_folder(Path(word))]
        which = f"; {lacking[0]} is no folder of results" if lacking else ""
        raise SaevalError(f"compare: name a results folder and two of its SAEs, or two results folders{which}")
    return _subjects_compared(arguments, words[:-2], *words[-2:])


def _subjects_compared(arguments: argparse.Namespace, folders: Sequence[str], a: str, b: str) -> int:
    from saeval.registry.registry import writer  # late: see the module's docstring
    from saeval.results import comparison  # late
    from saeval.results.index import StaleError  # late
    from saeval.results.leaderboard import boards, boards_of_two  # late

    reports = _registry(arguments).reports
    write = writer(reports, arguments.format, "compare")
    annotated, limited = reports[arguments.format].annotated, arguments.include_limited
    if annotated:  # other formats need the asides of the whole folder
        with suppress(SaevalError):  # the whole folder gives the better error message
            two = boards_of_two(folders, a, b, include_limited=limited)
            if not any(column.null for board in two for column in board.columns):  # verdicts need all rows
                compared = comparison.compare(two, a, b, arguments.metric)
                return _written(write, compared, compared.asides if not annotated else [], arguments)
    how = {"include_limited": limited, "every_column": True}
    try:
        compared = comparison.compare(boards(folders, **how), a, b, arguments.metric)
    except StaleError:  # damaged arrays of one of the two, which no leaderboard tests
        compared = comparison.compare(boards(folders, **how, every_array=True), a, b, arguments.metric)
    return _written(write, compared, [] if annotated else compared.asides, arguments)


def _folders_compared(arguments: argparse.Namespace) -> int:
    from saeval.registry.registry import writer  # late: see the module's docstring
    from saeval.results.folder_comparison import compare_folders  # late

    reports = _registry(arguments).reports
    write = writer(reports, arguments.format, "compare_folders")
    a, b = arguments.words
    compared = compare_folders(a, b, arguments.metric, include_limited=arguments.include_limited)
    return _written(write, compared, [] if reports[arguments.format].annotated else compared.asides, arguments)


def _written(
    write: Callable[..., str | bytes],
    compared: Comparison | FolderComparison,
    asides: Sequence[str],
    arguments: argparse.Namespace,
) -> int:
    """Print a comparison, then the conditions of `--fail-if` that hold; return the exit code."""
    tables.print_asides(asides)
    tables.put(write(compared), arguments)
    if not arguments.fail_if:
        return OK
    from saeval.results.conditions import judged  # late: see the module's docstring

    judgement = judged(arguments.fail_if, compared)
    tables.print_asides([*judgement.power, *(judgement.failures or ["--fail-if: no condition holds"])])
    return CONDITION if judgement.failures else OK
