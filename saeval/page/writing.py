"""Writing the page of some boards, with the sections that reports have on their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from saeval.base.errors import log, said
from saeval.base.whole_files import FREE_SPACE, write_whole
from saeval.page.page import Part, page
from saeval.results.board import Board
from saeval.results.families import Palette
from saeval.results.pages import INDEX
from saeval.results.report import Report
from saeval.results.result import Result
from saeval.results.sections import Section


def remembering(reports: Iterable[Report]) -> list[Report]:
    """Return the same reports, whose `sections` of one list of results are computed once."""
    return [replace(one, sections=_once(one.sections)) if one.sections is not None else one for one in reports]


def _once(sections: Callable[[Sequence[Result]], Sequence[Section]]) -> Callable[[Sequence[Result]], Sequence[Section]]:
    known: dict[tuple[int, ...], Sequence[Section]] = {}

    def remembered(results: Sequence[Result]) -> Sequence[Section]:
        same = tuple(map(id, results))
        if same not in known:
            known[same] = list(sections(results))
        return known[same]

    return remembered


def write_page(
    boards: Sequence[Board], results: Mapping[str, Sequence[Result]], reports: Sequence[Report], to: Path
) -> tuple[Path, list[str]]:
    """Write `index.html` into the folder `to`. Return its path, and a sentence for each report that failed.

    `results` are those of each folder, with their arrays. Reports that can take several folders together get all at
    once. Raises `Unwritable` if the folder cannot be written, `SaevalError` if a library lacks its scripts.
    """
    parts: list[Part] = []
    failed: list[str] = []
    several = len(results) > 1
    everything = [result for own in results.values() for result in own]
    palette = Palette.of(everything)
    for report in (report for report in reports if report.sections is not None):
        assert report.sections is not None
        of = {"": everything} if report.together or not several else results
        for folder, own in of.items():
            try:
                sections = [_painted(section, palette) for section in report.sections(own)]
                parts.append(Part(Path(folder).name if several else "", sections))
            except (Exception, SystemExit) as error:  # the sections of other reports are still shown
                log.debug("report %s failed", report.name, exc_info=error)
                failed.append(f"report '{report.name}' failed: {said(error)}")
    path = to / INDEX
    text = page(boards, [part for part in parts if part.sections], list(results), palette)
    write_whole(path, text.encode(), f"{FREE_SPACE} --to")
    return path, failed


def _painted(section: Section, palette: Palette) -> Section:
    return replace(section, charts=[palette.painted(chart) for chart in section.charts])
