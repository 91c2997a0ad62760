"""The engine: streams each pass, saves its evidence, and concludes each cell separately."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from saeval.base import provenance
from saeval.base.errors import SaevalError, Undefined, said
from saeval.base.lazy_torch import torch
from saeval.base.memory import memory_budget, peak_mib
from saeval.base.progress import Progress, Silence
from saeval.engine.cell_result import components, concluded, fill, of_prefix
from saeval.engine.crew import Crew, Task, raise_problems
from saeval.engine.evaluator import Evaluator
from saeval.engine.kept_passes import KeptPasses
from saeval.engine.passes import Pass, passes, stages, together
from saeval.engine.preflight import Preflight, model_warnings
from saeval.engine.running_pass import RunningPass, raised, reason_of
from saeval.engine.stop_when_precise import StopWhenPrecise
from saeval.interfaces.metric import Metric
from saeval.interfaces.model import Model
from saeval.plan.batch_size import fitting
from saeval.plan.blocks import Block
from saeval.plan.cell import Cell
from saeval.plan.nodes import Node, closure, flattened
from saeval.plan.plan import Plan
from saeval.plan.precision import stopping_points
from saeval.registry.discovery import Failure
from saeval.results.result import Result
from saeval.results.store import MANIFEST_FORM, Store, finite
from saeval.stats.evidence import EvidenceTree

log = logging.getLogger("saeval")


class Engine:
    """Runs a plan into a store."""

    def __init__(
        self, plan: Plan, store: Store, progress: Progress | None = None, crew: Crew | None = None,
        beside: Sequence[Cell] | None = None, kept: KeptPasses | None = None,
    ) -> None:  # fmt: skip
        """`beside`: all cells of the suite, if the plan is of one of its models."""
        self.plan, self.kept = plan, kept
        self.listed = plan.cells if beside is None else beside
        self.store = store
        self.progress = progress or Silence()
        self.crew = crew
        """The workers that sum the blocks; None if this process does."""
        self.notifies = True
        """False in a worker: plugins are told of results by the process that began the run."""
        self.model: Model | None = None
        self.forward_passes = 0
        self.preflight = Preflight(plan, kept)
        if plan.interview is not None:
            plan.interview.folder = store.folder / "judge"
        self._batch_size = 1
        self._ended: list[str] = []
        """Keys of the passes that this run has concluded."""
        self._begun: dict[int, RunningPass] = {}
        """Passes that have begun, by `id` of the planned pass: the preflight has run the first rows of one."""
        self.totals: dict[int, EvidenceTree | Exception] = {}
        """Totals of folds, or why they have none, by node serial."""
        self._sample: dict[str, Any] = {}
        self._at_stop: Evaluator | None = None
        """If the suite stops adaptively: the evaluator for conclusions over the rows before the stop."""
        self._at_prefix: Evaluator | None = None
        """The same over the rows of the prefix."""
        self._facts: dict[str, Any] = {}
        self.records: dict[str, dict[str, Any]] = {}
        """The preflight's part of results, by cell, if a worker has run it."""
        self._of_model: dict[str, Any] = {}
        """What a worker says of the model."""

    def run(self) -> list[Result]:
        """Return the result of each cell, in the plan's order: read from the store if finished, else computed."""
        plan, plugins = self.plan, self.plan.registry.plugins
        pending = unfinished(plan, self.store)
        if pending:
            plan.verify()
            plan.verify_judge(pending)
            for sentence in model_warnings(plan):
                log.warning("%s", sentence)
        self.store.write_manifest(manifest(plan, self.listed))
        plugins.notify("saeval_run_started", plan=plan)
        if pending:
            try:
                with torch.no_grad():
                    self._compute(pending)
            finally:
                if plan.interview is not None:
                    plan.interview.judge.close()
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
        if self.crew is not None:
            self.crew.join(self.plan, self.store)
        if needs_model(unique, conclusions_alone=self.crew is not None):
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
        for independent in [groups] if self.crew is None else stages(groups):
            if self.crew is not None:
                self._sum_ahead(independent)
            for group in independent:
                self._stream(group)
        alone = [c for c in unique if c.observe is None]
        if self.crew is not None:
            alone = self._concluded_elsewhere(alone)
        for cell in alone:  # each with its own weights, released at once
            self.conclude_alone(cell)

    def conclude_alone(self, cell: Cell) -> None:
        """Conclude a cell that observes no rows."""
        self._facts = self._facts or self._run_facts()
        self._conclude(cell, None, {})
        self._release_weights()

    def take_folds(self, stored: Collection[str], without: Mapping[str, Sequence[Any]]) -> None:
        """Take the totals of folds from the store, by digest, and the reasons of those that have none."""
        for serial, node in self.plan.folds(self.plan.cells).items():
            if (reason := without.get(node.digest)) is not None:
                self.totals[serial] = raised(*reason)
            elif node.digest in stored and serial not in self.totals:
                if (total := self.store.fold(node.digest)) is None:
                    raise SaevalError(f"fold '{node.name}' is not in {self.store.folder}, which all workers share")
                self.totals[serial] = total

    def _request(self, do: str, nodes: Sequence[Node], **facts: Any) -> Task:
        """Return a task for a worker that computes these nodes. It is told of the folds so far."""
        model = any("model" in n.roots for n in closure(nodes).values())
        known = {serial: node for serial, node in self.plan.folds(self.plan.cells).items() if serial in self.totals}
        failed = {serial: e for serial in known if isinstance(e := self.totals[serial], Exception)}
        return Task({
            "do": do, "name": self.plan.title, "model": model,
            "folds": [node.digest for serial, node in known.items() if serial not in failed],
            "without": {known[serial].digest: reason_of(error) for serial, error in failed.items()}, **facts,
        })  # fmt: skip

    def _examined_elsewhere(self, running: RunningPass, cells: list[Cell], memory: int) -> dict[str, str]:
        """Let a worker run the preflight; return the cells to leave out, by key, with the reason."""
        assert self.crew is not None
        nodes = [n for c in [*running.planned.cells, *cells] for n in c.nodes()]
        facts = {
            "pass": running.planned.record(self.plan), "block": running.left(len(running.dataset))[0],
            "cells": [c.key for c in cells], "memory": memory, "batch_size": self._batch_size,
        }  # fmt: skip
        task = self._request("preflight", nodes, **facts)
        self.crew.run([task], lambda _: None)
        if task.answer is None:
            raise SaevalError(f"the preflight failed: {task.reason}\n{task.trace}")
        raise_problems(task.answer)
        self.records = dict(task.answer["records"])
        self.forward_passes += task.answer["forward_passes"]
        self._batch_size = min(self._batch_size, task.answer["batch_size"])
        return dict(task.answer["left_out"])

    def _sum_ahead(self, groups: Sequence[Sequence[Pass]]) -> None:
        """Let the workers sum all passes that do not wait for each other, so that none of them is idle in between."""
        passes_ = [planned for group in groups for planned in group if not planned.adaptive]
        running = [self._running_pass(planned) for planned in passes_]
        self._begun |= {id(r.planned): r for r in running}
        if not any(r.place.row < len(r.dataset) for r in running):
            return
        rows, done = sum(len(r.dataset) for r in running), sum(r.place.row for r in running)
        self.progress.started(", ".join(dict.fromkeys(r.planned.title for r in running)), rows, done)
        try:
            self._sum_elsewhere([(r, len(r.dataset)) for r in running], self.progress)
        finally:
            self.progress.finished()

    def _sum_elsewhere(self, spans: Sequence[tuple[RunningPass, int]], progress: Progress) -> None:
        """Let the workers sum the blocks of each pass up to a row, and add their sums in the order of the rows."""
        assert self.crew is not None
        tasks: dict[tuple[int, Block], Task] = {}
        for running, until in spans:
            nodes = [n for t in running.planned.summations for n in t.nodes()]
            facts = {"pass": running.planned.record(self.plan), "batch_size": self._batch_size}
            request = self._request("block", nodes, **facts).request
            for block in running.left(until):
                if not self.plan.options.fresh and (tokens := running.stored_tokens(block)) is not None:
                    progress.advanced(block.end - block.start, tokens)
                    continue
                tasks[id(running), block] = Task({**request, "block": block})

        def done(task: Task) -> None:
            start, end = task.request["block"]
            answer = task.answer or {"tokens": 0, "forward_passes": 0, "of_model": self._of_model}
            self.forward_passes += answer["forward_passes"]
            self._of_model = answer["of_model"]
            progress.advanced(end - start, answer["tokens"])

        self.crew.run(tasks.values(), done)
        for running, until in spans:
            for block in running.left(until):
                asked = tasks.get((id(running), block))
                if asked is not None and asked.answer is None:
                    running.lose(block, asked.reason, asked.trace)
                elif running.add_shard(block) is None:
                    place = f"{self.store.folder}/shards"
                    running.lose(block, f"the sum of rows {block.start} to {block.end - 1} vanished from {place}", "")

    def _concluded_elsewhere(self, cells: Sequence[Cell]) -> list[Cell]:
        """Let the workers conclude cells that observe no rows; return those that only this process can conclude."""
        assert self.crew is not None
        here = [cell for cell in cells if cell.streamed and self._at_stop is not None]
        tasks = {
            id(cell): self._request("cell", cell.nodes(), key=cell.key, record=self.records.get(cell.key, {}))
            for cell in cells if cell not in here
        }  # fmt: skip
        by_task = {id(task): cell for cell in cells if (task := tasks.get(id(cell))) is not None}

        def done(task: Task) -> None:
            cell = by_task[id(task)]
            result = self.store.read(cell.key, arrays=True) if task.answer is not None else None
            if result is None:
                result = Result(cell.key, "failed", cell.record, provenance=self._provenance(cell, {}))
                result.headline, result.main = _declared(cell.metric)
                result.reason, result.traceback = task.reason if task.failures else "its result vanished", task.trace
                self.store.write(result)
            result.cell = cell.record
            self.plan.registry.plugins.notify("saeval_cell_finished", result=result)

        self.crew.run(tasks.values(), done)
        return here

    def _stored_folds(self, cells: list[Cell]) -> set[str]:
        stored = set()
        for serial, node in self.plan.folds(cells).items():
            total = None if self.plan.options.fresh else self.store.fold(node.digest)
            if total is not None:
                self.totals[serial] = total
                stored.add(node.digest)
        return stored

    def _examine(self, groups: list[list[Pass]], cells: list[Cell], memory: int) -> dict[str, str]:
        """Run the preflight on the first rows of the run; return the cells to leave out, by key, with the reason."""
        if self.plan.options.preflight == "off" or not (portions := self.preflight.summations(cells, memory)):
            return {}
        for planned in (pass_ for group in groups for pass_ in group):
            running = self._running_pass(planned)
            if running.place.row < len(running.dataset):
                break
        else:  # no rows are left to stream: an earlier run has examined them
            return {}
        ends = stopping_points(running.dataset.clusters) if planned.adaptive else []
        until = next((e.sequences for e in ends if e.sequences > running.place.row), len(running.dataset))
        if self.crew is not None:
            return self._examined_elsewhere(running, cells, memory)
        running.run_ahead(portions, until)
        self.forward_passes += running.evaluator.passes + self.preflight.forward_passes
        running.evaluator.passes = 0
        self._batch_size = min(self._batch_size, running.place.batch_size)
        self._begun[id(planned)] = running
        return self.preflight.judge(cells)

    def _running_pass(self, planned: Pass) -> RunningPass:
        """Return a pass, continued from its checkpoint if it has one, or the one that has begun."""
        if (begun := self._begun.pop(id(planned), None)) is not None:
            return begun
        dataset = planned.dataset(self.plan)
        evaluator = Evaluator(
            self.model, planned.summations, self.totals, dataset.n_clusters, dataset, self.kept, self.plan.passing
        )
        return RunningPass(self.plan, self.store, planned, evaluator, self._batch_size)

    def _stream(self, group: list[Pass]) -> None:
        """Stream passes over the same rows (usually one), from their checkpoints if any, and conclude their cells."""
        plan, started = self.plan, time.monotonic()
        running_passes = [self._running_pass(planned) for planned in group]
        rows, done = len(running_passes[0].dataset), sum(running.place.row for running in running_passes)
        progress = self.progress if done < rows * len(running_passes) or self.crew is None else Silence()
        progress.started(", ".join(planned.title for planned in group), rows * len(running_passes), done)

        def advance(running: RunningPass, until: int) -> None:
            if self.crew is not None:
                return self._sum_elsewhere([(running, until)], progress)
            for block in running.left(until):
                whole = running.place.row == block.start and not plan.options.fresh
                tokens = running.add_shard(block) if whole else None  # one that workers of an earlier run have left
                if tokens is None:
                    running.advance(min(until, block.end), progress)
                else:
                    progress.advanced(block.end - block.start, tokens)

        try:
            if group[0].adaptive and plan.stopping is not None:
                stop = StopWhenPrecise(plan, plan.stopping, running_passes, self.model, self.totals)
                self._sample = stop.reach(advance, self._known_sample())
                self._at_stop, self._at_prefix = stop.evaluator(), stop.evaluator(of_prefix=True)
            else:
                advance(running_passes[0], rows)
            for running in running_passes:  # a conclusion can be interrupted as well
                running.save()
        finally:
            self.forward_passes += sum(running.evaluator.passes for running in running_passes)
            self._batch_size = min([self._batch_size, *(running.place.batch_size for running in running_passes)])
            progress.finished()
        seconds = round(time.monotonic() - started, 3)
        for running in running_passes:
            at = running.place
            notes: dict[str, Any] = {"seconds": seconds, "batch_size": at.batch_size, "batches": at.batches}
            notes |= {"block": plan.options.block}
            notes |= {"batch_asked": "auto"} if plan.options.batch_size == "auto" else {}
            notes |= {"out_of_memory": at.halved} if at.halved else {}
            for summation in running.planned.summations if not running.planned.adaptive else ():
                if summation.node is not None:
                    self._keep_fold(summation.node, running.fold(summation, running.totals[summation]))
            for cell in running.planned.cells:
                self._conclude(cell, running, notes)
            self._ended.append(running.key)
            self._release_weights(running.evaluator)

    def _release_weights(self, *evaluators: Evaluator) -> None:
        """Release the weights of these evaluators and of those for conclusions."""
        for evaluator in (*evaluators, self._at_stop, self._at_prefix):
            if evaluator is not None:
                evaluator.release_weights()

    def _known_sample(self) -> dict[str, Any] | None:
        """Return the sample of the finished cells, which the remaining cells must use, too; None if there is none."""
        if self.plan.options.fresh:
            return None
        stored = (self.store.read(cell.key) for cell in self.plan.cells if cell.streamed)
        return next((r.sample for r in stored if r is not None and r.sample and r.status != "failed"), None)

    def _keep_fold(self, node: Node, total: EvidenceTree | Exception) -> None:
        self.totals[node.serial] = total
        if not isinstance(total, Exception) and self.plan.is_reusable(node):
            self.store.write_fold(node.digest, total)

    def _conclude(self, cell: Cell, running: RunningPass | None, notes: Mapping[str, Any]) -> None:
        """Conclude one cell and write its result; an error is a failure of this cell alone."""
        result = Result(cell.key, "ok", cell.record, provenance=self._provenance(cell, notes))
        summation = next((t for t in running.planned.summations if t.key == cell.key), None) if running else None
        total = running.totals[summation] if running and summation else None
        adaptive = cell.streamed and self._at_stop is not None
        try:
            result.headline, result.main = _declared(cell.metric)
            if adaptive:
                result.sample = dict(self._sample)
            if running is not None and summation is not None and (error := running.error(summation)) is not None:
                raise error
            dataset = self.plan.streams.evaluation
            evaluator = running.evaluator if running else Evaluator(self.model, [], self.totals, 0, dataset)
            values = concluded(cell, total, self._at_stop if adaptive and self._at_stop else evaluator)
            if result.sample is not None and self._at_prefix is not None:
                early = running.prefix[summation] if running and summation else None
                values, taken = of_prefix(cell, values, early, self._at_prefix)
                result.sample |= {"of_prefix": taken, "prefix_components": components(early) if taken else {}}
            fill(result, values, type(cell.metric))
            result.components = components(total)
        except Undefined as reason:
            result.status, result.reason = "undefined", str(reason)
        except Exception as error:  # one bad cell fails alone
            result.status, result.reason, result.values, result.arrays = "failed", said(error), {}, {}
            trace = summation.trace if summation is not None and summation.error is error else None
            result.traceback = trace or "".join(traceback.format_exception(error))
            log.debug("cell %s failed", cell.key, exc_info=error)
        self._finish(result)

    def _finish(self, result: Result) -> None:
        self.store.write(result)
        if self.notifies:
            self.plan.registry.plugins.notify("saeval_cell_finished", result=result)

    def _leave_out(self, cell: Cell, reason: str) -> None:
        """Write the failed result of a cell that the preflight excludes."""
        result = Result(cell.key, "failed", cell.record, provenance=self._provenance(cell, {}))
        result.headline, result.main = _declared(cell.metric)
        result.reason = reason
        self._finish(result)

    def _run_facts(self) -> dict[str, Any]:
        """Return the provenance that all results of the run share."""
        plugins = self.plan.registry.plugins
        extra: dict[str, dict[str, Any]] = {}
        for facts, origin in plugins.collect("saeval_provenance"):
            try:
                extra.setdefault(str(origin), {}).update(finite(dict(facts)))
            except Exception as error:  # not a mapping, or one that cannot be stored
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
        of_model = facts_of(self.model) if self.model else self._of_model
        dtypes = {"model": of_model["dtype"]} if of_model else {}
        return {
            **self._facts,
            **(self.records[cell.key] if cell.key in self.records else self.preflight.record(cell)),
            "weights_sha256": {s.name: (s.facts or {}).get("sha256") for s in cell.subjects},
            "tokens_sha256": self.plan.streams.evaluation.fingerprint,
            "dtypes": {**dtypes, "saes": self.plan.options.sae_dtype, "sums": "float64"},
            "chunked_head": of_model.get("chunked_head"),
            "peak_memory_mib": peak_mib(),
            **notes,
        }


