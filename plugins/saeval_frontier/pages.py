"""The sections of the frontier report: pruned against trained SAEs, Pareto fronts, values over training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import (
    Estimate,
    PageTable,
    Result,
    SaevalError,
    Section,
    chart_files,
    escapes,
    formatting,
)
from saeval_frontier.families import SPARSITY, Member, families, members
from saeval_frontier.frontier import QUALITIES
from saeval_frontier.gaps import aliases, gaps
from saeval_frontier.pareto import DRAWS, Front, fronts
from saeval_frontier.plots import TITLES, frontier_chart, gap_chart, pareto_chart, trajectory_chart
from saeval_frontier.trajectory import ALPHA, NUMBERS, Trajectory, at_equal, trajectories

UNSURE = 0.025
"""Share of draws beyond which an SAE may or may not be on the front."""
SOME = 10
"""Most SAEs that a sentence names."""


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the charts and tables of a run; families are those of the default properties."""
    saes = members(results)
    by_family = families(saes)
    try:
        names = aliases(saes)
    except SaevalError:
        names = []
    made = [gap_section(by_family, alias) for alias in names]
    x, y = (_column(saes, value, names) for value in ("l0", "delta_ce"))
    if x and y and len(saes) > 1:
        made.append(pareto_section(by_family, fronts(by_family, x, y), x, y))
    if y and (trained_by := over_training(saes, y)):
        number, curves = trained_by
        made.append(trajectory_section(curves, number, y))
    return made


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
    return chart_files.csv_text(flat)


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


def gap_section(by_family: Mapping[tuple[str, str], Sequence[Member]], alias: str) -> Section:
    """Return every value over L0, and the gaps at equal L0."""
    drawn = [frontier_chart(by_family, alias, quality) for quality in QUALITIES]
    tables, reasons, summary = [], list[str](), list[str]()
    for quality, title in TITLES.items():
        measured, why = gaps(by_family, alias, quality)
        reasons += why
        if measured:
            rows = [gap.row() for gap in measured]
            tables.append(_table(f"gaps-{quality}", f"Gaps at equal L0: {title}", rows, folded=True))
        if measured and quality == "delta_ce":
            drawn.insert(1, gap_chart(measured, quality))
            worse, better = (
                sum(g.p_holm is not None and g.p_holm < ALPHA and sign * g.difference.value > 0 for g in measured)
                for sign in (1, -1)
            )
            summary.append(
                f"At equal L0, {worse} of {formatting.counted(len(measured), 'point')} of pruned SAEs cost more "
                f"ΔCE than trained SAEs, {better} less, and the others cannot be distinguished (Holm-corrected at 5%)."
            )
    notes = [
        "The gap is the value of the pruned SAE minus that of the trained family, on a line in log L0 between the two "
        "trained SAEs around it. ± is one standard error, paired by document; p values are corrected by Holm's method "
        "over each table.",
        *dict.fromkeys(f"{why[0].upper()}{why[1:]}." for why in reasons),
    ]
    shown = [chart for chart in drawn if chart.data]
    for quality in QUALITIES:
        if quality not in [chart.name for chart in shown]:
            saes = [sae for family in by_family.values() for sae in family]
            found = [record for sae in saes if (record := sae.record(f"{alias}.{quality}")) is not None]
            missing = sorted({record["reason"] for record in found if record.get("reason")})
            reason = f": {'; '.join(missing)}" if missing else ""
            notes.append(f"No chart of {TITLES[quality]}: no pruned SAE has this value{reason}.")
    return Section(alias, f"Pruned against trained SAEs: {alias}", summary, shown, tables, notes=notes)


def pareto_section(
    by_family: Mapping[tuple[str, str], Sequence[Member]], found: Sequence[Front], x: str, y: str
) -> Section:
    """Return the fronts."""
    tables = []
    for number, front in enumerate(found, 1):
        tables.append(_table(f"front-{number}", f"Front at {front.hook_name}", front.rows(x, y), folded=True))
    volumes = [
        {
            "hook": front.hook_name, "family": family, "SAEs": str(front.sizes[family]),
            "left out": str(len(by_family[front.hook_name, family]) - front.sizes[family]), "hypervolume": volume,
        }
        for front in found
        for family, volume in front.hypervolume.items()
    ]  # fmt: skip
    if volumes:
        tables.insert(0, _table("hypervolumes", "Hypervolume of each family", volumes))
    summary = [f"{sentence}." for sentence in on_the_front(found)]
    summary += [f"{sentence}." for sentence in (*left_out(by_family, found, x, y), *unequal(found))]
    drawn = [pareto_chart(found, x, y)]
    return Section(
        "pareto", f"Pareto fronts of {x} and {y}", [s[0].upper() + s[1:] for s in summary], drawn, tables,
        notes=[pareto_note(DRAWS)],
    )  # fmt: skip


