"""`Report`: a writer of leaderboards, comparisons or pages, supplied by a plugin and chosen by `--format`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from saeval.base.errors import SaevalError

if TYPE_CHECKING:
    from saeval.results.board import Board
    from saeval.results.comparison import Comparison
    from saeval.results.folder_comparison import FolderComparison
    from saeval.results.result import Result
    from saeval.results.sections import Section


@dataclass(frozen=True)
class Report:
    """A format: pure functions that turn results into text or files. Each may be None if the format has no such output.

    `write` returns the text of some boards, or the bytes of a file that is no text; `compare` those of a comparison.
    `sections` takes all results of a run, with their arrays, and returns the parts of its page, whose charts also stand
    alone. `pages` takes the same, and returns other files by name, such as `graph.dot`. Both are empty if they have
    nothing to show.
    """

    name: str
    write: Callable[[Sequence[Board]], str | bytes] | None = None
    description: str = ""
    compare: Callable[[Comparison], str | bytes] | None = None
    pages: Callable[[Sequence[Result]], Mapping[str, bytes | str]] | None = None
    sections: Callable[[Sequence[Result]], Sequence[Section]] | None = None
    compare_folders: Callable[[FolderComparison], str | bytes] | None = None
    """The text of a comparison of two results folders."""
    keeps: bool = False
    """True if `write` depends only on results, the width of the terminal, and the code of saeval and its plugins, so
    that its text is cached."""
    annotated: bool = False
    """True if its text says itself what is missing or unreliable; else the verbs print that to standard error."""
    together: bool = False
    """True if `sections` and `pages` can take the results of several runs:
    `saeval report A B --to FOLDER` passes them all at once."""

    @property
    def shows_results(self) -> bool:
        """True if `saeval report` has something to write of it: sections or pages."""
        return self.sections is not None or self.pages is not None

    def check_shows_results(self, others: Iterable[Report]) -> None:
        """Raise `SaevalError` unless it has sections or pages, with those of `others` that do."""
        if not self.shows_results:
            able = ", ".join(report.name for report in others if report.shows_results)
            raise SaevalError(f"format '{self.name}' writes no pages; use {able or 'a plugin that does'}")

    def writer(
        self, of: Literal["write", "compare", "compare_folders"], others: Iterable[Report]
    ) -> Callable[..., Any]:
        """Return the function named `of`. `SaevalError` if it is None, with those of `others` that have one."""
        function: Callable[..., Any] | None = getattr(self, of)
        if function is None:
            output = {"compare": "comparisons", "compare_folders": "comparisons of folders"}
            able = ", ".join(report.name for report in others if getattr(report, of))
            raise SaevalError(
                f"format '{self.name}' writes no {output.get(of, 'leaderboards')}; use {able or 'a plugin that does'}"
            )
        return function
