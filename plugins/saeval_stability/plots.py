"""Charts of the stability report: matched similarities, every pair beside its floor, and both matchings compared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.plugin import Chart, charts, families, formatting

if TYPE_CHECKING:
    from saeval.plugin import Result

_BINS = 50
_CELLS = 30
_NAMED_PAIRS, _PRINTED = 45, 12
"""Most pairs that are named on an axis, and most members of a heat map with printed numbers."""
_TWINS = ("diamond", "cross", "triangle-down", "square")
"""Shapes of twins, which are grey as all controls."""
GROUP, FLOOR, CHANCE = "the SAEs of the group", "floor: larger null", "null model, one draw a pair"


def views(result: Result) -> list[str]:
    """Return the main views that every pair has."""
    suffix = "_found_in_all"
    return [n.removesuffix(suffix) for n, r in result.values.items() if n.endswith(suffix) and r["value"] is not None]


def pair_indices(result: Result) -> list[tuple[int, int]]:
    """Return the indices of the two members of each pair."""
    view = views(result)[0]
    ends = (re.fullmatch(rf"{view}_indices_(\d+)_(\d+)", name) for name in result.values)
    return [(int(m[1]), int(m[2])) for m in ends if m]


def similarity(view: str) -> str:
    """Return what a view compares features by."""
    return {"pearson": "correlation", "jaccard": "Jaccard index"}.get(view, "|cos|" if view.endswith("abs") else "cos")


def matched(result: Result) -> dict[tuple[int, int, str], float]:
    """Return Σ / max(n) of each pair, by its members' indices and the view."""
    names = [row[0] for row in result.values["members"]["rows"]]
    columns, rows = (result.values["pairs"][part] for part in ("columns", "rows"))
    column = columns.index("matched")
    return {(names.index(row[0]), names.index(row[1]), row[2]): row[column] for row in rows}


def floors(result: Result) -> dict[tuple[int, int, str], float]:
    """Return the larger null of each pair and view; a pair without a null has none."""
    names = [row[0] for row in result.values["members"]["rows"]]
    columns, rows = (result.values["floors"][part] for part in ("columns", "rows"))
    nulls = [i + 4 for i, column in enumerate(columns[4:-1]) if not column.endswith("_sd")]
    found = {}
    for row in rows:
        values = [row[i] for i in nulls if row[i] is not None]
        if values and row[2].endswith("_matched"):
            found[names.index(row[0]), names.index(row[1]), row[2].removesuffix("_matched")] = max(values)
    return found


def similarities(result: Result, twins: Sequence[Result] = ()) -> Chart:
    """Return the distribution of matched similarities over all pairs, with a null model and the twins."""
    records: list[dict[str, Any]] = []
    groups = {GROUP: result} | {twin_name(twin): twin for twin in twins}
    for view in views(result):
        drawn = {name: _pooled(group, f"{view}_cosines") for name, group in groups.items()}
        drawn[CHANCE] = _pooled(result, f"{view}_chance")
        low = min(0.0, *(float(values.min(initial=0.0)) for values in drawn.values()))
        edges = np.linspace(low, 1, _BINS + 1)
        for name, values in drawn.items():
            counts, _ = np.histogram(values, edges)
            for start, end, count in zip(edges, edges[1:], counts, strict=False) if len(values) else ():
                share = float(count / len(values))
                middle = float((start + end) / 2)
                records.append({"view": _view(view), "of": name, "similarity": middle, "share": share, "mean": None})
        for name, group in groups.items():
            own = [value for (_, _, of), value in matched(group).items() if of == view]
            middle = float(np.mean(own))
            records.append({"view": _view(view), "of": name, "similarity": None, "share": None, "mean": middle})
    order = [name for name in (*groups, CHANCE) if any(r["of"] == name for r in records)]
    shades = [charts.COLOURS[0] if name == GROUP else charts.NEUTRAL for name in order]
    x = charts.quantity("similarity", "similarity of matched features", [], log=False)
    y = charts.quantity("share", "share of features", [], log=False, zero=True)
    colour = charts.colour("of", None, order, shades)
    dash = charts.dash("of", None, order)
    body = {"interpolate": "step", "strokeWidth": 1.6}
    layers = charts.lines(x, y, points=False, mark=body, color=colour, strokeDash=dash)
    mean = {"x": x | {"field": "mean"}, "color": colour, "strokeDash": dash}
    filters = [{"filter": "isValid(datum.mean)"}]
    layers.append({"mark": {"type": "rule", "strokeWidth": 1, "tooltip": True}, "encoding": mean, "transform": filters})
    return Chart(
        "similarities", f"Matched one-to-one: {result.metric} of {result.cell['over']}",
        f"{formatting.counted(len(pair_indices(result)), 'pair')}, all features of them pooled; upright lines: mean of "
        "Σ / max(n) over all pairs",
        charts.panels(layers, 330, 190, wrap=charts.panel("view", [r["view"] for r in records]), columns=2), records,
        "Distribution of the similarity of matched features, of the group, of a null model and of untrained twins",
        _families(result),
    )  # fmt: skip


