"""The reward report: `reward.md` and `reward.html` with the same content, and a plot per SAE."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saeval.plugin import Result, escapes, figure, formatting, png, verdicts_in_words, verdicts_on, wrap_title
from saeval_reward.document import Block, Grid, Heading, Paragraph, Passage, Picture, Warned, markdown, page
from saeval_reward.ranking import DUPLICATE

_METRICS = ("reward_margin", "margin_recovered", "reward_attribution", "reward_groups", "counterfactual_audit")

_BY = (
    "By every column of the data, with 95% intervals over documents. The last column has the reason if they are "
    "unreliable, such as fewer than 20 documents."
)


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """The files of the report, by name; none for a run without reward metrics."""
    mine = [r for r in results if r.cell["metric"] in _METRICS]
    if not mine:
        return {}
    files: dict[str, bytes | str] = {}
    title = f"Reward report: {mine[0].cell['suite']}"
    blocks: list[Block] = [Warned(note) for note in dict.fromkeys(note for r in mine for note in r.notes)]
    blocks += [Paragraph(f"{r.metric} of {r.subject}: {r.status}, {r.reason}") for r in mine if r.status != "ok"]
    if sentences := verdicts_in_words(verdicts_on(mine)):
        blocks += [Heading("Verdicts"), *(Paragraph(f"{sentence}.") for sentence in sentences)]
    ok = [r for r in mine if r.status == "ok"]
    for result in _of(ok, "reward_margin"):
        blocks += _margins(result)
    blocks += _recovered(_of(ok, "margin_recovered"))
    attributions = _of(ok, "reward_attribution")
    blocks += _agreement(attributions) + _comparison(attributions)
    shown = [r for r in attributions if _is_sae(r) and r.values["contexts"]["rows"]]
    elsewhere = duplicates(shown)
    for number, result in enumerate(shown):
        name = escapes.file_name(
            f"reward-{number + 1}-{re.sub(r'[^A-Za-z0-9]+', '-', _subject(result)).strip('-')}.png"
        )
        files[name] = explained_plot(result.values, f"{_subject(result)}: margin explained (fold B)")
        blocks += _attribution(result, name, elsewhere)
    for result in filter(_is_sae, _of(ok, "reward_groups")):
        blocks += [Heading(f"Groups of {_subject(result)}"), _scalars(result), _table(result, "groups")]
    for result in filter(_is_sae, _of(ok, "counterfactual_audit")):
        blocks += _audit(result)
    for result in _of(ok, "reward_margin"):
        if result.values["top_texts"]["rows"]:
            text = "For comparison without an SAE: the last characters of the texts of highest reward."
            blocks += [Heading("Texts of highest reward"), Paragraph(text), _table(result, "top_texts")]
    files["reward.md"], files["reward.html"] = markdown(title, blocks), page(title, blocks)
    return files


def _of(results: Sequence[Result], metric: str) -> list[Result]:
    return [r for r in results if r.cell["metric"] == metric]


def _is_sae(result: Result) -> bool:
    """True for an SAE, False for a control, which has rows in the comparison but no section."""
    return str(result.cell["subjects"][0].get("kind")) == "sae"


def _subject(result: Result) -> str:
    """The SAE's name, followed by the metric's name if the suite renames it."""
    alias = "" if result.metric == result.cell["metric"] else f" ({result.metric})"
    return f"{result.subject}{alias}"


def _table(result: Result, name: str) -> Grid:
    record = result.values[name]
    return Grid(record["columns"], record["rows"])


def _scalars(result: Result, names: Sequence[str] | None = None) -> Grid:
    scalars = {n: v for n, v in result.values.items() if "kind" not in v and (names is None or n in names)}
    rows = [
        [
            n,
            v["value"],
            v["stderr"],
            _ends(v),
            v.get("documents", ""),
            v["unit"],
            *_null(v),
            "" if v["value"] is not None else v.get("reason", ""),
        ]
        for n, v in scalars.items()
    ]
    names = ["name", "value", "± (one standard error)", "95% interval", "documents", "unit", "null hypothesis", "p"]
    return Grid([*names, "undefined because"], rows)


def _ends(record: Mapping[str, Any]) -> str:
    """The 95% interval of a scalar; empty if it has none."""
    if record["value"] is None or not record["ci95"]:
        return ""
    low, high = (formatting.number(end, 2) for end in record["ci95"])
    return f"[{low}, {high}]"


def _null(record: Mapping[str, Any]) -> tuple[str, float | str]:
    """The null hypothesis of a scalar, and the p value that the metric gave, not corrected for several tests."""
    null, p = record.get("null"), record.get("p")
    return (f"{null['name']} ({null['value']:g})" if null else "", "" if p is None else p)


def _margins(result: Result) -> list[Block]:
    blocks: list[Block] = [Heading("Margins"), _scalars(result)]
    if result.values["by"]["rows"]:
        blocks += [Paragraph(_BY), _table(result, "by")]
    return blocks


def _recovered(results: Sequence[Result]) -> list[Block]:
    if not results:
        return []
    names = ["margin_clean", "margin_sae", "recovered", "change", "same_sign", "accuracy_sae"]
    rows = [[_subject(r), *(_with_error(r.values[n]) for n in names)] for r in results]
    return [Heading("Margin with the reconstruction spliced in"), Grid(["substitute", *names], rows)]


def _with_error(record: Mapping[str, Any]) -> str:
    return formatting.scalar(record)


def _agreement(results: Sequence[Result]) -> list[Block]:
    if not results:
        return []
    rows = []
    for result in results:
        records = [result.values[name] for name in ("sign_agreement", "rank_correlation")]
        features = next((record["n"] for record in records if record["value"] is not None), None)
        tests = [cell for record in records for cell in (_with_interval(record), _null(record)[1])]
        rows.append([_subject(result), features, *tests, _with_error(result.values["relative_gap"])])
    text = (
        "Attributions beside the effects of ablating the same features one by one, over the top features of fold A and "
        "as many others that are similar in density and size. Both are means over fold B. Brackets: 95% intervals over "
        "documents; p: one-sided, against ½ and 0 over documents and against attributions assigned to features at "
        "random, whichever is larger; not corrected for several tests. The gap is that of the integration: it "
        "checks the sum of the attributions, not each of them."
    )
    names = ["by", "features", "sign agreement", "p", "rank correlation", "p", "gap of integration"]
    return [Heading("Agreement with true effects"), Paragraph(text), Grid(names, rows)]


def _with_interval(record: Mapping[str, Any]) -> str:
    ends = _ends(record)
    return f"{formatting.number(record['value'], 2)} {ends}" if ends else _with_error(record)


def _comparison(results: Sequence[Result]) -> list[Block]:
    if not results:
        return []
    sizes = sorted({int(n.rsplit("_", 1)[1]) for r in results for n in r.values if re.fullmatch(r"ablated_\d+", n)})
    kinds = [
        "ablated_kept", "ablated_random", "ablated_random_max", "ablated_excess_kept", "unmatched", "ablated",
        "ablated_share", "attributed_kept", "attributed_random_max", "attributed", "attributed_swapped",
    ]  # fmt: skip
    rows = []
    for result in results:
        for k in sizes:
            if f"ablated_{k}" not in result.values:
                continue
            records = {kind: result.values.get(f"{kind}_{k}") for kind in kinds}
            shown = {kind: _with_error(record) if record else "–" for kind, record in records.items()}
            if largest := records["ablated_random_max"]:
                shown["ablated_random_max"] += f" of {largest['n']}" if largest["n"] else ""
            p = _null(records["ablated_excess_kept"] or {})[1]
            rows.append([_subject(result), k, *list(shown.values())[:4], p, *list(shown.values())[4:]])
    text = (
        "Mean margin explained on fold B by the top k features of fold A, in units of the reward. Ablated: the "
        "features are set to their values at the baseline from the first difference of the sides on, and the SAE's "
        "error is kept. Kept: the top k features without flags. Random: groups of as many unflagged features that are "
        "not at the top of the ranking, matched with the kept ones on density and size. Excess: kept minus the mean of "
        "these groups; p is the larger of the rank among them and the t test over documents, not corrected for several "
        "tests. Not matched: the number of kept features whose matches differ in density by more than a factor of 2. "
        "All: the top k with flagged features, which have few equals and so no random groups. Attributed: the sum of "
        "the features' attributions; swapped: of the top k after swapping labels."
    )
    names = [
        "by", "k", "ablated, kept", "random, mean", "random, largest", "excess", "p", "not matched", "ablated, all",
        "ablated, all, share", "attributed, kept", "attributed, random, largest", "attributed, all",
        "attributed, swapped labels",
    ]  # fmt: skip
    return [Heading("Margin explained"), Paragraph(text), Grid(names, rows)]


def duplicates(results: Sequence[Result]) -> dict[tuple[int, int], tuple[str, int]]:
    """Near-duplicates (decoder cosine above 0.9) among the top features of different hooks.

    Maps (index of the result, feature) to the (subject, feature) with a larger true effect that it duplicates.
    """
    features = []
    for index, result in enumerate(results):
        directions = result.array("directions") if "value/directions" in result.arrays else np.zeros((0, 0))
        for row, direction in zip(result.values["features"]["rows"], directions, strict=False):
            line = dict(zip(result.values["features"]["columns"], row, strict=True))
            norm = np.linalg.norm(direction)
            features.append((abs(line["true_effect"] or 0.0), index, int(line["feature"]), direction / (norm or 1)))
    features.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    originals: list[tuple[int, int, np.ndarray]] = []
    twins: dict[tuple[int, int], tuple[str, int]] = {}
    for _, index, feature, unit in features:
        site = _site(results[index])
        for at, original, direction in originals:
            differs = _site(results[at]) != site
            if differs and len(direction) == len(unit) and float(direction @ unit) > DUPLICATE:
                twins[index, feature] = (results[at].subject, original)
                break
        else:
            originals.append((index, feature, unit))
    return twins


def _site(result: Result) -> str:
    subject = result.cell["subjects"][0]
    return str(subject.get("site", subject["hook_name"]))


def _attribution(result: Result, plot: str, elsewhere: Mapping[tuple[int, int], tuple[str, int]]) -> list[Block]:
    index = int(plot.split("-")[1]) - 1
    twins = {feature: twin for (at, feature), twin in elsewhere.items() if at == index}
    names = ["sign_agreement", "rank_correlation", "completeness_gap", "relative_gap", "margin", "length_explained"]
    table = result.values["features"]
    rows = [row for row in table["rows"] if row[1] not in twins]
    hook = result.cell["subjects"][0]["hook_name"]
    blocks: list[Block] = [
        Heading(f"Features of {_subject(result)} at {hook}"),
        Paragraph(
            "Attributions, true effects and rows are means over fold B of chosen − rejected: positive raises the "
            f"margin. {_fold_b(result)} Parameters: {json.dumps(dict(result.cell['params']))}."
        ),
        _scalars(result, names), _table(result, "rows"), Picture(plot, "Margin explained by number of features"),
        Grid(table["columns"], rows),
    ]  # fmt: skip
    if twins:
        listed = ", ".join(f"{feature} (of {name} {twin})" for feature, (name, twin) in sorted(twins.items()))
        blocks.append(Paragraph(f"Reported at another layer, as near-duplicates: {listed}."))
    blocks += [Heading("Top activating contexts", 3), *_passages(result, twins)]
    return blocks


def _fold_b(result: Result) -> str:
    """The pairs and documents of fold B as a sentence."""
    margin = result.values["margin"]
    documents = formatting.counted(margin.get("documents", 0), "document")
    effective = f" ({margin['effective_documents']:.3g} effective)" if "effective_documents" in margin else ""
    return f"Fold B has {formatting.counted(margin['n'], 'pair')} from {documents}{effective}."


def _passages(result: Result, omitted: Mapping[int, Any]) -> list[Block]:
    blocks: list[Block] = []
    current = None
    for feature, activation, pair, side, tokens, activations in result.values["contexts"]["rows"]:
        if feature in omitted:
            continue
        if feature != current:
            blocks.append(Paragraph(f"Feature {feature}"))
            current = feature
        blocks.append(Passage(f"{activation:.3g}, pair {pair}, {side}", json.loads(tokens), json.loads(activations)))
    return blocks


def _audit(result: Result) -> list[Block]:
    original = result.cell["params"]["original"]
    edit = "rejected" if original == "chosen" else "chosen"
    text = (
        f"Features that matter to the reward, and that an edit from {original} to {edit} removes or adds. Attributions "
        "are those of the other tables: means over fold B of chosen − rejected. Shares and changes are over all pairs; "
        "a change is r(edit) − r(original), positive if the edit raises the reward."
    )
    return [
        Heading(f"Counterfactual audit of {_subject(result)}"), Paragraph(text), _scalars(result),
        _table(result, "features"), Paragraph("The pairs whose reward changed most:"), _table(result, "examples"),
    ]  # fmt: skip


def explained_plot(values: Mapping[str, Any], title: str) -> bytes:
    """A PNG of the margin explained by number of features, attributed and ablated, with random groups and length."""
    fig = figure(9.5, 4.6)
    axes = fig.add_subplot()
    for suffix, style, mark, label in (("", "-", "o", "top features"), ("_kept", "--", "s", "top unflagged features")):
        x, y, reach = _points(values[f"cumulative{suffix}"])
        axes.fill_between(x, y - reach[0], y + reach[1], color="tab:blue", alpha=0.15, linewidth=0)
        axes.plot(x, y, color="tab:blue", linestyle=style, label=f"{label}, attributed")
        x, y, reach = _points(values[f"ablated{suffix}"])
        fill = "tab:red" if mark == "o" else "white"
        shift = 0.985 if suffix else 1.015  # so that the two do not cover each other
        axes.errorbar(x * shift, y, reach, fmt=mark, color="tab:red", mfc=fill, capsize=3, label=f"{label}, ablated")
    for kind, colour, shift in (("attributed", "tab:blue", 0.94), ("ablated", "tab:red", 1.065)):
        low, high = (values.get(f"{kind}_random_{end}") for end in ("min", "max"))
        if low and high:
            places, ends = np.array(low["x"]) * shift, (np.array(low["y"]), np.array(high["y"]))
            label = f"matched random groups, {kind} (smallest to largest)"
            axes.vlines(places, *ends, color=colour, alpha=0.5, linewidth=5, label=label)
    for name, style, label in (("margin", "-", "full margin"), ("length_explained", ":", "explained by length")):
        value = values[name]["value"]
        if value is not None:
            axes.axhline(value, color="black" if name == "margin" else "tab:green", linestyle=style, label=label)
    axes.set_xscale("log")
    sizes = values["ablated"]["x"]
    axes.set_xticks(sizes, [str(int(k)) for k in sizes])
    axes.minorticks_off()
    axes.set_xlabel("number of features (chosen on fold A)")
    axes.set_ylabel("mean margin explained (reward)")
    axes.set_title(wrap_title(title, 6.0, 11), fontsize=11)
    axes.axhline(0, color="grey", linewidth=0.6)
    fig.legend(fontsize=8, loc="outside right upper")
    return png(fig)


def _points(curve: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y of a curve, and the distances `[2, n]` of its 95% intervals' ends below and above y."""
    y = np.array(curve["y"], dtype=float)
    intervals = curve.get("ci95") or [None] * len(y)
    ends = [interval or (at, at) for interval, at in zip(intervals, y, strict=True)]
    low, high = np.array(ends, dtype=float).reshape(-1, 2).T
    return np.array(curve["x"]), y, np.stack([y - low, high - y])
