"""The explanation report: features with their words, scores beside controls, and windows of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saeval.plugin import Chart, PageTable, Passage, Result, Section, formatting, verdicts_in_words, verdicts_on

PASSAGES = 120
"""Most windows of text that a page shows as passages."""
_OF_FEATURE = 3
"""Windows of a feature on a page."""
_COLUMNS = {
    "tenth": "of the eligible features by density, 1 the rarest",
    "density": "share of the fit split's tokens on which the feature fires",
    "auc own": "by the feature's own words", "auc shuffled": "by the words of another feature of its tenth",
    "auc tokens": "by the feature's list of tokens",
}  # fmt: skip
_WINDOWS = (
    "Windows of the fit split that the words were made from: half are those in which the feature fires most, the "
    "others are around random tokens on which it fires. Shading is the activation at each token, as a share of the "
    "largest in the window; point at a token for the number."
)
_JUDGE = (
    "A score belongs to a judge as much as to an SAE: compare SAEs by one judge only, and read it beside the scores by "
    "words of another feature (shuffled) and by a list of tokens."
)


class Explained(NamedTuple):
    """One sampled feature of an SAE with everything that the metrics say of it."""

    result: Result
    feature: int
    facts: dict[str, Any]
    """Cells of the tables `features` of all metrics, by `METRIC COLUMN`, or by their column if it is common."""
    windows: list[dict[str, Any]]


_COMMON = ("density", "tenth", "words", "tokens")


def explained(results: Sequence[Result]) -> Iterator[Explained]:
    """Yield the features of each SAE and control, with what all metrics with tables of features say of them."""
    of_metrics = ("explanation", "detection", "fuzzing", "token_explanation")
    by_subject: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.status == "ok" and result.cell["metric"] in of_metrics:
            by_subject.setdefault((result.subject, str(_hook(result))), []).append(result)
    for own in by_subject.values():
        facts: dict[int, dict[str, Any]] = {}
        windows: dict[int, list[dict[str, Any]]] = {}
        for result in own:
            for record in _records(result, "features"):
                of_feature = facts.setdefault(int(record.pop("feature")), {})
                for name, cell in record.items():
                    label = name if name in _COMMON else f"{result.metric} {name}"
                    if of_feature.get(label) is None:
                        of_feature[label] = cell
            for record in _records(result, "windows"):
                windows.setdefault(int(record["feature"]), []).append(record)
        for feature in sorted(facts):
            yield Explained(own[0], feature, facts[feature], windows.get(feature, []))


def _records(result: Result, name: str) -> list[dict[str, Any]]:
    table = result.values.get(name, {"columns": [], "rows": []})
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _hook(result: Result) -> Any:
    return result.cell["subjects"][0].get("hook_name", "")


def sections(results: Sequence[Result]) -> list[Section]:
    """Return a section of scores, and one of features with their words and windows."""
    features = list(explained(results))
    if not features:
        return []
    scored = [r for r in results if r.status == "ok" and r.cell["metric"] in ("detection", "fuzzing")]
    made = [
        _scores(alias, [r for r in scored if r.metric == alias]) for alias in dict.fromkeys(r.metric for r in scored)
    ]
    return [*made, _features(features)]


def _scores(alias: str, results: Sequence[Result]) -> Section:
    names = ["auc", "auc_shuffled", "lead_shuffled", "auc_tokens", "lead_tokens", "auc_silent", "auc_near",
             "balanced_accuracy", "unread", "unexplained", "repeat_deviation"]  # fmt: skip
    known = [name for name in names if any(name in r.values for r in results)]
    rows = [[r.subject, _hook(r), *(_shown(r.values.get(name)) for name in known)] for r in results]
    table = PageTable("values", "Scores, ± one standard error over features", ["subject", "hook", *known], rows)
    said = [f"{words}." for words in verdicts_in_words(verdicts_on(results))]
    who = list(dict.fromkeys(f"Judge: {_named(r.cell['judge'])}." for r in results if r.cell.get("judge")))
    title = f"What a judge tells by the words: {alias}"
    return Section(alias, title, [*who, *said], [_chart(alias, results)], [table], notes=[_JUDGE])


def _named(judge: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in judge.items() if name != "use" and value is not None)
    return f"{judge['use']} ({facts})" if facts else str(judge["use"])


def _shown(record: Mapping[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "–"
    return formatting.with_error(record["value"], record["stderr"])


def _chart(alias: str, results: Sequence[Result]) -> Chart:
    """Return the AUC of each SAE by whose words the judge has."""
    whose = {"auc": "own words", "auc_shuffled": "another feature's", "auc_tokens": "list of tokens"}
    data = []
    for result in results:
        for name, words in whose.items():
            record = result.values.get(name)
            if record is not None and record["value"] is not None:
                low, high = record["ci95"] or (record["value"], record["value"])
                data.append(
                    {"subject": result.subject, "words": words, "auc": record["value"], "low": low, "high": high}
                )
    x = {"field": "auc", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": "AUC of the judge's numbers"}
    common = {
        "y": {"field": "subject", "type": "nominal", "sort": None, "title": None},
        "yOffset": {"field": "words", "sort": list(whose.values())},
        "color": {"field": "words", "type": "nominal", "sort": list(whose.values()), "title": "words"},
    }
    bar = {
        "mark": "rule",
        "encoding": {**common, "x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
    }
    point = {"mark": {"type": "point", "filled": True}, "encoding": {**common, "x": x}}
    half = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": {"datum": 0.5}}}
    rows = len({d["subject"] for d in data})
    spec = {"width": 460, "height": 46 * max(rows, 1), "layer": [half, bar, point]}
    many = formatting.counted(rows, "subject")
    subtitle = f"mean over sampled features, bars are 95% intervals over features; dashed: chance; {many}"
    description = "For each SAE the share of pairs of windows that a judge orders rightly, by whose words it was given."
    return Chart(f"{alias}-auc", "Scores by whose words", subtitle, spec, data, description)


def _features(features: Sequence[Explained]) -> Section:
    labels = list(dict.fromkeys(label for own in features for label in own.facts))
    first = [label for label in ("words", "density", "tenth") if label in labels]
    scores = [label for label in labels if label not in _COMMON]
    order = [*first, *scores, *(["tokens"] if "tokens" in labels else [])]
    rows = [
        [own.result.subject, _hook(own.result), own.feature, *(own.facts.get(label) for label in order)]
        for own in features
    ]
    notes = {label: note for label, note in _COLUMNS.items() if label in order}
    notes |= {label: note for label in order for name, note in _COLUMNS.items() if label.endswith(f" {name}")}
    table = PageTable("features", "All sampled features", ["subject", "hook", "feature", *order], rows, notes)
    passages = list(_passages(features))
    shown = formatting.counted(len({p.heading for p in passages}), "feature")
    summary = [f"The page shows windows of {shown} of {len(features)}; the table has all."] if passages else []
    return Section(
        "features", "Features and what they mean", summary, tables=[table], passages=passages,
        notes=[_WINDOWS] if passages else [],
    )  # fmt: skip


def _passages(features: Sequence[Explained]) -> Iterator[Passage]:
    """Yield the first windows of features, those of all SAEs in turn."""
    by_subject: dict[str, list[Explained]] = {}
    for own in features:
        if own.windows:
            by_subject.setdefault(own.result.subject, []).append(own)
    room = PASSAGES // (_OF_FEATURE * max(len(by_subject), 1))
    for subject, of_subject in by_subject.items():
        for own in of_subject[:room]:
            words = own.facts.get("words") or "no words"
            for window in own.windows[:_OF_FEATURE]:
                yield Passage(
                    f"Feature {own.feature} of {subject}: {words}",
                    f"activation {window['activation']:.3g}, row {window['row']}",
                    json.loads(window["tokens"]), json.loads(window["activations"]),
                )  # fmt: skip


def lines(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a record of each feature that was explained, for JSON Lines: its SAE, words, scores and windows."""
    return [
        {
            "sae": own.result.subject,
            "hook_name": _hook(own.result),
            "feature": own.feature,
            **({"explanation": own.facts["words"]} if own.facts.get("words") else {}),
            **{label: cell for label, cell in own.facts.items() if label != "words"},
            "windows": [
                {"row": w["row"], "tokens": json.loads(w["tokens"]), "activations": json.loads(w["activations"])}
                for w in own.windows
            ],
        }
        for own in explained(results)
        if own.facts.get("words") or own.windows
    ]