def pairs(result: Result, twins: Sequence[Result] = ()) -> Chart:
    """Return Σ / max(n) of every pair beside its floor and its twins: a row for each pair, a column for each view."""
    names, low = _names(result), floors(result)
    records: list[dict[str, Any]] = []
    for (group, name), view in itertools.product([(result, GROUP), *((t, twin_name(t)) for t in twins)], views(result)):
        for (a, b, of), value in matched(group).items():
            if of == view:
                pair = {"pair": f"{names[a]} – {names[b]}", "view": _view(view)}
                records.append({**pair, "of": name, "matched": value})
                if group is result and (a, b, view) in low:
                    records.append({**pair, "of": FLOOR, "matched": low[a, b, view]})
    order = [name for name in (GROUP, *map(twin_name, twins), FLOOR) if any(r["of"] == name for r in records)]
    shades = [charts.COLOURS[0] if name == GROUP else charts.NEUTRAL for name in order]
    colour = charts.colour("of", None, order, shades)
    marks = {GROUP: "circle", FLOOR: "M-0.2,-1L0.2,-1L0.2,1L-0.2,1Z"}
    twins_marks = dict(zip((name for name in order if name not in marks), itertools.cycle(_TWINS)))
    shape = charts.shape("of", None, order, [(marks | twins_marks)[name] for name in order])
    x = charts.quantity(
        "matched", "Σ similarity / max(n)", [0.0, *charts.extent(records, "matched")], log=False, zero=True
    )
    places = list(dict.fromkeys(r["pair"] for r in records))
    y = charts.names("pair", None, places)
    if len(places) > _NAMED_PAIRS:
        y["axis"] = y["axis"] | {"labels": False, "title": f"{len(places)} pairs"}
    layers = charts.where(charts.ticks(x, y, along="x", length=13), f"datum.of == '{FLOOR}'")
    layers += charts.where(charts.dots(x, y, color=colour, shape=shape), f"datum.of != '{FLOOR}'")
    step = 17 if len(places) <= _NAMED_PAIRS else max(900 / len(places), 2)
    return Chart(
        "pairs", f"Every pair beside its floor: {result.metric} of {result.cell['over']}",
        f"{formatting.counted(len(places), 'pair')}; no error bars, since each is one pair; grey line: larger null",
        charts.panels(layers, 260, {"step": step}, column=charts.panel("view", [r["view"] for r in records])), records,
        "Sum of matched similarities over the larger number of features, of every pair, with its floor and its twins",
        _families(result),
    )  # fmt: skip


def heat_map(result: Result) -> Chart:
    """Return each pair's excess over its floor as colour, with "value | floor" printed: a panel for each view."""
    names, low = _names(result), floors(result)
    order = list(names.values())
    records: list[dict[str, Any]] = []
    for (a, b, view), value in matched(result).items():
        if view in views(result):
            floor = low.get((a, b, view))
            records.append({
                "row": names[b], "column": names[a], "view": _view(view), "matched": value, "floor": floor,
                "excess": None if floor is None else value - floor,
                "text": f"{value:.2f} | {'–' if floor is None else f'{floor:.2f}'}",
            })  # fmt: skip
    reach = max((abs(r["excess"]) for r in records if r["excess"] is not None), default=0.0) or 1.0
    records = [{**r, "dark": r["excess"] is not None and abs(r["excess"]) > 0.65 * reach} for r in records]
    x, y = charts.names("column", None, order[:-1]), charts.names("row", None, order[1:])
    x["axis"] = x["axis"] | {"labelAngle": -40}
    colour = charts.gradient("excess", "excess over the floor", -reach, reach, middle=0.0)
    printed = len(order) <= _PRINTED
    layers = charts.heat(x, y, colour, text="text" if printed else None, light="dark")
    side = (78 if printed else 22) * (len(order) - 1)
    height = (26 if printed else 22) * (len(order) - 1)
    printed_words = "; printed: Σ / max(n) | floor" if printed else ""
    panel = charts.panel("view", [r["view"] for r in records])
    spec = charts.panels(layers, side, height, wrap=panel, columns=2 if side < 420 else 1)
    return Chart(
        "heat-map", f"Excess over the floor: {result.metric} of {result.cell['over']}",
        f"{formatting.counted(len(names), 'SAE')}, each pair once{printed_words}; white: no more than chance",
        spec, records, "Excess of each pair's matched similarity over its floor, as a heat map",
    )  # fmt: skip


