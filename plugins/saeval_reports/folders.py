"""Comparisons of two results folders as Markdown, text, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from saeval.plugin import Entry, FolderComparison, Matched, escapes, formatting, terminal_width
from saeval_reports.tables import arrow, markdown_table, number, p_value, records_as_csv
from saeval_reports.terminal import GAP, TextColumn, fitting, headers, paragraph, shortened, text_table

HEADERS = ("value", "first", "second", "difference", "95% interval", "p (Holm)", "detectable", "better")
SAME = "both runs have the same model, data, metrics and subjects"


def shown_values(comparison: FolderComparison) -> list[Matched]:
    """Return the values of a printed table: those of shown columns that are not equal in both runs."""
    return [value for value in comparison.values if value.column.headline and not value.equal]


def cells(value: Matched) -> list[str]:
    """Return the cells below `HEADERS`."""
    difference = value.difference
    error = Entry(difference.value, difference.stderr, difference.ci95, proportion=difference.of_proportions)
    interval = formatting.interval(difference.ci95, difference.stderr) if difference.ci95 else ""
    better = {"a": "first", "b": "second"}.get(value.better or "", "")
    return [
        f"{value.column.name}{arrow(value.column)}",
        number(value.a),
        number(value.b),
        number(error),
        interval,
        p_value(value.p_holm),
        formatting.number(difference.detectable, 2) if difference.detectable else "",
        "not tested" if value.sure is None else better if value.sure else "not sure",
    ]


def _configuration(comparison: FolderComparison) -> list[str]:
    return [field.words for field in comparison.fields] or [SAME]


def _environment(comparison: FolderComparison) -> str:
    words = ", ".join(field.words for field in comparison.environment)
    return f"Also different, but no part of the configuration: {words}." if words else ""


def legend(comparison: FolderComparison) -> str:
    """Return the meaning of the columns in sentences."""
    pairing = "paired by document" if comparison.same_documents else "not paired, since the documents differ"
    tested = f"p is Holm-corrected over {formatting.counted(comparison.tests, 'distinct test')}"
    power = "detectable: a single uncorrected test finds a true difference of this size with 80% power"
    tests = (
        f"{tested}; {power}; ↓ lower is better, ↑ higher is better"
        if comparison.tests
        else "no difference can be tested"
    )
    return f"difference = first − second, {pairing}, ± one standard error; {tests}."


def notes(comparison: FolderComparison) -> list[str]:
    """Return what is not in the table, and why, and why differences are not tested."""
    shown = shown_values(comparison)
    others = sum(not value.equal for value in comparison.values) - len(shown)
    reasons: dict[str, list[str]] = {}
    for value in shown:
        if value.sure is None and value.difference.reason:
            reasons.setdefault(value.difference.reason, []).append(value.column.name)
    untested = [f"not tested: {reason} ({', '.join(dict.fromkeys(names))})" for reason, names in reasons.items()]
    how = "--metric NAME shows some, --format csv or json has all"
    more = [f"{formatting.counted(others, 'more number')} {'differs' if others == 1 else 'differ'}: {how}"]
    return [*(more if others else []), *untested, *comparison.notes]


def markdown(comparison: FolderComparison) -> str:
    """Return what is configured differently, then a table with a line per value that differs, then notes."""
    rows = [list(map(escapes.markdown, [value.subject, *cells(value)])) for value in shown_values(comparison)]
    configuration = [f"- {escapes.markdown(words)}" for words in _configuration(comparison)]
    items = [f"- {escapes.markdown(note)}" for note in notes(comparison)]
    parts = [
        f"## {escapes.markdown(comparison.a)} against {escapes.markdown(comparison.b)}",
        *([f"**{escapes.markdown(comparison.limit)}**"] if comparison.limit else []),
        "Configuration (first; second):",
        "\n".join(configuration),
        *([escapes.markdown(words)] if (words := _environment(comparison)) else []),
        escapes.markdown(comparison.summary),
        *([markdown_table(["SAE", *HEADERS], rows), escapes.markdown(legend(comparison))] if rows else []),
        *(["\n".join(items)] if items else []),
    ]
    return "\n\n".join(parts)


def text(comparison: FolderComparison) -> str:
    """Return the same for a terminal, with the columns that fit its width."""
    width = terminal_width()
    values = shown_values(comparison)
    parts = [paragraph(f"{comparison.a} against {comparison.b}", width)]
    parts += [paragraph(comparison.limit, width)] if comparison.limit else []
    configuration = [paragraph(words, width, "- ") for words in _configuration(comparison)]
    parts += ["\n".join(["Configuration (first; second):", *configuration])]
    parts += [paragraph(words, width)] if (words := _environment(comparison)) else []
    parts += [paragraph(comparison.summary, width)]
    lost: list[str] = []
    if values:
        table, lost = _table(values, headers([value.column for value in comparison.values]), width)
        parts += [table, paragraph(legend(comparison), width)]
    more = [f"these columns do not fit: {', '.join(lost)}; see --format md"] if lost else []
    items = [paragraph(note, width, "- ") for note in (*notes(comparison), *more)]
    return "\n\n".join([*parts, *(["\n".join(items)] if items else [])])


def _table(values: Sequence[Matched], short: Mapping[str, str], width: int) -> tuple[str, list[str]]:
    """Return the table, with `short` names of columns, and the headers of the columns that do not fit."""
    names = shortened([escapes.line(value.subject) for value in values], max(16, width // 4))
    rows = [list(map(escapes.line, cells(value))) for value in values]
    firsts = [TextColumn("SAE", names, right=False)]
    named = [short[value.column.name] for value in values]
    firsts += [TextColumn("value", shortened(named, max(20, width // 4)), right=False)]
    columns = [
        TextColumn(title, [row[place] for row in rows], right=title != "better")
        for place, title in enumerate(HEADERS)
        if place
    ]
    order = [2, 6, 4, 0, 1, 3, 5]
    chosen = fitting(columns, [order], width - sum(column.width + GAP for column in firsts))
    lost = [HEADERS[place + 1] for place in order if place not in chosen]
    return text_table([*firsts, *(columns[place] for place in chosen)]), lost


def csv(comparison: FolderComparison) -> str:
    """Return a line per value in full precision."""
    return records_as_csv(comparison.records())


def as_json(comparison: FolderComparison) -> str:
    """Return the fields that differ, then a record per value."""
    fields = {
        name: [{"field": field.name, "a": field.a, "b": field.b} for field in own]
        for name, own in (("configuration", comparison.fields), ("environment", comparison.environment))
    }
    facts = {"a": comparison.a, "b": comparison.b, "limited": bool(comparison.limit), "outcomes": comparison.outcomes}
    facts |= {"only_a": comparison.only_a, "only_b": comparison.only_b, "paired": comparison.same_documents}
    return json.dumps({**facts, **fields, "values": comparison.records(), "notes": comparison.notes}, indent=1)
