"""The charts of results: those of every report, and the values of each metric that has none of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from saeval.base.errors import SaevalError, log, said, suggestion
from saeval.base.escapes import file_name
from saeval.results import chart_files
from saeval.results.board import Board
from saeval.results.families import Palette
from saeval.results.report import Report
from saeval.results.result import Result
from saeval.results.sections import Chart
from saeval.results.value_charts import value_charts


def charts_of(
    reports: Sequence[Report], runs: Mapping[str, Sequence[Result]], boards: Sequence[Board], metric: str | None = None
) -> tuple[dict[str, Chart], list[str]]:
    """Return the charts of some runs by the stem of their files, and a sentence per report that failed.

    `runs` are results by the name of their folder. `metric` selects a metric by its name in the suite, or one of its
    values, as in `ce.delta_ce`: its own charts, or else its values. A family of SAEs has one colour and shape in all
    charts, which `metric` does not change. Raises `SaevalError` for a name that no run has.
    """
    names = list(dict.fromkeys(r.metric for results in runs.values() for r in results if r.cell))
    alias, _, value = (metric or "").partition(".")
    if metric is not None and alias not in names:
        raise SaevalError(f"no metric of these results is named '{alias}'{suggestion(alias, names)}")
    failed: dict[str, None] = {}
    made: dict[str, Chart] = {}
    palette = Palette.of(result for results in runs.values() for result in results)
    if metric is None:
        _add(made, _of_reports(reports, runs, failed))
    for name in [alias] if metric is not None else names:
        only = {folder: [r for r in results if r.metric == name] for folder, results in runs.items()}
        own = [] if value else list(_of_reports(reports, only, failed))
        if own and metric is not None:
            _add(made, own)
        elif not own:
            _add(
                made, ((board.title, chart) for board in boards for chart in value_charts(board, name, value, palette))
            )
    if value and not made:
        raise SaevalError(f"metric '{alias}' has no number '{value}' of an SAE or a control")
    return {stem: palette.painted(chart) for stem, chart in made.items()}, list(failed)


def own_charts(reports: Sequence[Report], results: Sequence[Result]) -> list[Chart]:
    """Return the charts that reports draw of a run, in its colours of families; none of a report that fails."""
    palette = Palette.of(results)
    return [palette.painted(chart) for _, chart in _of_reports(reports, {"": results}, {})]


def write_charts(made: Mapping[str, Chart], folder: Path, form: str, warning: str = "") -> Iterator[tuple[Path, bytes]]:
    """Yield the files of charts and their contents: each in the format `form`, with its data beside it as CSV."""
    for stem, chart in made.items():
        yield folder / f"{stem}.{form}", chart_files.content(chart, form, warning)
        yield folder / f"{stem}.csv", chart_files.csv(chart)


def _of_reports(
    reports: Sequence[Report], runs: Mapping[str, Sequence[Result]], failed: dict[str, None]
) -> Iterator[tuple[str, Chart]]:
    """The charts of all sections, each with the name of its run; those that show several runs together come last."""
    everything = [result for results in runs.values() for result in results]
    for report in reports:
        if report.sections is None:
            continue
        for folder, results in {"": everything}.items() if report.together else runs.items():
            try:
                for section in report.sections(results):
                    for chart in section.charts:
                        yield folder, _named(chart, f"{section.name}-{chart.name}")
            except (Exception, SystemExit) as error:  # the charts of other reports are still drawn
                log.debug("report %s failed", report.name, exc_info=error)
                failed[f"report '{report.name}' failed: {said(error)}"] = None


def _named(chart: Chart, name: str) -> Chart:
    return replace(chart, name=name)


def _add(made: dict[str, Chart], charts: Iterator[tuple[str, Chart]] | Sequence[tuple[str, Chart]]) -> None:
    """Add charts by a file name that no other has, also where names differ only by case."""
    for folder, chart in charts:
        taken = {stem.casefold() for stem in made}
        stem, count = file_name(chart.name), 1
        if stem.casefold() in taken and folder:
            stem = file_name(f"{folder}-{chart.name}")
        while stem.casefold() in taken:
            count += 1
            stem = file_name(f"{chart.name}-{count}")
        made[stem] = chart
