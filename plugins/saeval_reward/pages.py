"""The reward report: an overview of the run, and a section for each SAE, its groups and its counterfactual audit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saeval.plugin import PageTable, Passage, Result, Section, formatting, verdicts_in_words, verdicts_on
from saeval_reward.plots import ablated_chart, attributed_chart, effects_chart, fold_b, margins_chart, recovered_chart
from saeval_reward.ranking import DUPLICATE

_METRICS = ("reward_margin", "margin_recovered", "reward_attribution", "reward_groups", "counterfactual_audit")

_BY = {
    "unreliable": "why an interval is unreliable, such as fewer than 20 documents",
}
_FEATURES = {
    "rank": "by attribution on fold A",
    "attribution": "mean over fold B of chosen − rejected: positive raises the margin",
    "true_effect": "mean over fold B of what ablating the feature takes from the margin",
    "density": "share of the tokens on which it fires",
    "flags": "why it may be no feature of the answers, such as firing on most tokens",
}


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the sections of a run; none for one without reward metrics."""
    mine = [r for r in results if r.cell["metric"] in _METRICS]
    if not mine:
        return []
    ok = [r for r in mine if r.status == "ok"]
    made = [_overview(mine, ok)]
    shown = [r for r in _of(ok, "reward_attribution") if _is_sae(r) and r.values["contexts"]["rows"]]
    elsewhere = duplicates(shown)
    for index, result in enumerate(shown):
        twins = {feature: twin for (at, feature), twin in elsewhere.items() if at == index}
        made.append(_attribution(result, f"reward-{index + 1}-{_words(_subject(result))}", twins))
    for result in filter(_is_sae, _of(ok, "reward_groups")):
        tables = [_table(result, "groups", "Groups"), _scalars(result, "values", "Values", folded=True)]
        made.append(Section(f"groups-{_words(_subject(result))}", f"Groups of {_subject(result)}", tables=tables))
    made += [_audit(result) for result in filter(_is_sae, _of(ok, "counterfactual_audit"))]
    for result in _of(ok, "reward_margin"):
        if result.values["top_texts"]["rows"]:
            text = "For comparison without an SAE: the last characters of the texts of highest reward."
            tables = [_table(result, "top_texts", "Texts of highest reward", folded=True)]
            made.append(Section("top-texts", "Texts of highest reward", [text], tables=tables))
    return made


def _overview(mine: Sequence[Result], ok: Sequence[Result]) -> Section:
    summary = [f"Warning: {note}." for note in dict.fromkeys(note for r in mine for note in r.notes)]
    summary += [f"{sentence}." for sentence in verdicts_in_words(verdicts_on(mine))]
    summary += [f"{r.metric} of {r.subject}: {r.status}, {r.reason}." for r in mine if r.status != "ok"]
    drawn, tables = [], []
    for result in _of(ok, "reward_margin"):
        tables.append(_scalars(result, "margins", "Margins"))
        drawn += [margins_chart(result)] if result.values["by"]["rows"] else []
        if result.values["by"]["rows"]:
            title = "Margins by every column of the data, with 95% intervals over documents"
            tables.append(_table(result, "by", title, _BY, folded=True))
    if recovered := _of(ok, "margin_recovered"):
        drawn.append(recovered_chart(recovered, {id(r): _subject(r) for r in recovered}))
        tables.append(_recovered(recovered))
    notes: list[str] = []
    if attributions := _of(ok, "reward_attribution"):
        for table, text in (_agreement(attributions), _comparison(attributions)):
            tables.append(table)
            notes.append(f"{table.title}: {text}")
    return Section("reward", f"Reward report: {mine[0].cell['suite']}", summary, drawn, tables, notes=notes)


def _of(results: Sequence[Result], metric: str) -> list[Result]:
    return [r for r in results if r.cell["metric"] == metric]


def _is_sae(result: Result) -> bool:
    """True for an SAE, False for a control, which has rows in the comparison but no section."""
    return str(result.cell["subjects"][0].get("kind")) == "sae"


def _subject(result: Result) -> str:
    """The SAE's name, followed by the metric's name if the suite renames it."""
    alias = "" if result.metric == result.cell["metric"] else f" ({result.metric})"
    return f"{result.subject}{alias}"


