"""`Report`: a writer of leaderboards, comparisons or pages, supplied by a plugin and chosen by `--format`."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from saeval.base.errors import log, said
from saeval.base.escapes import file_name, html, markdown, plot
from saeval.base.whole_files import FREE_SPACE, sync, tidy, write_whole
from saeval.results.board import damaged_in_words, limit_notice
from saeval.results.report import Report
from saeval.stats.estimate import reliability_warnings

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from saeval.results.result import Result


def write_pages(reports: Sequence[Report], results: Sequence[Result], folder: Path) -> tuple[list[Path], list[str]]:
    """Write every page of `reports` into `folder`: the files, and a sentence for each report that failed.

    Pages of a limited run, or of one with damaged results, say so first: Markdown and HTML in their first line, figures
    that `saeval.results.pages` makes in their title. So do Markdown and HTML where errors are unreliable.
    `Unwritable` where the folder cannot be written; no file is half-written.
    """
    written: list[Path] = []
    failed: list[str] = []
    limit = next((words for result in results if (words := limit_notice(result.cell["data"]))), "")
    heading = " ".join(words for words in (limit, damaged_in_words(results)) if words)
    unreliable = [
        f"{doubt[0].upper()}{doubt[1:]}." for doubt in reliability_warnings(s for r in results for s in r.supports)
    ]
    first = " ".join([*([heading] if heading else []), *unreliable])
    for report in reports:
        assert report.pages is not None
        try:
            with under_heading(heading):
                pages = {name: _page(name, content, first) for name, content in report.pages(results).items()}
            places = list(written)
            for name in pages:
                places.append(_path_of(name, folder, places))
        except (Exception, SystemExit) as error:  # one bad report costs its own pages only
            log.debug("report %s failed", report.name, exc_info=error)
            failed.append(f"report '{report.name}' failed: {said(error)}")
            continue
        for path, content in zip(places[len(written) :], pages.values(), strict=True):
            write_whole(path, content, f"{FREE_SPACE} --to")
            written.append(path)
    if written:
        sync(folder)
        tidy(folder)
    return written, failed


def _page(name: str, content: bytes | str, heading: str) -> bytes:
    return content if isinstance(content, bytes) else _headed(name, content, heading).encode()


def _path_of(name: str, folder: Path, written: Sequence[Path]) -> Path:
    """The file of a page, whatever a plugin or somebody else's results call it: new, and in the folder itself."""
    if not name.strip(". "):
        raise ValueError(f"the page {name!r} has no name for a file")
    for place in (folder / name.replace("\0", "-"), path := folder / file_name(name)):  # it may be a link elsewhere
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the page '{name}' does not lie in the report's folder")
    taken = {file.name.casefold() for file in written}
    stem, ending, number = path.stem, path.suffix, 1
    while path.name.casefold() in taken:  # names that differ in what file names cannot have
        number += 1
        path = folder / f"{stem}-{number}{ending}"
    return path


def _headed(name: str, text: str, limit: str) -> str:
    """A page with what must be said first; formats that have no place for it are as they are."""
    if limit and name.lower().endswith(".md"):
        return f"**{markdown(limit)}**\n\n{text}"
    if limit and name.lower().endswith((".html", ".htm")):
        banner = f'<p role="alert"><strong>{html(limit)}</strong></p>'
        headed, found = re.subn(r"(<body[^>]*>)", rf"\1\n{banner}", text, count=1, flags=re.IGNORECASE)
        return headed if found else f"{banner}\n{text}"
    return text


_EM = 0.6
"""Mean width of a letter in ems, from above."""


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # late: slow to import, and only pages with plots need it

    return Figure(figsize=(width, height), layout="constrained")


_TITLE: ContextVar[str] = ContextVar("title", default="")


@contextmanager
def under_heading(text: str) -> Iterator[None]:
    """Figures that `png` writes meanwhile have this line above them."""
    before = _TITLE.set(text)
    try:
        yield
    finally:
        _TITLE.reset(before)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file; the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: as above

    if title := _TITLE.get():
        own = drawn.get_suptitle()
        drawn.suptitle(f"{plot(title)}\n{own}".strip(), fontsize=9, wrap=True)
    FigureCanvasAgg(drawn)
    held = io.BytesIO()
    drawn.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()


def wrap_title(text: str, inches: float, size: float) -> str:
    """A title in as many lines as fit the width at this font size, in points; nothing in it is a formula."""
    return textwrap.fill(plot(text), max(int(inches * 72 / (size * _EM)), 8))


def set_title(drawn: Figure, text: str, size: float = 10) -> None:
    """Give a figure its title, in as many lines as its width takes."""
    drawn.suptitle(wrap_title(text, float(drawn.get_figwidth()), size), fontsize=size)


def label_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis as densely as its limits ask: call it last, since it keeps the limits of that moment.

    Within one decade the ticks are round numbers between its ends; within three 1, 2 and 5 times the powers of ten;
    beyond them the powers of ten alone.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # late: as above

    low, high = sorted(map(float, axis.get_view_interval()))
    if high >= 1000 * low:
        return
    if high >= 10 * low:
        ticks = LogLocator(subs=(1, 2, 5)).tick_values(low, high)
    else:
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    if len(inside) < 2:  # a very narrow axis: its ends say most
        inside = [low, high]
    axis.set_ticks(inside)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_formatter(NullFormatter())
