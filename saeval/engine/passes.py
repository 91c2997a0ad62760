"""The passes of a plan: each fold in the earliest pass that can compute it, all cells in the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted
from saeval.engine.batch_program import Summation
from saeval.interfaces.data import Dataset
from saeval.plan.cell import Cell
from saeval.plan.nodes import Node, closure, flattened
from saeval.plan.plan import Plan


@dataclass
class Pass:
    """One pass over the evaluated rows, or over the fit split."""

    stage: int
    on_fit: bool
    summations: list[Summation]
    cells: list[Cell]
    adaptive: bool = False
    """True if it stops when the suite's `precision:` is reached, together with the other adaptive passes."""

    def dataset(self, plan: Plan) -> Dataset:
        return plan.streams.fit if self.on_fit else plan.streams.evaluation

    def key(self, plan: Plan) -> str:
        """Return the name of its checkpoint: a hash of what is summed over which rows."""
        return digest_of([sorted(t.key for t in self.summations), self.dataset(plan).fingerprint])[:24]

    def record(self, plan: Plan) -> dict[str, Any]:
        """Return the pass as plain data, from which `pass_of` makes it in another process."""
        stop = plan.stopping.key if plan.stopping else ""
        folds = [t for t in self.summations if t.node is not None]
        return {
            "stage": self.stage, "on_fit": self.on_fit, "adaptive": self.adaptive,
            "cells": [cell.key for cell in self.cells],
            "folds": [[t.node.digest, t.key != t.node.digest] for t in folds if t.node is not None],
            "stop": stop,
        }  # fmt: skip

    @property
    def title(self) -> str:
        if self.cells:
            return counted(len(self.cells), "cell")
        names = sorted({t.node.name for t in self.summations if t.node})
        return f"{', '.join(names)} {'on the fit split' if self.on_fit else 'over the planned tokens'}"


def passes(plan: Plan, cells: Sequence[Cell], stored: Iterable[str], memory: int | None = None) -> list[Pass]:
    """Return the passes for the unfinished `cells`, in order. `stored` are the digests of folds already on disk.

    A fold that an `observe` or another fold needs runs as early as possible; a fold that only a `conclude` requests
    runs beside the cells. Cells whose SAEs do not fit together in `memory` bytes go to further passes.

    If a suite stops adaptively, so does the pass of its cells. Folds that a `conclude` requests are then always summed
    in that pass, over the same rows, so that neither stored folds nor other cells change a number. A `planned` fold is
    summed over all rows, in an earlier pass.
    """
    adaptive = plan.stopping is not None
    beside = concluding_folds(cells) if adaptive else {}
    stored = set(stored) - {n.digest for n in beside.values()}
    streaming = [c for c in cells if c.observe is not None]
    folds = {s: n for s, n in plan.folds(cells, stored).items() if n.digest not in stored}
    planned = {s: n for s, n in folds.items() if adaptive and n.quantity.planned}
    early = _needed_before(streaming, folds) | set(planned)
    late = beside if adaptive else {s: n for s, n in folds.items() if s not in early and not n.quantity.on_fit}
    stages = [n.stage for s, n in folds.items() if s in late or s not in early]
    stages += [n.available for n in planned.values()]
    last = max([c.stage for c in streaming] + stages, default=0)
    by_stage: dict[tuple[int, bool], Pass] = {}

    def at(stage: int, on_fit: bool) -> Pass:
        adapts = adaptive and stage == last and not on_fit
        return by_stage.setdefault((stage, on_fit), Pass(stage, on_fit, [], [], adapts))

    for serial, node in folds.items():
        if serial in early or node.quantity.on_fit:
            at(node.stage, node.quantity.on_fit).summations.append(fold_summation(node))
        if serial in late:
            at(last, False).summations.append(fold_summation(node, plan.stopping.key if plan.stopping else ""))
    if waves := _waves(streaming, memory):
        last_pass = at(last, False)
        last_pass.cells = waves[0]
        last_pass.summations += [cell_summation(c) for c in waves[0]]
    ordered = [by_stage[key] for key in sorted(by_stage, key=lambda k: (k[0], not k[1]))]  # the fit split first
    return ordered + [Pass(last, False, [cell_summation(c) for c in wave], wave, adaptive) for wave in waves[1:]]


