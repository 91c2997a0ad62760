"""`Crew`: the workers of a run. It hands requests to them, and again to others if a worker fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saeval.base.errors import Problem, SaevalError, SuiteError, blamed, log
from saeval.base.identity import Origin
from saeval.base.parameters import ParameterError, validated
from saeval.base.provenance import version
from saeval.base.run_options import FlagOptions
from saeval.base.whole_files import FREE_SPACE, write_whole
from saeval.engine.needs import needs_of
from saeval.interfaces.engine import Worker, WorkerEngine
from saeval.plan.plan import Plan
from saeval.results.store import Store

_TRIES = 3
"""Workers that try a request before it fails."""
_PATIENCE = 60.0
"""Seconds after which a run begins with the workers that are there."""
_PAUSE, _DAY = 0.01, 86400.0
"""Seconds between two looks at the workers."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables that workers take over."""


@dataclass(eq=False)
class Task:
    """A request, and what has come of it."""

    request: Mapping[str, Any]
    answer: Mapping[str, Any] | None = None
    """None if it failed."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Each try that failed: the worker, a sentence and a traceback or what else is known."""

    @property
    def reason(self) -> str:
        """Why it failed, in a sentence."""
        worker, sentence, _ = self.failures[-1]
        return f"{sentence} (worker {worker}, after {len(self.failures)} tries)"

    @property
    def trace(self) -> str:
        return "\n".join(f"worker {worker}: {sentence}\n{details}" for worker, sentence, details in self.failures)


class Crew:
    """The workers of one or several runs, from their start to the end of the context."""

    def __init__(self, engine: WorkerEngine, count: int | None, plans: Sequence[Plan], out: Path) -> None:
        self.engine = engine
        self.folder = Path(out).absolute() / f".workers-{uuid.uuid4().hex[:12]}"
        needed = [needs_of(plan, engine.device) for plan in plans]
        self.needs = max(needed)
        self._count = count
        self._started = False
        self._open: dict[Worker, Task] = {}
        self._joining: dict[str, dict[str, Any]] = {}
        """The request to join, by suite."""
        self._joined: set[tuple[Worker, str]] = set()
        self._lost = ""
        """Why the last worker ended that was not asked for anything."""
        self.workers: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self.engine.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        """Start the workers, once something is left to compute."""
        if not self._started:
            self._started = True
            for left in self.folder.parent.glob(".workers-*"):  # by a run that was killed
                if time.time() - left.stat().st_mtime > _DAY:
                    shutil.rmtree(left, ignore_errors=True)
            write_whole(self.folder / "present", b"present", f"{FREE_SPACE} --out")
            self.workers = self.engine.start(self._count, self.needs, self.folder)

    def join(self, plan: Plan, store: Store) -> None:
        """Make every worker plan the suite; `SaevalError` if one cannot compute what this process would compute."""
        self._start()
        self._joining[plan.name] = _joining(plan, store, self.folder, self.engine.device)
        begun = time.monotonic()
        for worker in self._idle():
            self._send(worker, Task(self._joining[plan.name]))
        while self.workers and (joining := sum(task.request["do"] == "join" for task in self._open.values())):
            if joining < len(self.workers) and time.monotonic() - begun > _PATIENCE:
                break  # those that still wait for their machines join later
            self._look()
            time.sleep(_PAUSE)
        if not self.workers:
            raise self._nobody()

    def _nobody(self) -> SaevalError:
        words = f"no worker of engine '{self.engine.name}' is left; finished work is kept, so run again"
        return SaevalError(f"{words}\n{self._lost}".strip())

    def run(self, tasks: Iterable[Task], done: Callable[[Task], None]) -> None:
        """Run all tasks and call `done` with each as it ends; `SaevalError` if no worker is left.

        A task that fails is tried twice more, by other workers if there are any.
        """
        waiting = list(tasks)
        running: set[Task] = set()
        while waiting or running:
            for worker in self._idle():
                if task := next((t for t in waiting if self._may(worker, t)), None):
                    if (worker, task.request["name"]) not in self._joined:
                        self._send(worker, Task(self._joining[task.request["name"]]))
                        continue
                    waiting.remove(task)
                    running.add(task)
                    self._send(worker, task)
            ended = self._look()
            for task in ended:
                running.discard(task)
                if task.answer is None and len(task.failures) < _TRIES:
                    waiting.insert(0, task)
                    continue
                for sentence in (task.answer or {}).get("warnings", ()):
                    log.warning("%s", sentence)
                done(task)
            if not self.workers and (waiting or running):
                raise self._nobody()
            if not ended:
                time.sleep(_PAUSE)

    def _idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker not in self._open]

    def _may(self, worker: Worker, task: Task) -> bool:
        """True unless the task has failed on this worker, and another one has not tried it."""
        tried = {name for name, *_ in task.failures}
        return worker.name not in tried or all(other.name in tried for other in self.workers)

    def _send(self, worker: Worker, task: Task) -> None:
        self._open[worker] = task
        try:
            worker.send(json.dumps(task.request))
        except OSError as error:  # its end is noticed at the next look
            logging.getLogger("saeval").debug("worker %s: %s", worker.name, error)

    def _look(self) -> list[Task]:
        """Return the tasks that have ended since the last look; `SaevalError` from a worker that must not join."""
        ended = []
        for worker in list(self.workers):
            task = self._open.get(worker)
            text = worker.answer() if task is not None else None
            if task is not None and text is not None:
                answer = json.loads(text)
                if "error" in answer:
                    task.failures.append((worker.name, answer["error"], answer.get("traceback", "")))
                else:
                    task.answer = answer
            elif why := worker.ended():
                self.workers.remove(worker)
                self._lost = f"worker {worker.name}: {why}"
                if task is not None:
                    task.failures.append((worker.name, "the worker ended in the middle of it", why))
            else:
                continue
            self._open.pop(worker, None)
            if task is not None and task.request["do"] == "join":
                self._has_joined(worker, task)
                continue
            if task is not None:
                ended.append(task)
        return ended

    def _has_joined(self, worker: Worker, task: Task) -> None:
        if task.answer is not None and "refused" in task.answer:
            raise SaevalError(f"worker {worker.name} {task.answer['refused']}")
        if worker in self.workers and task.failures:
            raise SaevalError(f"worker {worker.name}: {task.failures[-1][1]}\n{task.failures[-1][2]}".strip())
        self._joined.add((worker, task.request["name"]))


