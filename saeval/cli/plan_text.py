"""The output of `saeval check`: passes, forward passes, quantities, time and memory."""

from __future__ import annotations

from collections.abc import Mapping

from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.memory import available, memory_budget
from saeval.cli import cost_estimate
from saeval.engine.batch_program import BatchProgram
from saeval.engine.passes import passes
from saeval.plan.batch_size import bytes_a_sequence, fitting
from saeval.plan.blocks import blocks
from saeval.plan.leaves import hooks_of, reach_the_end, resume
from saeval.plan.nodes import closure
from saeval.plan.plan import Plan
from saeval.plan.precision import stopping_points
from saeval.results.store import Store


def _excluded(plan: Plan) -> str:
    """Return the token ids that the mask excludes, and the numbers of records left out, in words."""
    described = plan.streams.evaluation.describe()
    excluded, left_out = described.get("excluded"), described.get("left_out")
    tokens = f"; token ids outside the mask: {', '.join(map(str, excluded))}" if excluded else ""
    return tokens + (f"; left out: {', '.join(f'{n} {why}' for why, n in left_out.items())}" if left_out else "")


def _read(plan: Plan) -> str:
    """Return the first files that the data come from, and the number of the others."""
    facts = plan.streams.source.facts()
    shown = [str(name) for name in facts["read"][:5]]
    more = int(facts.get("files", len(facts["read"]))) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _stops(plan: Plan) -> str:
    """Return where a suite with `precision:` checks its errors, in words."""
    assert plan.stopping is not None
    wanted = ", ".join(f"{name} ± {target:g}" for name, target in plan.stopping.targets.items())
    places = [f"{point.sequences} ({point.documents})" for point in stopping_points(plan.streams.evaluation.clusters)]
    if len(places) < 2:
        return f"precision: {wanted}, but there are too few documents to stop early: all sequences are used"
    return f"precision: {wanted}; checked after sequences (documents) {', '.join(places)}"


def _twins(plan: Plan) -> str:
    """Return the groups of controls that groups are compared with, in words."""
    twins = dict.fromkeys(cell.record["over"] for cell in plan.cells if "twin" in cell.record)
    return f"; twins of groups: {', '.join(twins)}" if twins else ""


def _time(plan: Plan, operations: float, controls: Mapping[str, float], conclusions: Mapping[str, float]) -> str:
    """Return the time of passes, of fitting controls and of expensive conclusions in words; none if there are none."""
    if not operations and not controls and not conclusions:
        return ""
    speed = cost_estimate.operations_a_second(plan.options.device)
    parts = [f"{operations / speed:.0f} s of passes"] if operations else []
    for what, counts in (("fitting controls", controls), ("conclusions", conclusions)):
        if counts:
            each = ", ".join(f"{name} {n / speed:.0f}" for name, n in counts.items())
            parts.append(f"{sum(counts.values()) / speed:.0f} s of {what} ({each})")
    return f"roughly {' and '.join(parts)}, at the {speed / 1e9:.0f} GFLOP/s measured here"


