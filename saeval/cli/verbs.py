"""The verbs of the command line: functions from parsed arguments to printed text and an exit code."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from saeval.api import execute_all, prepare, prepare_parts, refuse_namesakes
from saeval.base.errors import INTERRUPTED, OK, SOME_FAILED, SaevalError, blamed
from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.memory import keep_freed_memory
from saeval.base.progress import progress
from saeval.base.run_options import FlagOptions
from saeval.cli import explanation, flags, tables
from saeval.cli.doctor import Doctor
from saeval.cli.plan_text import plan_in_words
from saeval.cli.shard_text import Shards, shards_in_words, shards_of, together_in_words
from saeval.collection import boards_of
from saeval.engine.preflight import model_warnings, warnings
from saeval.page.writing import remembering, write_page
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry, writer
from saeval.results.column_choice import choose
from saeval.results.families import Palette
from saeval.results.leaderboard import of_stored
from saeval.results.pages import write_pages
from saeval.results.report import Report
from saeval.results.result import Result
from saeval.results.store import Store
from saeval.results.written_files import leave_only


def _registry(arguments: argparse.Namespace) -> Registry:
    return Registry(Plugins(arguments.plugin))


def run(arguments: argparse.Namespace) -> int:
    tables.complete(arguments)
    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    # Plan every suite before the first one runs, so that a mistake in the last suite is found at once.
    suites = [prepare_parts(suite, registry, flags.options(arguments), arguments.set) for suite in arguments.suites]
    plans = [plan for suite in suites for plan in suite]
    refuse_namesakes(plans, arguments.out)
    for failure in registry.plugins.failures:
        print(f"plugin {failure}", file=sys.stderr)
    keep_freed_memory()
    code, every, folders = OK, [], []
    limited = any(plan.streams.cut is not None for plan in plans)
    printed = len(registry.plugins.failures)
    try:
        for plan in plans:
            if disagreements := warnings(plan):
                plan.verify()  # an error that stops the run is printed without warnings
                print(*map(line, disagreements), sep="\n", file=sys.stderr)
        for results in execute_all(suites, arguments.out, progress()):
            every.append(results)
            folders.append(results.folder)
            done = f"{counted(len(results), 'cell')}, {counted(results.forward_passes, 'forward pass')}"
            done += f"; results in {results.folder}"
            print(done, file=sys.stderr)
            if results.failed:
                hint = f"saeval show {results.folder} lists them, saeval show {results.folder} KEY has the traceback"
                print(f"{len(results.failed)} of {len(results)} cells failed; {hint}", file=sys.stderr)
                code = SOME_FAILED
        boards = boards_of(every)
        try:
            choose(boards, arguments.columns, arguments.wide)
            content = write(boards)
            if not registry.reports[arguments.format].annotated:
                tables.print_asides([sentence for board in boards for sentence in board.asides])
            tables.put(content, arguments)
        except SaevalError as error:  # another format may still work
            command = ["leaderboard", *(str(folder) for folder in folders), *["--include-limited"] * limited]
            print(f"{error}; the results are kept: saeval {shlex.join(command)} shows them", file=sys.stderr)
            code = SOME_FAILED
        for failure in registry.plugins.failures[printed:]:
            print(f"plugin {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        words = shlex.join(sys.argv[1:])
        print(f"\ninterrupted; finished work is kept. Resume with: saeval {words}", file=sys.stderr)
        return INTERRUPTED
    return code


def check(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    every: list[Shards] = []
    for suite in arguments.suites:
        for plan in prepare_parts(suite, registry, flags.options(arguments), arguments.set):
            plan.verify()
            refuse_namesakes([plan], arguments.out)
            of_model = [f"warning: {sentence}" for sentence in model_warnings(plan)]
            store = Store(Path(arguments.out) / plan.name)
            text = plan_in_words(plan, store)
            if arguments.workers is not None:
                every.append(shards_of(plan, store))
                text += f"\n{shards_in_words(plan, every[-1], arguments.workers)}"
            print("\n".join([*map(line, [*warnings(plan), *of_model]), text]))
    if len(every) > 1:
        print(together_in_words(every, plan.options.device, arguments.workers))
    for failure in registry.plugins.failures:
        print(f"plugin {failure}", file=sys.stderr)
    return OK


def fetch(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    for suite in arguments.suites:
        # this downloads the text and the headers
        for plan in prepare_parts(suite, registry, flags.options(arguments), arguments.set):
            if plan.spec is not None:
                plan.spec.fetch()
            if plan.interview is not None:
                plan.interview.judge.fetch()
            for subject in plan.subjects:
                if subject.fetch is not None:
                    with blamed(f"SAE '{subject.name}'", subject.origin):
                        subject.fetch()
            saes = sum(s.kind == "sae" for s in plan.subjects)
            rows = counted(len(plan.streams.evaluation), "sequence")
            print(f"{plan.title}: {rows}, {counted(saes, 'SAE')} and the model's files are available offline")
    return OK


def doctor(arguments: argparse.Namespace) -> int:
    doctor_ = Doctor(_registry(arguments), flags.options(arguments))
    plan = doctor_.plan(arguments.reference, arguments.model, arguments.data, arguments.hook)
    text, passed = doctor_.report(plan)
    print(text)
    return OK if passed else SOME_FAILED


def explain(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    if arguments.suite is None:
        plan = explanation.example(arguments.metric, arguments.sae, registry.plugins)
    else:
        plan = prepare(arguments.suite, registry, FlagOptions())
    print(explanation.explanation(plan, explanation.cell_of(plan, arguments.metric, arguments.sae)))
    if arguments.suite is None:
        print(f"\nThis is an example; for your suite: saeval explain {arguments.metric} SUITE")
    return OK


def report(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    for name in arguments.format:
        registry.reports[name].check_shows_results([entry.thing for entry in registry.reports])
    with_pages = remembering(entry.thing for entry in registry.reports if entry.thing.shows_results)
    chosen = [report for report in with_pages if report.name in arguments.format] or with_pages
    drawn: list[tuple[list[Report], list[Result], Path]] = []
    faults: dict[str, None] = {}
    several = arguments.to is not None and len(arguments.folders) > 1
    names: Counter[str] = Counter()
    stored: dict[str, tuple[dict[str, Any], list[Result]]] = {}
    for folder in arguments.folders:
        _, results = stored[folder] = Store(folder).results(arguments.include_limited)
        for damaged in (result for result in results if result.status == "damaged"):
            print(f"{folder}: {damaged.metric} of {damaged.subject} is damaged: {damaged.reason}", file=sys.stderr)
        names[name := Path(folder).name] += 1
        own = name if names[name] == 1 else f"{name}-{names[name]}"
        to = Path(arguments.to) / own if several else Path(arguments.to or Path(folder) / "report")
        drawn.append(([r for r in chosen if not (several and r.together)], results, to))
    if several:
        everything = [result for _, results, _ in drawn for result in results]
        drawn.append(([r for r in chosen if r.together], everything, Path(arguments.to)))
    palette = Palette.of(result for _, results in stored.values() for result in results)
    by_place: dict[Path, list[Path]] = {}
    for reports, results, to in drawn:
        by_place.setdefault(to, [])
        if not reports:
            continue
        written, failed = write_pages(reports, results, to, palette)
        by_place[to] += written
        print(*written, sep="\n", end="\n" if written else "")
        faults |= dict.fromkeys(failed)
    first = Path(arguments.folders[0])
    to = Path(arguments.to or (first if len(stored) == 1 else first.parent) / "report")
    by_folder = {folder: results for folder, (_, results) in stored.items()}
    written_page, failed = write_page(of_stored(stored), by_folder, chosen, to)
    print(written_page)
    by_place.setdefault(to, []).append(written_page)
    for place, written in by_place.items():
        leave_only(place, written)
    faults |= dict.fromkeys(failed)
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return SOME_FAILED if faults else OK