def _words(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "sae"


def _table(
    result: Result, name: str, title: str, notes: Mapping[str, str] | None = None, *, folded: bool = False
) -> PageTable:
    record = result.values[name]
    known = {column: note for column, note in (notes or {}).items() if column in record["columns"]}
    return PageTable(name.replace("_", "-"), title, record["columns"], record["rows"], known, folded=folded)


def _scalars(
    result: Result, name: str, title: str, names: Sequence[str] | None = None, *, folded: bool = False
) -> PageTable:
    scalars = {n: v for n, v in result.values.items() if "kind" not in v and (names is None or n in names)}
    rows: list[list[str | float | None]] = []
    for n, v in scalars.items():
        why = str(v.get("reason", "")) if v["value"] is None else ""
        rows.append([n, v["value"], v["stderr"], _ends(v), v.get("documents"), v["unit"], *_null(v), why])
    headers = ["name", "value", "± one standard error", "95% interval", "documents", "unit", "null hypothesis", "p"]
    notes = {"p": "of the metric's own test, not corrected for several tests"}
    return PageTable(name, title, [*headers, "undefined because"], rows, notes, folded=folded)


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


def _recovered(results: Sequence[Result]) -> PageTable:
    names = ["margin_clean", "margin_sae", "recovered", "change", "same_sign", "accuracy_sae"]
    rows = [[_subject(r), *(formatting.scalar(r.values[n]) for n in names)] for r in results]
    return PageTable("recovered", "Margin with the reconstruction spliced in", ["substitute", *names], rows)


def _agreement(results: Sequence[Result]) -> tuple[PageTable, str]:
    rows = []
    for result in results:
        records = [result.values[name] for name in ("sign_agreement", "rank_correlation")]
        features = next((record["n"] for record in records if record["value"] is not None), None)
        tests = [cell for record in records for cell in (_with_interval(record), _null(record)[1])]
        rows.append([_subject(result), features, *tests, formatting.scalar(result.values["relative_gap"])])
    text = (
        "Attributions beside the effects of ablating the same features one by one, over the top features of fold A and "
        "as many others that are similar in density and size. Both are means over fold B. Brackets: 95% intervals over "
        "documents; p: one-sided, against ½ and 0 over documents and against attributions assigned to features at "
        "random, whichever is larger; not corrected for several tests. The gap is that of the integration: it "
        "checks the sum of the attributions, not each of them."
    )
    names = ["by", "features", "sign agreement", "p", "rank correlation", "p of it", "gap of integration"]
    return PageTable("agreement", "Agreement with true effects", names, rows), text


def _with_interval(record: Mapping[str, Any]) -> str:
    ends = _ends(record)
    return f"{formatting.number(record['value'], 2)} {ends}" if ends else formatting.scalar(record)


def _comparison(results: Sequence[Result]) -> tuple[PageTable, str]:
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
            shown = {kind: formatting.scalar(record) if record else "–" for kind, record in records.items()}
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
    return PageTable("explained", "Margin explained", names, rows), text


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
        for at, original, direction in originals:
            differs = _site(results[at]) != _site(results[index])
            if differs and len(direction) == len(unit) and float(direction @ unit) > DUPLICATE:
                twins[index, feature] = (results[at].subject, original)
                break
        else:
            originals.append((index, feature, unit))
    return twins


def _site(result: Result) -> str:
    subject = result.cell["subjects"][0]
    return str(subject.get("site", subject["hook_name"]))


def _attribution(result: Result, stem: str, twins: Mapping[int, tuple[str, int]]) -> Section:
    values, name = result.values, _subject(result)
    table = values["features"]
    features = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    features = [feature for feature in features if feature["feature"] not in twins]
    kept, flagged = ([f for f in features if bool(f["flags"]) is flag] for flag in (False, True))
    notes = {column: note for column, note in _FEATURES.items() if column in table["columns"]}

    def listed(own: Sequence[Mapping[str, Any]], part: str, title: str, *, folded: bool = False) -> PageTable:
        rows = [list(f.values()) for f in sorted(own, key=lambda f: -abs(f["true_effect"] or 0.0))]
        return PageTable(part, title, table["columns"], rows, notes, folded=folded)

    of_features = [listed(kept, "features", "Features without flags, by their effect on fold B")] if kept else []
    if flagged:
        title = "Features with flags, such as those that fire on most tokens, by their effect on fold B"
        of_features.append(listed(flagged, "flagged", title, folded=True))
    names = ["sign_agreement", "rank_correlation", "completeness_gap", "relative_gap", "margin", "length_explained"]
    drawn = [ablated_chart(values, name), attributed_chart(values, name)]
    if features:
        drawn.insert(1, effects_chart(kept or flagged, values, name))
    summary = [
        f"Features are chosen and ranked on fold A; all numbers are of fold B, which has {fold_b(values)}.",
        *_explained_in_words(values),
    ]
    if twins:
        words = ", ".join(f"{feature} (of {other} {twin})" for feature, (other, twin) in sorted(twins.items()))
        summary.append(f"Reported at another layer, as near-duplicates: {words}.")
    hook = result.cell["subjects"][0]["hook_name"]
    tables = [
        *of_features, _table(result, "rows", "Margin by source, chosen − rejected"),
        _scalars(result, "values", "Values", names, folded=True),
    ]  # fmt: skip
    return Section(
        stem, f"Features of {name} at {hook}", summary, drawn, tables, _passages(result, [*kept, *flagged]),
        [f"Parameters: {json.dumps(dict(result.cell['params']))}."],
    )  # fmt: skip


def _explained_in_words(values: Mapping[str, Any]) -> list[str]:
    """A sentence on the largest number of features that was ablated."""
    curve, margin = values["ablated"], values["margin"]["value"]
    if not curve["x"] or curve["y"][-1] is None or margin is None:
        return []
    amount, whole = (formatting.number(number, 3) for number in (curve["y"][-1], margin))
    return [f"Ablating the top {int(curve['x'][-1])} features takes {amount} of the margin of {whole}."]


def _passages(result: Result, features: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """The contexts of these features, in their order."""
    by_feature: dict[int, list[Passage]] = {}
    for feature, activation, pair, side, tokens, activations in result.values["contexts"]["rows"]:
        label = f"{activation:.3g}, pair {pair}, {side}"
        passage = Passage(f"Feature {feature}", label, json.loads(tokens), json.loads(activations))
        by_feature.setdefault(int(feature), []).append(passage)
    return [passage for feature in features for passage in by_feature.get(int(feature["feature"]), ())]


def _audit(result: Result) -> Section:
    original = result.cell["params"]["original"]
    edit = "rejected" if original == "chosen" else "chosen"
    text = (
        f"Features that matter to the reward, and that an edit from {original} to {edit} removes or adds. Attributions "
        "are those of the other tables: means over fold B of chosen − rejected. Shares and changes are over all pairs; "
        "a change is r(edit) − r(original), positive if the edit raises the reward."
    )
    tables = [
        _table(result, "features", "Features that the edit removes or adds"),
        _table(result, "examples", "The pairs whose reward changed most", folded=True),
        _scalars(result, "values", "Values", folded=True),
    ]
    name = _subject(result)
    return Section(f"audit-{_words(name)}", f"Counterfactual audit of {name}", [text], tables=tables)
