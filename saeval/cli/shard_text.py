"""The output of `saeval check --workers N`: shards, time, and what each worker must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.memory import memory_budget
from saeval.cli import cost_estimate
from saeval.engine.batch_program import BatchProgram
from saeval.engine.needs import batch_bytes, model_bytes, sae_bytes
from saeval.engine.passes import passes, stages, together
from saeval.plan.blocks import blocks, makespan
from saeval.plan.plan import Plan
from saeval.plan.precision import stopping_points
from saeval.results.store import Store


@dataclass
class Shards:
    """The shards of a run."""

    steps: list[list[float]]
    """The operations of each; a step waits for the one before."""
    lines: list[str]
    """What they are, in words."""


def shards_of(plan: Plan, store: Store) -> Shards:
    """Return what workers would do now, given the stored results."""
    finished = set() if plan.options.fresh else store.finished([c.key for c in plan.cells])
    pending = [c for c in plan.cells if c.key not in finished]
    stored = {n.digest for n in plan.folds(pending).values() if not plan.options.fresh and store.fold(n.digest)}
    device = plan.options.sae_device or plan.options.device
    size = plan.options.batch_size if isinstance(plan.options.batch_size, int) else 16
    steps: list[list[float]] = []
    lines = []
    for stage in stages(together(passes(plan, pending, stored, memory_budget(device)))):
        times: list[float] = []
        for planned in (pass_ for group in stage for pass_ in group):
            dataset = planned.dataset(plan)
            stops = [point.sequences for point in stopping_points(dataset.clusters)] if planned.adaptive else []
            cut = blocks(dataset.clusters, plan.options.block, stops)
            operations = cost_estimate.of_pass(plan, planned, BatchProgram(planned.summations), size)
            times += [operations * (block.end - block.start) / max(1, len(dataset)) for block in cut]
            most_rows = max((block.end - block.start for block in cut), default=0)
            lines.append(f"  shards: {counted(len(cut), 'block')} of up to {most_rows} sequences: {planned.title}")
        steps.append(times)
    alone = [cell for cell in pending if cell.observe is None]
    if alone:
        costs = cost_estimate.of_conclusions(plan, alone)
        each = sum(costs.values()) / len(alone)
        steps.append([each] * len(alone))
        lines.append(f"  shards: {counted(len(alone), 'cell')} from weights alone")
    return Shards(steps, lines)


def shards_in_words(plan: Plan, shards: Shards, workers: int) -> str:
    """Return the shards of a plan, their time for `workers` workers, and what each worker must hold."""
    lines = [*shards.lines, *_time(shards.steps, plan.options.device, workers)]
    held = (("model", model_bytes(plan)), ("SAEs", sae_bytes(plan)), ("a batch", batch_bytes(plan)))
    words = ", ".join(f"{what} {size / 2**20:.0f} MiB" for what, size in held)
    lines.append(f"  each worker holds: {words}")
    return "\n".join(map(line, lines))


def together_in_words(runs: Sequence[Shards], device: str, workers: int) -> str:
    """Return the time of several plans that share the workers."""
    steps = [[time for step in at for time in step] for at in zip_longest(*(r.steps for r in runs), fillvalue=[])]
    return "\n".join(map(line, [f"all {len(runs)} together", *_time(steps, device, workers)]))


def _time(steps: Sequence[Sequence[float]], device: str, workers: int) -> list[str]:
    speed = cost_estimate.operations_a_second(device)
    one, many = (makespan(steps, n) / speed for n in (1, workers))
    most = max(map(len, steps), default=0)
    share = one / many / workers if many else 1.0
    lines = [
        f"  {counted(workers, 'worker')}: roughly {many:.0f} s, and {one:.0f} s for one; "
        f"{share:.0%} of their time in use, starts not counted"
    ]
    if most < workers:
        lines.append(f"  at most {counted(most, 'worker')} can be busy at once; a smaller --block makes more shards")
    return lines
