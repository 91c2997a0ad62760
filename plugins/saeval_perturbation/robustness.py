"""The robustness report: noise and ablations by layer and site of one or several models, with SAEs as points."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from saeval.plugin import Chart, PageTable, Result, Section, charts, formatting, size_in_words
from saeval_perturbation.pages import by_alias
from saeval_perturbation.plots import kind_of, site_and_layer

_FAR = 3.5
"""Distance from the median, in scaled median absolute deviations, beyond which a hook is an outlier."""
_LEAST = 5
"""Fewest hooks among which outliers are sought."""
_SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Cosines that the table and the plots show, if the curve has them."""
_DASHES = ([6, 3], [2, 2], [8, 2, 2, 2], [10, 4], [1, 4], [7, 2, 1, 2, 1, 2])
"""Lines of the controls, in order."""
_RAMP = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9bd93c")
"""Colours of noise from the lowest to the highest cosine."""
_SAE = "SAE"
_NO_TEST = (
    "An outlier describes a hook, and is no test. An SAE's tokens have many cosines, so a point above the line of its "
    "mean cosine does not show that its error is worse than noise; the metric `perturbation` compares them at the same "
    "tokens."
)
_QUANTITIES = {"kl": "KL(clean‖perturbed), nats per token", "delta_ce": "ΔCE, nats per token"}


class Point(NamedTuple):
    """A value with its standard error and 95% interval; the last two are None if it has none."""

    value: float
    stderr: float | None
    ci95: Sequence[float] | None

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Point | None:
        if record is None or record["value"] is None:
            return None
        return cls(record["value"], record["stderr"], record["ci95"])


class SAEPoint(NamedTuple):
    """An SAE at one of the hooks."""

    name: str
    cosine: float | None
    norm_ratio: float | None
    values: Mapping[str, Point | None]
    data: str
    """The data of its run."""


@dataclass(eq=False)
class Place:
    """A hook of a run, with the values of noise and controls there, each by quantity and name (`c = 0.9`, `zero`)."""

    hook_name: str
    values: dict[str, dict[str, Point]] = field(default_factory=lambda: {quantity: {} for quantity in _QUANTITIES})
    saes: list[SAEPoint] = field(default_factory=list)

    @property
    def site(self) -> str:
        return site_and_layer(self.hook_name)[0]

    @property
    def layer(self) -> int:
        return site_and_layer(self.hook_name)[1]


@dataclass
class ModelRun:
    """A run with `hooks:`, all of one model."""

    name: str
    title: str
    """Its name, with a number if several models have it."""
    size: str
    norm_ratio: float
    places: dict[str, Place]
    """By site, in the model's order."""
    names: list[str]
    """The noise and the controls that are shown, in order."""

    def outliers(self, quantity: str, name: str) -> dict[str, float]:
        """Return the hooks whose value is far from the median of their site, each with its multiple of that median.

        Far is more than 3.5 scaled median absolute deviations, on a logarithmic scale; the deviation is that of all
        hooks. Values that are not above 0 are left out; fewer than five have no outliers.
        """
        values = {
            place: math.log(point.value)
            for place in self.places.values()
            if (point := place.values[quantity].get(name)) is not None and point.value > 0
        }
        if len(values) < _LEAST:
            return {}
        by_site: dict[str, list[float]] = {}
        for place, value in values.items():
            by_site.setdefault(place.site, []).append(value)
        distances = {p: value - float(np.median(by_site[p.site])) for p, value in values.items()}
        spread = 1.4826 * float(np.median(np.abs(list(distances.values()))))
        return {p.hook_name: math.exp(d) for p, d in distances.items() if abs(d) > _FAR * spread > 0}


def sections(results: Sequence[Result]) -> list[Section]:
    """Return a section of every configured `perturbation_curve` that ran at hooks without an SAE."""
    made = []
    for alias, group in by_alias([r for r in results if r.status == "ok"], "perturbation_curve").items():
        if runs := model_runs(group):
            drawn = [chart(runs, quantity) for quantity in _QUANTITIES]
            shown, numbers = tables(runs), rows(runs)
            columns, cells = list(numbers[0]), [list(row.values()) for row in numbers]
            shown.append(PageTable("numbers", "Every number, with its 95% interval", columns, cells, folded=True))
            sentences = [_outliers_in_words(run, quantity) for run in runs for quantity in _QUANTITIES]
            notes = [
                f"{run.title}: {run.size}; noise c·u + √(1−c²)·v at norm ratio {run.norm_ratio:g}, u along the "
                "activations and v random."
                for run in runs
            ]
            notes.append(_NO_TEST)
            made.append(
                Section(
                    f"{alias}-robustness", f"Robustness of the model: {alias}", sentences, drawn, shown, notes=notes
                )
            )
    return made


