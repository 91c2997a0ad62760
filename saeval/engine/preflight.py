"""The preflight: on a run's first batch, before anything else, the model is proved causal, its resumes are proved, and
SAEs are examined."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saeval.base.errors import Problem, SuiteError, suggestion
from saeval.base.memory import refuse_too_large
from saeval.base.names import names_matching, names_matching_any
from saeval.engine.batch_program import Summation
from saeval.engine.examination import Examination, Finding, examine
from saeval.engine.model_proof import Causality, Proof, prove, prove_causal, unwell
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

_CAUSAL = "use one that reads from left to right, such as a model saved with 'is_decoder' or 'is_causal' true"


@dataclasses.dataclass(frozen=True)
class _NoEvidence(Evidence):
    """There is nothing to sum."""


class Preflight:
    """Examines a plan's SAEs and proves its resumes. What it finds stops the run, unless the options say otherwise."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.examinations: dict[str, Examination] = {}
        """By the SAE's key."""
        self.proofs: dict[str, Proof | str] = {}
        """By the hook: the proof of its resume, or why there is none."""
        self.causality: Causality | str | None = None
        """The proof that the model is causal, or why there is none; None where no cell asks for its final state."""
        self.forward_passes = 0
        """Passes beside those that the pass under way makes and counts."""
        self._unwell: list[str] = []
        self._declared: dict[str, list[Finding]] = {}

    def summations(self, cells: Sequence[Cell], memory: int | None) -> list[list[Summation]]:
        """What is to be looked at on one batch; SAEs that do not fit in `memory` bytes together are apart."""
        nodes = closure([n for c in cells for n in c.nodes()]).values()
        first: list[Summation] = []
        if self.plan.final is not None and reach_the_end(nodes):
            first.append(Summation("preflight final", self._model_is_well, [self.plan.final], -2))
        for hook_name in hooks_of(resume, nodes):
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
            try:
                one = examine(sae, subject.facts or {}, sae_input, activations, mask)
            except Exception as error:  # an SAE that nobody looked at may be anything
                refuse_too_large(error)
                text = f"could not be examined: {type(error).__name__}: {error}"
                # One that fails on the whole batch as well costs its own cells, which say so.
                one = Examination(findings=[Finding("examination", text, fatal=_works(sae, sae_input, activations))])
            self.examinations[subject.key] = one
            return _NoEvidence()

        return observe

    def _prove(self, hook_name: str) -> Any:
        def observe(activations: Any, resume: Any, clean_final: Any, batch: Any) -> Evidence:
            try:
                self.proofs[hook_name] = prove(activations, resume, clean_final, batch)
            except Exception as error:  # the cells that resume there will say so
                refuse_too_large(error)
                self.proofs[hook_name] = f"{type(error).__name__}: {error}"
            return _NoEvidence()

        return observe

    def _model_is_well(self, model: Any, batch: Any, clean_final: Any) -> Evidence:
        fault = unwell(model, batch, clean_final)
        self._unwell = [fault] if fault else []
        if fault:
            return _NoEvidence()
        self.forward_passes += 1
        try:
            self.causality = prove_causal(model, batch, clean_final)
        except Exception as error:  # a model that cannot be run so says why in the provenance
            refuse_too_large(error)
            self.causality = f"{type(error).__name__}: {error}"
        return _NoEvidence()

    def judge(self, cells: Iterable[Cell]) -> dict[str, str]:
        """The cells to leave out, by key, with the reason: none, unless the options say to skip what fails.

        `SuiteError` for what was found, unless the options say to warn of it.
        """
        options = self.plan.options
        if fault := self._model_fault():  # whatever else was found follows from it
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
        """What is wrong with the model itself, as a sentence with its remedy; None where nothing is."""
        if self.plan.spec is None:
            return None
        causal = self.causality if isinstance(self.causality, Causality) else None
        if not self._unwell and causal and causal.fault:
            return f"the model '{self.plan.spec.name}' {causal.fault}; {_CAUSAL}"
        if not self._unwell:
            return None
        dtype = self.plan.spec.identity().get("dtype")
        half = str(dtype).removeprefix("torch.") in ("float16", "bfloat16")
        hint = f"its dtype is {dtype}: try float32" if half else "are its weights damaged?"
        return f"the model '{self.plan.spec.name}' {self._unwell[0]}; {hint}"

    def _faulty_saes(self) -> dict[str, tuple[str, Problem]]:
        """By the SAE's key: what was found, and the same with its place and the remedies."""
        options, faults = self.plan.options, {}
        allowed = names_matching_any(options.allow, [s.name for s in self.plan.subjects if s.kind == "sae"])
        for subject in self.plan.subjects:
            one = self.examinations.get(subject.key)
            if one is None or not one.fatal or subject.name in allowed:
                continue
            # A wrong hook looks like many other faults; where the checkpoint knows its own, that is the likeliest.
            hook = [f for f in self._declarations(subject) if f.check == "hook"]
            message = f"preflight: {subject.name}: {'; '.join(f.message for f in [*hook, *one.fatal])}"
            allow, skip = options.spelled("allow", [subject.name]), options.spelled("skip_failing")
            live = (subject.facts or {}).get("format") == "live"  # of which doctor knows nothing
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
            message = f"preflight: {hook_name} of model '{name}': {proof.fault}, so no splice there can be believed"
            skip, warn = options.spelled("skip_failing"), options.spelled("preflight", "warn")
            remedy = f"(use another hook; {skip} leaves out what resumes there, {warn} runs it anyway)"
            here = next((s for s in self.plan.subjects if s.hook_name == hook_name and s.kind == "sae"), None)
            faults[hook_name] = message, self._problem(f"{message} {remedy}", here)
        return faults

    def _problem(self, message: str, subject: Subject | None) -> Problem:
        place = self.plan.places.get(subject.name) if subject else None
        return self.plan.suite.problem(message, *place) if place else Problem(message)

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a result keeps: findings of its SAEs and what they declare that the suite does otherwise, and proofs."""
        found = {s.name: [*self._examined(s), *self._declarations(s)] for s in cell.subjects if s.kind == "sae"}
        if self._unwell:
            found["model"] = [Finding("finite", self._unwell[0])]
        elif isinstance(self.causality, Causality) and self.causality.fault:
            found["model"] = [Finding("causal", self.causality.fault)]
        kept = {name: [dataclasses.asdict(f) for f in findings] for name, findings in found.items() if findings}
        nodes = closure(cell.nodes()).values()
        hooks = [hook for hook in hooks_of(resume, nodes) if hook in self.proofs]
        proofs = {h: p.record() if isinstance(p := self.proofs[h], Proof) else p for h in hooks}
        causal = self.causality.record() if isinstance(self.causality, Causality) else self.causality
        proved = {"causal": causal} if causal and reach_the_end(nodes) else {}
        return ({"preflight": kept} if kept else {}) | ({"resumes": proofs} if proofs else {}) | proved

    def _examined(self, subject: Subject) -> list[Finding]:
        return self.examinations[subject.key].findings if subject.key in self.examinations else []

    def _declarations(self, subject: Subject) -> list[Finding]:
        if subject.name not in self._declared:
            self._declared[subject.name] = declarations(subject, self.plan)
        return self._declared[subject.name]


def _works(sae: Any, sae_input: Any, activations: Any) -> bool:
    """Whether an SAE encodes and decodes a batch as the cells have it; shown copies, since it may write into them."""
    try:
        sae.decode(sae.encode(sae_input.clone()), activations.clone())
    except Exception:  # whatever it is, the cells will have it too
        return False
    return True


def declarations(subject: Subject, plan: Plan) -> list[Finding]:
    """Where what a checkpoint says of itself and what the suite does with it disagree; none of it stops a run."""
    facts, found = subject.facts or {}, []
    trained, used = facts.get("context_size"), plan.streams.options.context if plan.streams.options else None
    if isinstance(trained, int) and used is not None and used > trained:
        text = f"was trained on contexts of {trained} tokens, the suite's have {used}"
        found.append(Finding("context", text, fatal=False))
    if centred(facts) and plan.spec is not None and plan.spec.facts().get("center_writing_weights") is False:
        text = "was trained on a model with centred writing weights; add 'center_writing_weights: true' to 'model'"
        found.append(Finding("processing", text, fatal=False))
    hook_name = facts.get("declared_hook")
    if hook_name is not None and hook_name != subject.shown_hook:
        text = f"declares the hook '{hook_name}', the suite's is '{subject.shown_hook}'"
        found.append(Finding("hook", text, fatal=False))
    declared = facts.get("model_name")
    if plan.spec is not None and isinstance(declared, str) and not _is_model(declared, plan):
        text = f"was trained on the model '{declared}', the suite's is '{plan.spec.name}'"
        found.append(Finding("model", text, fatal=False))
    return found


def centred(facts: Mapping[str, Any]) -> bool:
    """Whether an SAE says that its model's writing weights were centred."""
    options = facts.get("model_from_pretrained_kwargs")
    options = options if isinstance(options, dict) else {}
    return bool(facts.get("center_writing_weights") or options.get("center_writing_weights"))


