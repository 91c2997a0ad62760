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


def _time(plan: Plan, operations: float, controls: Mapping[str, float], conclusions: Mapping[str, float]) -> list[str]:
    """Return a line on the time of passes, of fitting controls and of expensive conclusions; none if there are none."""
    if not operations and not controls and not conclusions:
        return []
    speed = cost_estimate.operations_a_second(plan.options.device)
    parts = [f"{operations / speed:.0f} s of passes"] if operations else []
    for what, counts in (("fitting controls", controls), ("conclusions", conclusions)):
        if counts:
            each = ", ".join(f"{name} {n / speed:.0f}" for name, n in counts.items())
            parts.append(f"{sum(counts.values()) / speed:.0f} s of {what} ({each})")
    return [f"  time: roughly {' and '.join(parts)}, at the {speed / 1e9:.0f} GFLOP/s measured here"]


def plan_in_words(plan: Plan, store: Store) -> str:
    """Return the description of what a run would compute now, given the stored results.

    Raises `SuiteError` if its judge could not answer.
    """
    finished = set() if plan.options.fresh else store.finished([c.key for c in plan.cells])
    pending = [c for c in plan.cells if c.key not in finished]
    plan.verify_judge(pending)
    folds = plan.folds(pending)
    stored = {n.digest for n in folds.values() if not plan.options.fresh and store.fold(n.digest) is not None}
    rows, bare = len(plan.streams.evaluation), sum(s.kind == "hook" for s in plan.subjects)
    lines = [
        f"suite {plan.name}: no problems found",
        f"  {counted(len(plan.cells), 'cell')}, {len(plan.cells) - len(pending)} of them stored; "
        + counted(sum(s.kind != "hook" for s in plan.subjects) + len(plan.twins), "substitute")
        + (f", {counted(bare, 'hook')} without one" if bare else "")
        + _twins(plan),
        f"  data: {counted(rows, 'sequence')} of {counted(plan.streams.evaluation.n_clusters, 'document')}"
        + _excluded(plan),
    ]
    size = fitting(plan) if plan.options.batch_size == "auto" else int(plan.options.batch_size or 1)
    lines += [f"  read: {_read(plan)}"] if plan.streams.source.facts().get("read") else []
    lines += [f"  {_stops(plan)}"] if plan.stopping else []
    total, operations = 0, 0.0
    budget = memory_budget(plan.options.sae_device or plan.options.device)
    for index, pass_ in enumerate(passes(plan, pending, stored, budget), 1):
        dataset = pass_.dataset(plan)
        ends = [point.sequences for point in stopping_points(dataset.clusters)] if pass_.adaptive else []
        parts = blocks(dataset.clusters, plan.options.block, ends)
        batches = sum(-(-(block.end - block.start) // size) for block in parts)
        program = BatchProgram(pass_.summations)
        sides = 2 if dataset.pair else 1
        clean = sides * batches if program.touches_model else 0
        resumes = batches * program.resumes  # the nodes of each side are counted separately
        total += clean + resumes
        operations += cost_estimate.of_pass(plan, pass_, program, size)
        cut = "" if program.final else ", cut at the deepest of" if len(program.hooks) > 1 else ", cut at"
        hooks = f"{cut or ' at'} {', '.join(program.hooks)}" if program.hooks else ""
        work = f"{counted(clean, 'clean pass')}{hooks}, {counted(resumes, 'resumed pass')}"
        lines.append(f"  pass {index}: {pass_.title}: {work}")
    nodes = closure([n for c in pending for n in c.nodes()]).values()
    resumed = hooks_of(resume, nodes)
    if total and plan.options.preflight != "off" and reach_the_end(nodes):
        total += len(resumed) + 1
        proofs = f", and {counted(len(resumed), 'resumed pass')}, one per hook" if resumed else ""
        lines.append(f"  preflight: 1 pass on the first batch, to check that the model is causal{proofs}")
    names = sorted({n.name for n in nodes if n.args and not n.quantity.inserted})
    weights = sum(8 * (s.d_in or 0) * (s.d_sae or 0) for s in plan.subjects if s.kind == "sae")
    widest = max((s.d_sae or 0 for s in plan.subjects), default=0)
    context = plan.streams.evaluation.context or 0
    acts = 4 * widest * context * size
    at_most = ", if the run does not stop early" if plan.stopping else ""
    lines.append(f"  forward passes in all: {total}{at_most}")
    if plan.interview is not None:
        asked, judge = plan.questions(pending), type(plan.interview.judge).name
        questions = f"{counted(asked.requests, 'request')}, about {counted(asked.tokens, 'token')} with the replies"
        lines.append(f"  judge: {judge}: up to {questions}; a reply that cannot be read is asked for once more")
    if names:
        lines.append(f"  quantities: {', '.join(names)}")
    lines += _time(
        plan, operations, cost_estimate.of_controls(plan, pending), cost_estimate.of_conclusions(plan, pending)
    )
    lines.append(f"  memory: {weights / 2**20:.1f} MiB of SAE weights, {acts / 2**20:.1f} MiB of feature activations")
    if plan.options.batch_size == "auto":
        free = available(plan.options.device) / 2**20
        each = bytes_a_sequence(plan) / 2**20
        start = counted(size, "sequence")
        lines.append(f"  batch size: auto starts with {start}, each up to {each:.0f} MiB of the {free:.0f} MiB free")
    return "\n".join(map(line, lines))
