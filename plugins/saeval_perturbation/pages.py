"""The perturbation report: plots, and tables with Holm's correction over a run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saeval.plugin import Result, escapes, figure, formatting, holm, label_log_axis, png, set_title, wrap_title
from saeval_perturbation.bins import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = (
    "sae", "cosine_matched", "cosine_matched_covariance", "shuffled_error", "epsilon", "norm_only", "norm_corrected",
    "zero", "mean",
)  # fmt: skip
NULLS = {
    "ratio": "isotropic", "ratio_cosine_matched_covariance": "covariance of activations",
    "ratio_shuffled_error": "shuffled errors", "ratio_epsilon": "epsilon ball",
}  # fmt: skip
_NAMED = 7
"""Most SAEs per panel that the legend names."""


@dataclass(frozen=True)
class HookSite:
    """The site of a hook, and its layer (0 if it is not in a numbered block)."""

    site: str
    layer: int

    @classmethod
    def of(cls, hook_name: str) -> HookSite:
        numbered = re.fullmatch(r"(.*?)\.(\d+)\.?(.*)", hook_name)
        if numbered is None:
            return cls(hook_name, 0)
        return cls((numbered[3] or numbered[1]).replace("hook_", ""), int(numbered[2]))


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """Plots and tables of every configured `perturbation` and `perturbation_curve`, by file name."""
    files: dict[str, bytes | str] = {}
    ok = [r for r in results if r.status == "ok"]
    for alias, group in by_alias(ok, "perturbation").items():
        stem = escapes.file_name(alias)
        files[f"{stem}.md"] = table(group)
        if saes := [r for r in group if kind_of(r) == "sae"]:
            files[f"{stem}_ratio.png"] = png(ratio_chart(saes))
    for alias, group in by_alias(ok, "perturbation_curve").items():
        stem = escapes.file_name(alias)
        files[f"{stem}.png"] = png(curve_chart(group))
        if bins := bin_rows([r for r in group if kind_of(r) == "sae"]):
            files[f"{stem}_by_cosine.csv"] = csv_text(bins)
    return files


def table(results: Sequence[Result]) -> str:
    """KL of each subject for each variant, with ratios and percentiles, as Markdown."""
    parts = []
    for title, names in (
        ("KL(clean‖perturbed), nats per token", {f"kl_{v}": v for v in VARIANTS}),
        ("Ratio of the SAE's KL to the noise's, and its percentile among draws",
         {**NULLS, "percentile": "percentile (isotropic)"}),
        ("One position perturbed at a time: KL there (here), and from there on (later)",
         {f"alone_{w}_{q}": f"{w}: {q}" for w in ("here", "later") for q in ("sae", "cosine_matched", "ratio")}),
    ):  # fmt: skip
        shown = {name: label for name, label in names.items() if any(name in r.values for r in results)}
        if not shown:
            continue
        lines = [f"| subject | hook | {' | '.join(shown.values())} |", "|---" * (len(shown) + 2) + "|"]
        for r in results:
            cells = [_shown(r.values.get(name)) for name in shown]
            lines.append(f"| {escapes.markdown(r.subject)} | {escapes.markdown(_hook(r))} | {' | '.join(cells)} |")
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts) + "\n± one standard error, by document.\n"


def bin_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """All bins of all results, with p values corrected over bins and hooks within each of the two families."""
    rows: list[dict[str, Any]] = []
    for of, name in (("position", "by_cosine"), ("position and later", "by_cosine_later")):
        family = [
            {"subject": r.subject, "hook": _hook(r), "of": of, **dict(zip(COLUMNS, row, strict=True))}
            for r in results
            for row in r.values.get(name, {}).get("rows", [])
        ]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
        rows += family
    return rows


def curve_chart(results: Sequence[Result]) -> Figure:
    """log KL by cosine, one panel per hook: the curve, its floor, each SAE's point and its matched noise."""
    hooks = {_hook(r): HookSite.of(_hook(r)) for r in results}
    sites = sorted({place.site for place in hooks.values()})
    layers = sorted({place.layer for place in hooks.values()})
    fig = figure(3.6 * len(layers) + 0.6, 3.1 * len(sites) + 0.5)
    axes = fig.subplots(len(sites), len(layers), sharex=True, squeeze=False)
    shown = [1 - c for r in results for c in r.values["kl"]["x"] if c < 1]
    shown += [_reach(r) for r in results if kind_of(r) == "sae" and r.values["cosine"]["value"] is not None]
    axes[0][0].set_xscale("log")  # shared by all panels
    if shown:
        axes[0][0].set_xlim(1.3 * max(shown), min(shown) / 1.3)  # reversed
    for row in axes:
        for panel in row:
            panel.set_visible(False)
    for hook, place in hooks.items():
        panel = axes[sites.index(place.site)][layers.index(place.layer)]
        panel.set_visible(True)
        here = [r for r in results if _hook(r) == hook]
        _curve(panel, here[0].values)
        saes = [r for r in here if kind_of(r) == "sae" and r.values["cosine"]["value"] is not None]
        for index, r in enumerate(saes):
            _point(panel, r, f"C{(index + 1) % 10}", index < _NAMED)
        panel.set_title(wrap_title(hook, 3.2, 9), fontsize=9)
        panel.legend(fontsize=6, loc="upper right")
        panel.tick_params(labelsize=7, labelbottom=True)
        label_log_axis(panel.yaxis)
    label_log_axis(axes[0][0].xaxis)
    fig.supylabel("KL, nats per token", fontsize=9)
    fig.supxlabel("1 − cosine (right: closer to the activations)", fontsize=9)
    ratio = results[0].cell["params"]["norm_ratio"]
    set_title(fig, f"KL of noise by cosine, at norm ratio {ratio:g}; band and bars: 95% intervals")
    return fig


