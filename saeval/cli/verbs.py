"""What each verb of the command line does: parsed arguments -> printed text and an exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from saeval.api import execute, prepare, refuse_namesakes
from saeval.base.errors import INTERRUPTED, OK, SOME_FAILED, SaevalError, blamed
from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.progress import progress
from saeval.cli import explanation, flags, listing
from saeval.cli.board_verbs import say_aside
from saeval.cli.doctor import Doctor
from saeval.cli.plan_text import plan_in_words
from saeval.engine.preflight import model_warnings, warnings
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry, writer
from saeval.results.pages import write_pages
from saeval.results.store import Store


def _registry(arguments: argparse.Namespace) -> Registry:
    return Registry(Plugins(arguments.plugin))


def run(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    write = writer(registry.reports, arguments.format, "write")
    # Every suite is planned before the first one runs, so that a mistake in the last costs nothing.
    plans = [prepare(suite, registry, flags.options(arguments), arguments.set) for suite in arguments.suites]
    refuse_namesakes(plans, arguments.out)
    for failure in registry.plugins.failures:
        print(f"plugin {failure}", file=sys.stderr)
    code, made_boards, folders, limited = OK, [], [], False
    told = len(registry.plugins.failures)
    try:
        for made in plans:
            if disagreements := warnings(made):
                made.verify()  # what stops the run is said alone
                print(*map(line, disagreements), sep="\n", file=sys.stderr)
            results = execute(made, arguments.out, progress())
            made_boards += results.boards()
            folders.append(results.folder)
            limited |= made.streams.cut is not None
            done = f"{counted(len(results), 'cell')}, {counted(results.forward_passes, 'forward pass')}"
            done += f"; results in {results.folder}"
            print(done, file=sys.stderr)
            if results.failed:
                hint = f"saeval show {results.folder} lists them, saeval show {results.folder} KEY has the traceback"
                print(f"{len(results.failed)} of {len(results)} cells failed; {hint}", file=sys.stderr)
                code = SOME_FAILED
        try:
            text = write(made_boards)
            if arguments.format != "md":  # which has notes of its own
                say_aside([sentence for board in made_boards for sentence in board.asides])
            print(text, flush=True)
        except SaevalError as error:  # the results are kept, and another format may show them
            again = ["leaderboard", *(str(folder) for folder in folders), *["--include-limited"] * limited]
            print(f"{error}; the results are kept: saeval {shlex.join(again)} shows them", file=sys.stderr)
            code = SOME_FAILED
        for failure in registry.plugins.failures[told:]:
            print(f"plugin {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        words = shlex.join(sys.argv[1:])
        print(f"\ninterrupted; finished work is kept. Resume with: saeval {words}", file=sys.stderr)
        return INTERRUPTED
    return code


def check(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    for suite in arguments.suites:
        made = prepare(suite, registry, flags.options(arguments), arguments.set)
        made.verify()
        refuse_namesakes([made], arguments.out)
        told = [f"warning: {sentence}" for sentence in model_warnings(made)]
        text = plan_in_words(made, Store(Path(arguments.out) / made.name))
        print("\n".join([*map(line, [*warnings(made), *told]), text]))
    for failure in registry.plugins.failures:
        print(f"plugin {failure}", file=sys.stderr)
    return OK


def fetch(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    for suite in arguments.suites:
        made = prepare(
            suite, registry, flags.options(arguments), arguments.set
        )  # the text and the headers come with this
        if made.spec is not None:
            made.spec.fetch()
        for subject in made.subjects:
            if subject.fetch is not None:
                with blamed(f"SAE '{subject.name}'", subject.origin):
                    subject.fetch()
        saes = sum(s.kind == "sae" for s in made.subjects)
        rows = counted(len(made.streams.evaluation), "sequence")
        print(f"{made.name}: {rows}, {counted(saes, 'SAE')} and the model's files are here")
    return OK


def doctor(arguments: argparse.Namespace) -> int:
    one = Doctor(_registry(arguments), flags.options(arguments))
    text, well = one.report(one.plan(arguments.reference, arguments.model, arguments.data, arguments.hook))
    print(text)
    return OK if well else SOME_FAILED


def ls(arguments: argparse.Namespace) -> int:
    rows = listing.listing(_registry(arguments), arguments.kind)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return OK
    names = [line(row["name"]) for row in rows]
    width = max(map(len, names), default=0)
    for name, row in zip(names, rows, strict=True):
        print(line(f"{name:<{width}}  {row['description']}  [{row['from']}]"))
    return OK


def show(arguments: argparse.Namespace) -> int:
    print(listing.show(arguments.what, lambda: _registry(arguments), arguments.out, arguments.json))
    return OK


def explain(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    if arguments.suite is None:
        made = explanation.example(arguments.metric, arguments.sae, registry.plugins)
    else:
        made = prepare(arguments.suite, registry, flags.FlagOptions())
    print(explanation.explanation(made, explanation.cell_of(made, arguments.metric, arguments.sae)))
    if arguments.suite is None:
        print(f"\nThis is an example; `saeval explain {arguments.metric} SUITE` explains it as your suite has it.")
    return OK


def report(arguments: argparse.Namespace) -> int:
    registry = _registry(arguments)
    for name in arguments.format:
        registry.reports[name].writer("pages", [entry.thing for entry in registry.reports])
    every = [entry.thing for entry in registry.reports if entry.thing.pages is not None]
    chosen = [one for one in every if one.name in arguments.format] or every
    code = OK
    for folder in arguments.folders:
        _, results = Store(folder).results(arguments.include_limited)
        for damaged in (result for result in results if result.status == "damaged"):
            print(f"{folder}: {damaged.metric} of {damaged.subject} is damaged: {damaged.reason}", file=sys.stderr)
        written, failed = write_pages(chosen, results, Path(arguments.to or Path(folder) / "report"))
        none = f"{folder}: none of its metrics has a page; {', '.join(one.name for one in chosen)} make pages of theirs"
        print(*written, sep="\n") if written else print(none)
        print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
        code = SOME_FAILED if failed else code
    return code
