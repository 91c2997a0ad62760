"""What `saeval certify` adds to a suite: reseeded metrics, controls in their order, and SAEs damaged by degrees."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from saeval.base.errors import SuiteError
from saeval.base.fingerprint import digest_of
from saeval.base.names import names_matching_any
from saeval.base.parameters import parameter_names
from saeval.base.run_options import DOSES, RESEEDS
from saeval.plan.plan import Plan
from saeval.results.certifying import Roles

SEED = "seed"
"""The parameter of a metric that decides what it draws."""


def design(plan: Plan, reseeds: int = RESEEDS, doses: Sequence[float] = DOSES) -> tuple[Mapping[str, Any], Roles]:
    """Return the suite of `plan` with all that a certificate needs beside it, and what the parts are for.

    Each metric with a parameter `seed` is configured `reseeds` times more, with the seeds after its own, on the SAEs
    alone. Every control with a `standing` is added unless the suite has it for all SAEs, and every control with a
    `dose` once for each of `doses`. `SuiteError` for a suite with live objects, without two SAEs, or with `precision:`.
    """
    suite = plan.suite
    saes = [subject.name for subject in plan.subjects if subject.kind == "sae"]
    if suite.live or suite.live_model is not None:
        raise SuiteError([suite.problem("a certificate needs a suite that a file can hold, without live objects")])
    if len(saes) < 2:
        message = "a certificate compares SAEs, so the suite needs at least two"
        raise SuiteError([suite.problem(message, "saes")])
    if suite.body.precision:
        message = "a certificate needs the same rows for all SAEs; leave out 'precision'"
        raise SuiteError([suite.problem(message, "precision", key=True)])
    body = suite.body.model_dump(exclude_unset=True)
    problems: list[Any] = []
    entries = suite.metrics(problems)
    seeded: dict[str, list[str]] = {}
    added: list[dict[str, Any]] = []
    classes = {entry.alias: plan.registry.metrics[entry.name] for entry in entries}
    for entry in entries:
        cls = classes[entry.alias]
        if SEED not in parameter_names(cls.__init__) or cls.subject == "none":
            continue
        params = next((cell.entry.params for cell in plan.cells if cell.entry.alias == entry.alias), None)
        if params is None or not isinstance(params.get(SEED), int):
            continue
        where: dict[str, Any] = {"over": entry.over, "controls": []} if entry.over else {"of": list(entry.of or saes)}
        for number in range(1, reseeds + 1):
            alias = _unused(f"{entry.alias}-reseed{number}", classes)
            added.append({entry.name: {**entry.params, SEED: params[SEED] + number, **where, "as": alias}})
            seeded.setdefault(entry.alias, []).append(alias)
    controls = list(body.get("controls", []))
    given = [_configured(control) for control in controls]
    shown = [name for _, name, _ in given]
    standing: dict[str, int] = {}
    ladders: dict[str, dict[str, float]] = {}
    for named in plan.registry.controls:
        control, name = named.thing, named.name
        if control.per != "sae":
            continue
        if control.standing is not None:
            partial = {"of", control.dose}  # of some SAEs, or to some degree
            whole = [alias for use, alias, params in given if use == name and not partial & set(params)]
            own = _unused(name, shown)
            controls += [] if whole else [{"use": name, "name": own}]
            standing |= dict.fromkeys(whole or [own], control.standing)
        if control.dose is not None:
            rungs = {_unused(f"{name} {control.dose}={dose:g}", shown): dose for dose in sorted(set(doses))}
            once = {"seeds": 1} if "seeds" in parameter_names(control.__init__) else {}
            controls += [{"use": name, "name": rung, control.dose: dose, **once} for rung, dose in rungs.items()]
            ladders[name] = rungs
    body["controls"], body["metrics"] = controls, [*body["metrics"], *added]
    body.pop("leaderboard", None)
    truths = [entry.alias for entry in entries if classes[entry.alias].truth]
    return body, Roles([entry.alias for entry in entries], seeded, standing, ladders, truths, _groups(plan))


def _configured(control: str | Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Return what an entry of `controls:` uses, its name in tables, and its parameters."""
    given: dict[str, Any] = {"use": control} if isinstance(control, str) else dict(control)
    if len(given) == 1 and "use" not in given:
        ((use, params),) = given.items()
        given = {"use": use, **(params or {})}
    use = str(given.pop("use"))
    return use, str(given.pop("name", None) or use), given


def _unused(name: str, taken: Collection[str]) -> str:
    """Return the name, with the first number that makes it differ from the suite's own names."""
    numbered = (f"{name} {number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _groups(plan: Plan) -> dict[str, list[str]]:
    """Return the groups of the suite whose members are known to differ in their seeds, and in nothing else declared."""
    saes = {s.name: s for s in plan.subjects if s.kind == "sae"}
    groups = {}
    for name, patterns in plan.suite.body.groups.items():
        members = names_matching_any(patterns, saes)
        facts = [saes[member].facts or {} for member in members]
        seeds = {own.get(SEED) for own in facts}
        recipes = {digest_of({k: v for k, v in own.items() if k not in (SEED, "sha256")}) for own in facts}
        if len(members) > 1 and None not in seeds and len(seeds) == len(members) and len(recipes) == 1:
            groups[name] = members
    return groups
