"""The loop: stream each pass, keep its evidence safe, conclude every cell by itself."""

from __future__ import annotations

import logging
import os
import resource
import time
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from saeval import provenance
from saeval.errors import Undefined
from saeval.model import Model
from saeval.nodes import closure
from saeval.passes import Pass, passes
from saeval.plan import Cell, Plan
from saeval.result import Result
from saeval.scope import EvidenceTree, Scope, Target, added
from saeval.store import Store
from saeval.values import Scalar, Value, named_values

log = logging.getLogger("saeval")


class Progress(Protocol):
    """Told how far a run is."""

    def started(self, title: str, batches: int, done: int) -> None: ...
    def advanced(self) -> None: ...
    def finished(self) -> None: ...


class Silence:
    """No progress display."""

    def started(self, title: str, batches: int, done: int) -> None: ...
    def advanced(self) -> None: ...
    def finished(self) -> None: ...


class Engine:
    """Runs a plan into a store."""

    def __init__(self, plan: Plan, store: Store, progress: Progress | None = None) -> None:
        self.plan = plan
        self.store = store
        self.progress = progress or Silence()
        self.model: Model | None = None
        self.forward_passes = 0
        self._totals: dict[int, EvidenceTree | Exception] = {}
        self._notes: dict[str, Any] = {}

    def run(self) -> list[Result]:
        """Every cell's result, in the plan's order: from the store where it is finished, else computed."""
        plan, plugins = self.plan, self.plan.registry.plugins
        pending = [c for c in plan.cells if plan.options.fresh or not self.store.has(c.key)]
        if pending:
            plan.verify()
        self.store.write_manifest(manifest(plan))
        plugins.notify("saeval_run_started", plan=plan)
        if pending:
            with torch.no_grad():
                self._compute(pending)
        results = []
        for cell in plan.cells:
            result = self.store.read(cell.key, arrays=True)
            assert result is not None, f"cell {cell.key} was not written"
            result.cell = cell.record
            results.append(result)
        plugins.notify("saeval_run_finished", results=results)
        return results

    def _compute(self, pending: list[Cell]) -> None:
        unique = list({c.key: c for c in pending}.values())
        stored = self._stored_folds(unique)
        if any("model" in n.roots for n in closure([n for c in unique for n in c.nodes()]).values()):
            assert self.plan.spec is not None
            self.model = self.plan.spec.load(self.plan.options.device)
        scope = Scope(self.model, [], self._totals, self.plan.streams.evaluation.n_clusters)
        for cell in (c for c in unique if c.observe is None and not self.plan.folds([c], stored)):
            self._conclude(cell, None, scope)
        for one in passes(self.plan, unique, stored, memory_budget(self.plan.options.device)):
            self._stream(one)
        for cell in (c for c in unique if c.observe is None and self.plan.folds([c], stored)):
            self._conclude(cell, None, scope)

    def _stored_folds(self, cells: list[Cell]) -> set[str]:
        found = set()
        for serial, node in self.plan.folds(cells).items():
            total = None if self.plan.options.fresh else self.store.fold(node.digest)
            if total is not None:
                self._totals[serial] = total
                found.add(node.digest)
        return found

    def _stream(self, one: Pass) -> None:
        """One pass, from its checkpoint on where it has one, with the batch partition of that checkpoint."""
        dataset, key = one.dataset(self.plan), one.key(self.plan)
        found = None if self.plan.options.fresh else self.store.checkpoint(key)
        evidence: dict[str, EvidenceTree] = {}
        begin, size = 0, self.plan.options.batch_size
        if found is not None:
            header, evidence = found
            begin, size = header["next_batch"], header["batch_size"]
        batches = [np.arange(i, min(i + size, len(dataset))) for i in range(0, len(dataset), size)]
        scope = Scope(self.model, one.targets, self._totals, dataset.n_clusters)
        for target in one.targets:
            target.total = evidence.get(target.key)
            if begin and target.total is None:  # it dropped out before the interruption
                target.error = _restored(header["dropped"].get(target.key, [False, "not in the checkpoint"]))
        scope.arrange()
        started = saved = time.monotonic()
        self.progress.started(one.title, len(batches), begin)
        state = begin, {t: t.total for t in one.targets}
        try:
            for index in range(begin, len(batches)):
                batch = dataset.batch(batches[index], self.plan.options.device)
                totals = dict(state[1])
                for target, part in scope.run(batch):
                    before = totals[target]
                    try:
                        totals[target] = part if before is None else added(before, part)
                    except Exception as error:  # evidence that does not add up is its own cell's failure
                        target.error = error
                state = index + 1, totals  # at once, so that an interruption never sees half a batch
                self.forward_passes += 1 + scope.resumes if scope.touches_model else 0
                self.progress.advanced()
                if time.monotonic() - saved > self.plan.options.checkpoint_seconds and index + 1 < len(batches):
                    self._checkpoint(key, *state, size)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._checkpoint(key, *state, size)
            raise
        finally:
            self.progress.finished()
        for target, total in state[1].items():
            target.total = total
        self._notes = {"seconds": round(time.monotonic() - started, 3), "batch_size": size, "batches": len(batches)}
        for target in (t for t in one.targets if t.node is not None):
            self._keep_fold(target)
        by_key = {t.key: t for t in one.targets}
        for cell in one.cells:
            self._conclude(cell, by_key[cell.key], scope)
        self.store.drop_checkpoint(key)

    def _checkpoint(
        self, key: str, next_batch: int, totals: Mapping[Target, EvidenceTree | None], batch_size: int
    ) -> None:
        evidence = {t.key: total for t, total in totals.items() if total is not None and t.error is None}
        dropped = {t.key: [isinstance(t.error, Undefined), str(t.error)] for t in totals if t.error is not None}
        facts = {"next_batch": next_batch, "batch_size": batch_size, "dropped": dropped}
        self.store.write_checkpoint(key, facts, evidence)

    def _keep_fold(self, target: Target) -> None:
        assert target.node is not None
        if target.error is not None:
            self._totals[target.node.serial] = target.error
        elif target.total is None:
            self._totals[target.node.serial] = Undefined("there are no rows to sum over")
        else:
            self._totals[target.node.serial] = target.total
            self.store.write_fold(target.node.digest, target.total)

    def _conclude(self, cell: Cell, target: Target | None, scope: Scope) -> None:
        """Write one cell's result; whatever goes wrong is that cell's alone."""
        result = Result(cell.key, "ok", cell.record, provenance=self._provenance(cell))
        try:
            if target is not None and target.error is not None:
                raise target.error
            if target is not None and target.total is None:
                raise Undefined("there are no rows to observe")
            totals = [target.total] if target is not None else []
            conclusion = cell.metric.conclude(*totals, **scope.conclude(cell.conclude))  # type: ignore[attr-defined]
            values = named_values(cell.metric.name, conclusion)
            result.values = {name: value.record() for name, value in values.items()}
            result.arrays = influences(values)
            result.components = _components(totals[0]) if totals else {}
            if all(record.get("value", 0) is None for record in result.values.values()):
                result.status = "undefined"
                result.reason = next((r["reason"] for r in result.values.values() if "reason" in r), None)
        except Undefined as reason:
            result.status, result.reason = "undefined", str(reason)
        except Exception as error:  # one bad cell fails alone
            result.status, result.reason = "failed", f"{type(error).__name__}: {error}"
            result.traceback = "".join(traceback.format_exception(error))
            log.debug("cell %s failed", cell.key, exc_info=error)
        self.store.write(result)
        self.plan.registry.plugins.notify("saeval_cell_finished", result=result)

    def _provenance(self, cell: Cell) -> dict[str, Any]:
        plan = self.plan
        extra: dict[str, Any] = {}
        for facts, origin in plan.registry.plugins.collect("saeval_provenance"):
            extra.setdefault(str(origin), {}).update(facts)
        dtypes = {"model": str(self.model.dtype).removeprefix("torch.")} if self.model else {}
        origins = {str(o): o.version for o in plan.registry.plugins.origins.values()}
        return {
            **provenance.environment(),
            "plugins": origins,
            "weights_sha256": {s.name: (s.facts or {}).get("sha256") for s in cell.subjects},
            "tokens_sha256": plan.streams.evaluation.fingerprint,
            "dtypes": {**dtypes, "sae": "float32", "sums": "float64"},
            "device": plan.options.device,
            "chunked_head": getattr(self.model, "chunked_head", None),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "limit": plan.options.limit,
            **self._notes,
            **({"plugin_facts": extra} if extra else {}),
        }


