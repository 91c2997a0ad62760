"""`saeval doctor`: one SAE looked at closely, what it declares beside what is measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saeval.api import find_suite, prepare
from saeval.base.errors import SaevalError, SuiteError, blamed, expand_user, said, suggestion
from saeval.base.escapes import line
from saeval.base.lazy_torch import torch
from saeval.base.names import WILDCARDS
from saeval.base.parameters import schema
from saeval.base.run_options import RunOptions
from saeval.engine.examination import Examination, Finding, examine
from saeval.engine.preflight import declarations
from saeval.interfaces.data import PairBatch
from saeval.interfaces.model import ModelSpec
from saeval.interfaces.substitute import Subject, Substitute
from saeval.plan.plan import Plan, plan
from saeval.registry.format_recognition import readable
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks, value_of

SEQUENCES, CONTEXT = 16, 64
_DECLARED = ("format", "architecture", "k", "l0", "model_name", "context_size", "sha256")


class Doctor:
    """Examines every SAE that a reference means: a suite, a registered name or glob, a checkpoint's path, or an entry
    of `saes:` in YAML's flow style."""

    def __init__(self, registry: Registry, options: RunOptions) -> None:
        self.registry = registry
        self.options = options

    def plan(self, reference: str, model: str | None, data: str | None, hook_name: str | None) -> Plan:
        """The SAEs with a model and text to see them on; `SaevalError` for what cannot be."""
        if reference in self.registry.suites or Path(reference).suffix in (".yaml", ".yml"):
            given = {"--model": model, "--data": data, "--hook": hook_name}
            for option in (o for o, value in given.items() if value):
                remedy = "edit the suite, or name one of its SAEs"
                raise SaevalError(f"doctor: {option}: the suite '{reference}' says that itself; {remedy}")
            return prepare(find_suite(reference, self.registry), self.registry, self.options)
        entry = self._entry(reference)
        if hook_name and isinstance(entry, dict):
            entry["hook_name"] = hook_name
        elif hook_name:
            raise SaevalError(f"--hook: the registered SAE '{reference}' has its hook already")
        body: dict[str, Any] = {"suite": "doctor", "saes": [entry], "metrics": ["none"]}
        body["model"] = _flow(model, "--model") if model else self._model_of(entry)
        text = {"use": self._any_text(), "context": CONTEXT, "sequences": SEQUENCES}
        body["data"] = _flow(data, "--data") if data else text
        suite = validate(body, Marks("doctor"))
        suite.body.metrics = []
        return plan(suite, self.registry, self.options)

    def _entry(self, reference: str) -> str | dict[str, Any]:
        if reference.lstrip().startswith("{"):
            found = _flow(reference, "doctor")
            if isinstance(found, dict):
                return found
        if expand_user(reference).exists():
            return self._recognised(reference)
        if WILDCARDS & set(reference) or reference in self.registry.saes:
            return reference
        near = suggestion(reference, self.registry.saes.names())
        raise SaevalError(f"doctor: '{reference}' is no suite, registered SAE or path{near[:300]}")

    def _recognised(self, path: str) -> dict[str, Any]:
        """The entry of the one format that can read the path."""
        able, unable = readable(path, self.registry)
        if len(able) == 1:
            return dict(next(iter(able.values())))
        if able:
            raise SaevalError(
                f"doctor: {path} can be read as {', '.join(able)}; say which: '{{use: ..., path: {path}}}'"
            )
        reasons = [f"  {name}: {reason}" for name, reason in unable.items()]
        raise SaevalError("\n".join([f"doctor: no format reads {path}:", *reasons]))

    def _model_of(self, entry: str | dict[str, Any]) -> str:
        """The registered model an SAE's name begins with, as `testbed/relu-1` does."""
        name = entry.split("/")[0] if isinstance(entry, str) else ""
        if name in self.registry.models:
            return name
        raise SaevalError("doctor: which model? --model NAME, or --model '{use: huggingface, path: FOLDER}'")

    def _any_text(self) -> str:
        usable = [e.name for e in self.registry.data if e.thing.kind == "text" and not _needs(e.thing)]
        if not usable:
            raise SaevalError("doctor: on what text? --data '{use: text, path: FILE, context: 64, sequences: 16}'")
        return usable[0]

    def report(self, made: Plan) -> tuple[str, bool]:
        """The text, and whether nothing fatal was found."""
        made.verify()
        if made.spec is None:
            raise SaevalError(
                "doctor: this suite has no model to look at its SAEs with; name one SAE, and give --model"
            )
        saes = [s for s in made.subjects if s.kind == "sae"]
        near = {s.name: _neighbours(s.hook_name, made.spec) for s in saes}
        model = made.spec.load(self.options.device)
        rows = range(min(SEQUENCES, len(made.streams.evaluation)))
        drawn = made.streams.evaluation.batch(rows, self.options.device)
        batch = drawn.sides[0] if isinstance(drawn, PairBatch) else drawn  # of a pair the chosen text, as good as any
        hooks = {h for s in saes for h in (s.hook_name, s.input_hook or s.hook_name, *near[s.name])}
        with torch.no_grad():
            activations = model.capture(batch, sorted(hooks), False).activations
            lines, well = [], True
            for subject in saes:
                with blamed(f"SAE '{subject.name}'", subject.origin):
                    sae = subject.load()
                seen = activations[subject.hook_name]
                elsewhere = {h: activations[h] for h in near[subject.name] if not torch.equal(activations[h], seen)}
                read = activations[subject.input_hook or subject.hook_name]
                try:
                    one = examine(sae, subject.facts or {}, read, seen, batch.mask, elsewhere)
                    one.findings += _shapes(sae, subject)
                except Exception as error:  # an SAE that nobody looked at may be anything
                    one = Examination(findings=[Finding("examination", f"could not be examined: {said(error)}")])
                one.findings += declarations(subject, made)
                lines += _lines(subject, one)
                well &= not one.fatal
        return "\n".join(map(line, lines)), well


