"""The concept report: probes beside their baselines, removals, absorption, and chosen features with their tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from saeval.plugin import PageTable, Passage, Result, Section, formatting, verdicts_in_words, verdicts_on
from saeval_concepts.leads import Lead, control_of, leads
from saeval_concepts.plots import (
    DEFINITIONS,
    absorption_chart,
    hook_of,
    kept_tasks,
    leads_chart,
    names_of,
    parents_chart,
    parents_of,
    probing_chart,
    scr_chart,
    shown_saes,
    tpp_chart,
)

PASSAGES = 160
"""Most windows of text that a page shows as passages."""
_HEAT_MAPS = 3
"""Most controls with a heat map of leads."""
_LEADS = {
    "lead": "AUC of the SAE's features minus that of the reference, on the same texts",
    "95% from": "by the jackknife over documents; spread between draws of a control included",
}
_EXAMPLES = {
    "larger in": "the class in which the feature's mean over fit texts is larger",
    "text": "tokens around the one with the largest activation, which stands between » and «",
}
_PARENTS = {
    "right": "words that have the parent and whose probe says so, on which the rates are",
    "mains": "main features", "splits": "main features − 1",
    "interventional": "fall of the model's answer without the absorber, minus that without random features, logits",
}  # fmt: skip
_WINDOWS = (
    "Windows are the evaluated texts of the task in which a feature fires most, one of a row. Shading is the "
    "activation at each token, as a share of the largest in the window; point at a token for the number. Excluded "
    "tokens are not shaded. The strongest windows show what drives a feature hardest, not all that it fires on."
)


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the sections of every configured concept metric."""
    made: list[Section] = []
    of_metric: Mapping[str, Callable[[str, Sequence[Result]], list[Section]]] = {
        "sparse_probing": _probing, "tpp": _tpp, "scr": _scr, "absorption": _absorption,
    }  # fmt: skip
    for metric, sections_of in of_metric.items():
        own = [r for r in results if r.cell["metric"] == metric]
        for alias in dict.fromkeys(r.metric for r in own):
            ok = [r for r in own if r.metric == alias and r.status == "ok"]
            if any(not control_of(r) for r in ok):
                made += sections_of(alias, ok)
    return made


def _claims(results: Sequence[Result]) -> list[str]:
    return [f"{words}." for words in verdicts_in_words(verdicts_on(results))]


def _notes(results: Sequence[Result]) -> list[str]:
    return [f"{note}." for note in dict.fromkeys(note for r in results for note in r.notes)]


def _probing(alias: str, results: Sequence[Result]) -> list[Section]:
    by_control = leads(results)
    tables = [_leads_table(over, own) for over, own in by_control.items() if own]
    heats = [leads_chart(own) for own in list(by_control.values())[:_HEAT_MAPS] if own]
    made = [
        Section(
            alias, f"Probes of labelled texts: {alias}", [*_leads_in_words(by_control), *_claims(results)],
            [probing_chart(results), *heats], [*tables, _qualities(results)],
            notes=[*_notes(results), "Probes read encoders: the decoder is not tested."],
        )
    ]  # fmt: skip
    windows = _windows(results)
    if windows:
        made.append(_chosen(alias, results, windows))
    return made


def _leads_in_words(by_control: Mapping[str, Sequence[Lead]]) -> list[str]:
    """Return for each reference in how many cells the interval of the lead is above or below 0."""
    sentences = []
    for over, own in by_control.items():
        tested = [lead.ci95 for lead in own if lead.ci95 is not None]
        if tested:
            ahead, behind = sum(low > 0 for low, _ in tested), sum(high < 0 for _, high in tested)
            sentences.append(
                f"Over {over}: {ahead} of {formatting.counted(len(tested), 'lead')} by task and SAE at k = {own[0].k} "
                f"have a 95% interval above 0, {behind} below (not corrected for their number)."
            )
    return sentences


def _leads_table(over: str, own: Sequence[Lead]) -> PageTable:
    headers = ["task", "SAE", "hook", "k", "AUC", f"AUC of {over}", "lead", "95% from", "95% to"]
    rows = [
        [lead.task, lead.result.subject, hook_of(lead.result), lead.k, lead.auc, lead.other, lead.value,
         *(lead.ci95 or (None, None))]
        for lead in own
    ]  # fmt: skip
    return PageTable(f"leads-{over}", f"Leads over {over} by task", headers, rows, _LEADS, folded=True)


