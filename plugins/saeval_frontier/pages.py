"""The frontier report: prune curves beside trained SAEs, gaps at equal L0, Pareto fronts, values over training."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from saeval.plugin import (
    Estimate,
    Result,
    SaevalError,
    escapes,
    figure,
    formatting,
    label_log_axis,
    png,
    set_title,
    wrap_title,
)
from saeval_frontier.families import SPARSITY, Member, families, members
from saeval_frontier.frontier import QUALITIES, curve_points, l0_of
from saeval_frontier.gaps import Gap, aliases, gaps, trained
from saeval_frontier.pareto import DRAWS, Front, fronts
from saeval_frontier.pruning import FILLS, ORDERS
from saeval_frontier.trajectory import NUMBERS, AtEqual, Trajectory, at_equal, trajectories

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "delta_ce": "ΔCE, nats", "recovered": "CE recovered", "kl": "KL, nats", "explained_variance": "explained variance",
}  # fmt: skip


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """Return the plots and tables of a run by file name; families are those of the default properties."""
    saes = members(results)
    by_family = families(saes)
    files: dict[str, bytes | str] = {}
    try:
        names = aliases(saes)
    except SaevalError:
        names = []
    for alias in names:
        stem = escapes.file_name(alias)
        for quality in QUALITIES:
            files[f"{stem}_{quality}.png"] = png(frontier_chart(by_family, alias, quality))
        files |= {f"{stem}_gaps.md": gap_page(by_family, alias)}
        if measured := gaps(by_family, alias, "delta_ce")[0]:
            files[f"{stem}_gaps.png"] = png(gap_chart(measured, "delta_ce"))
    x, y = (_column(saes, value, names) for value in ("l0", "delta_ce"))
    if x and y and len(saes) > 1:
        found = fronts(by_family, x, y)
        files |= {"pareto.md": pareto_page(by_family, found, x, y), "pareto.png": png(pareto_chart(found, x, y))}
    if y and (trained_by := over_training(saes, y)):
        number, curves = trained_by
        files["trajectory.md"] = trajectory_page(curves, at_equal(curves), number, y)
        files["trajectory.png"] = png(trajectory_chart(curves, number, y))
    return files


def _column(saes: Sequence[Member], value: str, names: Sequence[str]) -> str | None:
    """Return the first column `METRIC.VALUE` that has this value for an SAE; `sparsity_frontier` comes last."""
    columns = [f"{alias}.{value}" for sae in saes for alias in sae.results if alias not in names]
    columns += [f"{alias}.{value}" for alias in names]
    return next((c for c in dict.fromkeys(columns) if any(sae.value(c) is not None for sae in saes)), None)


def over_training(saes: Sequence[Member], value: str) -> tuple[str, list[Trajectory]] | None:
    """Return the first declared number of training that varies within a family, and the trajectories over it."""
    for number in NUMBERS:
        declaring = [sae for sae in saes if isinstance(sae.declared(number), int | float)]
        by_run: dict[tuple[str, str], list[Member]] = {}
        for (hook, label), family in families(declaring).items():
            for sae in family:
                sparsity = [f"{name}={sae.declared(name)}" for name in SPARSITY if sae.declared(name) is not None]
                by_run.setdefault((hook, " ".join([label, *sparsity])), []).append(sae)
        try:
            return number, trajectories(by_run, value, number)
        except SaevalError:
            continue
    return None


def as_text(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return records as Markdown, CSV or JSON; estimates have columns of their own for their errors in the last two."""
    if form == "md":
        names = list(rows[0]) if rows else []
        lines = [f"| {' | '.join(map(escapes.markdown, names))} |", "|---" * len(names) + "|"]
        return "\n".join([*lines, *(f"| {' | '.join(map(shown, row.values()))} |" for row in rows)]) + "\n"
    flat = [_flat(row) for row in rows]
    if form == "json":
        return json.dumps(flat, indent=1, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: escapes.csv(value) for name, value in row.items()} for row in flat)
    return text.getvalue()


