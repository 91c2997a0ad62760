"""`Results`: the results of a run, as `run` and `evaluate` return them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.base.errors import SaevalError, suggestion
from saeval.base.escapes import html, terminal
from saeval.base.formatting import counted
from saeval.base.whole_files import FREE_SPACE, write_whole
from saeval.page.writing import remembering, write_page
from saeval.registry.registry import Registry, writer
from saeval.results.board import Board, stop_in_words
from saeval.results.chart_collection import charts_of, own_charts, write_charts
from saeval.results.chart_files import check_format
from saeval.results.comparison import Comparison, compare
from saeval.results.leaderboard import from_results, of_runs
from saeval.results.notebook import board_section, charts_html, section_html
from saeval.results.pages import write_pages
from saeval.results.result import Result
from saeval.results.sections import Chart
from saeval.results.written_files import leave_only

if TYPE_CHECKING:
    import pandas as pd


class MissingValueError(SaevalError, KeyError):
    """No single value has this name, or its cell has none."""

    def __str__(self) -> str:
        return terminal(str(self.args[0]))  # that of KeyError puts it in quotes


class Charts(dict[str, Chart]):
    """Charts by name; a notebook draws all of them, below each other."""

    def _repr_html_(self) -> str:
        return charts_html(list(self.values()))


class Results(Sequence[Result]):
    """The results of a run: a sequence of `Result`, one per cell, in the suite's order."""

    def __init__(
        self, results: Iterable[Result], board: Mapping[str, Any], title: str, folder: Path | None, registry: Registry
    ) -> None:
        self._registry = registry
        self._results = list(results)
        self._board = board
        for result in self._results:
            result.layout = board
        self.title = title
        self.folder = folder
        """The folder of the results, `out/suite`; None if `evaluate` had no `out` and stored nothing."""
        self.forward_passes = 0
        """Number of clean and resumed passes of this run; 0 if all results came from the store."""

    def __getitem__(self, index: Any) -> Any:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    @property
    def failed(self) -> list[Result]:
        """Results that are `failed` or `damaged`; their `reason` says why."""
        return [r for r in self._results if r.status in ("failed", "damaged")]

    @property
    def sample(self) -> dict[str, Any] | None:
        """The rows that the suite's `precision:` took, as in `Result.sample`; None in a suite without `precision:`."""
        return next((r.sample for r in self._results if r.sample), None)

    def value(self, name: str, subject: str | None = None) -> Any:
        """Return the record of `metric.value` for the named subject, or for the only one.

        Raises `MissingValueError`, a `KeyError`, if there is no such value, with the reason if the cell is undefined or
        failed, or if several subjects have it and none is named.
        """
        metric, _, value = name.partition(".")
        own = [r for r in self._results if r.metric == metric and (subject is not None or "twin" not in r.cell)]
        matches = [r for r in own if subject is None or r.subject == subject]
        if len(matches) != 1:
            raise MissingValueError(f"{name}: {len(matches)} results match; name one of {[r.subject for r in matches]}")
        (result,), value = matches, value or metric
        if value in result.values:
            return result.values[value]
        if result.status != "ok":
            of = f"{metric} of {result.subject or 'the model'}"
            raise MissingValueError(
                f"{of} {'' if result.status == 'failed' else 'is '}{result.status}: {result.reason}"
            )
        raise MissingValueError(f"metric '{metric}' has no value '{value}'{suggestion(value, result.values)}")

    def boards(self) -> list[Board]:
        """Return the leaderboards of these results; ranks are computed from the stored arrays."""
        return from_results(self._results, self.title, self._board)

    def leaderboard(self, format: str = "md") -> str:
        """Return the leaderboard as text in a report format, such as `md`.

        Raises `SaevalError` for an unknown format, and for one whose files are no text, such as Parquet.
        """
        content = writer(self._registry.reports, format, "write")(self.boards())
        if isinstance(content, bytes):
            raise SaevalError(
                f"format '{format}' is no text; `saeval leaderboard --format {format} --to FILE` writes it"
            )
        return content

    def compare(self, a: str, b: str, metrics: Sequence[str] = ()) -> Comparison:
        """Compare two subjects, given by `name` or `name@hook`: all values of both, paired differences and tests.

        `metrics` selects some values, such as "ce" or "ce.delta_ce". Raises `SaevalError` for names that are unknown
        or ambiguous.
        """
        return compare(from_results(self._results, self.title, {}), a, b, metrics)

    def report(self, to: str | Path) -> list[Path]:
        """Write the page `index.html` and the files of all report formats into the folder `to`; return the files.

        Raises `SaevalError` if a format fails; the others are written.
        """
        reports = remembering(entry.thing for entry in self._registry.reports if entry.thing.shows_results)
        written, failed = write_pages(reports, self._results, Path(to))
        results = {str(self.folder or ""): self._results}
        page, of_sections = write_page(self.boards(), results, reports, Path(to))
        written.append(page)
        leave_only(Path(to), written)
        if faults := dict.fromkeys([*failed, *of_sections]):
            raise SaevalError("\n".join(faults))
        return written

    def charts(self, metric: str | None = None) -> Charts:
        """Return the charts of these results by name, of all metrics or of one, such as `ce` or `ce.delta_ce`.

        A notebook draws them. Raises `SaevalError` for an unknown name, and if a report fails.
        """
        reports = [entry.thing for entry in self._registry.reports]
        made, failed = charts_of(reports, {self.title: self._results}, self.boards(), metric)
        if failed:
            raise SaevalError("\n".join(failed))
        return Charts(made)

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with one row per scalar value: subject, metric, value and its error, unit and status.

        The column `quantity` is the name of the value. A cell without scalars has one row without a value.
        """
        import pandas as pd  # late: slow to import

        rows = []
        for result in self._results:
            subjects = result.cell["subjects"]
            common = {
                "name": result.subject,
                "hook_name": subjects[0]["hook_name"] if subjects else None,
                "metric": result.metric,
                "status": result.status,
                "reason": result.reason,
                "stopped_adaptively": bool(result.sample and result.sample["stopped_adaptively"]),
            }
            scalars = {n: v for n, v in result.values.items() if "kind" not in v}
            for name, record in scalars.items():
                low, high = record["ci95"] or (None, None)
                numbers = {k: record[k] for k in ("value", "stderr", "n", "unit", "better")}
                numbers |= {k: record.get(k) for k in ("documents", "effective_documents", "largest_share")}
                rows.append({**common, "quantity": name, **numbers, "ci95_low": low, "ci95_high": high})
            if not scalars:
                rows.append({**common, "quantity": None, "value": None})
        return pd.DataFrame(rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The data frame of `to_frame`."""
        return self.to_frame()

    def scalars(self, controls: bool = False) -> dict[str, float]:
        """Return the values of the leaderboard's columns as plain numbers by name, for a logger of training runs.

        Names are `metric.value`, with `SAE/` before them if there are several SAEs or `controls`. Values that do not
        exist are left out.
        """
        boards = self.boards()
        kept = [row for board in boards for row in board.rows if controls or row.kind != "control"]
        several = controls or len({(row.name, row.hook_name) for row in kept}) > 1
        hooks = len({row.hook_name for row in kept if row.hook_name}) > 1 and len({r.name for r in kept}) < len(kept)
        numbers: dict[str, float] = {}
        for board in boards:
            for row in (row for row in board.rows if controls or row.kind != "control"):
                start = f"{row.name}{f'@{row.hook_name}' * hooks}/" if several else ""
                for column in board.shown:
                    entry = row.entries.get(column.name)
                    if entry is not None and entry.value is not None:
                        numbers[f"{start}{column.name}"] = entry.value
        return numbers

    def plot(self, metric: str | None = None, to: str | Path | None = None, format: str = "png") -> Charts:
        """Return the charts of a metric or value, such as "ce.delta_ce", or of all; a notebook draws them.

        With `to`, a folder, they are also written there in a `format` (png, svg, html or json), each with its data as
        CSV. Raises `SaevalError` for a name that no result has, and for an unknown format.
        """
        check_format(format)
        made = self.charts(metric)
        if to is not None:
            for file, content in write_charts(made, Path(to), format):
                write_whole(file, content, f"{FREE_SPACE} to=")
        return made

    def _repr_html_(self) -> str:
        boards = [board_section(board) for board in self.boards()]
        reports = [entry.thing for entry in self._registry.reports]
        if boards:
            boards[-1] = replace(boards[-1], charts=own_charts(reports, self._results))
        failed = [f"{r.metric} of {r.subject}: {r.reason}" for r in self.failed]
        notes = "".join(f"<p>{html(sentence)}</p>" for sentence in failed[:5])
        return notes + "".join(map(section_html, boards))

    def _repr_markdown_(self) -> str:
        return self.leaderboard("md")

    def __repr__(self) -> str:
        stop = f"; {words}" if (words := stop_in_words(self.sample)) else ""
        return f"<Results of {self.title}: {counted(len(self), 'cell')}, {len(self.failed)} failed{stop}>"


def boards_of(runs: Sequence[Results]) -> list[Board]:
    """Return the leaderboards of several runs: one table for those of one model and data with the same metrics."""
    return of_runs([(list(run), run.title, run._board) for run in runs])
