"""The perturbation report: plots, and tables with Holm's correction over a run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saeval.plugin import (
    Result,
    Verdict,
    escapes,
    figure,
    formatting,
    holm,
    label_log_axis,
    png,
    set_title,
    verdicts_in_words,
    verdicts_on,
    wrap_title,
)
from saeval_perturbation.bins import COLUMNS
from saeval_perturbation.scored import NOT_TYPICAL, TAIL_EFFECT
from saeval_perturbation.tails import SHARES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = (
    "sae", "cosine_matched", "cosine_matched_covariance", "shuffled_error", "epsilon", "norm_only", "norm_corrected",
    "zero", "mean",
)  # fmt: skip
NULLS = {
    "": "isotropic", "_cosine_matched_covariance": "covariance of activations", "_shuffled_error": "shuffled errors",
    "_epsilon": "epsilon ball",
}  # fmt: skip
"""Labels of the nulls by the endings of their values' names."""
TAIL = SHARES[-1]
"""Share of the tokens in a tail."""
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
    for alias, group in _by_alias(ok, "perturbation").items():
        stem = escapes.file_name(alias)
        files[f"{stem}.md"] = table(group)
        if saes := [r for r in group if _kind(r) == "sae"]:
            files[f"{stem}_ratio.png"] = png(ratio_chart(saes))
    for alias, group in _by_alias(ok, "perturbation_curve").items():
        stem = escapes.file_name(alias)
        files[f"{stem}.png"] = png(curve_chart(group))
        if bins := bin_rows([r for r in group if _kind(r) == "sae"]):
            files[f"{stem}_by_cosine.csv"] = _csv(bins)
    return files


def table(results: Sequence[Result]) -> str:
    """Verdicts and differences, percentiles, KL of each subject for each variant, and ratios, as Markdown."""
    given = [verdict for verdict in verdicts_on(results) if verdict.column.value.startswith("difference")]
    claims = {(v.row.name, v.row.hook_name, v.column.value): v for v in given if v.claimed}
    parts = ["## Difference to noise: mean KL of the SAE − mean KL of the noise at the same tokens, nats per token\n"]
    parts += [
        _differences(results, claims),
        *(f"- {escapes.markdown(words)}." for words in verdicts_in_words(given)),
        "",
    ]
    parts += [f"- {escapes.markdown(note)}." for note in dict.fromkeys(note for r in results for note in r.notes)]
    parts += [
        f"\n## Ratio of the SAE's KL to the noise's without the {TAIL:.0%} of the tokens with the largest KL, for each "
        "claim (in parentheses: share of the difference in these tokens)\n",
        _without_tail(results, claims),
    ]
    for title, names in (
        ("Percentile of the SAE's KL among draws at the same token (½: like that noise)",
         {f"percentile{ending}": label for ending, label in NULLS.items()}),
        ("KL(clean‖perturbed), nats per token", {f"kl_{v}": v for v in VARIANTS}),
        ("Ratio of the SAE's KL to the noise's, comparable within a hook only",
         {f"ratio{ending}": label for ending, label in NULLS.items()}),
        ("One position perturbed at a time: KL there (here), and from there on (later)",
         {f"alone_{w}_{q}": f"{w}: {q}" for w in ("here", "later") for q in ("sae", "cosine_matched", "ratio")}),
    ):  # fmt: skip
        labels = {name: label for name, label in names.items() if any(name in r.values for r in results)}
        if labels:
            rows = [(r, [_shown(r.values.get(name)) for name in labels]) for r in results]
            parts += [f"\n## {title}\n", _grid(list(labels.values()), rows)]
    return "\n".join(parts) + "\n\n± one standard error, by document.\n"


def _differences(results: Sequence[Result], claims: Mapping[tuple[str, str, str], Verdict]) -> str:
    """Each difference with its claim."""
    rows = []
    for r in (r for r in results if _kind(r) == "sae"):
        cells = []
        for ending in NULLS:
            claim = claims.get((r.subject, _hook(r), f"difference{ending}"))
            cells.append(_shown(r.values.get(f"difference{ending}")) + (f"; {_claim(claim)}" if claim else ""))
        rows.append((r, cells))
    return _grid(list(NULLS.values()), rows)


def _without_tail(results: Sequence[Result], claims: Mapping[tuple[str, str, str], Verdict]) -> str:
    """The ratio without the tokens of the largest KL, and their share of the difference, for claims."""
    rows = []
    for r in (r for r in results if _kind(r) == "sae"):
        tails = r.values.get("tails", {}).get("rows", [])
        rest = {noise: _rest(*numbers) for noise, tokens, *numbers in tails if tokens == TAIL}
        claimed = {ending: (r.subject, _hook(r), f"difference{ending}") in claims for ending in NULLS}
        names = {ending: ending.removeprefix("_") or "cosine_matched" for ending in NULLS}
        rows.append((r, [rest.get(names[ending], "—") if claimed[ending] else "—" for ending in NULLS]))
    return _grid(list(NULLS.values()), rows)


def _rest(difference: float | None, ratio: float | None) -> str:
    return "—" if difference is None or ratio is None else f"{ratio:.3f} ({difference:.0%})"


def _claim(verdict: Verdict) -> str:
    side = "more harmful" if verdict.value > 0 else "less harmful"
    return f"{side} ({verdict.qualifier})" if verdict.qualifier else side


