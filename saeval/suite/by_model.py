"""A suite over several models as one suite for each: `model: [A, B]`, and `model:` in an entry of `saes:`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saeval.base.errors import Problem, SuiteError, suggestion
from saeval.base.parameters import Location
from saeval.suite.schema import Suite
from saeval.suite.yaml_marks import Marks

MODEL, REGISTERED = "model", "sae"
"""Keys of an entry of `saes:`: its model, and the name or glob of registered SAEs."""


def parts(suite: Suite) -> list[Suite]:
    """Return the suite of each model, in order; the suite itself if it has at most one model, and no SAE names one.

    The models are those of `model:`, or without it those that the SAEs name. An SAE that names no model belongs to all
    models of `model:`. `SuiteError` for an SAE of an unknown model, and for a model without SAEs.
    """
    listed = suite.body.model if isinstance(suite.body.model, list) else None
    named = any(isinstance(entry, Mapping) and {MODEL, REGISTERED} & {*entry} for entry in suite.body.saes)
    if suite.live_model is not None or (listed is None and not named):
        return [suite]
    models: list[tuple[Any, Location]] = []
    if listed is not None:
        models = [(model, (MODEL, index)) for index, model in enumerate(listed)]
    elif suite.body.model is not None:
        models = [(suite.body.model, (MODEL,))]
    given, problems = bool(models), list[Problem]()
    of: list[list[tuple[Any, Location]]] = [[] for _ in models]
    for index, raw in enumerate(suite.body.saes):
        place: Location = ("saes", index)
        entry, model = _entry(suite, raw, place, problems)
        if model is None and not given:
            message = "says no model; add 'model:' to it, or to the suite for all SAEs"
            problems.append(suite.problem(f"this SAE {message}", *place))
            continue
        chosen = [*range(len(models))] if model is None else [i for i, (m, _) in enumerate(models) if _is(model, m)]
        if not chosen and given:
            labels = [label(m) for m, _ in models]
            near = suggestion(label(model), labels)
            message = f"the suite's 'model:' has no '{label(model)}'{near}"
            problems.append(suite.problem(message, *place, MODEL))
        elif not chosen:
            models.append((model, (*place, MODEL)))
            of.append([])
            chosen = [len(models) - 1]
        for i in chosen:
            of[i].append((entry, place))
    for (model, place), entries in zip(models, of, strict=True):
        if suite.body.saes and not entries and not suite.body.hooks and not problems:
            message = f"no SAE of the suite is of the model '{label(model)}'; leave one of them out, or add SAEs"
            problems.append(suite.problem(message, *place))
    if problems:
        raise SuiteError(problems)
    names = [label(model) for model, _ in models]
    names = [f"{name}-{i + 1}" if name in names[:i] else name for i, name in enumerate(names)]
    whole = zip(models, of, names, strict=True)
    return [_part(suite, model, entries, name if len(models) > 1 else "") for model, entries, name in whole]


def label(model: Any) -> str:
    """Return a short name of a `model:` entry: that of the registered model, or the last part of its name or path."""
    if not isinstance(model, Mapping):
        return str(model)
    named = next((model[key] for key in ("name", "path", "use") if model.get(key)), "model")
    return str(named).rstrip("/").rpartition("/")[2]


def _is(asked: Any, model: Any) -> bool:
    """True if an SAE's `model:` names this entry: by its label, name or path, or as the same entry."""
    if isinstance(asked, str) and isinstance(model, Mapping):
        return asked in {label(model), model.get("name"), model.get("path")}
    first, second = ({"use": one} if isinstance(one, str) else one for one in (asked, model))
    return bool(first == second)


def _entry(suite: Suite, raw: Any, place: Location, problems: list[Problem]) -> tuple[Any, Any]:
    """Return an entry of `saes:` without its model, and its model; None if it names none."""
    if not isinstance(raw, Mapping):
        return raw, None
    entry = dict(raw)
    model, registered = entry.pop(MODEL, None), entry.pop(REGISTERED, None)
    if model is not None and not isinstance(model, str | Mapping):
        problems.append(suite.problem(f"'model' is one model of the suite, got {model!r}", *place, MODEL))
        return entry, None
    if registered is None:
        return entry, model
    if not isinstance(registered, str) or entry:
        message = "'sae' is the name or glob of registered SAEs, and stands beside 'model' alone"
        problems.append(suite.problem(message, *place, REGISTERED))
        return entry, model
    return registered, model


def _part(suite: Suite, placed: tuple[Any, Location], entries: list[tuple[Any, Location]], name: str) -> Suite:
    model, of_model = placed
    moved: dict[Location, Location] = {place: ("saes", index) for index, (_, place) in enumerate(entries)}
    moved[of_model] = (MODEL,)

    def marks(table: Mapping[Location, Any]) -> dict[Location, Any]:
        found = {place: mark for place, mark in table.items() if place[:1] != ("saes",) or len(place) == 1}
        for place, mark in table.items():
            for old, new in moved.items():
                if place[: len(old)] == old:
                    found[(*new, *place[len(old) :])] = mark
        return found

    return replace(
        suite, body=suite.body.model_copy(update={"model": model, "saes": [entry for entry, _ in entries]}), part=name,
        marks=Marks(suite.marks.source, marks(suite.marks.values), marks(suite.marks.keys)), lacking={},
    )  # fmt: skip
