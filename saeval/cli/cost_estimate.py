"""An estimate of a run's time: operations counted from shapes and hook names, at a speed measured on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saeval.base.errors import SaevalError, blamed
from saeval.base.lazy_torch import torch
from saeval.engine.batch_program import BatchProgram, resumes
from saeval.engine.passes import Pass
from saeval.interfaces.data import Dataset, PairBatch
from saeval.interfaces.model import ModelSpec
from saeval.plan.cell import Cell
from saeval.plan.nodes import Node, closure
from saeval.plan.plan import Plan
from saeval.registry.discovery import Failure

_ELEMENTWISE = 3000
"""Cost of a block's elementwise work (activation functions, norms, sums) per dimension of the model, in operations of a
matrix product that take as long. Measured on CPUs; it dominates in narrow models."""
_SCORING = 500
"""Cost of scoring a logit (exponentials, sums, differences), in the same unit."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes that determine the operations of a pass."""

    blocks: int
    width: int
    vocabulary: int
    parameters: int

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelSize | None:
        """Return the size of a model; None if the adapter does not know the number of parameters."""
        if spec.parameters is None:
            return None
        inside = {name: width for name, width in spec.hooks().items() if _block(name) is not None}
        blocks = 1 + max((_block(name) or 0 for name in inside), default=0)
        return cls(blocks, min(inside.values(), default=0), spec.vocabulary or 0, spec.parameters)

    @property
    def a_token(self) -> float:
        """Operations of a full pass per token, without logits."""
        body = max(0, self.parameters - self.vocabulary * self.width)  # the embedding costs no operations
        return 2.0 * body + _ELEMENTWISE * self.width * self.blocks

    @property
    def a_scored_token(self) -> float:
        """Operations of the logits and scores per token."""
        return self.vocabulary * (2.0 * self.width + _SCORING)

    def before(self, hook_name: str) -> float:
        """Return the share of the blocks that run before a hook; 1 for a hook outside the blocks."""
        block = _block(hook_name)
        return 1.0 if block is None else (block + 0.5) / self.blocks

    def after(self, hook_name: str) -> float:
        """Return the share of the blocks that a pass resumed at a hook runs; 1 for a hook outside the blocks."""
        block = _block(hook_name)
        return 1.0 if block is None else 1 - block / self.blocks


def _block(hook_name: str) -> int | None:
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(match[1]) if match else None


def tokens_a_row(plan: Plan, dataset: Dataset, batch_size: int) -> float:
    """Return the mean number of tokens that the model processes per row, with padding and both sides of a pair."""
    if not dataset.pair or not len(dataset):
        return dataset.context or 0
    widths = []
    for start in np.linspace(0, max(0, len(dataset) - batch_size), 4).astype(int):  # batches are padded to a width
        with plan.streams.answered_for():
            batch = dataset.batch(range(start, min(start + batch_size, len(dataset))), "cpu")
        assert isinstance(batch, PairBatch)
        widths.append(sum(side.tokens.shape[1] for side in batch.sides))
    return float(np.mean(widths))


def of_node(plan: Plan, size: ModelSize | None, node: Node) -> float:
    """Return the operations of a node per token: an SAE's products, resumed passes, scores; 0 if negligible."""
    if node.subject:
        subjects = [s for s in [*plan.subjects, *plan.twins] if s.key == node.quantity.identity]
        return sum(4.0 * (s.d_in or 0) * (s.d_sae or 0) for s in subjects)
    if size is None:
        return 0.0
    resumed = sum(times * size.after(hook) for hook, times in resumes(node)) * size.a_token
    return resumed + (plan.streams.score_share * size.a_scored_token if node.quantity.gathered else 0.0)


def of_pass(plan: Plan, pass_: Pass, program: BatchProgram, batch_size: int) -> float:
    """Return the operations of a pass over all of its rows: clean and resumed passes, scores, SAEs."""
    size = ModelSize.of(plan.spec) if plan.spec is not None else None
    dataset = pass_.dataset(plan)
    sides = 2 if dataset.pair else 1  # the nodes of each side process only its tokens
    a_token = sum(of_node(plan, size, node) / (1 if node.subject else sides) for node in program.nodes.values())
    if size is not None and program.touches_model:
        share = 1.0 if program.final else max((size.before(hook) for hook in program.hooks), default=1.0)
        a_token += share * size.a_token
    return a_token * len(dataset) * tokens_a_row(plan, dataset, batch_size)


def of_conclusions(plan: Plan, cells: Iterable[Cell]) -> dict[str, float]:
    """Return the operations of `conclude` by the metric's alias, for metrics that declare any in `operations`.

    An `operations` that fails is added to `plan.registry.plugins.failures`.
    """
    rows = plan.streams.evaluation
    tokens, by_alias = len(rows) * (rows.context or 0), dict[str, float]()
    for cell in cells:
        origin = plan.registry.metrics.entry(cell.entry.name).origin
        try:
            with blamed(f"'operations' of metric '{cell.entry.name}'", origin):
                operations = float(cell.metric.operations(cell.subjects, tokens))
        except SaevalError as error:
            plan.registry.plugins.failures.append(Failure(origin, str(error)))
            continue
        if operations:
            by_alias[cell.entry.alias] = by_alias.get(cell.entry.alias, 0.0) + operations
    return by_alias


def of_controls(plan: Plan, cells: Iterable[Cell]) -> dict[str, float]:
    """Return the operations of building the controls that `cells` need, by the control's name.

    A control is built once for all cells with `observe`, and once for each other cell. An `operations` that fails is
    added to `plan.registry.plugins.failures`.
    """
    by_name, built = dict[str, float](), set[tuple[str, str]]()
    subjects = {s.key: s for s in [*plan.subjects, *plan.twins] if s.operations is not None}
    for cell in cells:
        needed = {node.quantity.identity for node in closure(cell.nodes()).values() if node.subject}
        for subject in (subjects[key] for key in sorted(needed & subjects.keys())):
            build = subject.key, "" if cell.observe is not None else cell.key
            if build in built:
                continue
            built.add(build)
            assert subject.operations is not None
            name = str((subject.facts or {}).get("control") or subject.name)
            try:
                with blamed(f"'operations' of control '{name}'", subject.origin):
                    operations = float(subject.operations())
            except SaevalError as error:
                assert subject.origin is not None  # a control has one
                plan.registry.plugins.failures.append(Failure(subject.origin, str(error)))
                continue
            if operations:
                by_name[name] = by_name.get(name, 0.0) + operations
    return by_name


def operations_a_second(device: str) -> float:
    """Measure the operations per second of a matrix product on this machine: an upper bound on a model's speed."""
    on_cpu = device == "cpu"
    a: Any = np.ones((1024, 1024), dtype=np.float32) if on_cpu else torch.ones(1024, 1024, device=device)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value synchronises with the device
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started))
    return best
