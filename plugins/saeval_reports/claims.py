"""The section of verdicts: every test against a null hypothesis, and the claim that it allows."""

from __future__ import annotations

from collections.abc import Sequence

from saeval.plugin import (
    PageTable,
    Result,
    Section,
    Verdict,
    formatting,
    untested_on,
    verdicts_in_words,
    verdicts_on,
)
from saeval_reports.tables import p_value

HEADERS = ("row", "hook", "value", "number", "95% interval", "p", "p (Holm)", "verdict")
LEGEND = (
    "Each value is tested against its null hypothesis at the 5% level, with Holm's correction over all tests of its "
    "metric on one model and data. ± is one standard error; intervals are not corrected. 'Cannot be distinguished "
    "from' is no evidence that there is no difference."
)


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the section of verdicts; none if no value has a null hypothesis."""
    given, untested = verdicts_on(results), untested_on(results)
    if not given and not untested:
        return []
    table = PageTable("tests", "Tests", HEADERS, _lines(given))
    return [Section("verdicts", "Verdicts", [*verdicts_in_words(given), *untested], tables=[table], notes=[LEGEND])]


def _lines(given: Sequence[Verdict]) -> list[list[str | float | None]]:
    return [
        [
            verdict.row.name,
            verdict.row.hook_name,
            verdict.column.name,
            formatting.with_error(verdict.value, verdict.entry.stderr),
            formatting.interval(verdict.interval, verdict.entry.stderr) if verdict.interval else "",
            p_value(verdict.p),
            p_value(verdict.p_holm),
            verdict.outcome,
        ]
        for verdict in given
    ]
