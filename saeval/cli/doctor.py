"""`saeval doctor`: is an SAE loaded correctly? Its metadata, compared with measurements."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeval.api import find_suite, prepare
from saeval.base.errors import SaevalError, SuiteError, blamed, expand_user, said, suggestion
from saeval.base.escapes import line
from saeval.base.formatting import counted
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
from saeval.registry.format_recognition import readable, written
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks, value_of

SEQUENCES, CONTEXT = 16, 64
_DECLARED = ("format", "architecture", "k", "l0", "model_name", "context_size", "sha256")


@dataclass(eq=False)
class Doctor:
    """Examines all SAEs of a reference: a suite, a registered name or glob, a checkpoint's path, or an entry of `saes:`
    in YAML's flow style."""

    registry: Registry
    options: RunOptions
    _read_as: list[str] = field(default_factory=list)
    """The entry of a path, as a suite needs it."""

    def plan(self, reference: str, model: str | None, data: str | None, hook_name: str | None) -> Plan:
        """Return the plan to examine the SAEs with: model, text and SAEs. `SaevalError` if one is missing or wrong."""
        if reference in self.registry.suites or Path(reference).suffix in (".yaml", ".yml"):
            flags = {"--model": model, "--data": data, "--hook": hook_name}
            for flag in (flag for flag, value in flags.items() if value):
                remedy = "edit the suite, or name one of its SAEs"
                raise SaevalError(f"doctor: {flag}: the suite '{reference}' sets it already; {remedy}")
            return prepare(find_suite(reference, self.registry), self.registry, self.options)
        entry = self._entry(reference)
        if hook_name and isinstance(entry, dict):
            entry["hook_name"] = hook_name
        elif hook_name:
            raise SaevalError(f"--hook: the registered SAE '{reference}' has a hook already")
        body: dict[str, Any] = {"suite": "doctor", "saes": [entry], "metrics": ["none"]}
        body["model"] = _flow(model, "--model") if model else self._model_of(entry)
        text = {"use": self._any_text(), "context": CONTEXT, "sequences": SEQUENCES}
        body["data"] = _flow(data, "--data") if data else text
        suite = validate(body, Marks("doctor"))
        suite.body.metrics = []
        return plan(suite, self.registry, self.options)

    def _entry(self, reference: str) -> str | dict[str, Any]:
        if reference.lstrip().startswith("{"):
            entry = _flow(reference, "doctor")
            if isinstance(entry, dict):
                return entry
        if expand_user(reference).exists():
            return self._recognised(reference)
        if WILDCARDS & set(reference) or reference in self.registry.saes:
            return reference
        near = suggestion(reference, self.registry.saes.names())
        raise SaevalError(f"doctor: '{reference}' is no suite, registered SAE or path{near[:300]}")

    def _recognised(self, path: str) -> dict[str, Any]:
        """Return an entry with the one format that can read the path."""
        able, unable = readable(path, self.registry)
        if len(able) == 1:
            (entry,) = able.values()
            self._read_as = [f"{path} is read as {written(entry)}"]
            return dict(entry)
        if able:
            raise SaevalError(
                f"doctor: {path} can be read as {', '.join(able)}; choose one: '{{use: ..., path: {path}}}'"
            )
        reasons = [f"  {name}: {reason}" for name, reason in unable.items()]
        raise SaevalError("\n".join([f"doctor: no format reads {path}:", *reasons]))

    def _model_of(self, entry: str | dict[str, Any]) -> str:
        """Return the registered model that an SAE's name begins with, as in `testbed/relu-1`."""
        name = entry.split("/")[0] if isinstance(entry, str) else ""
        if name in self.registry.models:
            return name
        raise SaevalError("doctor: no model; give --model NAME, or --model '{use: huggingface, path: FOLDER}'")

    def _any_text(self) -> str:
        """Return the first source of text that needs no parameter, those with defaults of their own for rows last."""
        for entry in sorted(self.registry.data, key=lambda entry: bool(entry.thing.defaults)):
            required = (field.is_required() for field in schema(entry.thing).model_fields.values())
            if entry.thing.kind == "text" and not any(required):
                with contextlib.suppress(SaevalError):  # one of two parameters may be required
                    entry.thing()
                    return entry.name
        raise SaevalError("doctor: no text; give --data '{use: text, path: FILE, context: 64, sequences: 16}'")

    def report(self, plan: Plan) -> tuple[str, bool]:
        """Return the report on the plan's SAEs, and True if it has no fatal finding."""
        plan.verify()
        if plan.spec is None:
            raise SaevalError("doctor: this suite has no model to run its SAEs on; name one SAE, and give --model")
        saes = [s for s in plan.subjects if s.kind == "sae" and not s.needs]  # a control as an SAE has no checkpoint
        near = {s.name: _neighbours(s.hook_name, plan.spec) for s in saes}
        model = plan.spec.load(self.options.device)
        rows = range(min(SEQUENCES, len(plan.streams.evaluation)))
        drawn = plan.streams.evaluation.batch(rows, self.options.device)
        batch = drawn.sides[0] if isinstance(drawn, PairBatch) else drawn  # of pairs, the chosen text
        hooks = {h for s in saes for h in (s.hook_name, s.input_hook or s.hook_name, *near[s.name])}
        with torch.no_grad():
            activations = model.capture(batch, sorted(hooks), False).activations
            lines, passed = list(self._read_as), True
            for subject in saes:
                with blamed(f"SAE '{subject.name}'", subject.origin):
                    sae = subject.load()
                seen = activations[subject.hook_name]
                elsewhere = {h: activations[h] for h in near[subject.name] if not torch.equal(activations[h], seen)}
                read = activations[subject.input_hook or subject.hook_name]
                try:
                    examination = examine(sae, subject.facts or {}, read, seen, batch.mask, elsewhere)
                    examination.findings += _shapes(sae, subject)
                except Exception as error:  # the SAE may be wrong in any way
                    failure = Finding("examination", f"could not be examined: {said(error)}")
                    examination = Examination(findings=[failure])
                examination.findings += declarations(subject, plan)
                lines += _lines(subject, examination)
                passed &= not examination.fatal
        return "\n".join(map(line, lines)), passed