def pass_of(plan: Plan, record: Mapping[str, Any]) -> Pass:
    """Return the pass of a `record` that another process made of the same plan."""
    by_key = {cell.key: cell for cell in plan.cells}
    cells = [by_key[key] for key in record["cells"]]
    nodes = {node.digest: node for node in plan.folds(plan.cells).values()}
    folds = [fold_summation(nodes[digest], record["stop"] if stops else "") for digest, stops in record["folds"]]
    return Pass(record["stage"], record["on_fit"], [*folds, *map(cell_summation, cells)], cells, record["adaptive"])


def concluding_folds(cells: Iterable[Cell]) -> dict[int, Node]:
    """Return the folds over the streamed rows that a `conclude` requests, by serial."""
    nodes = [n for c in cells for a in c.conclude.values() for n in flattened(a)]
    requested = closure(nodes, beyond=lambda n: not n.quantity.fold)
    return {s: n for s, n in requested.items() if n.quantity.fold and not (n.quantity.on_fit or n.quantity.planned)}


def together(ordered: Iterable[Pass]) -> list[list[Pass]]:
    """Group passes that are streamed together: all adaptive ones, and each other pass alone."""
    groups: list[list[Pass]] = []
    for pass_ in ordered:
        if pass_.adaptive and groups and groups[-1][0].adaptive:
            groups[-1].append(pass_)
        else:
            groups.append([pass_])
    return groups


def stages(groups: Iterable[list[Pass]]) -> list[list[list[Pass]]]:
    """Split groups into those that need not wait for each other: passes of one stage, such as those of SAEs that do
    not fit in memory together. A fold comes before what observes it, and an adaptive stop waits for its own sums."""
    found: list[list[list[Pass]]] = []
    kinds: list[tuple[int, bool]] = []
    for group in groups:
        kind = (group[0].stage, group[0].on_fit)
        if not group[0].adaptive and found and not found[-1][0][0].adaptive and kinds[-1] == kind:
            found[-1].append(group)
        else:
            found.append([group])
            kinds.append(kind)
    return found


def cell_summation(cell: Cell) -> Summation:
    assert cell.observe is not None
    return Summation(cell.key, cell.metric.observe, [cell.observe], cell.order, foreign=cell.foreign)  # type: ignore[attr-defined]


def fold_summation(node: Node, stop: str = "") -> Summation:
    """`stop`, part of the key, distinguishes a sum over the rows before an adaptive stop from the sum over all rows."""
    quantity, calls = node.quantity, [node.args, *node.other_sides]
    return Summation(f"{node.digest}{stop}", quantity.function, calls, -1, node=node, foreign=quantity.foreign)


def _needed_before(cells: Sequence[Cell], folds: Mapping[int, Node]) -> set[int]:
    """Return the folds, by serial, that must be complete before a batch is observed or another fold is summed."""
    waiting = [n for c in cells for a in (c.observe or {}).values() for n in flattened(a)]
    for fold in folds.values():
        waiting += [a for side in (fold.args, *fold.other_sides) for a in side.values() if isinstance(a, Node)]
    needed = closure(waiting, beyond=lambda n: not n.quantity.fold)
    return {serial for serial, node in needed.items() if node.quantity.fold}


def _waves(cells: Sequence[Cell], memory: int | None) -> list[list[Cell]]:
    """Split cells into groups whose SAEs fit together in memory."""
    if memory is None:
        return [list(cells)] if cells else []
    waves: list[list[Cell]] = []
    held: dict[str, int] = {}
    for cell in sorted(cells, key=lambda c: c.order):
        sizes = {s.key: 8 * (s.d_in or 0) * (s.d_sae or 0) for s in cell.subjects}
        new = sum(size for key, size in sizes.items() if key not in held)
        if not waves or (held and sum(held.values()) + new > memory):
            waves.append([])
            held = {}
        held.update(sizes)
        waves[-1].append(cell)
    return waves
