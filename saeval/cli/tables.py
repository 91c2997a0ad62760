"""The options of verbs that print tables (format, columns, file), and the way of a table to the terminal or a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saeval.base.console import default_format, terminal_width
from saeval.base.errors import SaevalError
from saeval.base.escapes import line

if TYPE_CHECKING:
    from saeval.results.board import Board

FORMATS = "text, md, csv, json, latex, html, parquet"


def table_options(parser: argparse.ArgumentParser, columns: bool = True) -> None:
    """Add `--format` and `--to`; with `columns`, also the options that choose columns."""
    default = "text on a terminal, else md"
    parser.add_argument("--format", help=f"{FORMATS}, or a plugin's format (default: {default})")
    parser.add_argument("--to", metavar="FILE", help="write the table to this file instead of standard output")
    if columns:
        columns_help = "show these columns only, such as ce or ce.delta_ce"
        parser.add_argument("--columns", nargs="+", action="extend", default=[], metavar="VALUE", help=columns_help)
        parser.add_argument("--wide", action="store_true", help="show all columns, however wide the table gets")


def complete(arguments: argparse.Namespace) -> None:
    """Set the format that nobody chose: of a terminal, or of a pipe or file."""
    if arguments.format is None:
        arguments.format = "md" if arguments.to else default_format()


def print_boards(boards: Sequence[Board], arguments: argparse.Namespace) -> None:
    """Print boards as `table_options` in the parsed arguments say. `SaevalError` for an unknown format or column."""
    from saeval.registry.discovery import Plugins  # late: `--help` imports no plugins
    from saeval.registry.registry import Registry, writer  # late
    from saeval.results.column_choice import choose  # late

    complete(arguments)
    reports = Registry(Plugins()).reports
    write = writer(reports, arguments.format, "write")
    choose(boards, arguments.columns, arguments.wide)
    content = write(boards)
    if not reports[arguments.format].annotated:
        print_asides([sentence for board in boards for sentence in board.asides])
    put(content, arguments)


def shape(arguments: argparse.Namespace) -> list[object]:
    """Return what the text of a leaderboard depends on besides its results and format, as plain data."""
    return [terminal_width(), arguments.columns, arguments.wide]


def put(content: str | bytes, arguments: argparse.Namespace) -> None:
    """Print a table, or write it to the file of `--to`. `SaevalError` for bytes that would go to a terminal."""
    if arguments.to is not None:
        from saeval.base.whole_files import write_whole  # late: most tables are printed

        text = f"{content}\n".encode() if isinstance(content, str) else content
        write_whole(Path(arguments.to), text, "--to")
        print(arguments.to, file=sys.stderr)
    elif isinstance(content, str):
        print(content, flush=True)
    elif sys.stdout.isatty():
        raise SaevalError(f"format '{arguments.format}' is no text for a terminal; write it to a file: --to FILE")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def print_asides(asides: Sequence[str]) -> None:
    """Print the notes that a format has no place for to standard error."""
    for sentence in dict.fromkeys(asides):
        print(line(sentence), file=sys.stderr)
