"""Charts of the frontier report: prune curves, gaps at equal L0, Pareto fronts, values over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from saeval.plugin import Chart, Estimate, charts, formatting
from saeval_frontier.families import Member
from saeval_frontier.frontier import curve_points, l0_of
from saeval_frontier.gaps import Gap, trained
from saeval_frontier.pareto import Front
from saeval_frontier.pruning import FILLS, ORDERS
from saeval_frontier.trajectory import Trajectory

TITLES = {
    "delta_ce": "ΔCE, nats", "recovered": "CE recovered, share", "kl": "KL, nats",
    "explained_variance": "explained variance, share",
}  # fmt: skip
L0 = "L0, features per token"
ZERO, MEAN = "pruned, features set to 0", "pruned, features set to their mean"
_KINDS = {"zero": ZERO, "mean": MEAN}
_BOUNDED = ("recovered", "explained_variance")
_SPREAD = ("delta_ce", "kl")


def frontier_chart(by_family: Mapping[tuple[str, str], Sequence[Member]], alias: str, quality: str) -> Chart:
    """Return a value against L0, a row of panels per family at a hook, a column per order of dropping features.

    Trained SAEs are joined, each pruned SAE is a grey curve.
    """
    records: list[dict[str, Any]] = []
    for (hook, label), family in by_family.items():
        points = trained(family, alias, quality)
        for order in ORDERS:
            first = {"place": _place(by_family, hook, label), "hook": hook, "dropped first": _order(order)}
            ladder = [(x, y, f"trained: {label}", "") for x, y in points]
            pruned = [(x, y, _KINDS[fill], sae.name) for sae in family for fill in FILLS
                      for x, y in _prune_curve(sae, alias, quality, order, fill)]  # fmt: skip
            if pruned:
                records += [
                    {**first, "curve": curve, "SAE": name, "family": label, "L0": x.value, **_measured(y)}
                    for x, y, curve, name in [*ladder, *pruned]
                ]
    keys = {f"trained: {label}": family[0].key for (_, label), family in by_family.items()}
    curves = [curve for curve in (*keys, ZERO, MEAN) if any(r["curve"] == curve for r in records)]
    x = charts.quantity("L0", L0, [r["L0"] for r in records])
    y = charts.quantity(
        "value", TITLES[quality], charts.extent(records, "value"), log=None if quality in _SPREAD else False
    )
    families = [curve for curve in curves if curve in keys]
    greys = {ZERO: charts.NEUTRAL, MEAN: charts.NEUTRAL}
    shades = dict(zip(families, cycle(charts.COLOURS))) | greys
    colour = charts.colour("curve", None, curves, [shades[curve] for curve in curves])
    dash = charts.dash("curve", None, curves, [[3, 2] if curve == MEAN else [1, 0] for curve in curves])
    shapes = dict(zip(families, cycle(charts.SHAPES)))
    shape = charts.shape("curve", None, curves, [shapes.get(curve, "circle") for curve in curves])
    by = ["curve", "family", "SAE"]
    thin = {"strokeWidth": 1, "opacity": 0.75}
    pruned_lines = charts.lines(x, y, by=by, points=False, mark=thin, color=colour, strokeDash=dash)
    ends = charts.dots(x, y, size=10, mark={"opacity": 0.75}, color=colour)
    ladders = charts.lines(x, y, by=by, bars=True, mark={"strokeWidth": 2}, color=colour, shape=shape, strokeDash=dash)
    layers = [*charts.where([*pruned_lines, *ends], "datum.SAE"), *charts.where(ladders, "!datum.SAE")]
    places = list(dict.fromkeys(r["place"] for r in records))
    orders = [_order(order) for order in ORDERS if any(r["dropped first"] == _order(order) for r in records)]
    names = {r["SAE"] for r in records} - {""}
    return Chart(
        quality, f"{TITLES[quality].partition(',')[0]} of trained and of pruned SAEs",
        f"{formatting.counted(len(names), 'SAE')}; thick: SAEs of one family, each trained at its L0; grey: one SAE "
        f"as its features are dropped; {charts.BARS}, of trained SAEs (the data has those of pruned ones)"
        f"{charts.lost(records, 'value', y)}",
        charts.panels(layers, 180, 150, row=charts.panel("place", places, broken=": "),
                      column=charts.panel("dropped first", orders)),
        records, f"{TITLES[quality]} over L0 of trained SAEs and of SAEs whose features are dropped in several orders",
        keys,
    )  # fmt: skip


def _place(by_family: Mapping[tuple[str, str], Sequence[Member]], hook: str, label: str) -> str:
    """The hook and the family, each only if there are several."""
    hooks, labels = ({place[i] for place in by_family} for i in (0, 1))
    parts = [hook] * (len(hooks) > 1 or len(labels) == 1) + [label] * (len(labels) > 1)
    return ": ".join(parts)


def _prune_curve(sae: Member, alias: str, quality: str, order: str, fill: str) -> list[tuple[Estimate, Estimate]]:
    """The whole SAE and its points, by descending L0; none if there is no point, or no number on a log axis."""
    values = sae.results[alias].values if alias in sae.results else {}
    names = curve_points(values, order, fill)
    pairs = [(sae.value(f"{alias}.l0"), sae.value(f"{alias}.{quality}"))]
    pairs += [(sae.value(f"{alias}.{l0_of(n)}"), sae.value(f"{alias}.{quality}_{n}")) for n in names]
    points = sorted(((x, y) for x, y in pairs if x is not None and y is not None), key=lambda p: -p[0].value)
    shown = [(x, y) for x, y in points if x.value > 0]
    return shown if len(shown) > 1 else []


def gap_chart(measured: Sequence[Gap], quality: str) -> Chart:
    """Return the gap over L0: a row of panels per family at a hook, a column per order, a line per SAE and fill."""
    records = [
        {
            "place": f"{gap.sae.hook_name}: {gap.family}", "fill": _KINDS[gap.fill], "dropped first": _order(gap.order),
            "family": gap.family, "SAE": gap.sae.name, "point": gap.point, "L0": gap.l0.value,
            **_measured(gap.difference), "p_holm": gap.p_holm,
        }
        for gap in measured
    ]  # fmt: skip
    x = charts.quantity("L0", L0, [r["L0"] for r in records], log=True)
    y = charts.quantity(
        "value", f"pruned − trained, {TITLES[quality].partition(', ')[2]}", charts.extent(records, "value"), log=False
    )
    keys = {gap.family: gap.sae.key for gap in reversed(measured)}
    colour = charts.colour("family", "family", [gap.family for gap in measured])
    dash = charts.dash("fill", None, [kind for kind in _KINDS.values() if any(r["fill"] == kind for r in records)])
    layers = charts.reference("y", 0)
    layers += charts.lines(
        x, y, by=["SAE"], bars=True, points=False, mark={"strokeWidth": 1.2}, color=colour, strokeDash=dash
    )
    shape = charts.shape("family", "family", [gap.family for gap in measured])
    layers += charts.dots(x, y, size=22, color=colour, shape=shape)
    orders = [_order(order) for order in ORDERS if any(r["dropped first"] == _order(order) for r in records)]
    return Chart(
        "gaps", f"Gap of pruned to trained SAEs at equal L0: {TITLES[quality]}",
        f"{formatting.counted(len({r['SAE'] for r in records}), 'SAE')}, two lines for each; above 0: the pruned SAE "
        "has more; bars: 95% intervals, paired by document",
        charts.panels(layers, 180, 150, row=charts.panel("place", [r["place"] for r in records], broken=": "),
                      column=charts.panel("dropped first", orders)),
        records, "Difference of pruned SAEs to SAEs trained at the same L0, over L0", keys,
    )  # fmt: skip


def pareto_chart(found: Sequence[Front], x: str, y: str) -> Chart:
    """Return both values of each SAE, one panel per hook: a colour per family, the front joined, its members ringed."""
    records = [
        {
            "hook": front.hook_name, "family": p.family, "SAE": p.sae.name,
            **_measured(p.x, "x"), **_measured(p.y, "y"),
            "on the front": bool(on), "share of draws": None if share != share else float(share),
            "share": f"{share:.0%}" if 0.005 < share < 0.995 else None,
        }
        for front in found for p, on, share in zip(front.points, front.on, front.share, strict=True)
    ]  # fmt: skip
    _write_once(records)
    across = charts.quantity("x", _with_unit(found, x), [r["x"] for r in records], log=all(r["x"] > 0 for r in records))
    up = charts.quantity("y", _with_unit(found, y), [r["y"] for r in records])
    families = [r["family"] for r in records]
    colour, shape = charts.colour("family", "family", families), charts.shape("family", "family", families)
    path = charts.lines(
        across, up, points=False, mark={"color": charts.NEUTRAL, "strokeDash": [4, 3], "interpolate": "step-after"}
    )
    ring = charts.dots(across, up, size=170, mark={"filled": False, "color": charts.NEUTRAL, "strokeWidth": 1.4})
    layers = charts.where([*path, *ring], "datum['on the front']")
    layers += charts.dots(across, up, bars="xy", color=colour, shape=shape)
    layers += charts.written(across, up, "share")
    hooks = [front.hook_name for front in found]
    return Chart(
        "pareto", f"{y} against {x}",
        f"{formatting.counted(len(records), 'SAE')}; {charts.BARS}; ring and dashes: the front; "
        f"percentages: share of draws on the front, if between 0 and 1{charts.lost(records, 'y', up)}",
        charts.panels(layers, 330, 270, wrap=charts.panel("hook", hooks)),
        records, f"{y} over {x} of each SAE, with the Pareto front at each hook",
        {p.family: p.sae.key for front in found for p in reversed(front.points)},
    )  # fmt: skip


def _write_once(records: Sequence[dict[str, Any]]) -> None:
    """Write the shares of SAEs that lie on top of each other, such as seeds, beside the first of them."""
    written: list[dict[str, Any]] = []
    for record in (r for r in records if r["share"] is not None):
        near = (r for r in written if r["hook"] == record["hook"] and _near(r, record, "x", 0.03))
        first = next((r for r in near if _near(r, record, "y", 0.1)), None)
        if first is None:
            written.append(record)
        else:
            first["share"], record["share"] = f"{first['share']}, {record['share']}", None


def _near(a: Mapping[str, Any], b: Mapping[str, Any], field: str, part: float) -> bool:
    return bool(abs(a[field] - b[field]) <= part * max(abs(a[field]), abs(b[field])))


def trajectory_chart(curves: Sequence[Trajectory], number: str, value: str) -> Chart:
    """Return a value over training, one panel per hook, a colour per family; filled from where it is settled."""
    records = [
        {
            "hook": curve.hook_name, "family": curve.family, "number": stage.number, "SAE": ", ".join(stage.names),
            **_measured(stage.value), "p_holm": stage.p_holm,
            "settled": bool(stage.number >= (curve.settled or curve.stages[-1].number)),
        }
        for curve in curves for stage in curve.stages
    ]  # fmt: skip
    numbers = [r["number"] for r in records]
    x = charts.quantity("number", number, numbers, log=min(numbers) > 0)
    y = charts.quantity("value", value, charts.extent(records, "value"))
    families = [curve.family for curve in curves]
    colour, shape = charts.colour("family", "family", families), charts.shape("family", "family", families)
    layers = charts.lines(x, y, by=["family"], bars=True, points=False, color=colour)
    for test, mark in (
        ("datum.settled", {}),
        ("!datum.settled", {"filled": True, "fill": "white", "strokeWidth": 1.5}),
    ):
        layers += charts.where(charts.dots(x, y, mark=mark, color=colour, shape=shape), test)
    return Chart(
        "trajectory", f"{value} over {number}",
        f"{formatting.counted(len(records), 'stage')} of {formatting.counted(len(curves), 'training run')}; "
        f"{charts.BARS}; filled: not distinguished from the last stage{charts.lost(records, 'value', y)}",
        charts.panels(layers, 330, 230, wrap=charts.panel("hook", [curve.hook_name for curve in curves])),
        records, f"{value} at each stage of training, joined within a training run",
        {curve.family: curve.key for curve in curves},
    )  # fmt: skip


def _measured(estimate: Estimate, name: str = "value") -> dict[str, Any]:
    return charts.measured(estimate.value, estimate.ci95, name)


def _with_unit(found: Sequence[Front], column: str) -> str:
    records = (p.sae.record(column) for front in found for p in front.points)
    unit = next((record["unit"] for record in records if record is not None), "")
    return f"{column}, {unit}".strip(", ")


def _order(order: str) -> str:
    return f"{order.replace('_', ' ')} first"
