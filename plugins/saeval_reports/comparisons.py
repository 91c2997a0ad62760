"""Comparisons of two subjects as Markdown, CSV and JSON."""

from __future__ import annotations

import json

from saeval.plugin import Compared, Comparison, Entry, escapes, formatting
from saeval_reports.tables import header, markdown_table, number, p_value, records_as_csv

MOST_CLAIMS = 8


def markdown(comparison: Comparison) -> str:
    """Return a table with a line per value: both numbers, their paired difference and its test, the better subject."""
    a, b = comparison.a, comparison.b
    hooks = list(dict.fromkeys((a.hook_name, b.hook_name)))
    same = a.name == b.name
    names = [escapes.markdown(f"{row.name}@{row.hook_name}" if same else row.name) for row in (a, b)]
    headers = ["value", *names, "difference", "95% interval", "p", "p (Holm)", "detectable", "better"]
    lines = [_line(row) for row in comparison]
    where = ", at " + " and at ".join(escapes.markdown(hook) or "no hook" for hook in hooks) if any(hooks) else ""
    count = f"{comparison.tests} distinct test{'s' * (comparison.tests != 1)}"
    reasons: dict[str, list[str]] = {}
    for row in comparison:
        if reason := _reason(row):
            reasons.setdefault(reason, []).append(row.column.name)
    sign = " (of the sign test, if the difference is the same in every document)" if _ALIKE in reasons else ""
    error = ", ± one standard error" if any(row.difference.stderr is not None for row in comparison) else ""
    tests = (
        f"p of the paired t test{sign}, Holm-corrected over {count}; "
        f"detectable: a single uncorrected test finds a true difference of this size with 80% power"
    )
    pairing = "seed" if any(row.a.seeds for row in comparison) else "document"
    legend = (
        f"difference = {names[0]} − {names[1]}, paired by {pairing}{error}; "
        f"{tests if comparison.tests else 'no difference can be tested'}; ↓ lower is better, ↑ higher is better."
    )
    notes = [f"{reason} ({', '.join(columns)})" for reason, columns in reasons.items()]
    notes = [*_claims(comparison), *notes, *comparison.doubts, *comparison.notes]
    notes = [f"- {escapes.markdown(note)}" for note in notes]
    stop = f" The run {escapes.markdown(comparison.stop)}." if comparison.stop else ""
    model = f"model {escapes.markdown(comparison.model)}" if comparison.model else "no model"
    data = f", data {escapes.markdown(comparison.data)}" if comparison.data else ""
    counts = "".join(f", {escapes.markdown(count)}" for count in comparison.counts)
    facts = f"{model}{data}{counts}{where}.{stop}"
    text = [f"## {escapes.markdown(comparison.title)}: {names[0]} against {names[1]}"]
    text += [f"**{escapes.markdown(comparison.limit)}**", facts] if comparison.limit else [facts]
    text += [markdown_table(headers, lines), legend]
    return "\n\n".join([*text, *(["\n".join(notes)] if notes else [])])


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


def _line(row: Compared) -> list[str]:
    difference = row.difference
    interval = ""
    if difference.ci95 is not None:
        interval = formatting.interval(difference.ci95, difference.stderr)
    return [
        header(row.column),
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
    return escapes.markdown(row.better) if row.sure else "not sure"


def csv(comparison: Comparison) -> str:
    """Return the records as CSV in full precision."""
    return records_as_csv(comparison.records())


def as_json(comparison: Comparison) -> str:
    """Return the records as a JSON list."""
    return json.dumps(comparison.records(), indent=1)