class _Work:
    """The passes that a run would make now, with their costs."""

    def __init__(self, plan: Plan, store: Store) -> None:
        fresh = plan.options.fresh
        finished = set() if fresh else store.finished([c.key for c in plan.cells])
        self.pending = [c for c in plan.cells if c.key not in finished]
        folds = plan.folds(self.pending)
        stored = {n.digest for n in folds.values() if not fresh and store.fold(n.digest) is not None}
        self.size = fitting(plan) if plan.options.batch_size == "auto" else int(plan.options.batch_size or 1)
        self.nodes = closure([n for c in self.pending for n in c.nodes()]).values()
        self.passes: list[tuple[str, int, int, BatchProgram]] = []
        """Title, clean passes, resumed passes and program of each pass."""
        self.operations = 0.0
        budget = memory_budget(plan.options.sae_device or plan.options.device)
        for pass_ in passes(plan, self.pending, stored, budget):
            dataset = pass_.dataset(plan)
            ends = [point.sequences for point in stopping_points(dataset.clusters)] if pass_.adaptive else []
            parts = blocks(dataset.clusters, plan.options.block, ends)
            batches = sum(-(-(block.end - block.start) // self.size) for block in parts)
            program = BatchProgram(pass_.summations)
            clean = (2 if dataset.pair else 1) * batches if program.touches_model else 0
            resumes = batches * program.resumes  # the nodes of each side are counted separately
            self.passes.append((pass_.title, clean, resumes, program))
            self.operations += cost_estimate.of_pass(plan, pass_, program, self.size)
        self.total = sum(clean + resumes for _, clean, resumes, _ in self.passes)
        self.proofs: int | None = None
        """Resumed passes of the preflight, beside a clean one; None if it makes none."""
        if self.total and plan.options.preflight != "off" and reach_the_end(self.nodes):
            self.proofs = len(hooks_of(resume, self.nodes))
            self.total += self.proofs + 1
        stored_cells = len(plan.cells) - len(self.pending)
        substitutes = sum(subject.kind != "hook" for subject in plan.subjects) + len(plan.twins)
        cells = counted(len(plan.cells), "cell")
        self.cells = f"{cells}, {stored_cells} of them stored; {counted(substitutes, 'substitute')}"
        costs = cost_estimate.of_controls(plan, self.pending), cost_estimate.of_conclusions(plan, self.pending)
        self.time = _time(plan, self.operations, *costs)


def plan_in_words(plan: Plan, store: Store) -> str:
    """Return the description of what a run would compute now, given the stored results.

    Raises `SuiteError` if its judge could not answer.
    """
    work = _Work(plan, store)
    plan.verify_judge(work.pending)
    rows, bare = len(plan.streams.evaluation), sum(s.kind == "hook" for s in plan.subjects)
    lines = [
        f"suite {plan.title}: no problems found",
        f"  {work.cells}" + (f", {counted(bare, 'hook')} without one" if bare else "") + _twins(plan),
        f"  data: {counted(rows, 'sequence')} of {counted(plan.streams.evaluation.n_clusters, 'document')}"
        + _excluded(plan),
    ]
    lines += [f"  read: {_read(plan)}"] if plan.streams.source.facts().get("read") else []
    lines += [f"  {_stops(plan)}"] if plan.stopping else []
    for index, (title, clean, resumes, program) in enumerate(work.passes, 1):
        cut = "" if program.final else ", cut at the deepest of" if len(program.hooks) > 1 else ", cut at"
        hooks = f"{cut or ' at'} {', '.join(program.hooks)}" if program.hooks else ""
        described = f"{counted(clean, 'clean pass')}{hooks}, {counted(resumes, 'resumed pass')}"
        lines.append(f"  pass {index}: {title}: {described}")
    if work.proofs is not None:
        proofs = f", and {counted(work.proofs, 'resumed pass')}, one per hook" if work.proofs else ""
        lines.append(f"  preflight: 1 pass on the first batch, to check that the model is causal{proofs}")
    names = sorted({n.name for n in work.nodes if n.args and not n.quantity.inserted})
    weights = sum(8 * (s.d_in or 0) * (s.d_sae or 0) for s in plan.subjects if s.kind == "sae")
    widest = max((s.d_sae or 0 for s in plan.subjects), default=0)
    context = plan.streams.evaluation.context or 0
    acts = 4 * widest * context * work.size
    at_most = ", if the run does not stop early" if plan.stopping else ""
    lines.append(f"  forward passes in all: {work.total}{at_most}")
    if plan.interview is not None:
        asked, judge = plan.questions(work.pending), type(plan.interview.judge).name
        questions = f"{counted(asked.requests, 'request')}, about {counted(asked.tokens, 'token')} with the replies"
        lines.append(f"  judge: {judge}: up to {questions}; a reply that cannot be read is asked for once more")
    if names:
        lines.append(f"  quantities: {', '.join(names)}")
    lines += [f"  time: {work.time}"] if work.time else []
    lines.append(f"  memory: {weights / 2**20:.1f} MiB of SAE weights, {acts / 2**20:.1f} MiB of feature activations")
    if plan.options.batch_size == "auto":
        free = available(plan.options.device) / 2**20
        each = bytes_a_sequence(plan) / 2**20
        start = counted(work.size, "sequence")
        lines.append(f"  batch size: auto starts with {start}, each up to {each:.0f} MiB of the {free:.0f} MiB free")
    return "\n".join(map(line, lines))


def work_in_words(plan: Plan, store: Store) -> str:
    """Return one line on what a run would compute now: cells, forward passes, time."""
    work = _Work(plan, store)
    clean = sum(clean for _, clean, _, _ in work.passes)
    resumes = sum(resumes for _, _, resumes, _ in work.passes)
    through = f"{counted(clean, 'clean pass')}, {counted(resumes, 'resumed pass')}"
    return line("; ".join(filter(None, [work.cells, through, work.time])))
