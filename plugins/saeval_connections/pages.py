"""The connections report: the strongest edges with the tokens of both features, a graph of them, and FVU by sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.plugin import Result, escapes, figure, png, set_title
from saeval_reward.document import Block, Grid, Heading, Paragraph, Passage, Picture, Warned, markdown, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """The report of every cell of `feature_connections` but those of twins, by file name."""
    files: dict[str, bytes | str] = {}
    own = [r for r in results if r.cell["metric"] == "feature_connections" and "twin" not in r.cell]
    for result in (r for r in own if r.status == "ok"):
        stem = escapes.file_name(f"{result.metric}-{result.cell['over']}".replace("_", "-"))
        title = f"Connections from {' to '.join(_names(result))}"
        files[f"{stem}-graph.png"] = png(graph(result))
        files[f"{stem}-fvu.png"] = png(sparsity(result))
        blocks = _blocks(result, stem)
        files[f"{stem}.md"], files[f"{stem}.html"] = markdown(title, blocks), page(title, blocks)
    return files


def _names(result: Result) -> list[str]:
    return [f"{s['name']} ({s['hook_name']})" for s in result.cell["subjects"]]


def _edges(result: Result) -> list[dict[str, Any]]:
    table = result.values["edges"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _blocks(result: Result, stem: str) -> list[Block]:
    scalars = {n: v for n, v in result.values.items() if "kind" not in v}
    numbers = [[n, v["value"], v["stderr"], v["unit"], v.get("reason", "")] for n, v in scalars.items()]
    blocks: list[Block] = [Warned(note) for note in result.notes]
    blocks += [
        Paragraph(_TEXT), Picture(f"{stem}-graph.png", "The strongest edges by intervention"),
        Picture(f"{stem}-fvu.png", "FVU by number of sources"), Heading("Values"),
        Grid(["name", "value", "± (one standard error)", "unit", "note"], numbers),
    ]  # fmt: skip
    edges = _edges(result)
    columns = [name for name in result.values["edges"]["columns"] if name != "shown"]
    blocks += [Heading("Edges"), Grid(columns, [[edge[name] for name in columns] for edge in edges])]
    alone = [e for e in edges if claimed_by_weights_alone(e)]
    if alone:
        text = "The strongest edge of its feature by weights; neither data nor intervention shows it:"
        rows = [[edge[name] for name in columns] for edge in alone]
        blocks += [Heading("Claimed by the weights alone"), Paragraph(text), Grid(columns, rows)]
    passages = _passages(result)
    if passages:
        blocks.append(Heading("Tokens of the strongest edges"))
        for edge in [e for e in edges if e["shown"]][:_PASSAGES]:
            blocks.append(Heading(f"{edge['earlier']} → {edge['later']}, strength {_number(edge['strength'])}", 3))
            for side in ("earlier", "later"):
                blocks += [Paragraph(f"{side} feature {edge[side]}"), *passages.get((side, edge[side]), [])]
    return blocks


def claimed_by_weights_alone(edge: Mapping[str, Any]) -> bool:
    """True if only weights list an edge as strong, the fitted map has none, and no intervention tells it from 0."""
    effect, error = edge["intervention"], edge["stderr"]
    unseen = effect is not None and error is not None and abs(effect) <= 2 * error
    return bool(edge["shown"]) and "data" not in edge["strongest_by"] and not edge["data"] and unseen


def _passages(result: Result) -> dict[tuple[str, int], list[Passage]]:
    by_feature: dict[tuple[str, int], list[Passage]] = {}
    for sae, feature, activation, row, tokens, acts in result.values.get("contexts", {"rows": []})["rows"]:
        passage = Passage(f"{activation:.3g}, row {row}", json.loads(tokens), json.loads(acts))
        by_feature.setdefault((sae, feature), []).append(passage)
    return by_feature


def graph(result: Result) -> Figure:
    """Earlier features at the left, later ones at the right; width by strength, colour by sign."""
    edges = [e for e in _edges(result) if e["strength"]][:_DRAWN]
    peaks = {key: _peak(passages[0]) for key, passages in _passages(result).items()}
    fig = figure(9.0, 1.5 + 0.28 * max(len(edges), 4))
    axes = fig.add_subplot()
    heights: dict[str, dict[int, float]] = {}
    for side in ("earlier", "later"):
        features = list(dict.fromkeys(int(e[side]) for e in edges))
        heights[side] = {f: -(i + 0.5) / len(features) for i, f in enumerate(features)}
    largest = max((abs(e["strength"]) for e in edges), default=1.0)
    for edge in edges:
        ends = heights["earlier"][edge["earlier"]], heights["later"][edge["later"]]
        width = 0.3 + 4 * abs(edge["strength"]) / largest
        axes.plot([0, 1], ends, color="C0" if edge["strength"] > 0 else "C3", linewidth=width, alpha=0.6)
    for side, x, align in (("earlier", -0.02, "right"), ("later", 1.02, "left")):
        for feature, y in heights[side].items():
            label = escapes.plot(f"{feature} {peaks.get((side, feature), '')}".strip())
            axes.text(x, y, label, ha=align, va="center", fontsize=8)
    axes.set_xlim(-0.5, 1.5)
    axes.axis("off")
    set_title(fig, f"Strongest edges by intervention: {' to '.join(_names(result))} (blue raises, red lowers)")
    return fig


def _peak(passage: Passage) -> str:
    """The token on which a feature fires most, quoted."""
    at = int(np.argmax(np.abs(passage.activations)))
    return f"“{escapes.line(passage.tokens[at])}”"


def sparsity(result: Result) -> Figure:
    """Held-out FVU against the mean number of sources per feature."""
    fig = figure(5.5, 3.6)
    axes = fig.add_subplot()
    for kind, colour in (("linear", "C0"), ("relu", "C1")):
        if curve := result.values.get(f"fvu_by_sources_{kind}"):
            points = zip(curve["x"], curve["y"], curve["ci95"], strict=True)
            x, y, intervals = zip(*((x, y, ci95 or (y, y)) for x, y, ci95 in points if y is not None), strict=True)
            low, high = zip(*intervals, strict=True)
            reach = np.abs(np.array([low, high]) - y)
            axes.errorbar(x, y, reach, marker="o", color=colour, capsize=3, label=f"{kind} maps")
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":", label="the train mean")
    axes.set_xlabel("sources per feature")
    axes.set_ylabel("held-out FVU")
    axes.legend(fontsize=8)
    set_title(fig, f"Sparsity of the map: {result.metric} of {result.cell['over']}; bars: 95% intervals")
    return fig


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