def shown(value: Any) -> str:
    if isinstance(value, Estimate):
        return formatting.with_error(value.value, value.stderr)
    if isinstance(value, float):
        return formatting.number(value, 3 if abs(value) < 1 else 9)
    return "–" if value is None else escapes.markdown(str(value))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            low, high = value.ci95 or (None, None)
            flat |= {name: value.value, f"{name} stderr": value.stderr}
            flat |= {f"{name} ci95_low": low, f"{name} ci95_high": high}
        else:
            flat[name] = value
    return flat


def gap_page(by_family: Mapping[tuple[str, str], Sequence[Member]], alias: str) -> str:
    """Return the gaps of every value at equal L0 as Markdown."""
    parts = [
        "# Pruned against trained SAEs at equal L0\n\nThe gap is the value of the pruned SAE minus that of the trained "
        "family, on a line in log L0 between the two trained SAEs around it. ± is one standard error, paired by "
        "document; p values are corrected by Holm's method over each table.\n"
    ]
    for quality, title in TITLES.items():
        measured, reasons = gaps(by_family, alias, quality)
        table = as_text([gap.row() for gap in measured], "md") if measured else ""
        parts.append("\n".join([f"## {title}\n", table, *(f"- {escapes.markdown(why)}" for why in reasons)]) + "\n")
    return "\n".join(parts)


def pareto_page(by_family: Mapping[tuple[str, str], Sequence[Member]], found: Sequence[Front], x: str, y: str) -> str:
    """Return the fronts as Markdown."""
    parts = [f"# Pareto fronts of {escapes.markdown(x)} and {escapes.markdown(y)}\n"]
    for front in found:
        volumes = [{"family": family, "hypervolume": volume} for family, volume in front.hypervolume.items()]
        parts += [
            f"## {escapes.markdown(front.hook_name)}\n", as_text(front.rows(x, y), "md"),
            *([as_text(volumes, "md")] if volumes else []),
        ]  # fmt: skip
    return "\n".join([*parts, *left_out(by_family, found), pareto_note(DRAWS)]) + "\n"


def pareto_note(draws: int) -> str:
    """Return how fronts, shares and hypervolumes are defined."""
    return (
        f"An SAE is on the front if no other SAE at its hook is as good in both values and better in one. The share is "
        f"that of {draws} draws of all values, normal with the joint jackknife covariance over documents: value + z · "
        f"deviations. The hypervolume is the share of the box from the best to the worst value of all SAEs at the hook "
        f"that a family dominates, on a logarithmic first axis if all its values are above 0; its error is over "
        f"documents, with the box held fixed."
    )


def left_out(by_family: Mapping[tuple[str, str], Sequence[Member]], found: Sequence[Front]) -> list[str]:
    """Return a sentence that names the SAEs that lack one of the two values, if there are any."""
    shown_saes = {id(p.sae) for front in found for p in front.points}
    names = [sae.name for family in by_family.values() for sae in family if id(sae) not in shown_saes]
    few = ", ".join(map(escapes.markdown, names[:5])) + (", ..." if len(names) > 5 else "")
    return [f"left out, without one of the two values: {few}"] if names else []


def trajectory_page(curves: Sequence[Trajectory], pairs: Sequence[AtEqual], number: str, value: str) -> str:
    """Return the trajectories, and the families after equal training, as Markdown."""
    rows = [row for curve in curves for row in curve.rows(number, value)]
    parts = [f"# {escapes.markdown(value)} over {escapes.markdown(number)}\n", as_text(rows, "md")]
    parts += [f"- {sentence(curve, number)}" for curve in curves]
    if pairs:
        parts += [f"\n## Families at equal {escapes.markdown(number)}\n", as_text([p.row(number) for p in pairs], "md")]
    return "\n".join(parts) + "\n"


