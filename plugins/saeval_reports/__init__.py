"""Writers of leaderboards."""

from __future__ import annotations

from saeval.hookspecs import hookimpl
from saeval.reports import Report


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_reports import tables  # late: `saeval ls` needs the names only

    return [
        Report("md", tables.markdown, "Markdown, for people"),
        Report("csv", tables.csv, "CSV, one line a row"),
        Report("json", tables.as_json, "JSON, a list of rows"),
    ]
