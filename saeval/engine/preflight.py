"""The preflight: on a run's first batch, proves that the model is causal and resumes correctly, and examines SAEs."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from saeval.base.errors import Problem, SuiteError, blamed, suggestion
from saeval.base.memory import refuse_too_large
from saeval.base.names import names_matching, names_matching_any
from saeval.engine.batch_program import Summation
from saeval.engine.examination import Examination, Finding, examine
from saeval.engine.kept_passes import KeptPasses
from saeval.engine.model_proof import Causality, Proof, not_finite, prove, prove_causal
from saeval.interfaces.data import PairBatch
from saeval.plan.cell import copies
from saeval.plan.column_names import without_control
from saeval.plan.leaves import hooks_of, reach_the_end, resume
from saeval.plan.nodes import closure
from saeval.stats.evidence import Evidence

if TYPE_CHECKING:
    from saeval.interfaces.substitute import Subject
    from saeval.plan.cell import Cell
    from saeval.plan.plan import Plan

log = logging.getLogger("saeval")

T = TypeVar("T")

_CAUSAL = "use one that reads from left to right, such as a model saved with 'is_decoder' or 'is_causal' true"


@dataclasses.dataclass(frozen=True)
class _NoEvidence(Evidence):
    """Empty evidence: the preflight sums nothing."""


class Preflight:
    """Examines a plan's SAEs and proves its resumes. Fatal findings stop the run, unless the options say otherwise."""

    def __init__(self, plan: Plan, kept: KeptPasses | None = None) -> None:
        self.plan, self._kept = plan, kept
        self.examinations: dict[str, Examination] = {}
        """Examinations by key of the SAE."""
        self.proofs: dict[str, Proof | str] = {}
        """The proof of the resume at each hook, or why there is none."""
        self.causality: Causality | str | None = None
        """The proof that the model is causal, or why there is none; None if no cell needs the model's final state."""
        self.forward_passes = 0
        """Number of forward passes beside those that the evaluator counts."""
        self._not_finite: str | None = None
        if kept is not None:
            self.causality = kept.causality
            self.proofs |= kept.proofs
        self._declared: dict[str, list[Finding]] = {}

    def summations(self, cells: Sequence[Cell], memory: int | None) -> list[list[Summation]]:
        """Return the preflight of `cells` as summations over one batch, in portions that fit in `memory` bytes."""
        nodes = closure([n for c in cells for n in c.nodes()]).values()
        first: list[Summation] = []
        if self.plan.final is not None and reach_the_end(nodes) and self.causality is None:
            first.append(Summation("preflight final", self._prove_model, [self.plan.final], -2))
        for hook_name in (hook for hook in hooks_of(resume, nodes) if hook not in self.proofs):
            requests = self.plan.proofs[hook_name]
            first.append(Summation(f"preflight {hook_name}", self._prove(hook_name), [requests], -1))
        portions, held = [first], 0
        subjects = {s.key: (s, c.order) for c in cells if c.streamed for s in c.subjects if s.key in self.plan.examined}
        for key, (subject, order) in subjects.items():
            size = 8 * (subject.d_in or 0) * (subject.d_sae or 0)
            if memory is not None and held and held + size > memory:
                portions.append([])
                held = 0
            held += size
            portions[-1].append(Summation(f"preflight {key}", self._examine(subject), [self.plan.examined[key]], order))
        return [summations for summations in portions if summations]

    def _examine(self, subject: Subject) -> Any:
        def observe(sae: Any, sae_input: Any, activations: Any, mask: Any) -> Evidence:
            examination = _attempted(examine, sae, subject.facts or {}, sae_input, activations, mask)
            if isinstance(examination, str):
                # If it also fails on the whole batch, its own cells fail and report it.
                fatal = _works(sae, sae_input, activations)
                finding = Finding("examination", f"could not be examined: {examination}", fatal)
                examination = Examination(findings=[finding])
            self.examinations[subject.key] = examination
            return _NoEvidence()

        return observe

    def _prove(self, hook_name: str) -> Any:
        def observe(activations: Any, resume: Any, clean_final: Any, batch: Any) -> Evidence:
            proof = self.proofs[hook_name] = _attempted(prove, activations, resume, clean_final, batch)
            if self._kept is not None and isinstance(proof, Proof):
                self._kept.proofs[hook_name] = proof
            return _NoEvidence()

        return observe

    def _prove_model(self, model: Any, batch: Any, clean_final: Any) -> Evidence:
        self._not_finite = not_finite(model, batch, clean_final)
        if self._not_finite is None:
            self.forward_passes += 1
            self.causality = _attempted(prove_causal, model, batch, clean_final)
            if self._kept is not None and isinstance(self.causality, Causality):
                self._kept.causality = self.causality
        return _NoEvidence()

    def judge(self, cells: Iterable[Cell]) -> dict[str, str]:
        """Return the cells to leave out, by key, with the reason: none, unless the option `skip_failing` is set.

        Raises `SuiteError` for fatal findings, unless the options say to warn or to skip.
        """
        options = self.plan.options
        if fault := self._model_fault():  # all other findings follow from it
            message = f"preflight: {fault}"
            if options.preflight == "stop":
                raise SuiteError([Problem(message)])
            log.warning("%s", message)
        faults = {**self._faulty_saes(), **self._faulty_hooks()}
        if faults and options.preflight == "stop" and not options.skip_failing:
            raise SuiteError([problem for _, problem in faults.values()])
        for message, _ in faults.values():
            log.warning("%s", message)
        if options.preflight == "warn":
            return {}
        left_out = {}
        for cell in cells:
            resumed = hooks_of(resume, closure(cell.nodes()).values()) if faults else []
            keys = [key for s in cell.subjects for key in (s.key, s.parent.key if s.parent else s.key)]
            if reasons := list(dict.fromkeys(faults[k][0] for k in [*keys, *resumed] if k in faults)):
                left_out[cell.key] = "; ".join(reasons)
        return left_out

    def _model_fault(self) -> str | None:
        """Return what is wrong with the model itself, as a sentence with its remedy; None if nothing is."""
        if self.plan.spec is None:
            return None
        model = f"the model '{self.plan.spec.name}'"
        if self._not_finite is None:
            fault = self.causality.fault if isinstance(self.causality, Causality) else None
            return f"{model} {fault}; {_CAUSAL}" if fault else None
        dtype = self.plan.spec.identity().get("dtype")
        half = str(dtype).removeprefix("torch.") in ("float16", "bfloat16")
        hint = f"its dtype is {dtype}: try float32" if half else "are its weights damaged?"
        return f"{model} {self._not_finite}; {hint}"

    def _faulty_saes(self) -> dict[str, tuple[str, Problem]]:
        """Return the fatal findings of each SAE, by its key: as a message, and as a problem with place and remedies."""
        options, faults = self.plan.options, {}
        allowed = names_matching_any(options.allow, [s.name for s in self.plan.subjects if s.kind == "sae"])
        for subject in self.plan.subjects:
            examination = self.examinations.get(subject.key)
            if examination is None or not examination.fatal or subject.name in allowed:
                continue
            # A wrong hook looks like many other faults; if the checkpoint declares another hook, that is likely.
            hook = [f for f in self._declarations(subject) if f.check == "hook"]
            message = f"preflight: {subject.name}: {'; '.join(f.message for f in [*hook, *examination.fatal])}"
            allow, skip = options.spelled("allow", [subject.name]), options.spelled("skip_failing")
            live = (subject.facts or {}).get("format") == "live"  # `saeval doctor` cannot examine live objects
            details = "" if live else "run `saeval doctor` for details; "
            remedy = f"({details}{allow} uses the SAE anyway, {skip} leaves it out)"
            faults[subject.key] = message, self._problem(f"{message} {remedy}", subject)
        return faults

    def _faulty_hooks(self) -> dict[str, tuple[str, Problem]]:
        options, faults = self.plan.options, {}
        for hook_name, proof in self.proofs.items():
            if isinstance(proof, str) or proof.fault is None:
                continue
            name = self.plan.spec.name if self.plan.spec else "the model"
            message = f"preflight: {hook_name} of model '{name}': {proof.fault}, so no splice there can be trusted"
            skip, warn = options.spelled("skip_failing"), options.spelled("preflight", "warn")
            remedy = f"(use another hook; {skip} leaves out the cells that resume there, {warn} runs them anyway)"
            at = next((s for s in self.plan.subjects if s.hook_name == hook_name and s.kind != "control"), None)
            faults[hook_name] = message, self._problem(f"{message} {remedy}", at)
        return faults

    def _problem(self, message: str, subject: Subject | None) -> Problem:
        place = self.plan.places.get(subject.name) if subject else None
        return self.plan.suite.problem(message, *place) if place else Problem(message)

    def record(self, cell: Cell) -> dict[str, Any]:
        """Return the preflight's part of a result: findings and contradicted declarations of its SAEs, and proofs."""
        examined = {key: examination.findings for key, examination in self.examinations.items()}
        saes = [s for s in cell.subjects if s.kind == "sae"]
        findings = {s.name: [*examined.get(s.key, []), *self._declarations(s)] for s in saes}
        if self._not_finite:
            findings["model"] = [Finding("finite", self._not_finite)]
        elif isinstance(self.causality, Causality) and self.causality.fault:
            findings["model"] = [Finding("causal", self.causality.fault)]
        records = {name: [dataclasses.asdict(f) for f in listed] for name, listed in findings.items() if listed}
        nodes = closure(cell.nodes()).values()
        hooks = [hook for hook in hooks_of(resume, nodes) if hook in self.proofs]
        proofs = {h: p.record() if isinstance(p := self.proofs[h], Proof) else p for h in hooks}
        causal = self.causality.record() if isinstance(self.causality, Causality) else self.causality
        proved = {"causal": causal} if causal and reach_the_end(nodes) else {}
        return ({"preflight": records} if records else {}) | ({"resumes": proofs} if proofs else {}) | proved

    def _declarations(self, subject: Subject) -> list[Finding]:
        if subject.name not in self._declared:
            self._declared[subject.name] = declarations(subject, self.plan)
        return self._declared[subject.name]


