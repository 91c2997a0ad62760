"""Charts of the perturbation report: an SAE beside noise at the same tokens, and the KL of noise by its cosine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import Chart, Result, charts, formatting, verdicts_on
from saeval_perturbation.scored import NOT_TYPICAL, TAIL_EFFECT

NULLS = {
    "": "isotropic", "_cosine_matched_covariance": "covariance of activations", "_shuffled_error": "shuffled errors",
    "_epsilon": "epsilon ball",
}  # fmt: skip
"""Labels of the nulls by the endings of their values' names."""
_VERDICTS = {
    "claimed": ("differs (after Holm's correction)", "circle", charts.COLOURS[1]),
    NOT_TYPICAL: (f"differs, {NOT_TYPICAL}", "diamond", charts.COLOURS[4]),
    TAIL_EFFECT: (f"differs, {TAIL_EFFECT}", "triangle-up", charts.COLOURS[3]),
    "neither": ("cannot be distinguished from noise", "circle", charts.NEUTRAL),
}
SAE, MATCHED = "SAE", "noise of the same cosine and norm, at the same tokens"
_KL = "KL(clean‖perturbed), nats per token"
_SMALLEST = 1e-6


def site_and_layer(hook_name: str) -> tuple[str, int]:
    """The site of a hook, and its layer (0 if it is not in a numbered block)."""
    numbered = re.fullmatch(r"(.*?)\.(\d+)\.?(.*)", hook_name)
    if numbered is None:
        return hook_name, 0
    return (numbered[3] or numbered[1]).replace("hook_", ""), int(numbered[2])


def hook_of(result: Result) -> str:
    """Return the hook of a result's subject."""
    return str(result.cell["subjects"][0]["hook_name"])


def kind_of(result: Result) -> str:
    """Return the kind of a result's subject: `sae`, `control` or `hook`."""
    return str(result.cell["subjects"][0]["kind"])


def ratio_chart(results: Sequence[Result]) -> Chart:
    """Return the ratio of each SAE's KL to each noise's: a row for each, a column per null; the mark is the verdict."""
    shown = [ending for ending in NULLS if any(r.values.get(f"ratio{ending}", {}).get("value") for r in results)]
    given = {(v.row.name, v.row.hook_name, v.column.value): v for v in verdicts_on(results)}
    rows, records = _rows(results), list[dict[str, Any]]()
    for result in results:
        for ending in shown:
            record = result.values.get(f"ratio{ending}", {})
            verdict = given.get((result.subject, hook_of(result), f"difference{ending}"))
            kind = "neither" if verdict is None or not verdict.claimed else verdict.qualifier or "claimed"
            records.append({
                "row": rows[id(result)], "SAE": result.subject, "hook": hook_of(result),
                "noise": f"noise: {NULLS[ending]}",
                **charts.measured(record.get("value"), record.get("ci95"), "ratio"), "verdict": _VERDICTS[kind][0],
            })  # fmt: skip
    x = charts.quantity("ratio", "KL of the SAE / KL of the noise", [1.0, *charts.extent(records, "ratio")], log=True)
    y = charts.names("row", None, rows.values(), limit=320)
    marks = [mark for mark in _VERDICTS.values() if any(r["verdict"] == mark[0] for r in records)]
    colour = charts.colour("verdict", None, [words for words, *_ in marks], [shade for *_, shade in marks])
    shape = charts.shape("verdict", None, [words for words, *_ in marks], [mark for _, mark, _ in marks])
    layers = [*charts.reference("x", 1), *charts.dots(x, y, bars="x", color=colour, shape=shape)]
    return Chart(
        "ratio", "SAE error against noise at its hook",
        f"{formatting.counted(len(results), 'SAE')}; right of 1: more harmful than the noise; {charts.BARS}; compare "
        f"marks of one row only{charts.lost(records, 'ratio', x)}",
        charts.panels(layers, 230, {"step": 17}, column=charts.panel("noise", [r["noise"] for r in records])), records,
        "Ratio of the KL of each SAE to that of noise, one column for each kind of noise",
    )  # fmt: skip