def _restored(dropped: list[Any]) -> Exception:
    """The error of a target that had dropped out of a pass when it was interrupted."""
    undefined, reason = dropped
    return Undefined(reason) if undefined else RuntimeError(f"{reason} (before this run was interrupted)")


def manifest(plan: Plan) -> dict[str, Any]:
    """What a run's reports need to know: its cells in order, its leaderboard, whether it was limited."""
    return {
        "schema": 1,
        "suite": plan.name,
        "source": plan.suite.marks.source,
        "limit": plan.options.limit,
        "leaderboard": plan.suite.body.leaderboard.model_dump(),
        "cells": [{"key": c.key, "cell": dict(c.record)} for c in plan.cells],
    }


def influences(values: Mapping[str, Value]) -> dict[str, np.ndarray]:
    """The influences behind every scalar that has them."""
    arrays = {}
    for name, value in values.items():
        if isinstance(value, Scalar) and value.estimate is not None and value.value is not None:
            arrays[f"influence/{name}"] = value.estimate.influence
            arrays[f"present/{name}"] = value.estimate.present
    return arrays


def _components(total: EvidenceTree | None) -> dict[str, Any]:
    if total is None:
        return {}
    if isinstance(total, dict):
        return {name: evidence.components() for name, evidence in total.items()}
    return total.components()


def memory_budget(device: str) -> int:
    """Bytes that SAE weights may take together: half of what is free."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
