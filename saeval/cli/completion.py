"""`saeval completion`: a script for a shell, made by shtab from the command line's grammar."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import shtab

_FOLDERS = {"OUT/SUITE", "FOLDER", "WORD"}
_FILES = {"FILE", "SUITE", "REF", "WHAT"}


def script(shell: str, parser: argparse.ArgumentParser, verbs: Sequence[str]) -> str:
    """Return the script that completes verbs, options, their choices and paths; `verbs` are those of plugins."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb in verbs:
        subparsers.add_parser(verb, help="a verb of a plugin")
    for own in subparsers.choices.values():
        for action in own._actions:
            if action.metavar in _FOLDERS or action.dest == "out":
                action.complete = shtab.DIRECTORY
            elif action.metavar in _FILES:
                action.complete = shtab.FILE
    return str(shtab.complete(parser, shell))