def sentence(curve: Trajectory, number: str) -> str:
    """Return from which point a family's training can no longer be distinguished from its end."""
    where = f"{escapes.markdown(curve.family)} at {escapes.markdown(curve.hook_name)}"
    last = amount(curve.stages[-1].number)
    if curve.settled is None and curve.stages[-2].p_holm is None:
        return f"{where}: the last stage, {last}, cannot be tested, since it has no error over documents"
    if curve.settled is None:
        return f"{where}: the last stage, {last}, still differs significantly from the one before"
    stage = next(stage for stage in curve.stages if stage.number == curve.settled)
    assert stage.to_last is not None
    ends = stage.to_last.ci95
    reach = f"; the difference there is between {' and '.join(f'{end:.3g}' for end in ends)}" if ends else ""
    return (
        f"{where}: from {amount(curve.settled)} {escapes.markdown(number)} on, no stage can be distinguished from "
        f"the last, {last} (paired tests, Holm){reach}"
    )


def amount(number: float) -> str:
    """Return a declared number in full, as in `1,600,000` or `0.25`."""
    return f"{number:,.12g}"


def _colours(families: Iterable[str]) -> dict[str, str]:
    """Return a colour for each family, the same in all panels of a plot."""
    return {family: f"C{index % 10}" for index, family in enumerate(dict.fromkeys(families))}


def _panels(hooks: Sequence[str], columns: int) -> tuple[Figure, Any]:
    fig = figure(3.5 * columns + 0.6, 3.0 * len(hooks) + 0.9)
    return fig, fig.subplots(len(hooks), columns, sharex="row", sharey="row", squeeze=False)


def _bars(estimates: Sequence[Estimate]) -> Any:
    """Return the reach of each 95% interval below and above its value, as `errorbar` takes it."""
    reach = [(e.value - e.ci95[0] if e.ci95 else 0.0) for e in estimates]
    return [reach, reach]


def frontier_chart(by_family: Mapping[tuple[str, str], Sequence[Member]], alias: str, quality: str) -> Figure:
    """Draw a value against L0: trained SAEs in black, prune curves in colours; a column per order, a row per hook."""
    hooks = list(dict.fromkeys(hook for hook, _ in by_family))
    markers = dict(zip(dict.fromkeys(label for _, label in by_family), cycle("os^Dv"), strict=False))
    fig, axes = _panels(hooks, len(ORDERS))
    for row, hook in zip(axes, hooks, strict=True):
        at_hook = {label: family for (place, label), family in by_family.items() if place == hook}
        saes = [sae for family in at_hook.values() for sae in family]
        for panel, order in zip(row, ORDERS, strict=True):
            panel.set_xscale("log")
            for index, sae in enumerate(saes):
                for fill in FILLS:
                    _prune_curve(panel, sae, alias, quality, order, fill, f"C{index % 10}")
            for label, family in at_hook.items():
                if points := trained(family, alias, quality):
                    x, y = [p[0].value for p in points], [p[1] for p in points]
                    panel.errorbar(
                        x, [e.value for e in y], yerr=_bars(y), fmt="-" + markers[label], color="black",
                        markersize=4, linewidth=1.3, label=escapes.plot(f"trained: {label}"), zorder=5,
                    )  # fmt: skip
            panel.set_title(f"{wrap_title(hook, 3.2, 8)}\n{order.replace('_', ' ')} first", fontsize=8)
            panel.tick_params(labelsize=7)
            label_log_axis(panel.xaxis)
        row[0].plot([], [], "-", color="0.5", linewidth=1, label="pruned, 0")
        row[0].plot([], [], "--", color="0.5", linewidth=1, label="pruned, mean")
        row[0].legend(fontsize=6)
    fig.supxlabel("L0, features per token", fontsize=9)
    fig.supylabel(TITLES[quality], fontsize=9)
    set_title(
        fig, f"{TITLES[quality]} of trained and of pruned SAEs, a colour per SAE; bars: 95% intervals by document"
    )
    return fig


