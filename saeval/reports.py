"""`Report`: a writer of leaderboards, supplied by a plugin and chosen by `--format`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeval.board import Board


@dataclass(frozen=True)
class Report:
    """A pure function of boards: `write` returns the text."""

    name: str
    write: Callable[[Sequence[Board]], str]
    description: str = ""