def model_runs(results: Sequence[Result]) -> list[ModelRun]:
    """Return the runs that have hooks without an SAE; SAEs of other runs of the same model stand in them too."""
    by_run: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        by_run.setdefault((_model(r), str(r.cell["suite"])), []).append(r)
    runs: list[ModelRun] = []
    for (model, suite), group in by_run.items():
        places = {_site(r): _place(r) for r in group if kind_of(r) == "hook"}
        if not places:
            continue
        first = next(r for r in group if kind_of(r) == "hook")
        for r in results:
            subject = r.cell["subjects"][0]
            place = places.get(_site(r)) if _model(r) == model else None
            if place is None or subject["kind"] == "hook":
                continue
            points = {quantity: Point.of(r.values.get(f"{quantity}_sae")) for quantity in _QUANTITIES}
            if subject["kind"] == "sae":
                cosine, norm_ratio = (r.values[name]["value"] for name in ("cosine", "norm_ratio"))
                data = "the same" if r.cell["data"] == first.cell["data"] else _data(r)
                place.saes.append(SAEPoint(r.subject, cosine, norm_ratio, points, data))
            elif r in group and not subject.get("of") and not subject.get("copy"):  # a control of the hook
                for quantity, point in points.items():
                    if point is not None:
                        place.values[quantity][subject["name"]] = point
        name, curve = first.cell["model"]["name"], first.values["kl"]["x"]
        cosines = [c for c in curve if c in _SHOWN] or [c for c in curve if c < 1][-5:]
        noise = [_label(c) for c in cosines]
        controls = dict.fromkeys(n for p in places.values() for n in p.values["kl"] if not n.startswith("c = "))
        several = sum(m == model and any(kind_of(r) == "hook" for r in rs) for (m, _), rs in by_run.items()) > 1
        title = f"{name}, suite {suite}" if several else name
        namesakes = sum(run.name == title for run in runs)  # other models of this name
        shown = f"{title} ({namesakes + 1})" if namesakes else title
        ratio = first.cell["params"]["norm_ratio"]
        runs.append(
            ModelRun(title, shown, _data(first), ratio, places, [*noise, *(n for n in controls if n != "identity")])
        )
    return runs


def _place(result: Result) -> Place:
    place = Place(str(result.cell["subjects"][0]["hook_name"]))
    for quantity in _QUANTITIES:
        curve = result.values[quantity]
        for c, value, stderr, ci95 in zip(*(curve[name] for name in ("x", "y", "stderr", "ci95")), strict=True):
            if value is not None:
                place.values[quantity][_label(c)] = Point(value, stderr, ci95)
    return place


def tables(runs: Sequence[ModelRun]) -> list[PageTable]:
    """Return a table for each model and quantity, and one of the SAEs at its hooks."""
    made = []
    for number, run in enumerate(runs, 1):
        for quantity, label in _QUANTITIES.items():
            cells: list[list[str | float | None]] = [
                [place.hook_name, *(_shown(place.values[quantity].get(name)) for name in run.names)]
                for place in run.places.values()
            ]
            name, title = f"{quantity}-{number}", f"{run.title}: {label}, ± one standard error by document"
            made.append(PageTable(name, title, ["hook", *run.names], cells, folded=True))
        saes = [(place, sae) for place in run.places.values() for sae in place.saes]
        if saes:
            columns = ["SAE", "hook", "cosine", "norm ratio", "KL", "ΔCE", "data"]
            cells = [
                [sae.name, place.hook_name, sae.cosine, sae.norm_ratio,
                 *(_shown(sae.values[quantity]) for quantity in _QUANTITIES), sae.data]
                for place, sae in saes
            ]  # fmt: skip
            made.append(PageTable(f"saes-{number}", f"{run.title}: SAEs at these hooks", columns, cells))
    return made


def _outliers_in_words(run: ModelRun, quantity: str) -> str:
    about = f"{run.title}, {_QUANTITIES[quantity].partition(',')[0]}"
    if len(run.places) < _LEAST:
        return f"{about}: fewer than {_LEAST} hooks, so no outliers are sought."
    by_hook: dict[str, list[str]] = {}
    for name in run.names:
        for hook_name, factor in run.outliers(quantity, name).items():
            by_hook.setdefault(hook_name, []).append(f"{name} {formatting.number(factor, 2)}×")
    if not by_hook:
        return f"{about}: no hook is an outlier."
    named = "; ".join(f"{hook_name} ({', '.join(names)})" for hook_name, names in by_hook.items())
    far = f"as multiples of the site's median (more than {_FAR} median deviations, log scale)"
    return f"{about}: outliers, {far}: {named}."


