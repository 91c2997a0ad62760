"""Charts of the reward report: margins, what ablating features explains of them, attributions beside effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import Chart, Result, charts, formatting

TOP, UNFLAGGED, RANDOM = "top features", "top features without flags", "matched random groups (smallest to largest)"
_FOLDS = "features chosen on fold A, shown on fold B"
_MOST = 25
"""Most features in a picture."""


def fold_b(values: Mapping[str, Any]) -> str:
    """Return the pairs and documents of fold B."""
    margin = values["margin"]
    documents = formatting.counted(margin.get("documents") or 0, "document")
    effective = f" ({margin['effective_documents']:.3g} effective)" if margin.get("effective_documents") else ""
    return f"{formatting.counted(margin['n'], 'pair')} from {documents}{effective}"


def margins_chart(result: Result) -> Chart:
    """Return the margin of each subset of the pairs, a row for each level of each column of the data."""
    record = result.values["by"]
    lines = [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]
    whole = result.values["margin"]
    records = [
        {"row": "all pairs", "documents": whole.get("documents"), **charts.measured(whole["value"], whole["ci95"])}
    ]
    short = charts.labels([f"{line['column']}: {line['level']}" for line in lines])
    for line in lines:
        level = f"{line['column']}: {line['level']}"
        name = f"{short[level]} ({formatting.counted(line['pairs'], 'pair')})"
        ends = None if line["margin_low"] is None else (line["margin_low"], line["margin_high"])
        records.append({"row": name, "documents": line["documents"], **charts.measured(line["margin"], ends)})
    x = charts.quantity(
        "value", "margin, chosen − rejected, reward", [0.0, *charts.extent(records, "value")], log=False
    )
    y = charts.names("row", None, [r["row"] for r in records])
    return Chart(
        "margins", "Margin of the model, by subset of the pairs",
        f"{formatting.counted(len(lines), 'subset')}; {charts.BARS}; right of 0: in favour of the chosen side",
        charts.single([*charts.reference("x", 0), *charts.dots(x, y, bars="x")], 360, {"step": 18}), records,
        "Margin of the reward model for each subset of the pairs",
    )  # fmt: skip


def recovered_chart(results: Sequence[Result], names: Mapping[int, str]) -> Chart:
    """Return the share of the margin that each substitute leaves, a row for each."""
    records = [
        {
            "substitute": names[id(r)], "kind": "SAE" if r.cell["subjects"][0].get("kind") == "sae" else "control",
            **charts.measured(r.values["recovered"]["value"], r.values["recovered"]["ci95"], "recovered"),
            "reason": r.values["recovered"].get("reason") or "",
        }
        for r in results
    ]  # fmt: skip
    moved, far = charts.clipped(records, "recovered")
    x = charts.quantity("shown", "share of the margin recovered", [*charts.extent(moved, "shown"), 1.0], log=False)
    y = charts.names("substitute", None, [r["substitute"] for r in records])
    kinds = ["SAE", "control"]
    colour = charts.colour("kind", None, kinds, [charts.COLOURS[0], charts.NEUTRAL])
    shape = charts.shape("kind", None, kinds, ["circle", "diamond"])
    layers = charts.reference("x", 1, dashes=[2, 2], text="the clean margin")
    layers += charts.dots(x, y, bars="x", color=colour, shape=shape)
    layers += charts.written(x, y, "beyond") + charts.no_number(y, "shown")
    beyond = f"; {formatting.counted(far, 'value')} beyond the edge, in figures" if far else ""
    return Chart(
        "recovered", "Margin with the reconstruction spliced in",
        f"{formatting.counted(len(records), 'substitute')}; {charts.BARS}{beyond}",
        charts.single(layers, 360, {"step": 20}), moved, "Share of the margin that is left with each substitute",
    )  # fmt: skip


def ablated_chart(values: Mapping[str, Any], name: str) -> Chart:
    """Return what ablating the top features takes from the margin, as bars against the whole margin."""
    records: list[dict[str, Any]] = []
    for kind, words in (("ablated", TOP), ("ablated_kept", UNFLAGGED)):
        if curve := values.get(kind):
            for k, y, ends in zip(curve["x"], curve["y"], curve.get("ci95") or [None] * len(curve["x"]), strict=True):
                records.append({"features": _size(k), "of": words, **charts.measured(y, ends, "margin")})
    low, high = (values.get(f"ablated_random_{end}") for end in ("min", "max"))
    if low and high:
        for k, *ends in zip(low["x"], low["y"], high["y"], strict=True):
            mean = (values.get(f"ablated_random_{int(k)}") or {"value": None})["value"]
            middle = mean if mean is not None or None in ends else sum(ends) / 2
            records.append({"features": _size(k), "of": RANDOM, **charts.measured(middle, ends, "margin")})
    order = [words for words in (TOP, UNFLAGGED, RANDOM) if any(r["of"] == words for r in records)]
    whole, length = values["margin"]["value"], values["length_explained"]["value"]
    marks = [0.0, *(number for number in (whole, length) if number is not None)]
    x = charts.quantity(
        "margin", "mean margin explained, reward", [*charts.extent(records, "margin"), *marks], log=False
    )
    sizes = [r["features"] for r in records]
    y = charts.names("features", None, sizes)
    shades = {TOP: charts.COLOURS[0], UNFLAGGED: charts.COLOURS[2], RANDOM: charts.NEUTRAL}
    colour = charts.colour("of", None, order, [shades[words] for words in order])
    colour["legend"] = {"orient": "bottom", "direction": "vertical", "labelLimit": 400}
    shift = {"yOffset": {"field": "of", "type": "nominal", "sort": order, "scale": {"domain": order}}}
    layers = charts.bars(x, y, along="x", shift=shift, color=colour)
    if whole is not None:
        layers += charts.reference("x", whole, text="full margin", mark={"color": "black", "strokeWidth": 1.5})
    if length is not None:
        layers += charts.reference("x", length, dashes=[2, 2], text="length alone")
    return Chart(
        "ablated", f"Margin explained by ablating features of {name}",
        f"{_FOLDS}: {fold_b(values)}; black lines: 95% intervals over documents, of random groups the smallest and the "
        "largest of all draws",
        charts.single(layers, 420, {"step": 16}), records,
        "Bars of the margin explained by ablating the top features, beside matched random groups and the full margin",
    )  # fmt: skip


def attributed_chart(values: Mapping[str, Any], name: str) -> Chart:
    """Return the sum of attributions by number of features, which is no effect."""
    records: list[dict[str, Any]] = []
    for kind, words in (("cumulative", TOP), ("cumulative_kept", UNFLAGGED)):
        if curve := values.get(kind):
            for k, y, ends in zip(curve["x"], curve["y"], curve.get("ci95") or [None] * len(curve["x"]), strict=True):
                records.append({"features": k, "of": words, **charts.measured(y, ends, "margin")})
    low, high = (values.get(f"attributed_random_{end}") for end in ("min", "max"))
    if low and high:
        for k, *ends in zip(low["x"], low["y"], high["y"], strict=True):
            middle = None if None in ends else sum(ends) / 2
            records.append({"features": k, "of": RANDOM, **charts.measured(middle, ends, "margin")})
    whole = values["margin"]["value"]
    order = [words for words in (TOP, UNFLAGGED, RANDOM) if any(r["of"] == words for r in records)]
    shades = {TOP: charts.COLOURS[0], UNFLAGGED: charts.COLOURS[2], RANDOM: charts.NEUTRAL}
    colour = charts.colour("of", None, order, [shades[words] for words in order])
    dash = charts.dash("of", None, order)
    x = charts.quantity("features", "number of features", [r["features"] for r in records])
    marks = [0.0, *([] if whole is None else [whole])]
    y = charts.quantity("margin", "sum of attributions, reward", [*charts.extent(records, "margin"), *marks], log=False)
    layers = charts.reference("y", 0)
    if whole is not None:
        layers += charts.reference("y", whole, text="full margin", mark={"color": "black", "strokeWidth": 1.5})
    lines = charts.lines(x, y, band=True, points=False, color=colour, strokeDash=dash)
    layers += charts.where(lines, f"datum.of != '{RANDOM}'")
    layers += charts.where(charts.dots(x, y, bars="y", size=0, color=colour), f"datum.of == '{RANDOM}'")
    return Chart(
        "attributed", f"Attributed margin, features of {name}",
        f"{_FOLDS}: {fold_b(values)}; bands: 95% intervals over documents; an attribution estimates an effect, the "
        "chart of ablated features measures it",
        charts.single(layers, 420, 230), records, "Sum of attributions over the number of features",
    )  # fmt: skip


def effects_chart(features: Sequence[Mapping[str, Any]], values: Mapping[str, Any], name: str) -> Chart:
    """Return the effect of ablating each feature beside its attribution, a row for each; the largest effects first."""
    shown = sorted(features, key=lambda f: -abs(f["true_effect"] or 0.0))[:_MOST]
    effect, attribution = "effect of ablating it", "attribution"
    margin = values["margin"]
    documents = margin.get("effective_documents") or margin.get("documents")
    records = []
    for feature in shown:
        row = f"{int(feature['feature'])}" + (f" ({feature['flags']})" if feature["flags"] else "")
        for words, field in ((effect, "true_effect"), (attribution, "attribution")):
            value, error = feature[field], feature.get(f"{field}_stderr")
            ends = charts.interval(value, error, documents)
            records.append({
                "row": row, "feature": int(feature["feature"]), "of": words, **charts.measured(value, ends, "margin"),
                "rank on fold A": int(feature["rank"]), "flags": feature["flags"],
            })  # fmt: skip
    x = charts.quantity("margin", "chosen − rejected, reward", [0.0, *charts.extent(records, "margin")], log=False)
    y = charts.names("row", "feature", [r["row"] for r in records])
    order = [effect, attribution]
    colour, shape = charts.colour("of", None, order), charts.shape("of", None, order)
    shift = {"yOffset": {"field": "of", "type": "nominal", "sort": order, "scale": {"domain": order}}}
    layers = [*charts.reference("x", 0), *charts.dots(x, y, bars="x", shift=shift, size=40, color=colour, shape=shape)]
    return Chart(
        "effects", f"Features of {name} that move the reward",
        f"{formatting.counted(len(shown), 'feature')} of the largest effects, {_FOLDS}: {fold_b(values)}; "
        f"{charts.BARS}",
        charts.single(layers, 380, {"step": 20, "for": "position"}), records,
        "Effect of ablating each feature on the margin, beside its attribution",
    )  # fmt: skip


def _size(k: float) -> str:
    return formatting.counted(int(k), "feature")
