"""The robustness report: noise and ablations by layer and site of one or several models, with SAEs as points."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saeval.plugin import Result, escapes, figure, formatting, label_log_axis, png, set_title, size_in_words
from saeval_perturbation.pages import by_alias, csv_text, kind_of, site_and_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAR = 3.5
"""Distance from the median, in scaled median absolute deviations, beyond which a hook is an outlier."""
_LEAST = 5
"""Fewest hooks among which outliers are sought."""
_SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Cosines that the table and the plots show, if the curve has them."""
_DASHES = ("--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)), (0, (8, 4)), (0, (1, 4)))
"""Lines of the controls, in order."""
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


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """A table and two plots of every configured `perturbation_curve` that ran at hooks without an SAE."""
    files: dict[str, bytes | str] = {}
    for alias, group in by_alias([r for r in results if r.status == "ok"], "perturbation_curve").items():
        if not (runs := model_runs(group)):
            continue
        stem = f"{escapes.file_name(alias)}_robustness"
        pictures = "".join(f"\n![{label}]({stem}_{quantity}.png)\n" for quantity, label in _QUANTITIES.items())
        files[f"{stem}.md"] = table(runs) + pictures
        files[f"{stem}.csv"] = csv_text(rows(runs))
        for quantity in _QUANTITIES:
            files[f"{stem}_{quantity}.png"] = png(chart(runs, quantity))
    return files


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


def table(runs: Sequence[ModelRun]) -> str:
    """A table per model and quantity, with its outliers in words, as Markdown."""
    parts = []
    for run in runs:
        parts.append(
            f"## {escapes.markdown(run.title)}\n\n{run.size}; noise c·u + √(1−c²)·v at norm ratio {run.norm_ratio:g}, "
            f"u along the activations and v random; ± one standard error, by document.\n"
        )
        for quantity, label in _QUANTITIES.items():
            lines = [f"| hook | {' | '.join(map(escapes.markdown, run.names))} |", "|---" * (len(run.names) + 1) + "|"]
            for place in run.places.values():
                cells = [_shown(place.values[quantity].get(name)) for name in run.names]
                lines.append(f"| {escapes.markdown(place.hook_name)} | {' | '.join(cells)} |")
            parts.append(f"{label}:\n\n" + "\n".join(lines) + "\n\n" + _outliers_in_words(run, quantity) + "\n")
        saes = [(place, sae) for place in run.places.values() for sae in place.saes]
        if saes:
            lines = ["| SAE | hook | cosine | norm ratio | KL | ΔCE | data |", "|---" * 7 + "|"]
            for place, sae in saes:
                values = " | ".join(_shown(sae.values[quantity]) for quantity in _QUANTITIES)
                head = f"{escapes.markdown(sae.name)} | {escapes.markdown(place.hook_name)}"
                direction = f"{formatting.number(sae.cosine)} | {formatting.number(sae.norm_ratio)}"
                lines.append(f"| {head} | {direction} | {values} | {escapes.markdown(sae.data)} |")
            parts.append("SAEs at these hooks:\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _outliers_in_words(run: ModelRun, quantity: str) -> str:
    if len(run.places) < _LEAST:
        return f"Fewer than {_LEAST} hooks: no outliers are sought."
    by_hook: dict[str, list[str]] = {}
    for name in run.names:
        for hook_name, factor in run.outliers(quantity, name).items():
            by_hook.setdefault(hook_name, []).append(f"{name} {formatting.number(factor, 2)}×")
    if not by_hook:
        return "No hook is an outlier."
    named = "; ".join(
        f"{escapes.markdown(hook_name)} ({escapes.markdown(', '.join(names))})" for hook_name, names in by_hook.items()
    )
    return f"Outliers, as multiples of the site's median (more than {_FAR} median deviations, log scale): {named}."


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


def chart(runs: Sequence[ModelRun], quantity: str) -> Figure:
    """A quantity by layer: one column of panels per model, one row per site; SAEs are points, outliers have rings."""
    from matplotlib import colormaps  # late: slow to import
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    sites = list(dict.fromkeys(place.site for run in runs for place in run.places.values()))
    fig = figure(max(4.2 * len(runs) + 0.8, 6.4), 2.5 * len(sites) + 1.4)
    axes = fig.subplots(len(sites), len(runs), sharey=True, sharex="col", squeeze=False)
    cosines = sorted({_cosine(name) for run in runs for name in run.names if name.startswith("c = ")})
    scale, colours = Normalize(math.log(2e-3), math.log(2)), colormaps["viridis"]

    def colour(cosine: float) -> Any:
        return colours(scale(math.log(max(1 - cosine, 2e-3))))

    controls = list(dict.fromkeys(name for run in runs for name in run.names if not name.startswith("c = ")))
    dashes: dict[str, Any] = {name: _DASHES[index % len(_DASHES)] for index, name in enumerate(controls)}
    omitted = 0
    axes[0][0].set_yscale("log")
    for column, run in enumerate(runs):
        for row, site in enumerate(sites):
            panel = axes[row][column]
            places = sorted((p for p in run.places.values() if p.site == site), key=lambda p: p.layer)
            for name in run.names:
                is_noise = name.startswith("c = ")
                style = {"color": colour(_cosine(name))} if is_noise else {"color": "0.35", "linestyle": dashes[name]}
                far = run.outliers(quantity, name)
                points = [(p, point) for p in places if (point := p.values[quantity].get(name)) is not None]
                drawn = [(place, point) for place, point in points if point.value > 0]
                omitted += len(points) - len(drawn)
                if not drawn:
                    continue
                x, y = [place.layer for place, _ in drawn], [point.value for _, point in drawn]
                reach = [
                    (p.value - max(p.ci95[0], p.value / 100), p.ci95[1] - p.value) if p.ci95 else (0.0, 0.0)
                    for _, p in drawn
                ]
                yerr = list(zip(*reach, strict=True))
                panel.errorbar(x, y, yerr=yerr, marker="o", markersize=3, linewidth=1.1, capsize=1.5, **style)
                for place, point in drawn:
                    if place.hook_name in far:
                        panel.plot([place.layer], [point.value], "o", markersize=9, color="C3", fillstyle="none")
            omitted += _sae_points(panel, places, quantity, colour)
            if row == 0:
                panel.set_title(escapes.plot(run.title), fontsize=9)
            if column == 0:
                panel.set_ylabel(escapes.plot(site), fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.margins(x=0.12)
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.25, linewidth=0.5)
    label_log_axis(axes[0][0].yaxis)
    keys = [Line2D([], [], color=colour(c), marker="o", markersize=3, label=f"noise, cosine {c:g}") for c in cosines]
    keys += [Line2D([], [], color="0.35", linestyle=dashes[name], label=escapes.plot(name)) for name in controls]
    if any(place.saes for run in runs for place in run.places.values()):
        label = "SAE (colour: its cosine)"
        keys.append(Line2D([], [], linestyle="", marker="D", color="0.7", markeredgecolor="k", label=label))
    if any(run.outliers(quantity, name) for run in runs for name in run.names):
        keys.append(
            Line2D([], [], linestyle="", marker="o", color="C3", fillstyle="none", label="outlier (named in the table)")
        )
    fig.legend(handles=keys, loc="outside lower center", ncols=3 if len(runs) == 1 else 5, fontsize=7)
    for panel in axes[-1]:
        panel.set_xlabel("layer", fontsize=9)
    ratios = ", ".join(sorted({f"{run.norm_ratio:g}" for run in runs}))
    below = f"; values ≤ 0, not drawn: {omitted}" if omitted else ""
    title = f"{_QUANTITIES[quantity]}: noise at norm ratio {ratios}, and ablations; bars: 95% intervals{below}"
    set_title(fig, title)
    return fig


def _sae_points(panel: Any, places: Sequence[Place], quantity: str, colour: Any) -> int:
    """Draw the SAEs of some hooks; return the number of those that a logarithmic axis cannot show."""
    saes = [(place, sae, point) for place in places for sae in place.saes if (point := sae.values[quantity])]
    for place, sae, point in saes:
        if point.value > 0:
            face = colour(sae.cosine) if sae.cosine is not None else "w"
            panel.plot([place.layer], [point.value], "D", markersize=5, color=face, markeredgecolor="k", zorder=5)
    return sum(point.value <= 0 for *_, point in saes)


def _shown(point: Point | None) -> str:
    return "—" if point is None else formatting.with_error(point.value, point.stderr)


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