def _grid(labels: Sequence[str], rows: Sequence[tuple[Result, Sequence[str]]]) -> str:
    lines = [f"| subject | hook | {' | '.join(labels)} |", "|---" * (len(labels) + 2) + "|"]
    lines += [f"| {escapes.markdown(r.subject)} | {escapes.markdown(_hook(r))} | {' | '.join(c)} |" for r, c in rows]
    return "\n".join(lines) + "\n"


def bin_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """All bins of all results, with p values corrected over bins, hooks and both tables."""
    rows = [
        {"subject": r.subject, "hook": _hook(r), "of": of, **dict(zip(COLUMNS, row, strict=True))}
        for of, name in (("position", "by_cosine"), ("position and later", "by_cosine_later"))
        for r in results
        for row in r.values.get(name, {}).get("rows", [])
    ]
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def curve_chart(results: Sequence[Result]) -> Figure:
    """log KL by cosine, one panel per hook: the curve, its floor, each SAE's point and its matched noise."""
    hooks = {_hook(r): HookSite.of(_hook(r)) for r in results}
    sites = sorted({place.site for place in hooks.values()})
    layers = sorted({place.layer for place in hooks.values()})
    fig = figure(3.6 * len(layers) + 0.6, 3.1 * len(sites) + 0.5)
    axes = fig.subplots(len(sites), len(layers), sharex=True, squeeze=False)
    shown = [1 - c for r in results for c in r.values["kl"]["x"] if c < 1]
    shown += [_reach(r) for r in results if _kind(r) == "sae" and r.values["cosine"]["value"] is not None]
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
        saes = [r for r in here if _kind(r) == "sae" and r.values["cosine"]["value"] is not None]
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
    """The ratio by layer, one panel per null, one colour per site; the marker shows the verdict on the difference."""
    shown = [ending for ending in NULLS if any(r.values.get(f"ratio{ending}", {}).get("value") for r in results)]
    given = {(v.row.name, v.row.hook_name, v.column.value): v for v in verdicts_on(results)}
    fig = figure(3.7 * max(len(shown), 1) + 0.8, 3.8)
    axes = fig.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    sites = sorted({HookSite.of(_hook(r)).site for r in results})
    layers = sorted({HookSite.of(_hook(r)).layer for r in results})
    for panel, ending in zip(axes, shown, strict=False):
        panel.axhline(1, color="0.5", linewidth=1)
        for r in results:
            place, record = HookSite.of(_hook(r)), r.values.get(f"ratio{ending}", {})
            if record.get("value"):
                index = sites.index(place.site)
                x = place.layer + 0.12 * (index - (len(sites) - 1) / 2)
                _ratio(panel, x, record, f"C{index % 10}", given.get((r.subject, _hook(r), f"difference{ending}")))
        panel.set_yscale("log")
        panel.set_xticks(layers)
        panel.set_xlabel("layer", fontsize=9)
        panel.set_title(wrap_title(f"noise: {NULLS[ending]}", 3.3, 9), fontsize=9)
        panel.tick_params(labelsize=7, labelleft=True)
    label_log_axis(axes[0].yaxis)
    axes[0].set_ylabel("KL of the SAE / KL of the noise", fontsize=9)
    for index, site in enumerate(sites):
        axes[0].plot([], [], "s", color=f"C{index % 10}", markersize=5, label=escapes.plot(site))
    for marker, fill, label in _MARKERS.values():
        axes[0].plot([], [], marker, color="0.3", markerfacecolor=fill or "0.3", markersize=5, label=label)
    axes[0].legend(fontsize=6)
    set_title(fig, "SAE error against noise at its hook (above 1: more harmful); bars: 95% intervals by document")
    return fig


_MARKERS = {
    "claimed": ("o", None, "differs (after Holm's correction)"),
    NOT_TYPICAL: ("D", None, f"differs, {NOT_TYPICAL}"),
    TAIL_EFFECT: ("^", None, f"differs, {TAIL_EFFECT}"),
    "neither": ("o", "white", "cannot be told from noise"),
}


def _ratio(panel: Any, x: float, record: Mapping[str, Any], colour: str, verdict: Verdict | None) -> None:
    """One point with its interval."""
    kind = "neither" if verdict is None or not verdict.claimed else verdict.qualifier or "claimed"
    marker, fill, _ = _MARKERS[kind]
    value, ends = record["value"], record["ci95"]
    reach = [[value - max(ends[0], value / 100)], [ends[1] - value]] if ends else None
    panel.errorbar(
        [x], [value], yerr=reach, fmt=marker, color=colour, markerfacecolor=fill or colour, markersize=5, linewidth=1,
        capsize=2,
    )  # fmt: skip


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: escapes.csv(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _shown(record: Mapping[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "—"
    return formatting.with_error(record["value"], record["stderr"])


def _by_alias(results: Sequence[Result], metric: str) -> dict[str, list[Result]]:
    by_alias: dict[str, list[Result]] = {}
    for r in results:
        if r.cell["metric"] == metric:
            by_alias.setdefault(r.metric, []).append(r)
    return by_alias


def _kind(result: Result) -> str:
    return str(result.cell["subjects"][0]["kind"])


def _hook(result: Result) -> str:
    return str(result.cell["subjects"][0]["hook_name"])
