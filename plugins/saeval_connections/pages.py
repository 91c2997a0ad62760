"""The connections report: the strongest edges with the tokens of both features, a graph of them, and FVU by sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saeval.plugin import Chart, PageTable, Passage, Result, Section, charts, escapes, formatting

_DRAWN = 20
"""Most edges in a picture."""
_PASSAGES = 24
"""Most edges of which tokens are shown."""
_TEXT = (
    "An edge is the change of a later feature per unit of an earlier one: by weights with no block in between (direct) "
    "and with the linear map that fits it (block), by the sparse map fitted to activations (data), and by ablating the "
    "earlier feature (intervention, ± one standard error over documents). Strength is the intervention's edge in units "
    "of the features' mean activations; rank is its place among all later features of the same earlier feature; equal "
    "ones share a rank. Tokens and documents are those on which the earlier feature fires; an error over few documents "
    "is itself unreliable."
)
_COLUMNS = {
    "direct": "by weights, with no block in between",
    "block": "by weights, through the linear map that fits the block",
    "data": "by the sparse map fitted to activations",
    "intervention": "by ablating the earlier feature",
    "strength": "the intervention's edge in units of the features' mean activations",
    "rank": "its place among all later features of the same earlier feature; equal ones share a rank",
}


def sections(results: Sequence[Result]) -> list[Section]:
    """The report of every cell of `feature_connections` but those of twins."""
    own = [r for r in results if r.cell["metric"] == "feature_connections" and "twin" not in r.cell]
    return [_section(result) for result in own if result.status == "ok"]


def _section(result: Result) -> Section:
    name = f"{result.metric}-{result.cell['over']}".replace("_", "-")
    edges = _edges(result)
    columns = [column for column in result.values["edges"]["columns"] if column != "shown"]
    alone = [edge for edge in edges if claimed_by_weights_alone(edge)]
    scalars = {n: v for n, v in result.values.items() if "kind" not in v}
    numbers = [[n, v["value"], v["stderr"], v["unit"], v.get("reason", "")] for n, v in scalars.items()]
    tables = [
        PageTable("edges", "Edges", columns, [[edge[c] for c in columns] for edge in edges], _COLUMNS, folded=True),
        PageTable("values", "Values", ["name", "value", "± one standard error", "unit", "note"], numbers, folded=True),
    ]
    if alone:
        rows = [[edge[column] for column in columns] for edge in alone]
        tables.insert(0, PageTable("claimed-by-weights", "Claimed by the weights alone", columns, rows))
    drawn = [graph(result), strengths(result)] if _drawn(edges) else []
    return Section(
        name, f"Connections from {' to '.join(_names(result))}", _summary(edges, alone), [*drawn, sparsity(result)],
        tables, _tokens(result, edges), [*result.notes, _TEXT],
    )  # fmt: skip


def _summary(edges: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]) -> list[str]:
    if not (drawn := _drawn(edges)):
        return ["No edge has a strength: no ablated feature fires on the text."]
    best = drawn[0]
    sentences = [
        f"The strongest edge of {formatting.counted(len(edges), 'edge')} by intervention is {best['earlier']} → "
        f"{best['later']}, strength {formatting.number(best['strength'], 3)}."
    ]
    if alone:
        some = formatting.counted(len(alone), "edge")
        sentences.append(f"{some} listed as strong by the weights alone: neither data nor intervention shows them.")
    return sentences


def _names(result: Result) -> list[str]:
    return [f"{s['name']} ({s['hook_name']})" for s in result.cell["subjects"]]


def _edges(result: Result) -> list[dict[str, Any]]:
    table = result.values["edges"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _drawn(edges: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The edges of a picture, the strongest first."""
    return sorted((e for e in edges if e["strength"]), key=lambda e: -abs(e["strength"]))[:_DRAWN]


