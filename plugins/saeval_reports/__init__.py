"""Writers of leaderboards, comparisons and verdicts."""

from __future__ import annotations

from saeval.plugin import Report, hookimpl


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_reports import claims, comparisons, tables  # late: slow to import

    return [
        Report("md", tables.markdown, "Markdown, for people", comparisons.markdown, keeps=True),
        Report("csv", tables.csv, "CSV, one line per row", comparisons.csv, keeps=True),
        Report("json", tables.as_json, "JSON, one list of all rows", comparisons.as_json, keeps=True),
        Report("verdicts", description="tests against null hypotheses, with their claims", sections=claims.sections),
    ]
