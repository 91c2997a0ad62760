"""Comparisons of two subjects as Markdown, CSV and JSON."""

from __future__ import annotations

import json

from saeval.plugin import Compared, Comparison, Entry, escapes, formatting, terminal_width
from saeval_reports.tables import header, markdown_table, number, p_value, records_as_csv
from saeval_reports.terminal import GAP, TextColumn, fitting, headers, paragraph, shortened, text_table

MOST_CLAIMS = 8


HEADERS = ("difference", "95% interval", "p", "p (Holm)", "detectable", "better")


def markdown(comparison: Comparison) -> str:
    """Return a table with a line per value: both numbers, their paired difference and its test, the better subject."""
    a, b = map(escapes.markdown, names(comparison))
    lines = [[header(row.column), *cells(row)] for row in comparison]
    lines = [[*line[:-1], escapes.markdown(line[-1])] for line in lines]
    items = [f"- {escapes.markdown(note)}" for note in notes(comparison)]
    text = [f"## {escapes.markdown(comparison.title)}: {a} against {b}"]
    text += [f"**{escapes.markdown(comparison.limit)}**"] if comparison.limit else []
    text += [escapes.markdown(facts(comparison)), markdown_table(["value", a, b, *HEADERS], lines)]
    text += [escapes.markdown(legend(comparison))]
    return "\n\n".join([*text, *(["\n".join(items)] if items else [])])


def text(comparison: Comparison) -> str:
    """Return the same for a terminal: the columns that fit its width, then notes."""
    width = terminal_width()
    a, b = map(escapes.line, names(comparison))
    rows = [cells(row) for row in comparison]
    columns = [row.column for row in comparison]
    short = headers(columns)
    left = TextColumn("value", shortened([short[c.name] for c in columns], max(24, width // 3)), right=False)
    titles = [*shortened([a, b], 24), *HEADERS]
    others = [
        TextColumn(title, [escapes.line(row[place]) for row in rows], right=title != "better")
        for place, title in enumerate(titles)
    ]
    room = width - left.width - GAP
    order = [2, 5, 7, 0, 1, 3, 6, 4]
    chosen = fitting(others, [order], room)
    parts = [paragraph(f"{comparison.title}: {a} against {b}", width)]
    parts += [paragraph(comparison.limit, width)] if comparison.limit else []
    parts += [paragraph(facts(comparison), width), text_table([left, *(others[place] for place in chosen)])]
    parts += [paragraph(legend(comparison), width)]
    lost = [titles[place] for place in order if place not in chosen]
    more = [f"these columns do not fit: {', '.join(lost)}; see --format md"] if lost else []
    items = [paragraph(note, width, "- ") for note in (*notes(comparison), *more)]
    return "\n\n".join([*parts, *(["\n".join(items)] if items else [])])


def names(comparison: Comparison) -> list[str]:
    """Return the names of the two, with their hooks if they have one name."""
    rows = (comparison.a, comparison.b)
    same = comparison.a.name == comparison.b.name
    return [f"{row.name}@{row.hook_name}" if same else row.name for row in rows]


def facts(comparison: Comparison) -> str:
    """Return the model, the data, the hooks and the end of the run in words."""
    hooks = list(dict.fromkeys((comparison.a.hook_name, comparison.b.hook_name)))
    where = ", at " + " and at ".join(hook or "no hook" for hook in hooks) if any(hooks) else ""
    stop = f" The run {comparison.stop}." if comparison.stop else ""
    model = f"model {comparison.model}" if comparison.model else "no model"
    data = f", data {comparison.data}" if comparison.data else ""
    counts = "".join(f", {count}" for count in comparison.counts)
    return f"{model}{data}{counts}{where}.{stop}"


def legend(comparison: Comparison) -> str:
    """Return the meaning of the columns in a sentence."""
    count = f"{comparison.tests} distinct test{'s' * (comparison.tests != 1)}"
    alike = any(_reason(row) == _ALIKE for row in comparison)
    sign = " (of the sign test, if the difference is the same in every document)" if alike else ""
    error = ", ± one standard error" if any(row.difference.stderr is not None for row in comparison) else ""
    tests = (
        f"p of the paired t test{sign}, Holm-corrected over {count}; "
        f"detectable: a single uncorrected test finds a true difference of this size with 80% power"
    )
    pairing = "seed" if any(row.a.seeds for row in comparison) else "document"
    return (
        f"difference = {names(comparison)[0]} − {names(comparison)[1]}, paired by {pairing}{error}; "
        f"{tests if comparison.tests else 'no difference can be tested'}; ↓ lower is better, ↑ higher is better."
    )


def notes(comparison: Comparison) -> list[str]:
    """Return what to know of the numbers: claims, reasons for missing tests, unreliable errors, missing values."""
    reasons: dict[str, list[str]] = {}
    for row in comparison:
        if reason := _reason(row):
            reasons.setdefault(reason, []).append(row.column.name)
    untested = [f"{reason} ({', '.join(columns)})" for reason, columns in reasons.items()]
    return [*_claims(comparison), *untested, *comparison.doubts, *comparison.notes]


def _claims(comparison: Comparison) -> list[str]:
    """Return the first claims about the two subjects in words, and the number of the other verdicts."""
    claims = [verdict.words for verdict in comparison.verdicts if verdict.claimed]
    more, none = claims[MOST_CLAIMS:], len(comparison.verdicts) - len(claims)
    nulls = "value cannot be distinguished from its null", "values cannot be distinguished from their nulls"
    lost = f"{none} {nulls[none != 1]}"
    rest = [f"{formatting.counted(len(more), 'more claim')}: see --format json"] if more else []
    return [*claims[:MOST_CLAIMS], *rest, *([lost] if none else [])]


_ALIKE = "no interval: the difference is the same in every document"


def _reason(row: Compared) -> str:
    """Return why a difference has no test or no interval; empty if it has one, or if both values are equal."""
    difference = row.difference
    if difference.reason:
        return f"not tested: {difference.reason}"
    return _ALIKE if difference.stderr == 0 and difference.ci95 is None and difference.p_value is not None else ""


def cells(row: Compared) -> list[str]:
    """Return the cells of a value: both numbers, then those of `HEADERS`; the last one may be a foreign name."""
    difference = row.difference
    interval = ""
    if difference.ci95 is not None:
        interval = formatting.interval(difference.ci95, difference.stderr)
    return [
        number(row.a),
        number(row.b),
        number(Entry(difference.value, difference.stderr, difference.ci95, proportion=difference.of_proportions)),
        interval,
        p_value(difference.p_value),
        p_value(row.p_holm),
        formatting.number(difference.detectable, 2) if difference.detectable else "",
        _better(row),
    ]


def _better(row: Compared) -> str:
    if row.sure is None:
        return "not tested" if row.column.better and _reason(row) else ""
    if row.better is None:
        return ""
    return row.better if row.sure else "not sure"


def csv(comparison: Comparison) -> str:
    """Return the records as CSV in full precision."""
    return records_as_csv(comparison.records())


def as_json(comparison: Comparison) -> str:
    """Return the records as a JSON list."""
    return json.dumps(comparison.records(), indent=1)
