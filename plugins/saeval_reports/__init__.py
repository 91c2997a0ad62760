"""Writers of leaderboards, comparisons and verdicts."""

from __future__ import annotations

from saeval.plugin import Report, hookimpl


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_reports import claims, comparisons, files, folders, tables, terminal  # late: slow to import

    return [
        Report(
            "md", tables.markdown, "Markdown, for people", comparisons.markdown, keeps=True, annotated=True,
            compare_folders=folders.markdown,
        ),
        Report(
            "text", terminal.text, "tables that fit a terminal", comparisons.text, keeps=True, annotated=True,
            compare_folders=folders.text,
        ),
        Report("csv", tables.csv, "CSV, one line per row", comparisons.csv, keeps=True, compare_folders=folders.csv),
        Report(
            "json", tables.as_json, "JSON, one list of all rows", comparisons.as_json, keeps=True,
            compare_folders=folders.as_json,
        ),
        Report("latex", files.latex, "LaTeX with booktabs", files.compare_latex, keeps=True, annotated=True),
        Report("html", files.html, "HTML, a fragment of a page", files.compare_html, keeps=True, annotated=True),
        Report("parquet", files.parquet, "Parquet, as CSV with types", files.compare_parquet),
        Report("verdicts", description="tests against null hypotheses, with their claims", sections=claims.sections),
    ]  # fmt: skip