def _qualities(results: Sequence[Result]) -> PageTable:
    names = [f"{kind}@{k}" for kind in ("auc", "lead_neurons", "lead_random") for k in _counts(results, "k")]
    return _grid("values", "AUC and leads by number of features, ± one standard error", results, names)


def _counts(results: Sequence[Result], name: str) -> list[int]:
    return sorted({int(k) for r in results for k in r.cell["params"][name]})


def _grid(name: str, title: str, results: Sequence[Result], values: Sequence[str]) -> PageTable:
    known = [value for value in values if any(value in r.values for r in results)]
    rows = [[r.subject, hook_of(r), *(_shown(r.values.get(value)) for value in known)] for r in results]
    return PageTable(name, title, ["subject", "hook", *known], rows, folded=True)


def _shown(record: Mapping[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "–"
    return formatting.with_error(record["value"], record["stderr"])


class _Window(NamedTuple):
    """A window of a feature that an SAE's probe chose for a task."""

    result: Result
    task: str
    rank: int
    feature: int
    label: str
    activation: float
    row: int
    tokens: list[str]
    activations: list[float]


def _windows(results: Sequence[Result]) -> list[_Window]:
    """Return the windows of all SAEs, by task, then by SAE and rank."""
    saes = [r for r in results if not control_of(r)]
    found = [
        _Window(r, str(task), rank, feature, str(label), activation, row, json.loads(tokens), json.loads(acts))
        for r in saes
        for task, rank, feature, label, activation, row, tokens, acts in r.values.get("examples", {"rows": []})["rows"]
    ]
    tasks = {task: place for place, task in enumerate(dict.fromkeys(window.task for window in found))}
    return sorted(found, key=lambda window: tasks[window.task])  # the order of SAEs and ranks stays


def _chosen(alias: str, results: Sequence[Result], windows: Sequence[_Window]) -> Section:
    saes, names = [r for r in results if not control_of(r)], names_of(results)
    larger = {
        (id(r), cells[0], cells[2]): str(cells[4])
        for r in saes for cells in r.values["latents"]["rows"] if len(cells) > 4
    }  # fmt: skip
    shown = _on_the_page(results, windows)
    passages = []
    for w in shown:
        side = larger.get((id(w.result), w.task, w.feature), "")
        heading = f"{w.task}: feature {w.feature} of {names[id(w.result)]}, rank {w.rank}" + (
            f", larger in class {side}" if side else ""
        )
        label = f"activation {w.activation:.3g}, class {w.label}, row {w.row}"
        passages.append(Passage(heading, label, w.tokens, w.activations))
    headers = ["task", "SAE", "hook", "rank", "feature", "larger in", "class", "activation", "row", "text"]
    rows: list[list[str | float | None]] = [
        [w.task, w.result.subject, hook_of(w.result), w.rank, w.feature,
         larger.get((id(w.result), w.task, w.feature), ""), w.label, w.activation, w.row, _marked(w)]
        for w in windows
    ]  # fmt: skip
    table = PageTable("windows", "All windows", headers, rows, _EXAMPLES, folded=True)
    count = f"{len(shown)} of {formatting.counted(len(windows), 'window')}"
    summary = [f"The page shows {count}; the table has all."] if len(shown) < len(windows) else []
    return Section(
        f"{alias}-features", f"Features that probes chose: {alias}", [*summary, *_agreement(windows, larger)],
        tables=[table], passages=passages, notes=[_WINDOWS],
    )  # fmt: skip


def _on_the_page(results: Sequence[Result], windows: Sequence[_Window]) -> list[_Window]:
    """Return the windows of the best features of each task and SAE, as many ranks as there is room for.

    If the first features of all SAEs are too many, those of the SAEs with the largest AUC.
    """
    last, within = max(w.rank for w in windows), list[_Window]()
    for rank in range(1, last + 1):
        more = [w for w in windows if w.rank <= rank]
        if len(more) > PASSAGES:
            break
        within = more
    if within:
        return within
    first = [w for w in windows if w.rank == 1]
    room = PASSAGES * len({id(w.result) for w in first}) // len(first)
    best, _ = shown_saes(results, f"auc@{_counts(results, 'k')[0]}", max(1, room))
    kept = {id(r) for r in best}
    return [w for w in first if id(w.result) in kept][:PASSAGES]


def _marked(window: _Window) -> str:
    """Return the text of a window with its strongest token marked."""
    peak = max(range(len(window.tokens)), key=lambda i: abs(window.activations[i]))
    return "".join(f"»{text}«" if i == peak else text for i, text in enumerate(window.tokens))


def _agreement(windows: Sequence[_Window], larger: Mapping[tuple[int, str, int], str]) -> list[str]:
    """Return how often the strongest windows are of the class in which the feature is larger."""
    sides = [(w.label, side) for w in windows if (side := larger.get((id(w.result), w.task, w.feature)))]
    if not sides:
        return []
    same = sum(label == side for label, side in sides)
    return [f"{same / len(sides):.0%} of the windows are texts of the class in which the feature's mean is larger."]


def _tpp(alias: str, results: Sequence[Result]) -> list[Section]:
    n = _counts(results, "n")
    names = [f"{kind}@{k}" for kind in ("total", "intended", "unintended", "lead_shuffled", "lead_random") for k in n]
    values = _grid("values", "Falls of probes' margins, ± one standard error", results, [*names, "skyline"])
    made = [_joined(results, "classes", "By class"), _joined(results, "latents", "First features of each class")]
    return [
        Section(
            alias, f"Targeted perturbation of probes: {alias}", _claims(results), [tpp_chart(results)],
            [values, *made], notes=_notes(results),
        )
    ]  # fmt: skip


def _scr(alias: str, results: Sequence[Result]) -> list[Section]:
    n = _counts(results, "n")
    names = [f"{prefix}{kept}@{k}" for prefix in ("", "lead_shuffled_", "lead_random_")
             for kept in ("first", "second") for k in n]  # fmt: skip
    skylines = [f"skyline_{kept}" for kept in ("first", "second")]
    values = _grid("values", "Gains of the biased probe, ± one standard error", results, [*names, *skylines])
    kept = [f"{place}@N keeps '{task}'." for place, task in kept_tasks(results[0]).items()]
    made = [_joined(results, "probes", "Probes"), _joined(results, "latents", "First features of each removed label")]
    return [
        Section(
            alias, f"Removal of a spurious correlation: {alias}", [*kept, *_claims(results)], [scr_chart(results)],
            [values, *made], notes=_notes(results),
        )
    ]  # fmt: skip


def _joined(results: Sequence[Result], name: str, title: str) -> PageTable:
    """Return one table of all SAEs' tables of this name."""
    saes = [r for r in results if not control_of(r)]
    columns = list(dict.fromkeys(column for r in saes for column in r.values[name]["columns"]))
    rows = []
    for r in saes:
        for row in r.values[name]["rows"]:
            cells = dict(zip(r.values[name]["columns"], row, strict=True))
            rows.append([r.subject, hook_of(r), *map(cells.get, columns)])
    return PageTable(name, title, ["SAE", "hook", *columns], rows, folded=True)


def _absorption(alias: str, results: Sequence[Result]) -> list[Section]:
    names = [
        "counted", "mains", "splits", *DEFINITIONS, "silent", "with_absorber", "interventional", "interventional_fall",
        "interventional_random", "exceeds_random", "exceeds_chance", "answered", "probe_f1", "mains_f1",
    ]  # fmt: skip
    values = _grid("values", "All values, ± one standard error", results, names)
    drawn = [absorption_chart(results)]
    saes = [r for r in results if not control_of(r)]
    if any(not cells["left out"] for r in saes for cells in parents_of(r)):
        drawn.append(parents_chart(results, DEFINITIONS, "by-parent", "Absorption by parent", "share of words"))
    if any(cells["interventional"] is not None for r in saes for cells in parents_of(r)):
        effect = {"interventional": "absorber − random features"}
        title = "Fall of the answer without the absorber, by parent"
        drawn.append(parents_chart(results, effect, "interventional", title, "logits"))
    parents = _joined(results, "parents", "By parent")
    notes = {column: note for column, note in _PARENTS.items() if column in parents.headers}
    made = [_sizes(results), values, PageTable("parents", parents.title, parents.headers, parents.rows, notes, True)]
    return [Section(alias, f"Absorption: {alias}", _claims(results), drawn, made, notes=_notes(results))]


def _sizes(results: Sequence[Result]) -> PageTable:
    """Return the numbers of parents, main features and splits of each SAE and control."""
    names = ("counted", "mains", "splits", "probe_f1", "mains_f1")
    rows = [[r.subject, hook_of(r), *(r.values[name]["value"] for name in names)] for r in results]
    headers = ["subject", "hook", "parents", "mains", "splits", "F1 of probes", "F1 of mains"]
    notes = {"mains": "mean number of main features of a parent", "splits": "mains − 1"}
    return PageTable("sizes", "Parents, and the main features that stand for them", headers, rows, notes)
