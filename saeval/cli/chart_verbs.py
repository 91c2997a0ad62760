"""The verb `plot`: charts of finished results as files."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from saeval.base.errors import OK, SOME_FAILED, SaevalError
from saeval.base.whole_files import FREE_SPACE, sync, write_whole
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.board import damaged_in_words, limit_notice
from saeval.results.chart_collection import charts_of, write_charts
from saeval.results.chart_files import check_format
from saeval.results.leaderboard import boards_on
from saeval.results.result import Result
from saeval.results.store import Store


def plot(arguments: argparse.Namespace) -> int:
    """Write the charts of results folders, each with its data beside it as CSV."""
    check_format(arguments.format)
    if len(arguments.folders) > 1 and arguments.to is None:
        raise SaevalError("charts of several folders need a folder of their own; add --to FOLDER")
    runs: dict[str, list[Result]] = {}
    names: Counter[str] = Counter()
    for folder in arguments.folders:
        names[name := Path(folder).name] += 1
        own = name if names[name] == 1 else f"{name}-{names[name]}"
        runs[own] = Store(folder).results(arguments.include_limited)[1]
    everything = [result for results in runs.values() for result in results]
    reports = [entry.thing for entry in Registry(Plugins(arguments.plugin)).reports]
    boards, _ = boards_on(arguments.folders, include_limited=arguments.include_limited)
    made, failed = charts_of(reports, runs, boards, arguments.metric)
    if not made and not failed:
        what = f"metric '{arguments.metric}' has" if arguments.metric else "no metric of these results has"
        raise SaevalError(f"{what} {'no' if arguments.metric else 'a'} number to draw; see `saeval show`")
    limit = next((words for result in everything if (words := limit_notice(result.cell.get("data", {})))), "")
    warning = " ".join(words for words in (limit, damaged_in_words(everything)) if words)
    to = Path(arguments.to or Path(arguments.folders[0]) / "plots")
    for path, content in write_charts(made, to, arguments.format, warning):
        write_whole(path, content, f"{FREE_SPACE} --to")
        print(path)
    if made:
        sync(to)
    print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
    return SOME_FAILED if failed else OK
