"""`saeval frontier`, `saeval pareto` and `saeval trajectory`: tables and plots of a run's SAEs by family."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saeval.plugin import Chart, SaevalError, chart_files, escapes, formatting, stored_results, suggestion, write_whole
from saeval.plugin import families as of_saes
from saeval_frontier import pages
from saeval_frontier.families import Member, families, members
from saeval_frontier.frontier import QUALITIES
from saeval_frontier.gaps import aliases, gaps
from saeval_frontier.pareto import DRAWS, fronts
from saeval_frontier.plots import frontier_chart, pareto_chart, trajectory_chart
from saeval_frontier.trajectory import at_equal, trajectories


def frontier(argv: Sequence[str]) -> int:
    """Print the gap of pruned to trained SAEs at equal L0."""
    parser = _parser("frontier", "Compare pruned SAEs with SAEs that were trained at the same L0.")
    parser.add_argument("--value", default="delta_ce", choices=list(QUALITIES), help="default: delta_ce")
    parser.add_argument("--metric", help="name of the configured sparsity_frontier (default: the first)")
    options = parser.parse_args(argv)
    saes, by_family = _families(options)
    names = aliases(saes)
    if options.metric is not None and options.metric not in names:
        raise SaevalError(f"no sparsity_frontier is named '{options.metric}'{suggestion(options.metric, names)}")
    alias = options.metric or names[0]
    measured, reasons = gaps(by_family, alias, options.value)
    if not measured:
        raise SaevalError("; ".join(reasons) or "no pruned SAE has a point inside the trained range of L0")
    _print(options, [gap.row() for gap in measured], [escapes.markdown(why) for why in reasons])
    return _plotted(options, frontier_chart(by_family, alias, options.value) if options.plot else None)


def pareto(argv: Sequence[str]) -> int:
    """Print the Pareto front of two values."""
    parser = _parser("pareto", "Find the SAEs that are best in two values, and how surely.")
    parser.add_argument("--x", default="l0.l0", metavar="METRIC.VALUE", help="default: l0.l0")
    parser.add_argument("--y", default="ce.delta_ce", metavar="METRIC.VALUE", help="default: ce.delta_ce")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"draws for the shares (default: {DRAWS})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    options = parser.parse_args(argv)
    if options.draws < 1:
        raise SaevalError(f"--draws must be at least 1, got {options.draws}")
    if options.seed < 0:
        raise SaevalError(f"--seed must be at least 0, got {options.seed}")
    _, by_family = _families(options)
    all_fronts = fronts(by_family, options.x, options.y, options.draws, options.seed)
    rows = [row for front in all_fronts for row in front.rows(options.x, options.y)]
    volumes = [
        f"hypervolume of {escapes.markdown(family)} ({formatting.counted(front.sizes[family], 'SAE')}) at "
        f"{escapes.markdown(front.hook_name)}: {pages.shown(volume)}"
        for front in all_fronts
        for family, volume in front.hypervolume.items()
    ]
    omitted = map(
        escapes.markdown, [*pages.left_out(by_family, all_fronts, options.x, options.y), *pages.unequal(all_fronts)]
    )
    notes = [*volumes, *omitted, pages.pareto_note(options.draws)]
    _print(options, rows, notes)
    return _plotted(options, pareto_chart(all_fronts, options.x, options.y) if options.plot else None)


def trajectory(argv: Sequence[str]) -> int:
    """Print a value over training."""
    parser = _parser("trajectory", "Follow a value over training, and find from where on no change is detected.")
    parser.add_argument("--value", default="ce.delta_ce", metavar="METRIC.VALUE", help="default: ce.delta_ce")
    parser.add_argument(
        "--number", default="training_tokens", help="the declared number of each SAE (default: training_tokens)"
    )
    parser.add_argument("--pattern", help="take the number from the name instead, at {}, as in 'step_{}'")
    options = parser.parse_args(argv)
    if options.pattern is not None and options.pattern.count("{}") != 1:
        raise SaevalError(f"--pattern needs one {{}} where the number is, got '{options.pattern}'")
    _, by_family = _families(options)
    curves = trajectories(by_family, options.value, options.number, options.pattern)
    number = "number" if options.pattern else options.number
    rows = [row for curve in curves for row in curve.rows(number, options.value)]
    notes = [escapes.markdown(pages.sentence(curve, number)) for curve in curves]
    notes += [
        f"{escapes.markdown(pair.hook_name)} at {pages.amount(pair.number)}: {escapes.markdown(pair.first)} − "
        f"{escapes.markdown(pair.second)} is {pages.shown(pair.difference)} (p = {pages.shown(pair.p_holm)}, Holm)"
        for pair in at_equal(curves)
    ]
    _print(options, rows, notes)
    return _plotted(options, trajectory_chart(curves, number, options.value) if options.plot else None)


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"saeval {verb}", description=description)
    parser.add_argument("folder", metavar="OUT/SUITE", help="a results folder")
    parser.add_argument("--include-limited", action="store_true", help="include runs with --limit")
    parser.add_argument(
        "--family", action="append", default=[], metavar="NAME=GLOB", help="a family of SAEs by their names; repeatable"
    )
    parser.add_argument(
        "--by", action="append", default=[], metavar="PROPERTY",
        help="a declared property that the SAEs of a family share; repeatable (default: "
        "architecture, and d_sae and end_to_end where they differ)",
    )  # fmt: skip
    parser.add_argument("--format", choices=["md", "csv", "json"], default="md", help="default: md")
    parser.add_argument(
        "--plot", type=_picture, metavar="FILE", help=f"also write the plot; ends in {', '.join(chart_files.FORMATS)}"
    )
    return parser


def _picture(text: str) -> Path:
    chart_files.check_format(Path(text).suffix.removeprefix("."))
    return Path(text)


def _families(options: argparse.Namespace) -> tuple[list[Member], dict[tuple[str, str], list[Member]]]:
    patterns: dict[str, str] = {}
    for assignment in options.family:
        name, equals, pattern = assignment.partition("=")
        if not (name and equals and pattern):
            raise SaevalError(f"--family needs NAME=GLOB, got '{assignment}'")
        patterns[name] = pattern
    if patterns and options.by:
        raise SaevalError("--family and --by exclude each other; give one of them")
    saes = members(stored_results(options.folder, options.include_limited))
    if not saes:
        raise SaevalError(f"{options.folder}: no results of an SAE")
    return saes, families(saes, options.by, patterns)


def _print(options: argparse.Namespace, rows: Sequence[dict[str, object]], notes: Sequence[str]) -> None:
    print(pages.as_text(rows, options.format))
    if options.format == "md":
        print("\n".join(f"- {note}" for note in notes))


def _plotted(options: argparse.Namespace, drawn: Chart | None) -> int:
    path: Path | None = options.plot
    if path is not None and drawn is not None:
        palette = of_saes.Palette.of(stored_results(options.folder, options.include_limited))
        write_whole(path, chart_files.content(palette.painted(drawn), path.suffix.removeprefix(".")), "--plot")
        print(path)
    return 0
