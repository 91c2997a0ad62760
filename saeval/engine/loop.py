"""The loop: stream each pass, keep its evidence safe, conclude every cell by itself."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from typing import Any

from saeval.base import provenance
from saeval.base.errors import Undefined, said
from saeval.base.lazy_torch import torch
from saeval.base.memory import memory_budget, peak_mib
from saeval.base.progress import Progress, Silence
from saeval.engine.batch_program import Target
from saeval.engine.cell_result import components, concluded, fill, of_prefix
from saeval.engine.common_stop import CommonStop
from saeval.engine.evaluator import Scope
from saeval.engine.passes import Pass, passes, together
from saeval.engine.preflight import Preflight, model_warnings
from saeval.engine.running_pass import Course
from saeval.interfaces.model import Model
from saeval.plan.batch_size import fitting
from saeval.plan.nodes import closure
from saeval.plan.plan import Cell, Plan
from saeval.plan.precision import looks
from saeval.registry.discovery import Failure
from saeval.results.result import Result
from saeval.results.store import MANIFEST_FORM, Store, finite
from saeval.stats.evidence import EvidenceTree

log = logging.getLogger("saeval")


class Engine:
    """Runs a plan into a store."""

    def __init__(self, plan: Plan, store: Store, progress: Progress | None = None) -> None:
        self.plan = plan
        self.store = store
        self.progress = progress or Silence()
        self.model: Model | None = None
        self.forward_passes = 0
        self.preflight = Preflight(plan)
        self._batch_size = 1
        self._ended: list[str] = []
        """Keys of the passes that this run has concluded."""
        self._begun: Course | None = None
        """The pass on whose first rows the preflight looked: its clean pass is not made again."""
        self._totals: dict[int, EvidenceTree | Exception] = {}
        self._sample: dict[str, Any] = {}
        self._at_stop: Scope | None = None
        """For conclusions, where the suite stops adaptively; so is `_at_prefix`."""
        self._at_prefix: Scope | None = None
        self._facts: dict[str, Any] = {}

    def run(self) -> list[Result]:
        """Every cell's result, in the plan's order: from the store where it is finished, else computed."""
        plan, plugins = self.plan, self.plan.registry.plugins
        finished = set() if plan.options.fresh else self.store.finished([c.key for c in plan.cells])
        pending = [c for c in plan.cells if c.key not in finished]
        if pending:
            plan.verify()
            for sentence in model_warnings(plan):
                log.warning("%s", sentence)
        self.store.write_manifest(manifest(plan))
        plugins.notify("saeval_run_started", plan=plan)
        if pending:
            with torch.no_grad():
                self._compute(pending)
        self.store.drop_checkpoints(self._ended)
        self.store.tidy()
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
        self._facts = self._run_facts()
        if any("model" in n.roots for n in closure([n for c in unique for n in c.nodes()]).values()):
            assert self.plan.spec is not None
            self.model = self.plan.spec.load(self.plan.options.device)
        options = self.plan.options
        self._batch_size = fitting(self.plan) if options.batch_size == "auto" else int(options.batch_size or 1)
        memory = memory_budget(options.sae_device or options.device)
        groups = together(passes(self.plan, unique, stored, memory))
        if left_out := self._examine(groups, unique, memory):
            for cell in (c for c in unique if c.key in left_out):
                self._leave_out(cell, left_out[cell.key])
            unique = [c for c in unique if c.key not in left_out]
            groups = together(passes(self.plan, unique, stored, memory))
        for group in groups:
            self._stream(group)
        for cell in (c for c in unique if c.observe is None):  # each with its own weights, let go of at once
            self._conclude(cell, None, {})
            self._rest()

    def _stored_folds(self, cells: list[Cell]) -> set[str]:
        found = set()
        for serial, node in self.plan.folds(cells).items():
            total = None if self.plan.options.fresh else self.store.fold(node.digest)
            if total is not None:
                self._totals[serial] = total
                found.add(node.digest)
        return found

    def _examine(self, groups: list[list[Pass]], cells: list[Cell], memory: int) -> dict[str, str]:
        """The preflight, on the first rows that the run will stream: cells to leave out, with the reason."""
        if self.plan.options.preflight == "off" or not (portions := self.preflight.targets(cells, memory)):
            return {}
        for one in (one for group in groups for one in group):
            course = self._course(one)
            if course.place.row < len(course.dataset):
                break
        else:  # nothing is left to stream: an earlier run has looked
            return {}
        ends = looks(course.dataset.clusters) if one.adaptive else []
        course.look(portions, next((e.sequences for e in ends if e.sequences > course.place.row), len(course.dataset)))
        self.forward_passes += course.scope.passes + self.preflight.forward_passes
        course.scope.passes = 0
        self._batch_size = min(self._batch_size, course.place.batch_size)
        self._begun = course
        return self.preflight.judge(cells)

    def _course(self, one: Pass) -> Course:
        """A pass from its checkpoint on, where it has one; the one that the preflight has begun, if it is that."""
        if (begun := self._begun) is not None and begun.one is one:
            self._begun = None
            return begun
        scope = Scope(self.model, one.targets, self._totals, one.dataset(self.plan).n_clusters)
        return Course(self.plan, self.store, one, scope, self._batch_size)

    def _stream(self, group: list[Pass]) -> None:
        """Passes over the same rows, each from its checkpoint on where it has one; most often one pass."""
        plan, started = self.plan, time.monotonic()
        courses = [self._course(one) for one in group]
        rows, done = len(courses[0].dataset), sum(course.place.row for course in courses)
        self.progress.started(", ".join(one.title for one in group), rows * len(courses), done)

        def advance(course: Course, until: int) -> None:
            course.advance(until, self.progress)

        try:
            if group[0].adaptive and plan.stopping is not None:
                stop = CommonStop(plan, plan.stopping, courses, self.model, self._totals)
                self._sample = stop.reach(advance, self._known_sample())
                self._at_stop, self._at_prefix = stop.scope(), stop.scope(of_prefix=True)
            else:
                advance(courses[0], rows)
            for course in courses:  # concluding can be interrupted as well
                course.save()
        finally:
            self.forward_passes += sum(course.scope.passes for course in courses)
            self._batch_size = min([self._batch_size, *(course.place.batch_size for course in courses)])
            self.progress.finished()
        seconds = round(time.monotonic() - started, 3)
        for course in courses:
            at = course.place
            notes: dict[str, Any] = {"seconds": seconds, "batch_size": at.batch_size, "batches": at.batches}
            notes |= {"batch_asked": "auto"} if plan.options.batch_size == "auto" else {}
            notes |= {"out_of_memory": at.halved} if at.halved else {}
            for target in (t for t in course.one.targets if t.node is not None and not course.one.adaptive):
                self._keep_fold(target, course.totals[target], course.error(target))
            for cell in course.one.cells:
                self._conclude(cell, course, notes)
            self._ended.append(course.key)
            self._rest(course.scope)

    def _rest(self, *scopes: Scope) -> None:
        """Let go of weights."""
        for scope in (*scopes, self._at_stop, self._at_prefix):
            if scope is not None:
                scope.rest()

    def _known_sample(self) -> dict[str, Any] | None:
        """The sample of finished cells: those still to be computed are to have the same."""
        if self.plan.options.fresh:
            return None
        stored = (self.store.read(cell.key) for cell in self.plan.cells if cell.streamed)
        return next((r.sample for r in stored if r is not None and r.sample and r.status != "failed"), None)

    def _keep_fold(self, target: Target, total: EvidenceTree | None, error: Exception | None) -> None:
        assert target.node is not None
        if error is not None:
            self._totals[target.node.serial] = error
        elif total is None:
            self._totals[target.node.serial] = Undefined("there are no rows to sum over")
        else:
            self._totals[target.node.serial] = total
            if self.plan.comes_again(target.node):
                self.store.write_fold(target.node.digest, total)

    def _conclude(self, cell: Cell, course: Course | None, notes: Mapping[str, Any]) -> None:
        """Write one cell's result; whatever goes wrong is that cell's alone."""
        result = Result(cell.key, "ok", cell.record, provenance=self._provenance(cell, notes))
        target = next((t for t in course.one.targets if t.key == cell.key), None) if course else None
        total = course.totals[target] if course and target else None
        adaptive = cell.streamed and self._at_stop is not None
        try:
            result.headline = [str(name) for name in cell.metric.headline]
            if adaptive:
                result.sample = dict(self._sample)
            if course is not None and target is not None and (error := course.error(target)) is not None:
                raise error
            own = course.scope if course else Scope(self.model, [], self._totals, 0)
            values = concluded(cell, total, self._at_stop if adaptive and self._at_stop else own)
            if result.sample is not None and self._at_prefix is not None:
                early = course.prefix[target] if course and target else None
                values, taken = of_prefix(cell, values, early, self._at_prefix)
                result.sample |= {"of_prefix": taken, "prefix_components": components(early) if taken else {}}
            fill(result, values)
            result.components = components(total)
        except Undefined as reason:
            result.status, result.reason = "undefined", str(reason)
        except Exception as error:  # one bad cell fails alone
            result.status, result.reason, result.values, result.arrays = "failed", said(error), {}, {}
            trace = target.trace if target is not None and target.error is error else None
            result.traceback = trace or "".join(traceback.format_exception(error))
            log.debug("cell %s failed", cell.key, exc_info=error)
        self.store.write(result)
        self.plan.registry.plugins.notify("saeval_cell_finished", result=result)

    def _leave_out(self, cell: Cell, reason: str) -> None:
        """Write the result of a cell that the preflight keeps from being computed."""
        headline = list(cell.metric.headline)
        result = Result(cell.key, "failed", cell.record, provenance=self._provenance(cell, {}), headline=headline)
        result.reason = reason
        self.store.write(result)
        self.plan.registry.plugins.notify("saeval_cell_finished", result=result)

    def _run_facts(self) -> dict[str, Any]:
        """What is the same for every result of the run."""
        plugins = self.plan.registry.plugins
        extra: dict[str, dict[str, Any]] = {}
        for facts, origin in plugins.collect("saeval_provenance"):
            try:
                extra.setdefault(str(origin), {}).update(finite(dict(facts)))
            except Exception as error:  # no mapping, or one that cannot be written down
                text = f"saeval_provenance returned an object of {type(facts).__name__} in its list; expected mappings"
                plugins.failures.append(Failure(origin, f"{text} ({said(error)})"))
        return {
            **provenance.environment(),
            "plugins": {str(o): o.version for o in plugins.origins.values()},
            "device": self.plan.options.device,
            "sae_device": self.plan.options.sae_device or self.plan.options.device,
            "limit": self.plan.streams.cut,
            **({"plugin_facts": extra} if extra else {}),
        }

    def _provenance(self, cell: Cell, notes: Mapping[str, Any]) -> dict[str, Any]:
        dtypes = {"model": str(self.model.dtype).removeprefix("torch.")} if self.model else {}
        return {
            **self._facts,
            **self.preflight.record(cell),
            "weights_sha256": {s.name: (s.facts or {}).get("sha256") for s in cell.subjects},
            "tokens_sha256": self.plan.streams.evaluation.fingerprint,
            "dtypes": {**dtypes, "saes": self.plan.options.sae_dtype, "sums": "float64"},
            "chunked_head": getattr(self.model, "chunked_head", None),
            "peak_memory_mib": peak_mib(),
            **notes,
        }


def manifest(plan: Plan) -> dict[str, Any]:
    """What a run's reports need to know: its cells in order, its leaderboard, whether it was limited."""
    return {
        "schema": MANIFEST_FORM,
        "suite": plan.name,
        "source": plan.suite.marks.source,
        "file": str(plan.suite.file) if plan.suite.file else None,
        "limit": plan.streams.cut,
        "leaderboard": plan.suite.body.leaderboard.model_dump(),
        "cells": [{"key": c.key, "cell": dict(c.record)} for c in plan.cells],
    }
