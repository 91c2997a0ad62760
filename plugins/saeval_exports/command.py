"""`saeval export saebench`, `saeprobes`, `explanations` and `hf`, and `saeval import saebench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from saeval.plugin import SaevalError, boards, escapes, print_boards, stored_results, table_options, write_whole
from saeval_explanations.pages import lines
from saeval_exports import dataset, saebench_board, saebench_files, saeprobes


def export(argv: Sequence[str]) -> int:
    """Write the results of a run as files of another project."""
    description = "Write results as files of another project."
    parser = argparse.ArgumentParser(prog="saeval export", description=description)
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    bench = forms.add_parser("saebench", help="SAEBench's JSON files, one per SAE and evaluation")
    bench.add_argument("folder", metavar="OUT/SUITE", help="a results folder with the metrics saebench_* or absorption")
    probes = forms.add_parser("saeprobes", help="sae-probes' JSON files, one per SAE and task")
    probes.add_argument("folder", metavar="OUT/SUITE", help="a results folder with the metric saeprobes")
    words = forms.add_parser("explanations", help="JSON Lines of features with words, scores and windows")
    words.add_argument("folder", metavar="OUT/SUITE", help="a results folder with the metric explanation or detection")
    hub = forms.add_parser("hf", help="a Hugging Face dataset folder: Parquet files with a card")
    hub.add_argument("folders", nargs="+", metavar="OUT/SUITE", help="a results folder, or several")
    for form in (bench, probes, words, hub):
        form.add_argument("--to", required=True, metavar="FOLDER", help="the folder to write")
        form.add_argument("--include-limited", action="store_true", help="include runs with --limit")
    options = parser.parse_args(argv)
    if options.form == "hf":
        made = boards(options.folders, include_limited=options.include_limited)
        return _written(dataset.files(made), Path(options.to), [])
    results = stored_results(options.folder, options.include_limited)
    if options.form == "explanations":
        if not (records := lines(results)):
            raise SaevalError(f"{options.folder}: no SAE has a result of explanation, detection or fuzzing")
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return _written({"explanations.jsonl": content.encode()}, Path(options.to), [])
    written = saebench_files if options.form == "saebench" else saeprobes
    files, missing = written.files(results)
    if not files:
        names = ", ".join(written.METRICS)
        raise SaevalError(f"{options.folder}: no SAE has a result of {names}; add them to the suite's 'metrics:'")
    return _written(files, Path(options.to), missing)


def import_(argv: Sequence[str]) -> int:
    """Print the result files of another project as a leaderboard."""
    description = "Print the result files of another project as a leaderboard of their own."
    parser = argparse.ArgumentParser(prog="saeval import", description=description)
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    bench = forms.add_parser("saebench", help="a folder of SAEBench's result files")
    bench.add_argument("folder", metavar="FOLDER", help="the folder; files below it count, too")
    table_options(bench)
    options = parser.parse_args(argv)
    print_boards(saebench_board.boards(Path(options.folder)), options)
    return 0


def _written(files: dict[str, bytes], folder: Path, notes: Sequence[str]) -> int:
    for name, content in files.items():
        write_whole(folder / name, content, "--to")
        print(folder / name)
    for note in notes:
        print(escapes.line(note), file=sys.stderr)
    return 0
