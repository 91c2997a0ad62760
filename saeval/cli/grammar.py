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
from saeval.cli import flags
from saeval.registry.kinds import LISTED


def suite_options(parser: argparse.ArgumentParser) -> None:
    """Suites, and what changes a run of them."""
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="a YAML file, or the name of a registered suite")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, as data.sequences=64"
    )
    flags.add(parser, "suite")
    model_options(parser)


def model_options(parser: argparse.ArgumentParser) -> None:
    """Where and how precisely a model and its SAEs compute."""
    flags.add(parser, "model")
    parser.add_argument("--offline", action="store_true", help="use only what was downloaded before (`saeval fetch`)")
    plugin_option(parser)


def plugin_option(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE`."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="also load this plugin file")


COMMANDS = "saeval.commands"
VERBS = ("run", "check", "fetch", "doctor", "ls", "show", "explain", "leaderboard", "compare", "report")
READERS = ("leaderboard", "compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code."""
    # Threads that spin while they wait double a run's time beside any other job; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with shown():
        return _guarded(lambda: _called(sys.argv[1:] if argv is None else list(argv)))


def _called(arguments: list[str]) -> int:
    verbs = _plugin_verbs()
    if arguments and arguments[0] in verbs:
        return _plugin_verb(verbs[arguments[0]], arguments[1:])
    parser = _parser(sorted(verbs))
    options = parser.parse_args(arguments)
    if getattr(options, "offline", False):  # before a library that reads them is imported
        os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    if not hasattr(options, "verb"):
        parser.print_help()
        return WRONG
    module = "board_verbs" if options.verb in READERS else "verbs"  # the latter imports all that runs
    code: int = getattr(importlib.import_module(f"saeval.cli.{module}"), options.verb)(options)
    return code


def _guarded(call: Callable[[], int]) -> int:
    try:
        try:
            code = call()
        except SystemExit:  # of `--help`, whose text may not be out yet either
            _flush()
            raise
        _flush()
        return code
    except SaevalError as error:
        print(error, file=sys.stderr)
        return WRONG
    except BrokenPipeError:  # the reader of a pipe has gone, such as `| head`
        return OK
    except OSError as error:  # a path that the system cannot even look for
        log.debug("the verb failed", exc_info=error)
        name = str(error.filename or "saeval")
        shown_name = name if len(name) <= 120 else f"{name[:120]}..."
        print(f"{shown_name}: {error.strerror or said(error)}; check the path", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _flush() -> None:
    """What a device does not take is noticed here, not at the interpreter's exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _plugin_verbs() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=COMMANDS) if e.name not in VERBS}  # no plugin takes a verb over


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
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB")

    run = subparsers.add_parser("run", help="run one or more suites and print their leaderboards")
    suite_options(run)
    run.add_argument("--out", default="results", help="folder for results, one subfolder a suite (default: results)")
    flags.add(run, "run")
    run.add_argument("--format", default="md", help="format of the printed leaderboard")
    run.set_defaults(verb="run")

    check = subparsers.add_parser("check", help="find a suite's problems and print what a run would do")
    suite_options(check)
    check.add_argument("--out", default="results", help="folder whose finished cells need no computing")
    check.set_defaults(verb="check")

    ls = subparsers.add_parser("ls", help="list what the plugins supply")
    ls.add_argument("kind", choices=LISTED)
    ls.add_argument("--json", action="store_true", help="machine-readable")
    plugin_option(ls)
    ls.set_defaults(verb="ls")

    fetch = subparsers.add_parser("fetch", help="download what suites need, so that they run without a network")
    suite_options(fetch)
    fetch.set_defaults(verb="fetch")

    doctor = subparsers.add_parser("doctor", help="look closely at an SAE: what it declares, what is measured")
    doctor.add_argument("reference", metavar="REF", help="a path, a registered SAE or glob, '{use: ..., ...}', a suite")
    doctor.add_argument("--model", help="a registered model, or '{use: huggingface, path: FOLDER}'")
    doctor.add_argument("--data", help="text to look at it with, as a suite's `data:` (default: any that ships)")
    doctor.add_argument("--hook", help="where it belongs, if its checkpoint does not say")
    model_options(doctor)
    doctor.set_defaults(verb="doctor")

    show = subparsers.add_parser("show", help="show a results folder, one result, or the documentation of a name")
    show.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="a name that `ls` lists; OUT/SUITE or SUITE, alone, with KEY, or with METRIC and SAE; KEY; a file",
    )
    show.add_argument("--out", default="results", help="folder in which SUITE and KEY are looked up (default: results)")
    show.add_argument("--json", action="store_true", help="a result as it is stored")
    plugin_option(show)
    show.set_defaults(verb="show")

    explain = subparsers.add_parser("explain", help="print what a metric requests, down to model and data")
    explain.add_argument("metric", metavar="METRIC", help="a metric, by its name or its name in the suite")
    explain.add_argument("suite", nargs="?", metavar="SUITE", help="as this suite resolves it (default: an example)")
    explain.add_argument("--sae", metavar="NAME", help="on this SAE or control (default: the suite's first)")
    plugin_option(explain)
    explain.set_defaults(verb="explain")

    board = subparsers.add_parser("leaderboard", help="print the leaderboard of one or more results folders")
    board.add_argument("folders", nargs="+", metavar="OUT/SUITE")
    board.add_argument("--format", default="md", help="md, csv, json, or a plugin's")
    board.add_argument("--include-limited", action="store_true", help="also runs made with --limit")
    plugin_option(board)
    board.set_defaults(verb="leaderboard")

    pair = subparsers.add_parser("compare", help="is the difference between two SAEs, or an SAE and a control, real?")
    pair.add_argument("folders", nargs="+", metavar="OUT/SUITE", help="one results folder, or several with equal data")
    pair.add_argument("a", metavar="NAME", help="an SAE or a control, by name; NAME@HOOK where a name is not enough")
    pair.add_argument("b", metavar="OTHER_NAME", help="another")
    pair.add_argument("--metric", nargs="+", action="extend", default=[], help="only these, as ce or ce.delta_ce")
    pair.add_argument("--format", default="md", help="md, csv, json, or a plugin's")
    pair.add_argument("--include-limited", action="store_true", help="also runs made with --limit")
    plugin_option(pair)
    pair.set_defaults(verb="compare")

    report = subparsers.add_parser("report", help="write the plots and pages that plugins make of a run's results")
    report.add_argument("folders", nargs="+", metavar="OUT/SUITE")
    report.add_argument("--to", metavar="FOLDER", help="where to write them (default: OUT/SUITE/report)")
    report.add_argument("--format", nargs="+", action="extend", default=[], help="only these reports")
    report.add_argument("--include-limited", action="store_true", help="also runs made with --limit")
    plugin_option(report)
    report.set_defaults(verb="report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
