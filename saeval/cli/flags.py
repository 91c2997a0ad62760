"""The flags of `RunOptions`, one per field, with the field's type, help and default."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from saeval.base.run_options import FlagOptions, Group, RunOptions, flag


def add(parser: argparse.ArgumentParser, *groups: Group) -> None:
    """Add the flags of these groups of options."""
    kinds = get_type_hints(RunOptions)
    for option in fields(RunOptions):
        if option.metadata["group"] in groups:
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            parsing = _parsing(kinds[option.name], option.metadata["metavar"])
            parser.add_argument(flag(option.name), help=option.metadata["help"], default=default, **parsing)


def options(arguments: argparse.Namespace) -> FlagOptions:
    """Return the options in parsed arguments; defaults for those without a flag of the verb."""
    given = vars(arguments)
    return FlagOptions(**{option.name: given[option.name] for option in fields(RunOptions) if option.name in given})


def count(text: str) -> int:
    """Return a positive integer; for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text[:40]}'")
    return int(text)


def share(text: str) -> float:
    """Return a number above 0 and up to 1; for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, got '{text[:40]}'")
    return number


def _parsing(kind: Any, metavar: str | None) -> dict[str, Any]:
    """Return the arguments of `add_argument` that parse a value of a type."""
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Sequence:
        return {"action": "append", "metavar": metavar}
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if words and len(parts) == 1:
        return {"choices": words}
    read: Callable[[str], Any] = count if int in parts else float if float in parts else str
    return {"metavar": metavar, "type": (lambda text: text if text in words else read(text)) if words else read}