def _attempted(function: Callable[..., T], *arguments: Any) -> T | str:
    """Return the function's result, or its error as text: results record it, and cells that meet it fail with it."""
    try:
        return function(*arguments)
    except Exception as error:  # an SAE or a model may raise anything
        refuse_too_large(error)
        return f"{type(error).__name__}: {error}"


def _works(sae: Any, sae_input: Any, activations: Any) -> bool:
    """True if an SAE encodes and decodes the whole batch; it gets copies, since it may write into them."""
    try:
        sae.decode(sae.encode(sae_input.clone()), activations.clone())
    except Exception:  # the cells will report it
        return False
    return True


def declarations(subject: Subject, plan: Plan) -> list[Finding]:
    """Return a finding, none fatal, for each contradiction between a checkpoint's declarations and the suite."""
    facts, texts = subject.facts or {}, {}
    trained, used = facts.get("context_size"), plan.streams.options.context if plan.streams.options else None
    if isinstance(trained, int) and used is not None and used > trained:
        texts["context"] = f"was trained on contexts of {trained} tokens, the suite's have {used}"
    if centred(facts) and plan.spec is not None and plan.spec.facts().get("center_writing_weights") is False:
        remedy = "add 'center_writing_weights: true' to 'model'"
        texts["processing"] = f"was trained on a model with centred writing weights; {remedy}"
    hook_name = facts.get("declared_hook")
    if hook_name is not None and hook_name != subject.shown_hook:
        texts["hook"] = f"declares the hook '{hook_name}', the suite's is '{subject.shown_hook}'"
    declared = facts.get("model_name")
    if plan.spec is not None and isinstance(declared, str) and not _is_model(declared, plan):
        texts["model"] = f"was trained on the model '{declared}', the suite's is '{plan.spec.name}'"
    return [Finding(check, text, fatal=False) for check, text in texts.items()]