def _flow(text: str, option: str) -> str | dict[str, Any]:
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    try:
        value = value_of(text, "")
    except SuiteError as error:
        reason = f": {error.problems[0].message}"
    else:
        if isinstance(value, str | dict):
            return value
        reason = ""
    raise SaevalError(f"{option} {shown}: expected a name, or an entry such as '{{use: ..., path: ...}}'{reason}")


def _neighbours(hook_name: str, spec: ModelSpec) -> list[str]:
    """Return nearby sites of the same width: the SAE may have been trained at one of these."""
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


def _lines(subject: Subject, examination: Examination) -> list[str]:
    facts = subject.facts or {}
    where = subject.shown_hook if subject.input_hook is None else f"{subject.input_hook} -> {subject.shown_hook}"
    declared = [f"{k} {str(facts[k])[:16]}" for k in _DECLARED if facts.get(k) is not None]
    lines = [f"{subject.name}: {subject.d_in} -> {subject.d_sae} at {where}", f"  declares: {', '.join(declared)}"]
    if examination.measured:
        measured = dict(examination.measured)
        with_them = measured.pop("explained_variance_with_outlying", None)
        shown = {name: f"{name} {value:.4g}" for name, value in measured.items()}
        if with_them is not None:
            left_out = counted(examination.outlying, "token")
            shown["explained_variance"] += f" without {left_out} of outlying norm ({with_them:.4g} with)"
        lines.append(f"  measured on {examination.tokens} tokens: {', '.join(shown.values())}")
    if examination.elsewhere:
        best = sorted(examination.elsewhere.items(), key=lambda e: -e[1])[:3]
        lines.append(f"  best explained variance at other hooks: {', '.join(f'{h} {v:.4g}' for h, v in best)}")
    for finding in examination.findings:
        lines.append(f"  {'PROBLEM' if finding.fatal else 'warning'} ({finding.check}): {finding.message}")
    return [*lines, *([] if examination.findings else ["  no problems found"])]
