"""`Report`: a writer of leaderboards, comparisons or pages, supplied by a plugin and chosen by `--format`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from saeval.base.errors import SaevalError

if TYPE_CHECKING:
    from saeval.results.board import Board
    from saeval.results.comparison import Comparison
    from saeval.results.result import Result


@dataclass(frozen=True)
class Report:
    """Pure functions of results; a report has those that it can do.

    `write` returns the text of boards, `compare` that of a comparison, and `pages` whole files by
    name, such as `curves.png`, from all results of a run with their arrays; none where there is
    nothing to show.
    """

    name: str
    write: Callable[[Sequence[Board]], str] | None = None
    description: str = ""
    compare: Callable[[Comparison], str] | None = None
    pages: Callable[[Sequence[Result]], Mapping[str, bytes | str]] | None = None
    keeps: bool = False
    """Whether saeval may keep the text of `write` while no result and no module beside its own changes."""

    def writer(self, of: Literal["write", "compare", "pages"], others: Iterable[Report]) -> Callable[..., Any]:
        """What it does `of` leaderboards, comparisons or pages; `SaevalError` names those that can, if it cannot."""
        found: Callable[..., Any] | None = getattr(self, of)
        if found is None:
            what = {"write": "leaderboards", "compare": "comparisons", "pages": "pages"}[of]
            able = ", ".join(report.name for report in others if getattr(report, of))
            raise SaevalError(f"format '{self.name}' writes no {what}; {able or 'no plugin'} does")
        return found