def on_the_front(found: Sequence[Front]) -> list[str]:
    """Return a sentence for each hook on the SAEs on its front, and on those of which the draws are not sure."""
    sentences = []
    for front in found:
        best = [p.sae.name for p, on in zip(front.points, front.on, strict=True) if on]
        unsure = [
            f"{p.sae.name} ({share:.0%})"
            for p, share in zip(front.points, front.share, strict=True)
            if UNSURE < share < 1 - UNSURE
        ]
        doubt = f"; not sure, with the share of draws on the front: {', '.join(unsure)}" if unsure else ""
        count = formatting.counted(len(front.points), "SAE")
        sentences.append(f"on the front of {count} at {front.hook_name}: {', '.join(best)}{doubt}")
    return sentences


def unequal(found: Sequence[Front]) -> list[str]:
    """Return a sentence on hypervolumes that are not comparable, since families differ in their number of SAEs."""
    differ = [front for front in found if front.hypervolume and len(set(front.sizes.values())) > 1]
    if not differ:
        return []
    sizes = [size for front in differ for size in front.sizes.values()]
    return [
        f"families have {min(sizes)} to {max(sizes)} SAEs at a hook, so their hypervolumes are not comparable: each "
        "further SAE can only add to one"
    ]


def pareto_note(draws: int) -> str:
    """Return how fronts, shares and hypervolumes are defined."""
    return (
        f"An SAE is on the front if no other SAE at its hook is as good in both values and better in one. The share is "
        f"that of {draws} draws of all values, normal with the joint jackknife covariance over documents: value + z · "
        f"deviations. The hypervolume is the share of the box from the best to the worst value of all SAEs at the hook "
        f"that a family dominates, on a logarithmic first axis if all its values are above 0; its error is over "
        f"documents, with the box held fixed."
    )


def left_out(
    by_family: Mapping[tuple[str, str], Sequence[Member]], found: Sequence[Front], x: str, y: str
) -> list[str]:
    """Return a sentence for each family of which SAEs lack one of the two values: how many, and which."""
    shown_saes = {id(p.sae) for front in found for p in front.points}
    sentences = []
    for (hook, label), family in by_family.items():
        names = [sae.name for sae in family if id(sae) not in shown_saes]
        few = ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")
        if names:
            share = f"{len(names)} of {formatting.counted(len(family), 'SAE')} of {label} at {hook}"
            sentences.append(f"left out, since they lack {x} or {y}: {share} ({few}); they could be on the front")
    return sentences


def trajectory_section(curves: Sequence[Trajectory], number: str, value: str) -> Section:
    """Return the trajectories, and the families after equal training."""
    rows = [row for curve in curves for row in curve.rows(number, value)]
    tables = [_table("stages", "Stages", rows, folded=True)]
    if pairs := at_equal(curves):
        title = f"Families at equal {number}"
        tables.append(_table("families", title, [pair.row(number) for pair in pairs], folded=True))
    summary = [f"{sentence(curve, number)}." for curve in curves]
    drawn = [trajectory_chart(curves, number, value)]
    return Section("trajectory", f"{value} over {number}", summary, drawn, tables)


def sentence(curve: Trajectory, number: str) -> str:
    """Return from which point a family's training can no longer be distinguished from its end."""
    where = f"{curve.family} at {curve.hook_name}"
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
        f"{where}: from {amount(curve.settled)} {number} on, no stage can be distinguished from "
        f"the last, {last} (paired tests, Holm){reach}"
    )


def amount(number: float) -> str:
    """Return a declared number in full, as in `1,600,000` or `0.25`."""
    return f"{number:,.12g}"


def _table(name: str, title: str, rows: Sequence[Mapping[str, Any]], *, folded: bool = False) -> PageTable:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return PageTable(name, title, list(rows[0]), cells, folded=folded)


def _cell(value: Any) -> str | float | None:
    if isinstance(value, Estimate):
        return formatting.with_error(value.value, value.stderr)
    return value if value is None or isinstance(value, float) else str(value)