def _curve(panel: Any, values: Mapping[str, Any]) -> None:
    panel.set_yscale("log")
    kl = values["kl"]
    points = [
        (1 - c, y, *(ends or (y, y)))
        for c, y, ends in zip(kl["x"], kl["y"], kl.get("ci95") or [None] * len(kl["y"]), strict=True)
        if c < 1 and y is not None and y > 0
    ]
    if points:
        x, y, low, high = (list(part) for part in zip(*points, strict=True))
        panel.fill_between(x, [max(a, b / 100) for a, b in zip(low, y, strict=True)], high, color="0.8")
        panel.plot(x, y, "-o", color="0.3", markersize=2.5, linewidth=1, label="curve")
    floor = values["kl_floor"]["value"]
    if floor is not None and floor > 0:
        panel.axhline(floor, color="0.5", linestyle=":", linewidth=1, label="scale error only (c = 1)")


def _point(panel: Any, result: Result, colour: str, named: bool) -> None:
    values = result.values
    x = _reach(result)
    null = values["kl_cosine_matched"]
    if null["value"]:
        low, high = null["ci95"] or (null["value"], null["value"])
        panel.plot([x, x], [max(low, null["value"] / 100), high], color=colour, alpha=0.35, linewidth=7)
        panel.plot([x], [null["value"]], "_", color=colour, markersize=11)
    sae = values["kl_sae"]
    if sae["value"]:
        low, high = sae["ci95"] or (sae["value"], sae["value"])
        panel.plot([x, x], [max(low, sae["value"] / 100), high], color=colour, linewidth=1)
        name = escapes.plot(f"{result.subject} (bar: matched noise)") if named else None
        panel.plot([x], [sae["value"]], "o", color=colour, markersize=4, label=name)


def _reach(result: Result) -> float:
    """1 − cosine of an SAE, at least 1e-6 for the log scale."""
    return max(1 - float(result.values["cosine"]["value"]), 1e-6)


def ratio_chart(results: Sequence[Result]) -> Figure:
    """The ratio by layer, one panel per null, one colour per site; above 1 the error is worse than that noise."""
    shown = [n for n in NULLS if any(r.values.get(n, {}).get("value") for r in results)]
    fig = figure(3.7 * max(len(shown), 1) + 0.8, 3.8)
    axes = fig.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    sites = sorted({HookSite.of(_hook(r)).site for r in results})
    layers = sorted({HookSite.of(_hook(r)).layer for r in results})
    for panel, name in zip(axes, shown, strict=False):
        panel.axhline(1, color="0.5", linewidth=1)
        for index, site in enumerate(sites):
            at_site = [
                r for r in results if HookSite.of(_hook(r)).site == site and (r.values.get(name) or {}).get("value")
            ]
            _ratios(panel, at_site, name, site, f"C{index % 10}", 0.12 * (index - (len(sites) - 1) / 2))
        panel.set_yscale("log")
        panel.set_xticks(layers)
        panel.set_xlabel("layer", fontsize=9)
        panel.set_title(wrap_title(f"noise: {NULLS[name]}", 3.3, 9), fontsize=9)
        panel.tick_params(labelsize=7, labelleft=True)
    label_log_axis(axes[0].yaxis)
    axes[0].set_ylabel("KL of the SAE / KL of the noise", fontsize=9)
    axes[0].legend(fontsize=7)
    set_title(fig, "SAE error against noise (above 1: worse than noise); bars: 95% intervals by document")
    return fig


def _ratios(panel: Any, results: Sequence[Result], name: str, site: str, colour: str, shift: float) -> None:
    """Points with their intervals, joined by a line if every layer has one SAE."""
    if not results:
        return
    points = sorted((HookSite.of(_hook(r)).layer, r.values[name]["value"], r.values[name]["ci95"]) for r in results)
    x = [layer + shift for layer, _, _ in points]
    y = [value for _, value, _ in points]
    reach = [(v - max(ci[0], v / 100), ci[1] - v) if ci else (0.0, 0.0) for _, v, ci in points]
    single = len({layer for layer, _, _ in points}) == len(points)
    panel.errorbar(
        x, y, yerr=list(zip(*reach, strict=True)), fmt="-o" if single else "o", color=colour, label=escapes.plot(site),
        markersize=4, linewidth=1, capsize=2,
    )  # fmt: skip


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: escapes.csv(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _shown(record: Mapping[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "—"
    return formatting.with_error(record["value"], record["stderr"])


def by_alias(results: Sequence[Result], metric: str) -> dict[str, list[Result]]:
    """Return the results of a metric by its name in the suite."""
    by_alias: dict[str, list[Result]] = {}
    for r in results:
        if r.cell["metric"] == metric:
            by_alias.setdefault(r.metric, []).append(r)
    return by_alias


def kind_of(result: Result) -> str:
    """Return the kind of a result's subject: `sae`, `control` or `hook`."""
    return str(result.cell["subjects"][0]["kind"])


def _hook(result: Result) -> str:
    return str(result.cell["subjects"][0]["hook_name"])