def damage_chart(results: Sequence[Result], variants: Mapping[str, str], name: str) -> Chart:
    """Return the KL of each SAE beside noise at the same tokens: a row for each SAE, a mark for each variant."""
    rows, records = _rows(results), list[dict[str, Any]]()
    for result in results:
        for value, words in variants.items():
            if (record := result.values.get(value)) is not None:
                number = charts.measured(record["value"], record["ci95"], "kl")
                place = {"row": rows[id(result)], "SAE": result.subject, "hook": hook_of(result)}
                records.append({**place, "of": words, **number})
    order = [words for words in variants.values() if any(r["of"] == words for r in records)]
    x = charts.quantity("kl", _KL, charts.extent(records, "kl"))
    y = charts.names("row", None, rows.values(), limit=320)
    colour, shape = charts.colour("of", None, order), charts.shape("of", None, order)
    shift = {"yOffset": {"field": "of", "type": "nominal", "sort": order, "scale": {"domain": order}}}
    layers = charts.dots(x, y, bars="x", shift=shift, color=colour, shape=shape)
    step = {"step": max(9 * len(order), 16), "for": "position"}
    return Chart(
        name, "KL of each SAE beside noise at the same tokens",
        f"{formatting.counted(len(results), 'SAE')}; {charts.BARS}; compare marks of one row only"
        f"{charts.lost(records, 'kl', x)}",
        charts.single(layers, 380, step), records, "KL of each SAE, and of noise of its cosine and norm",
    )  # fmt: skip


def curve_chart(results: Sequence[Result]) -> Chart:
    """Return the KL of noise by its cosine, one panel per hook, with its floor; SAEs have their cosines marked only.

    An SAE's tokens have many cosines, so its KL does not belong beside the curve at its mean cosine: `damage_chart`
    compares it with noise of the same cosine at each token.
    """
    curve, floor, stands = "noise of one cosine", "scale error only (cosine 1)", "mean cosine of an SAE"
    records: list[dict[str, Any]] = []
    hooks = sorted(dict.fromkeys(map(hook_of, results)), key=site_and_layer)
    for hook in hooks:
        here = [r for r in results if hook_of(r) == hook]
        kl, lowest = here[0].values["kl"], here[0].values["kl_floor"]
        intervals = kl.get("ci95") or [None] * len(kl["y"])
        for cosine, y, ends in zip(kl["x"], kl["y"], intervals, strict=True):
            if cosine < 1:
                point = {"of": curve, "SAE": None, "distance": 1 - cosine, **charts.measured(y, ends, "kl")}
                records.append({"hook": hook, **point})
        for distance in (min(1 - c for c in kl["x"] if c < 1), max(1 - c for c in kl["x"])) if kl["x"] else ():
            number = charts.measured(lowest["value"], None, "kl")
            records.append({"hook": hook, "of": floor, "SAE": None, "distance": distance, **number})
        for result in (r for r in here if kind_of(r) == "sae" and r.values["cosine"]["value"] is not None):
            reach = max(1 - float(result.values["cosine"]["value"]), _SMALLEST)
            number = charts.measured(None, None, "kl")
            records.append({"hook": hook, "of": stands, "SAE": result.subject, "distance": reach, **number})
    x = charts.quantity(
        "distance", "1 − cosine (right: closer to the activations)", [r["distance"] for r in records], log=True
    )
    x["scale"] = x["scale"] | {"reverse": True}
    y = charts.quantity("kl", _KL, charts.extent(records, "kl"), log=True)
    order = [words for words in (curve, floor, stands) if any(r["of"] == words for r in records)]
    shades = {curve: charts.COLOURS[0], floor: charts.NEUTRAL, stands: charts.COLOURS[1]}
    colour = charts.colour("of", None, order, [shades[words] for words in order])
    layers = charts.where(charts.lines(x, y, band=True, color=colour), f"datum.of == '{curve}'")
    line = charts.lines(x, y, points=False, mark={"strokeDash": [3, 3], "strokeWidth": 1}, color=colour)
    layers += charts.where(line, f"datum.of == '{floor}'")
    tick = {"type": "tick", "orient": "vertical", "size": 12, "thickness": 2, "tooltip": True}
    at = {"x": x, "y": {"value": 188}, "color": colour}
    layers += charts.where([{"mark": tick, "encoding": at}], f"datum.of == '{stands}'")
    ratio = results[0].cell["params"]["norm_ratio"]
    return Chart(
        "curve", f"KL of noise by its cosine, at norm ratio {ratio:g}",
        f"{formatting.counted(len(hooks), 'hook')}; band: 95% intervals over documents; the tokens of an SAE have many "
        "cosines, so its KL is not on this curve but in the chart beside its own noise",
        charts.panels(layers, 260, 190, wrap=charts.panel("hook", hooks)), records,
        "KL of noise over one minus its cosine, at each hook, with the cosines of SAEs marked below",
    )  # fmt: skip


def _rows(results: Sequence[Result]) -> dict[int, str]:
    """A row's label for each result, by site, layer and name."""
    order = sorted(results, key=lambda r: (*site_and_layer(hook_of(r)), r.subject))
    short = charts.labels([r.subject for r in order])
    return {id(r): f"{hook_of(r)}: {short[r.subject]}" for r in order}
