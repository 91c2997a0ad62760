"""The command line's grammar: `saeval run | check | ls | ...`, and the verbs of plugins."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

from saeval.base.console import shown
from saeval.base.errors import INTERRUPTED, OK, WRONG, SaevalError, log, said
from saeval.base.provenance import version
from saeval.base.run_options import DOSES, RESEEDS
from saeval.cli import flags, tables
from saeval.registry.kinds import LISTED


def suite_options(parser: argparse.ArgumentParser) -> None:
    """Add the suites, and the flags that change a run of them."""
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="a YAML file, or the name of a registered suite")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as data.sequences=64"
    )
    flags.add(parser, "suite")
    model_options(parser)


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for devices and dtypes of the model and its SAEs, and for plugins."""
    flags.add(parser, "model")
    parser.add_argument("--offline", action="store_true", help="use downloaded files only (see `saeval fetch`)")
    plugin_option(parser)


def plugin_option(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin FILE`."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="also load this plugin file")


def results_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verbs that read results, for limited runs and plugins."""
    parser.add_argument("--include-limited", action="store_true", help="include runs with --limit")
    plugin_option(parser)


COMMANDS = "saeval.commands"
VERBS = (
    "run", "check", "certify", "fetch", "doctor", "ls", "show", "explain", "leaderboard", "compare", "report", "plot",
    "schema", "new", "completion",
)  # fmt: skip
SHELLS = ("bash", "zsh", "fish")
_MODULES = {
    "certify": "certificate_verb", "new": "new_package",
    "leaderboard": "board_verbs", "compare": "board_verbs", "plot": "chart_verbs",
    "ls": "catalogue_verbs", "show": "catalogue_verbs", "schema": "catalogue_verbs",
}  # fmt: skip
"""Modules of verbs that need less than `verbs`, which is slower to import."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code."""
    # Threads that spin while waiting double a run's time next to another job. Torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with shown():
        return _guarded(lambda: _called(sys.argv[1:] if argv is None else list(argv)))


def _called(arguments: list[str]) -> int:
    verbs = _plugin_verbs()
    if arguments and arguments[0] in verbs:
        return _plugin_verb(verbs[arguments[0]], arguments[1:])
    parser = _parser(sorted(verbs))
    options = parser.parse_args(arguments)
    if getattr(options, "offline", False):  # before importing the libraries that read these
        os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    if options.verb is None:
        parser.print_help()
        return WRONG
    if options.verb == "completion":
        from saeval.cli.completion import script  # late: no other verb needs it

        print(script(options.shell, parser, sorted(verbs)))
        return OK
    module = _MODULES.get(options.verb, "verbs")
    code: int = getattr(importlib.import_module(f"saeval.cli.{module}"), options.verb)(options)
    return code


def _guarded(call: Callable[[], int]) -> int:
    try:
        try:
            code = call()
        except SystemExit:  # from `--help`, whose text may still be buffered
            _flush()
            raise
        _flush()
        return code
    except SaevalError as error:
        print(error, file=sys.stderr)
        return WRONG
    except BrokenPipeError:  # the reader of a pipe has closed it, such as `| head`
        return OK
    except OSError as error:  # a path that the system cannot look up
        log.debug("the verb failed", exc_info=error)
        name = str(error.filename or "saeval")
        shown_name = name if len(name) <= 120 else f"{name[:120]}..."
        print(f"{shown_name}: {error.strerror or said(error)}; check the path", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _flush() -> None:
    """Write buffered output now, so that an error of the device is reported and not lost at the interpreter's exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _plugin_verbs() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=COMMANDS) if e.name not in VERBS}  # plugins cannot replace a verb


def _plugin_verb(entry_point: EntryPoint, arguments: list[str]) -> int:
    try:
        return int(entry_point.load()(arguments) or 0)
    except (SaevalError, BrokenPipeError):
        raise
    except Exception as error:
        log.debug("verb %s failed", entry_point.name, exc_info=error)
        owner = entry_point.dist.name if entry_point.dist else entry_point.value
        raise SaevalError(f"verb '{entry_point.name}' (plugin {owner}) failed: {said(error)}") from error


def _parser(verbs: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="saeval", description="Evaluate sparse autoencoders, with error bars.")
    parser.add_argument("--version", action="version", version=f"saeval {version()}")
    if verbs:
        parser.epilog = f"Verbs of plugins: {', '.join(verbs)} (saeval VERB --help)."
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")

    run = subparsers.add_parser("run", help="run one or more suites and print their leaderboards")
    suite_options(run)
    run.add_argument("--out", default="results", help="folder for results, one subfolder per suite (default: results)")
    flags.add(run, "run")
    tables.table_options(run)

    check = subparsers.add_parser("check", help="check suites for problems and print what a run would compute")
    suite_options(check)
    check.add_argument("--out", default="results", help="results folder; stored cells are not computed again")
    check.add_argument("--workers", type=flags.count, metavar="N", help="also print what N workers would do")

    certificate = subparsers.add_parser("certify", help="how far can each value of a suite be trusted?")
    suite_options(certificate)
    certificate.add_argument("--out", default="results", help="folder for results (default: results)")
    reseeds_help = f"further seeds of each metric that draws something (default: {RESEEDS})"
    certificate.add_argument("--reseeds", type=flags.count, default=RESEEDS, metavar="N", help=reseeds_help)
    doses_help = f"shares of each SAE that are damaged (default: {' '.join(map(str, DOSES))})"
    certificate.add_argument(
        "--doses", type=flags.share, nargs="+", default=list(DOSES), metavar="SHARE", help=doses_help
    )
    flags.add(certificate, "run")

    ls = subparsers.add_parser("ls", help="list the metrics, suites, SAEs, ... that plugins provide")
    ls.add_argument("kind", choices=LISTED)
    ls.add_argument("--json", action="store_true", help="print JSON, with parameters and versions")
    plugin_option(ls)

    fetch = subparsers.add_parser("fetch", help="download everything that suites need, to run them offline")
    suite_options(fetch)

    doctor = subparsers.add_parser("doctor", help="is an SAE loaded correctly? compare its metadata with measurements")
    doctor.add_argument("reference", metavar="REF", help="a path, a registered SAE or glob, '{use: ..., ...}', a suite")
    doctor.add_argument("--model", help="a registered model, or '{use: huggingface, path: FOLDER}'")
    doctor.add_argument("--data", help="text to measure on, as in a suite's `data:` (default: any registered text)")
    doctor.add_argument("--hook", help="the SAE's hook, if its checkpoint does not say")
    model_options(doctor)

    show = subparsers.add_parser("show", help="print a results folder, one result, or the documentation of a name")
    show.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="a name that `ls` lists; SUITE or OUT/SUITE, alone or followed by KEY or by METRIC [SAE]; KEY; a file",
    )
    show.add_argument("--out", default="results", help="folder in which SUITE and KEY are looked up (default: results)")
    show.add_argument("--json", action="store_true", help="print a result as stored")
    plugin_option(show)

    explain = subparsers.add_parser("explain", help="print the quantities that a metric requests, down to the model")
    explain.add_argument("metric", metavar="METRIC", help="the name of a metric, or its alias in the suite")
    explain.add_argument("suite", nargs="?", metavar="SUITE", help="the suite to plan (default: a small example)")
    explain.add_argument("--sae", metavar="NAME", help="the SAE or control to apply it to (default: the suite's first)")
    plugin_option(explain)

    board = subparsers.add_parser("leaderboard", help="print the leaderboard of one or more results folders")
    board.add_argument("folders", nargs="+", metavar="OUT/SUITE", help="a results folder")
    tables.table_options(board)
    results_options(board)

    help_text = "test the differences between two SAEs, an SAE and a control, or two results folders"
    usage = (
        "saeval compare [options] OUT/SUITE ... NAME OTHER_NAME\n       saeval compare [options] OUT/SUITE OTHER/SUITE"
    )
    pair = subparsers.add_parser("compare", help=help_text, usage=usage)
    pair.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help="results folders with the same data, then two SAEs or controls (NAME@HOOK if one was evaluated at several "
        "hooks); or two results folders",
    )
    fail_help = "exit with 3 if the second is surely so, such as 'ce.delta_ce worse' (or better, differs); repeatable"
    pair.add_argument("--fail-if", action="append", default=[], metavar="CONDITION", help=fail_help)
    pair.add_argument("--metric", nargs="+", action="extend", default=[], help="only these, such as ce or ce.delta_ce")
    tables.table_options(pair, columns=False)
    results_options(pair)

    report = subparsers.add_parser("report", help="write the page of results, and the files of reports")
    report.add_argument("folders", nargs="+", metavar="OUT/SUITE", help="a results folder")
    to_help = "where to write them (default: OUT/SUITE/report, and OUT/report for the page of several folders)"
    report.add_argument("--to", metavar="FOLDER", help=to_help)
    report.add_argument("--format", nargs="+", action="extend", default=[], help="only these reports (default: all)")
    results_options(report)

    plot = subparsers.add_parser("plot", help="write charts of results as files, with their data as CSV")
    plot.add_argument("folders", nargs="+", metavar="OUT/SUITE", help="a results folder")
    plot.add_argument("--metric", metavar="METRIC", help="only this one, such as ce or ce.delta_ce (default: all)")
    plot.add_argument("--format", default="png", help="png, svg, html or json (default: png)")
    plot.add_argument("--to", metavar="FOLDER", help="where to write them (default: OUT/SUITE/plots)")
    results_options(plot)
    schema = subparsers.add_parser("schema", help="print the JSON Schema of suites, for editors")
    plugin_option(schema)

    new = subparsers.add_parser("new", help="write a package with a plugin of your own, to begin from")
    new.add_argument("kind", choices=("metric", "loader", "source", "control", "suite"))
    new.add_argument(
        "name", metavar="NAME", help="its name, such as dead_features; the package's folder and module, too"
    )
    new.add_argument("--to", metavar="FOLDER", help="where to write it (default: NAME)")

    completion = subparsers.add_parser("completion", help="print a script that completes saeval's words in a shell")
    completion.add_argument("shell", choices=SHELLS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
