"""The verb `certify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from saeval.api import prepare, refuse_namesakes
from saeval.base.errors import INTERRUPTED, OK, SOME_FAILED
from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.memory import keep_freed_memory
from saeval.base.progress import progress
from saeval.base.whole_files import FREE_SPACE, write_whole
from saeval.certification import MANIFEST, certified, planned
from saeval.cli import flags
from saeval.cli.plan_text import work_in_words
from saeval.engine.preflight import warnings
from saeval.page.page import Part, page
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.certificate_section import NAME, section, verdicts
from saeval.results.leaderboard import boards
from saeval.results.section_files import markdown_table, section_files
from saeval.results.store import Store


def certify(arguments: argparse.Namespace) -> int:
    registry = Registry(Plugins(arguments.plugin))
    options = flags.options(arguments)
    plans = [prepare(suite, registry, options, arguments.set) for suite in arguments.suites]
    refuse_namesakes(plans, arguments.out)
    expanded = [planned(plan, arguments.reseeds, arguments.doses) for plan in plans]
    for failure in registry.plugins.failures:
        print(f"plugin {failure}", file=sys.stderr)
    keep_freed_memory()
    code = OK
    try:
        for plan, (whole, roles) in zip(plans, expanded, strict=True):
            if disagreements := warnings(plan):
                plan.verify()
                print(*map(line, disagreements), sep="\n", file=sys.stderr)
            folder = Path(arguments.out) / plan.name
            print(f"certify {plan.name}: {work_in_words(whole, Store(folder, MANIFEST))}", file=sys.stderr)
            made, results = certified(plan, whole, roles, arguments.out, progress())[:2]
            if results.failed:
                print(f"{len(results.failed)} of {counted(len(results), 'cell')} failed", file=sys.stderr)
                code = SOME_FAILED
            shown = section(made)
            files = dict(section_files(NAME, [shown]))
            files[f"{NAME}.html"] = page(boards([folder], include_limited=True), [Part("", [shown])], [str(folder)])
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                write_whole(folder / NAME / name, data, f"{FREE_SPACE} --out")
            print(f"## {line(shown.title)}\n\n{line(shown.summary[0])}\n\n{markdown_table(verdicts(made.values))}\n")
            print(folder / NAME / f"{NAME}.html", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; finished work is kept, and the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    return code