def _is_model(declared: str, plan: Plan) -> bool:
    """Whether a name is one of those that the plan's model has."""
    assert plan.spec is not None
    if same_model(declared, plan.spec.name):
        return True
    known = {entry.name: entry.thing.aliases for entry in plan.registry.models}
    others = [*known.get(plan.spec.name, ()), plan.spec.facts().get("name")]
    return any(same_model(declared, other) for other in others if isinstance(other, str))


_SAYS_NOTHING = {"hf", "base", "pt", "pretrained", "small", "meta", "tlens"}
"""Words of a model's name that it is called with and without: `gpt2-small`, `Meta-Llama-3-8B`, `gemma-3-1b-pt`."""


def same_model(declared: str, name: str) -> bool:
    """Whether two names are of one model, whoever published it and however its words are parted."""
    words = (re.findall(r"[a-z0-9]+", n.lower().rstrip("/").split("/")[-1]) for n in (declared, name))
    one, other = ("".join(word for word in found if word not in _SAYS_NOTHING) for found in words)
    return one == other


def warnings(plan: Plan) -> list[str]:
    """Disagreements of SAEs, names allowed in vain, copies in groups, SAEs without their control: a sentence each."""
    saes = {s.name: s for s in plan.subjects if s.kind == "sae"}
    vain = [pattern for pattern in plan.options.allow if not names_matching(pattern, saes)]
    unknown = [
        f"{plan.options.spelled('allow', [p])}: no SAE of the suite has this name{suggestion(p, saes)}" for p in vain
    ]
    found = [f"{s.name} {finding.message}" for s in saes.values() for finding in declarations(s, plan)]
    twice = dict.fromkeys(sentence for cell in plan.cells for sentence in copies(cell))
    lacking = without_control(plan.suite, plan.subjects)
    return [f"warning: {sentence}" for sentence in (*unknown, *found, *twice, *lacking)]


def model_warnings(plan: Plan) -> list[str]:
    """What the model's files and the data's texts say together, a sentence each; of a verified plan."""
    if plan.spec is None:
        return []
    ending = _ending_in_padding(plan) if plan.spec.kind == "reward" else None
    return [*plan.spec.warnings(), *([ending] if ending else [])]


def _ending_in_padding(plan: Plan) -> str | None:
    """Whether texts end with a token that the reward model's own code takes for padding."""
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
        f"{ending} of {texts} texts end with token {padding}, which also is the padding of '{plan.spec.name}': saeval "
        "reads the reward at it, transformers at the token before; for that add 'reward_at: before_padding' to 'model'"
    )