def centred(facts: Mapping[str, Any]) -> bool:
    """True if a checkpoint declares that the writing weights of its model were centred."""
    options = facts.get("model_from_pretrained_kwargs")
    options = options if isinstance(options, dict) else {}
    return bool(facts.get("center_writing_weights") or options.get("center_writing_weights"))


def _is_model(declared: str, plan: Plan) -> bool:
    """True if a name is one of the names of the plan's model."""
    assert plan.spec is not None
    if same_model(declared, plan.spec.name):
        return True
    aliases = {entry.name: entry.thing.aliases for entry in plan.registry.models}
    names = [*aliases.get(plan.spec.name, ()), plan.spec.facts().get("name")]
    return any(same_model(declared, name) for name in names if isinstance(name, str))


_OPTIONAL_WORDS = {"hf", "base", "pt", "pretrained", "small", "meta", "tlens"}
"""Words that a model's name may have or lack: `gpt2-small`, `Meta-Llama-3-8B`, `gemma-3-1b-pt`."""


def same_model(declared: str, name: str) -> bool:
    """True if two names mean the same model, ignoring publisher, punctuation and optional words."""
    words = (re.findall(r"[a-z0-9]+", n.lower().rstrip("/").split("/")[-1]) for n in (declared, name))
    first, second = ("".join(word for word in of_name if word not in _OPTIONAL_WORDS) for of_name in words)
    return first == second