def _prune_curve(panel: Any, sae: Member, alias: str, quality: str, order: str, fill: str, colour: str) -> None:
    values = sae.results[alias].values if alias in sae.results else {}
    names = curve_points(values, order, fill)
    pairs = [(sae.value(f"{alias}.l0"), sae.value(f"{alias}.{quality}"))]
    pairs += [(sae.value(f"{alias}.{l0_of(n)}"), sae.value(f"{alias}.{quality}_{n}")) for n in names]
    points = sorted(((x.value, y) for x, y in pairs if x is not None and y is not None), key=lambda p: -p[0])
    shown = [(x, y) for x, y in points if x > 0]
    if len(shown) > 1:
        panel.errorbar(
            [x for x, _ in shown], [y.value for _, y in shown], yerr=_bars([y for _, y in shown]),
            fmt="-" if fill == "zero" else "--", marker=".", color=colour, markersize=3, linewidth=0.9, alpha=0.85,
        )  # fmt: skip


def gap_chart(measured: Sequence[Gap], quality: str) -> Figure:
    """Draw the gap over L0, one panel per hook and family: a line per SAE, a colour per order, filled for zero."""
    places = list(dict.fromkeys((gap.sae.hook_name, gap.family) for gap in measured))
    fig = figure(4.2 * min(len(places), 3) + 0.8, 3.4 * -(-len(places) // 3) + 0.8)
    axes = fig.subplots(-(-len(places) // 3), min(len(places), 3), squeeze=False).ravel()
    for panel in axes[len(places) :]:
        panel.set_visible(False)
    for panel, (hook, family) in zip(axes, places, strict=False):
        panel.axhline(0, color="0.5", linewidth=1)
        panel.set_xscale("log")
        own = [gap for gap in measured if (gap.sae.hook_name, gap.family) == (hook, family)]
        for number, order in enumerate(ORDERS):
            for fill in FILLS:
                shown = [gap for gap in own if (gap.order, gap.fill) == (order, fill)]
                for name in dict.fromkeys(gap.sae.name for gap in shown):
                    curve = [gap for gap in shown if gap.sae.name == name]
                    panel.errorbar(
                        [gap.l0.value * (1 + 0.012 * (number - 1.5)) for gap in curve],
                        [gap.difference.value for gap in curve], yerr=_bars([gap.difference for gap in curve]),
                        fmt="-o" if fill == "zero" else "--o", color=f"C{number}", markersize=4, linewidth=0.8,
                        markerfacecolor=f"C{number}" if fill == "zero" else "white",
                    )  # fmt: skip
        panel.set_title(wrap_title(f"{hook}: {family}", 4.0, 8), fontsize=8)
        panel.tick_params(labelsize=7)
        label_log_axis(panel.xaxis)
    for fill in FILLS:
        for number, order in enumerate(ORDERS):
            style = {"markerfacecolor": f"C{number}" if fill == "zero" else "white"}
            line = "-o" if fill == "zero" else "--o"
            axes[0].plot([], [], line, color=f"C{number}", markersize=4, linewidth=0.8, **style,
                         label=f"{order.replace('_', ' ')}, {fill}")  # fmt: skip
    fig.legend(loc="outside lower center", ncols=4, fontsize=7)
    for panel in axes[: len(places)]:
        panel.set_xlabel("L0, features per token", fontsize=8)
    fig.supylabel(f"{TITLES[quality]}: pruned − trained", fontsize=9)
    set_title(fig, f"Gap of pruned to trained SAEs at equal L0: {TITLES[quality]}; bars: 95% paired intervals")
    return fig


def pareto_chart(found: Sequence[Front], x: str, y: str) -> Figure:
    """Draw both values of each SAE, one panel per hook: a colour per family, the front joined, its members ringed."""
    columns = min(len(found), 3)
    fig = figure(4.4 * columns + 0.6, 3.6 * -(-len(found) // columns) + 0.7)
    axes = fig.subplots(-(-len(found) // columns), columns, squeeze=False).ravel()
    for panel in axes[len(found) :]:
        panel.set_visible(False)
    colours = _colours(family for front in found for family in front.families)
    for panel, front in zip(axes, found, strict=False):
        for family in front.families:
            own = [p for p in front.points if p.family == family]
            volume = front.hypervolume.get(family)
            words = f" (hypervolume {formatting.with_error(volume.value, volume.stderr)})" if volume else ""
            panel.errorbar(
                [p.x.value for p in own], [p.y.value for p in own], xerr=_bars([p.x for p in own]),
                yerr=_bars([p.y for p in own]), fmt="o", color=colours[family], markersize=4, linewidth=1,
                label=escapes.plot(f"{family}{words}"),
            )  # fmt: skip
        best = sorted((p.x.value, p.y.value) for p, on in zip(front.points, front.on, strict=True) if on)
        panel.plot(
            *zip(*best, strict=True), "-o", color="0.4", linewidth=1, markersize=9, markerfacecolor="none",
            label="front", zorder=1,
        )  # fmt: skip
        for p, share in zip(front.points, front.share, strict=True):
            if 0.005 < share < 0.995:
                panel.annotate(
                    f"{share:.0%}", (p.x.value, p.y.value), textcoords="offset points", xytext=(4, 4), fontsize=6
                )
        if min(p.x.value for p in front.points) > 0:
            panel.set_xscale("log")
            label_log_axis(panel.xaxis)
        panel.set_title(wrap_title(front.hook_name, 4.0, 8), fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6)
    fig.supxlabel(escapes.plot(x), fontsize=9)
    fig.supylabel(escapes.plot(y), fontsize=9)
    set_title(
        fig, f"{y} against {x}; bars: 95% intervals; percentages: share of draws on the front, if between 0 and 1"
    )
    return fig


def trajectory_chart(curves: Sequence[Trajectory], number: str, value: str) -> Figure:
    """Draw a value over training, one panel per hook, a colour per family; filled from where it is settled."""
    hooks = list(dict.fromkeys(curve.hook_name for curve in curves))
    fig = figure(4.4 * min(len(hooks), 3) + 0.6, 3.6 * -(-len(hooks) // 3) + 0.7)
    axes = fig.subplots(-(-len(hooks) // 3), min(len(hooks), 3), squeeze=False).ravel()
    for panel in axes[len(hooks) :]:
        panel.set_visible(False)
    colours = _colours(curve.family for curve in curves)
    for panel, hook in zip(axes, hooks, strict=False):
        own = [curve for curve in curves if curve.hook_name == hook]
        log = min(stage.number for curve in own for stage in curve.stages) > 0
        panel.set_xscale("log" if log else "linear")
        for curve in own:
            stages, colour = curve.stages, colours[curve.family]
            x, y = [s.number for s in stages], [s.value for s in stages]
            panel.errorbar(
                x, [e.value for e in y], yerr=_bars(y), fmt="-o", color=colour, markersize=5, linewidth=1,
                markerfacecolor="white", label=escapes.plot(curve.family),
            )  # fmt: skip
            settled = [s for s in stages if s.number >= (curve.settled or stages[-1].number)]
            panel.plot([s.number for s in settled], [s.value.value for s in settled], "o", color=colour, markersize=5)
        panel.set_title(wrap_title(hook, 4.0, 8), fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6)
        if log:
            label_log_axis(panel.xaxis)
    fig.supxlabel(escapes.plot(number), fontsize=9)
    fig.supylabel(escapes.plot(value), fontsize=9)
    set_title(fig, f"{value} over {number}; bars: 95% intervals; filled: not distinguished from the last stage")
    return fig