def rows(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """One row per model, hook, quantity and noise, control or SAE."""
    made: list[dict[str, Any]] = []
    for run in runs:
        for quantity in _QUANTITIES:
            outliers = {name: run.outliers(quantity, name) for name in run.names}
            for place in run.places.values():
                shown = {name: place.values[quantity].get(name) for name in place.values[quantity]}
                for name, point in [*shown.items(), *((sae.name, sae.values[quantity]) for sae in place.saes)]:
                    if point is not None:
                        low, high = point.ci95 or (None, None)
                        made.append({
                            "model": run.title, "hook": place.hook_name, "site": place.site,
                            "layer": place.layer, "quantity": quantity, "of": name, "value": point.value,
                            "stderr": point.stderr, "ci95_low": low, "ci95_high": high,
                            "outlier": outliers.get(name, {}).get(place.hook_name),
                        })  # fmt: skip
    return made


def chart(runs: Sequence[ModelRun], quantity: str) -> Chart:
    """Return a quantity by layer: a column of panels per model, a row per site; SAEs are points, outliers ringed."""
    records: list[dict[str, Any]] = []
    for run in runs:
        far = {name: run.outliers(quantity, name) for name in run.names}
        for place in run.places.values():
            at = {"model": run.title, "site": place.site, "layer": place.layer, "hook": place.hook_name}
            points: list[tuple[str, str | None, Point | None]] = [
                *((name, None, place.values[quantity].get(name)) for name in run.names),
                *((_SAE, sae.name, sae.values[quantity]) for sae in place.saes),
            ]
            for of, sae_name, point in points:
                if point is not None:
                    number = charts.measured(point.value, point.ci95, "number")
                    outlier = far.get(of, {}).get(place.hook_name)
                    records.append({**at, "of": of, "SAE": sae_name, **number, "outlier": outlier})
    noise = sorted({name for run in runs for name in run.names if name.startswith("c = ")}, key=_cosine)
    controls = list(dict.fromkeys(name for run in runs for name in run.names if not name.startswith("c = ")))
    order = [*noise, *controls, *([_SAE] if any(r["of"] == _SAE for r in records) else [])]
    shades = [_RAMP[index * (len(_RAMP) - 1) // max(len(noise) - 1, 1)] for index in range(len(noise))]
    colour = charts.colour(
        "of", "noise of cosine c, controls", order, [*shades, *[charts.NEUTRAL] * len(controls), "black"]
    )
    dashes = [[1, 0]] * len(noise) + [_DASHES[index % len(_DASHES)] for index in range(len(controls))] + [[1, 0]]
    dash = charts.dash("of", "noise of cosine c, controls", order, dashes)
    shapes = ["circle"] * len(noise) + ["square"] * len(controls) + ["diamond"]
    shape = charts.shape("of", "noise of cosine c, controls", order, shapes)
    x = charts.quantity("layer", "layer", [r["layer"] for r in records], log=False)
    layers_shown = sorted({r["layer"] for r in records})
    x["axis"] = x["axis"] | {"values": layers_shown[:: len(layers_shown) // 13 + 1], "format": "d"}
    y = charts.quantity(
        "number", _QUANTITIES[quantity].replace("(clean‖perturbed)", ""), charts.extent(records, "number"), log=True
    )
    lines = charts.lines(x, y, bars=True, color=colour, strokeDash=dash, shape=shape)
    layers = charts.where(lines, f"datum.of != '{_SAE}'")
    ring = {"filled": False, "color": charts.COLOURS[1], "strokeWidth": 1.6}
    layers += charts.where(charts.dots(x, y, size=150, mark=ring), "isValid(datum.outlier)")
    diamond = {"filled": True, "fill": "white", "strokeWidth": 1.6, "stroke": "black", "shape": "diamond"}
    layers += charts.where(charts.dots(x, y, bars="y", size=70, mark=diamond), f"datum.of == '{_SAE}'")
    sites, models = ([r[name] for r in records] for name in ("site", "model"))
    ratios = ", ".join(sorted({f"{run.norm_ratio:g}" for run in runs}))
    rings = "; rings: outliers" if any(r["outlier"] is not None for r in records) else ""
    diamonds = "; diamonds: SAEs, which noise of their mean cosine does not judge" if _SAE in order else ""
    return Chart(
        quantity, f"{_QUANTITIES[quantity]}: noise at norm ratio {ratios}, and ablations",
        f"{formatting.counted(len({(r['model'], r['hook']) for r in records}), 'hook')}; {charts.BARS}{rings}{diamonds}"
        f"{charts.lost(records, 'number', y)}",
        charts.panels(layers, 300, 150, row=charts.panel("site", sites), column=charts.panel("model", models)), records,
        f"{_QUANTITIES[quantity]} of noise of several cosines and of ablations, by layer and site",
    )  # fmt: skip


def _shown(point: Point | None) -> str:
    return "–" if point is None else formatting.with_error(point.value, point.stderr)


def _label(cosine: float) -> str:
    return f"c = {cosine:g}"


def _cosine(name: str) -> float:
    return float(name.removeprefix("c = "))


def _data(result: Result) -> str:
    data = result.cell["data"]
    return ": ".join([str(data.get("use", "data")), ", ".join(size_in_words(data))])


def _model(result: Result) -> str:
    return json.dumps(result.cell["model"], sort_keys=True, default=str)


def _site(result: Result) -> str:
    subject = result.cell["subjects"][0]
    return str(subject.get("site", subject["hook_name"]))