def warnings(plan: Plan) -> list[str]:
    """Return a sentence per contradicted declaration, unknown allowed name, copy in a group and missing control, and
    the remarks of metrics."""
    saes = {s.name: s for s in plan.subjects if s.kind == "sae"}
    unknown = [
        f"{plan.options.spelled('allow', [pattern])}: no SAE of the suite has this name{suggestion(pattern, saes)}"
        for pattern in plan.options.allow
        if not names_matching(pattern, saes)
    ]
    contradicted = [f"{s.name} {finding.message}" for s in saes.values() for finding in declarations(s, plan)]
    copied = dict.fromkeys(sentence for cell in plan.cells for sentence in copies(cell))
    uncontrolled = without_control(plan.suite, plan.subjects)
    sentences = (*unknown, *contradicted, *copied, *uncontrolled, *_remarks(plan))
    return [f"warning: {sentence}" for sentence in sentences]


def _remarks(plan: Plan) -> dict[str, None]:
    """Return the remarks of metrics on their cells, each once."""
    remarks: dict[str, None] = {}
    for cell in (cell for cell in plan.cells if "twin" not in cell.record):
        with blamed(f"'remarks' of metric '{cell.entry.name}'", plan.registry.metrics.entry(cell.entry.name).origin):
            of = f" over {cell.entry.over}" if cell.entry.over else ""
            remarks |= {f"{cell.entry.alias}{of}: {remark}": None for remark in cell.metric.remarks(cell.subjects)}
    return remarks


def model_warnings(plan: Plan) -> list[str]:
    """Return the warnings of the model's files, alone and together with the data, for a verified plan."""
    if plan.spec is None:
        return []
    ending = _ending_in_padding(plan) if plan.spec.kind == "reward" else None
    return [*plan.spec.warnings(), *([ending] if ending else [])]


def _ending_in_padding(plan: Plan) -> str | None:
    """Return a warning if texts end with a token that the reward model's own code treats as padding; None otherwise."""
    padding, rows = plan.spec.padding_token if plan.spec else None, plan.streams.evaluation
    if padding is None or not rows.needs_model:
        return None
    batch = rows.batch(range(min(256, len(rows))), "cpu")
    ending = texts = 0
    for side in batch.sides if isinstance(batch, PairBatch) else (batch,):
        last = side.real.shape[1] - 1 - side.real.long().flip(1).argmax(1)
        ending += int((side.tokens.gather(1, last[:, None])[:, 0] == padding)[side.real.any(1)].sum())
        texts += int(side.real.any(1).sum())
    if not ending or plan.spec is None:
        return None
    return (
        f"{ending} of {texts} texts end with token {padding}, which is also the padding of '{plan.spec.name}': saeval "
        "reads the reward at it, transformers at the token before; to do as transformers does, add 'reward_at: "
        "before_padding' to 'model'"
    )