def matchings(result: Result) -> Chart:
    """Return where features stand in the decoder matching and in the encoder matching, all pairs pooled."""
    records: list[dict[str, Any]] = []
    ends = pair_indices(result)
    cosines = [np.concatenate([result.array(f"{v}_cosines_{a}_{b}") for a, b in ends]) for v in ("decoder", "encoder")]
    partners = [np.concatenate([result.array(f"{v}_indices_{a}_{b}") for a, b in ends]) for v in ("decoder", "encoder")]
    both = (partners[0] >= 0) & (partners[1] >= 0)
    total, low = int(both.sum()), float(min(0.0, *(np.nanmin(c, initial=0.0) for c in cosines)))
    edges = np.linspace(low, 1, _CELLS + 1)
    panels = []
    for words, chosen in (
        ("same partner", partners[0] == partners[1]),
        ("different partners", partners[0] != partners[1]),
    ):
        counts, _, _ = np.histogram2d(cosines[0][both & chosen], cosines[1][both & chosen], (edges, edges))
        name = f"{words}: {int((both & chosen).sum())} of {total}"
        panels.append(name)
        for i, j in zip(*np.nonzero(counts), strict=True):
            records.append({
                "partners": name, "decoder": float(edges[i]), "decoder_end": float(edges[i + 1]),
                "encoder": float(edges[j]), "encoder_end": float(edges[j + 1]), "features": int(counts[i, j]),
            })  # fmt: skip
    x = charts.quantity("decoder", "cosine in the decoder matching", [], log=False)
    y = charts.quantity("encoder", "cosine in the encoder matching", [], log=False)
    colour = charts.gradient("features", "features", 1, max([r["features"] for r in records], default=1))
    colour["scale"] = {"type": "log", "scheme": charts.SEQUENTIAL, "reverse": True}
    across = {"x": x, "x2": {"field": "decoder_end"}, "y": y, "y2": {"field": "encoder_end"}}
    cell = {"mark": {"type": "rect", "tooltip": True}, "encoding": {**across, "color": colour}}
    return Chart(
        "matchings", f"Decoder against encoder matching: {result.metric} of {result.cell['over']}",
        f"{formatting.counted(total, 'feature')} of the first SAE of each of {formatting.counted(len(ends), 'pair')}; "
        "colour: features in a cell, on a logarithmic scale",
        charts.panels([cell], 250, 250, wrap=charts.panel("partners", panels)), records,
        "Cosine of each feature in the encoder matching over that in the decoder matching, by equal partners",
    )  # fmt: skip


def twin_name(twin: Result) -> str:
    """Return a twin's name on charts."""
    return f"twin {twin.cell['over']}: each SAE replaced by '{twin.cell['twin']['control']}'"


def _names(result: Result) -> dict[int, str]:
    """A short distinct name for each member by its index."""
    whole = [row[0] for row in result.values["members"]["rows"]]
    short = charts.labels(whole, 26)
    return {index: short[name] for index, name in enumerate(whole)}


def _pooled(result: Result, start: str) -> np.ndarray:
    """The numbers of an array over all pairs, without undefined ones."""
    arrays = [result.arrays.get(f"value/{start}_{a}_{b}", np.zeros(0)) for a, b in pair_indices(result)]
    pooled: np.ndarray = np.concatenate([np.zeros(0), *arrays])
    return np.asarray(pooled[~np.isnan(pooled)])


def _view(view: str) -> str:
    return f"{view} ({similarity(view)})"


def _families(result: Result) -> dict[str, str]:
    """The family of the group, if all its SAEs are of one."""
    subjects = result.cell["subjects"]
    return {GROUP: families.key_of(subjects[0])} if len(set(families.family_names(subjects))) == 1 else {}
