"""Sections as files: one Markdown page for all sections of a report, its pictures and large tables beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.base import escapes
from saeval.base.formatting import counted, number
from saeval.results import chart_files
from saeval.results.families import Palette
from saeval.results.sections import Chart, Passage, Section, Table

LONGEST = 60
"""Most rows of a folded table on a page; longer ones are CSV files beside it."""


def section_files(
    name: str, sections: Sequence[Section], warning: str = "", palette: Palette | None = None
) -> dict[str, bytes | str]:
    """Return the page `NAME.md` and the files that it shows, by file name; empty without sections.

    Pictures begin with the `warning`, if there is one; whoever writes the page puts it above the text too. `palette`
    has the colours and shapes of families of SAEs.
    """
    if not sections:
        return {}
    files: dict[str, bytes | str] = {}
    parts = []
    if len(sections) > 1:
        parts.append("\n".join(f"- [{escapes.markdown(s.title)}](#{_anchor(i)})" for i, s in enumerate(sections, 1)))
    for index, section in enumerate(sections, 1):
        stem = escapes.file_name(section.name)
        parts += [f'<a id="{_anchor(index)}"></a>\n\n# {escapes.markdown(section.title)}', *_list(section.summary)]
        for chart in section.charts:
            file = _new(f"{stem}-{chart.name}.png", files)
            files[file] = chart_files.png(palette.painted(chart) if palette else chart, warning)
            parts.append(picture(chart, file))
        for table in section.tables:
            parts.append(_table(table, stem, files))
        parts += passages(section.passages)
        parts += _list(section.notes)
    return {f"{escapes.file_name(name)}.md": "\n\n".join(parts) + "\n", **files}


def picture(chart: Chart, file: str) -> str:
    """Return the Markdown that shows a chart from a file beside the page."""
    target = file.replace("%", "%25").replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("#", "%23")
    return f"![{escapes.markdown(chart.description)}]({target})"


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, with the meanings of its columns below it."""
    lines = [[escapes.markdown(cell(value)) for value in row] for row in table.rows]
    headers = [escapes.markdown(header) for header in table.headers]
    text = "\n".join(f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *lines))
    notes = [f"- {escapes.markdown(header)}: {escapes.markdown(note)}" for header, note in table.notes.items()]
    return "\n\n".join([text, *(["\n".join(notes)] if notes else [])])


def cell(value: str | float | None) -> str:
    """Return the text of a cell: four digits of a float, a dash for None."""
    return number(value) if value is None or isinstance(value, float) else str(value)


def passages(given: Sequence[Passage]) -> list[str]:
    """Return passages as Markdown: active tokens are bold."""
    parts = []
    for heading, own in itertools.groupby(given, key=lambda passage: passage.heading):
        parts += [f"### {escapes.markdown(heading)}", "\n".join(_passage(passage) for passage in own)]
    return parts


def _table(table: Table, stem: str, files: dict[str, bytes | str]) -> str:
    title = escapes.markdown(table.title)
    if not table.folded:
        return f"## {title}\n\n{markdown_table(table)}"
    if len(table.rows) <= LONGEST:
        return f"<details><summary>{escapes.html(table.title)}</summary>\n\n{markdown_table(table)}\n\n</details>"
    file = _new(f"{stem}-{table.name}.csv", files)
    records: list[Mapping[str, Any]] = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    files[file] = chart_files.csv_text(records)
    notes = [f"{escapes.markdown(header)}: {escapes.markdown(note)}" for header, note in table.notes.items()]
    return "\n".join([f"- {title}: {counted(len(table.rows), 'row')} in `{file}`", *(f"  - {note}" for note in notes)])


def _list(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {escapes.markdown(sentence)}" for sentence in sentences)] if sentences else []


def _anchor(index: int) -> str:
    return f"section-{index}"


def _new(name: str, files: Mapping[str, Any]) -> str:
    """A file name that no other file of the page has, also where names differ only by case."""
    name = escapes.file_name(name)
    stem, _, ending = name.rpartition(".")
    taken, count = {file.casefold() for file in files}, 1
    while name.casefold() in taken:
        count += 1
        name = f"{stem}-{count}.{ending}"
    return name


def _passage(passage: Passage) -> str:
    pairs = zip(passage.tokens, passage.activations, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: bool(pair[1]))
    text = "".join(_run("".join(token for token, _ in own), active) for active, own in runs)
    return f"- {escapes.markdown(passage.label)}: {text}"


def _run(text: str, bold: bool) -> str:
    """Tokens as escaped text, bold if they are active. Spaces at the ends stay outside the bold markers."""
    body = text.strip(" ")
    if not bold or not body:
        return escapes.markdown(text)
    before, after = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :]
    return f"{before}**{escapes.markdown(body)}**{after}"
