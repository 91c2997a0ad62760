"""Writing the pages of reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saeval.base.errors import log, said
from saeval.base.escapes import file_name, html, markdown
from saeval.base.whole_files import FREE_SPACE, sync, tidy, write_whole
from saeval.results.board import damaged_in_words, limit_notice
from saeval.results.families import Palette
from saeval.results.report import Report
from saeval.results.section_files import section_files
from saeval.stats.estimate import reliability_warnings

if TYPE_CHECKING:
    from saeval.results.result import Result

INDEX = "index.html"
"""The page of all results, which no page of a report replaces."""


def write_pages(
    reports: Sequence[Report], results: Sequence[Result], folder: Path, palette: Palette | None = None
) -> tuple[list[Path], list[str]]:
    """Write the sections and pages of `reports` into `folder`. Return the files, and a sentence per report that failed.

    Pages of a limited run, or of one with damaged results, begin with a warning: in the first line of Markdown and
    HTML, in the title of charts. Markdown and HTML also warn of unreliable errors. `palette` has the colours and shapes
    of families of SAEs (default: of these results).
    Raises `Unwritable` if the folder cannot be written; no file is half-written.
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
        try:
            sections = report.sections(results) if report.sections is not None else ()
            files = section_files(report.name, sections, heading, palette or Palette.of(results))
            files |= report.pages(results) if report.pages is not None else {}
            pages = {name: _page(name, content, first) for name, content in files.items()}
            places = list(written)
            for name in pages:
                places.append(_path_of(name, folder, [folder / INDEX, *places]))
        except (Exception, SystemExit) as error:  # the pages of other reports are still written
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
    """Return a new file in the folder for a page, whose name is untrusted: a plugin or foreign results chose it."""
    if not name.strip(". "):
        raise ValueError(f"the page name {name!r} cannot be a file name")
    for place in (folder / name.replace("\0", "-"), path := folder / file_name(name)):  # either may be a link
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the page '{name}' is outside the report's folder")
    taken = {file.name.casefold() for file in written}
    stem, ending, number = path.stem, path.suffix, 1
    while path.name.casefold() in taken:  # names may differ only in characters that file names cannot have
        number += 1
        path = folder / f"{stem}-{number}{ending}"
    return path


def _headed(name: str, text: str, heading: str) -> str:
    """Return a page with its warning first; other formats than Markdown and HTML are unchanged."""
    if heading and name.lower().endswith(".md"):
        return f"**{markdown(heading)}**\n\n{text}"
    if heading and name.lower().endswith((".html", ".htm")):
        banner = f'<p role="alert"><strong>{html(heading)}</strong></p>'
        headed, bodies = re.subn(r"(<body[^>]*>)", rf"\1\n{banner}", text, count=1, flags=re.IGNORECASE)
        return headed if bodies else f"{banner}\n{text}"
    return text
