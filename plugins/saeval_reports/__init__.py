"""Writers of leaderboards and comparisons."""

from __future__ import annotations

from saeval.plugin import Report, hookimpl


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_reports import comparisons, tables  # late: slow to import

    return [
        Report("md", tables.markdown, "Markdown, for people", comparisons.markdown, keeps=True),
        Report("csv", tables.csv, "CSV, one line per row", comparisons.csv, keeps=True),
        Report("json", tables.as_json, "JSON, one list of all rows", comparisons.as_json, keeps=True),
    ]