def join(plan: Plan, store: Store, crew: Crew) -> None:
    """Let the workers plan a suite, if anything of it is left to compute; `SaevalError` if one cannot take part."""
    if unfinished(plan, store):
        crew.join(plan, store)


def unfinished(plan: Plan, store: Store) -> list[Cell]:
    """Return the cells that a run has to compute."""
    finished = set() if plan.options.fresh else store.finished([c.key for c in plan.cells])
    return [c for c in plan.cells if c.key not in finished]


def facts_of(model: Model) -> dict[str, Any]:
    """Return what results record of a loaded model."""
    head = getattr(model, "chunked_head", None)
    return {"dtype": str(model.dtype).removeprefix("torch."), "chunked_head": head}


def needs_model(cells: Sequence[Cell], conclusions_alone: bool = False) -> bool:
    """True if cells, or their conclusions alone, need the model, apart from what has been summed before."""
    nodes = [n for c in cells for n in c.nodes()]
    if not conclusions_alone:
        return any("model" in n.roots for n in closure(nodes).values())
    nodes = [n for c in cells if c.observe is not None for a in c.conclude.values() for n in flattened(a)]
    reached = closure(nodes, beyond=lambda n: not n.quantity.fold).values()
    return any("model" in n.roots and not n.quantity.fold for n in reached)


def manifest(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the record of a run for its reports: the cells of the suite in order, its leaderboard and its limit."""
    return {
        "schema": MANIFEST_FORM,
        "suite": plan.name,
        "source": plan.suite.marks.source,
        "file": str(plan.suite.file) if plan.suite.file else None,
        "limit": plan.streams.cut,
        "leaderboard": plan.suite.body.leaderboard.model_dump(),
        "cells": [{"key": c.key, "cell": dict(c.record)} for c in cells],
    }


def _declared(metric: Metric) -> tuple[list[str], list[str] | None]:
    """Return the values that tables show of a metric, and those that narrow ones keep first."""
    main = None if metric.main is None else [str(name) for name in metric.main]
    return [str(name) for name in metric.headline], main