def _flow(text: str, option: str) -> str | dict[str, Any]:
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    try:
        found = value_of(text, "")
    except SuiteError as error:
        reason = f": {error.problems[0].message}"
    else:
        if isinstance(found, str | dict):
            return found
        reason = ""
    raise SaevalError(f"{option} {shown}: expected a name, or an entry such as '{{use: ..., path: ...}}'{reason}")


def _needs(source: Any) -> bool:

    return any(field.is_required() for field in schema(source).model_fields.values())


def _neighbours(hook_name: str, spec: ModelSpec) -> list[str]:
    """Sites of the same width that an SAE may have been trained at instead."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if not match:
        return []
    block, suffix = int(match[1]), match[2]
    suffixes = dict.fromkeys(["hook_resid_pre", "hook_resid_mid", "hook_resid_post", suffix])
    names = [f"blocks.{b}.{s}" for s in suffixes for b in (block - 1, block, block + 1)]
    names += [f"blocks.{block}.{s}" for s in ("hook_attn_out", "hook_mlp_out", "attn.hook_z")]
    hooks = spec.hooks()
    width = hooks.get(hook_name)
    sites = dict.fromkeys(spec.site(n) for n in names if hooks.get(n) == width)
    return [site for site in sites if site != hook_name]


def _shapes(sae: Substitute, subject: Subject) -> list[Finding]:
    d_out = subject.d_out or subject.d_in
    expected = {"W_enc": (subject.d_in, subject.d_sae), "W_dec": (subject.d_sae, d_out), "b_dec": (d_out,)}
    wrong = {n: tuple(t.shape) for n, t in sae.weights.items() if n in expected and tuple(t.shape) != expected[n]}
    return [Finding("shapes", f"{n} is {list(s)}, its header says {list(expected[n])}") for n, s in wrong.items()]


def _lines(subject: Subject, one: Examination) -> list[str]:
    facts = subject.facts or {}
    where = subject.shown_hook if subject.input_hook is None else f"{subject.input_hook} -> {subject.shown_hook}"
    declared = [f"{k} {str(facts[k])[:16]}" for k in _DECLARED if facts.get(k) is not None]
    lines = [f"{subject.name}: {subject.d_in} -> {subject.d_sae} at {where}", f"  declares: {', '.join(declared)}"]
    if one.measured:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in one.measured.items())
        left_out = f" ({one.outlying} more, of outlying norm, left out)" if one.outlying else ""
        lines.append(f"  measured on {one.tokens} tokens{left_out}: {shown}")
    if one.elsewhere:
        best = sorted(one.elsewhere.items(), key=lambda e: -e[1])[:3]
        lines.append(f"  explained variance elsewhere, best: {', '.join(f'{h} {v:.4g}' for h, v in best)}")
    for finding in one.findings:
        lines.append(f"  {'PROBLEM' if finding.fatal else 'warning'} ({finding.check}): {finding.message}")
    return [*lines, *([] if one.findings else ["  nothing wrong was found"])]