def claimed_by_weights_alone(edge: Mapping[str, Any]) -> bool:
    """True if only weights list an edge as strong, the fitted map has none, and no intervention tells it from 0."""
    effect, error = edge["intervention"], edge["stderr"]
    unseen = effect is not None and error is not None and abs(effect) <= 2 * error
    return bool(edge["shown"]) and "data" not in edge["strongest_by"] and not edge["data"] and unseen


def _tokens(result: Result, edges: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """The passages of both features of the strongest edges; none without passages."""
    contexts = _contexts(result)
    passages = []
    for edge in [e for e in edges if e["shown"]][:_PASSAGES] if contexts else []:
        strength = "undefined" if edge["strength"] is None else f"{edge['strength']:.3g}"
        heading = f"{edge['earlier']} → {edge['later']}, strength {strength}"
        for side in ("earlier", "later"):
            for activation, row, tokens, acts in contexts.get((side, edge[side]), []):
                label = f"{side} feature {edge[side]}: {activation:.3g}, row {row}"
                passages.append(Passage(heading, label, tokens, acts))
    return passages


def _contexts(result: Result) -> dict[tuple[str, int], list[tuple[float, int, list[str], list[float]]]]:
    by_feature: dict[tuple[str, int], list[tuple[float, int, list[str], list[float]]]] = {}
    for sae, feature, activation, row, tokens, acts in result.values.get("contexts", {"rows": []})["rows"]:
        by_feature.setdefault((sae, feature), []).append((activation, row, json.loads(tokens), json.loads(acts)))
    return by_feature


def _records(result: Result) -> list[dict[str, Any]]:
    """The strongest edges, with the names of their features and their places in the graph."""
    peaks = {key: _peak(*own[0][2:]) for key, own in _contexts(result).items()}
    edges = _drawn(_edges(result))
    heights: dict[str, dict[int, float]] = {}
    for side in ("earlier", "later"):
        features = list(dict.fromkeys(int(edge[side]) for edge in edges))
        heights[side] = {feature: (i + 0.5) / len(features) for i, feature in enumerate(features)}
    records, seen = [], set[tuple[str, int]]()
    for edge in edges:
        record: dict[str, Any] = {}
        for side, other in (("earlier", "x"), ("later", "x2")):
            feature = int(edge[side])
            name = f"{feature} {peaks.get((side, feature), '')}".strip()
            record |= {side: feature, f"{side} name": name, f"{side} height": heights[side][feature]}
            record |= {f"{side} label": None if (side, feature) in seen else name, other: float(other == "x2")}
            seen.add((side, feature))
        error = _error(edge)
        ends = charts.interval(edge["strength"], error, edge.get("documents"))
        records.append({
            **record, "edge": f"{record['earlier name']} → {record['later name']}",
            **charts.measured(edge["strength"], ends, "strength"), "size": abs(edge["strength"]),
            "effect": "raises" if edge["strength"] > 0 else "lowers", "tokens": edge["tokens"],
            "documents": edge.get("documents"), "strongest by": edge["strongest_by"],
        })  # fmt: skip
    return records


def _error(edge: Mapping[str, Any]) -> float | None:
    """The standard error of a strength, in its unit."""
    if edge["stderr"] is None or not edge["intervention"]:
        return None
    return float(edge["stderr"] * abs(edge["strength"] / edge["intervention"]))


def _peak(tokens: Sequence[str], activations: Sequence[float]) -> str:
    """The token on which a feature fires most, quoted."""
    return f"“{escapes.line(tokens[int(np.argmax(np.abs(activations)))])}”"


_EFFECTS = ("raises", "lowers")


def graph(result: Result) -> Chart:
    """Earlier features at the left, later ones at the right; width by strength, colour by sign."""
    records = _records(result)
    colour = charts.colour("effect", "the earlier feature", _EFFECTS)
    size: dict[str, Any] = {
        "field": "size",
        "type": "quantitative",
        "title": "strength",
        "scale": {"range": [0.6, 6], "zero": True},
    }
    place: dict[str, Any] = {
        "type": "quantitative",
        "axis": None,
        "scale": {"zero": False, "domain": [0, 1], "nice": False},
    }
    down = place | {"scale": place["scale"] | {"reverse": True}}
    ends = {"x": {"field": "x", **place}, "x2": {"field": "x2"}}
    heights = {"y": {"field": "earlier height", **down}, "y2": {"field": "later height"}}
    line = {"type": "rule", "opacity": 0.7, "tooltip": True}
    below = {"legend": {"orient": "bottom"}}  # names of features stand at the right
    marks = {"color": colour | below, "strokeWidth": size | below}
    layers: list[dict[str, Any]] = [{"mark": line, "encoding": {**ends, **heights, **marks}}]
    for side, x, align, dx in (("earlier", "x", "right", -6), ("later", "x2", "left", 6)):
        text = {"type": "text", "align": align, "dx": dx, "fontSize": 11}
        at = {"x": {"field": x, **place}, "y": {"field": f"{side} height", **down}}
        layers.append({
            "mark": text, "encoding": {**at, "text": {"field": f"{side} label"}},
            "transform": [{"filter": f"isValid(datum['{side} label'])"}],
        })  # fmt: skip
    return Chart(
        "graph", f"Strongest edges by intervention: {' to '.join(_names(result))}",
        f"{formatting.counted(len(records), 'edge')} of {len(_edges(result))}; a feature's number, and its token of "
        "highest activation; width: strength in units of the features' mean activations",
        charts.single(layers, 420, max(26 * len(records), 120)), records,
        "Earlier features at the left, joined with the later features that they raise or lower",
    )  # fmt: skip


def strengths(result: Result) -> Chart:
    """Each edge's strength with its interval, a row for each edge."""
    records = _records(result)
    x = charts.quantity("strength", "strength, mean activations", [0.0, *charts.extent(records, "strength")], log=False)
    y = charts.names("edge", "earlier → later feature", [r["edge"] for r in records], limit=320)
    colour = charts.colour("effect", "the earlier feature", _EFFECTS)
    layers = [*charts.reference("x", 0), *charts.dots(x, y, bars="x", color=colour)]
    fewest = min((r["documents"] for r in records if r["documents"] is not None), default=None)
    few = f"; from {fewest} documents on which both fire: few make an error unreliable" if fewest is not None else ""
    return Chart(
        "strengths", "Strength of the strongest edges",
        f"{formatting.counted(len(records), 'edge')}, the strongest at the top; {charts.BARS}{few}",
        charts.single(layers, 340, {"step": 17}), records, "A dot for each edge with its interval",
    )  # fmt: skip


def sparsity(result: Result) -> Chart:
    """Held-out FVU against the mean number of sources per feature."""
    records = []
    for kind in ("linear", "relu"):
        if curve := result.values.get(f"fvu_by_sources_{kind}"):
            for x, y, ends in zip(curve["x"], curve["y"], curve["ci95"] or [None] * len(curve["x"]), strict=True):
                records.append({"map": f"{kind} maps", "sources": x, **charts.measured(y, ends, "fvu")})
    x = charts.quantity("sources", "sources per feature", [r["sources"] for r in records])
    y = charts.quantity("fvu", "held-out FVU, share of variance", [*charts.extent(records, "fvu"), 1.0], log=False)
    kinds = [r["map"] for r in records]
    colour, shape = charts.colour("map", None, kinds), charts.shape("map", None, kinds)
    documents = next(
        (v["documents"] for n, v in result.values.items() if n.startswith("fvu_") and v.get("documents")), None
    )
    n = f"{formatting.counted(documents, 'document')}; " if documents else ""
    layers = charts.reference("y", 1, dashes=[2, 2], text="the train mean")
    layers += charts.lines(x, y, bars=True, color=colour, shape=shape)
    return Chart(
        "fvu", f"Sparsity of the map: {result.metric} of {result.cell['over']}",
        f"{n}{charts.BARS}; lower: sources explain more of later features{charts.lost(records, 'fvu', y)}",
        charts.single(layers, 320, 220), records, "Held-out share of unexplained variance by number of sources",
    )  # fmt: skip