def crew_of(plans: Sequence[Plan], out: Path | str) -> Crew | None:
    """Return the crew that the options of these plans ask for; None if this process computes.

    `SaevalError` for an unknown engine or option, and for a suite that cannot travel to other processes.
    """
    options = plans[0].options
    name, _, number = options.engine.partition(":")
    called = options.called("engine")
    if options.engine == "local":
        if options.engine_option:
            raise SaevalError(f"{options.called('engine_option')}: {called} 'local' is this process and has no options")
        return None
    if number and (not number.isdigit() or int(number) < 1):
        raise SaevalError(f"{called}: '{options.engine}' is NAME or NAME:WORKERS, such as local:2")
    registry = plans[0].registry
    cls = registry.engines[name]
    given: dict[str, Any] = {}
    for text in options.engine_option:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SaevalError(f"{options.called('engine_option')}: expected KEY=VALUE, got '{text}'")
        given[key] = json.loads(value) if value.isdigit() else value
    try:
        checked = validated(cls, given, f"engine '{name}'")
    except ParameterError as error:
        raise SaevalError(str(error)) from None
    for plan in plans:
        if held := _held(plan):
            raise SaevalError(
                f"{called} '{options.engine}': {held} exists in this process alone and cannot travel to workers; "
                f"name a file or a plugin in its place, or use the engine 'local'"
            )
    with blamed(f"engine '{name}'", registry.engines.entry(name).origin):
        return Crew(cls(**checked), int(number) if number else None, plans, Path(out))


def _held(plan: Plan) -> str | None:
    """Return a live object of a plan, in words; None if the plan can be made elsewhere from plain data."""
    if plan.suite.live_model is not None:
        return "the model that was passed as an object"
    if plan.suite.live:
        return f"SAE '{next(iter(plan.suite.live))}', which was passed as an object,"
    if plan.registry.plugins.added:
        return f"plugin '{plan.registry.plugins.added[0]}', which was added as an object,"
    try:
        json.dumps(_body(plan))
    except (TypeError, ValueError):
        return "an object in the suite"
    return None


def _body(plan: Plan) -> dict[str, Any]:
    body = plan.suite.body.model_dump(exclude_unset=True)
    return {key: value for key, value in body.items() if value != [] and value is not None}


def _joining(plan: Plan, store: Store, folder: Path, device: str | None) -> dict[str, Any]:
    options = {name: value for name, value in asdict(plan.options).items() if name not in _OWN}
    plugins = plan.registry.plugins
    return {
        "do": "join", "suite": _body(plan), "source": plan.suite.marks.source, "name": plan.name,
        "options": {**options, "allow": list(options["allow"]), **({"device": device} if device else {})},
        "flags": isinstance(plan.options, FlagOptions),
        "plugins": {_named_there(origin, plugins.files): origin.version for origin in plugins.origins.values()},
        "files": plugins.files, "discover": plugins.discovered,
        "store": str(store.folder.absolute()), "present": str(folder / "present"), "in": os.getcwd(),
        "environment": {name: os.environ[name] for name in OFFLINE if name in os.environ},
        "saeval": version(), "keys": [cell.key for cell in plan.cells], **identities(plan),
    }  # fmt: skip


_OWN = ("engine", "engine_option", "fresh", "checkpoint_seconds")
"""Options of the process that starts the workers."""


def identities(plan: Plan) -> dict[str, Any]:
    """Return what a suite's paths and names stand for here: hashes of weights, the model's identity, the rows."""
    return {
        "weights": {s.name: (s.facts or {}).get("sha256") for s in plan.subjects if s.kind == "sae"},
        "model": json.loads(json.dumps(plan.spec.identity(), default=str)) if plan.spec else None,
        "rows": plan.streams.evaluation.fingerprint,
    }


def raise_problems(answer: Mapping[str, Any]) -> None:
    """Raise the `SuiteError` that a worker answered with, if it did."""
    if problems := answer.get("problems"):
        raise SuiteError(Problem(message, where) for message, where in problems)


def _named_there(origin: Origin, files: Sequence[str]) -> str:
    """Return a plugin's name in a worker, which loads plugin files by their absolute paths."""
    path = str(Path(origin.distribution).absolute())
    return str(replace(origin, distribution=path) if path in files else origin)
