"""`Crew`: the workers of a run. It hands requests to them, and again to others if a worker fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from saeval.base.errors import Problem, SaevalError, SuiteError, blamed, log
from saeval.base.fingerprint import digest_of
from saeval.base.identity import Origin
from saeval.base.parameters import ParameterError, validated
from saeval.base.provenance import version
from saeval.base.run_options import FlagOptions
from saeval.base.whole_files import FREE_SPACE, write_whole
from saeval.engine.needs import needs_of
from saeval.interfaces.engine import Needs, Worker, WorkerEngine
from saeval.plan.plan import Plan
from saeval.results.store import Store

_TRIES = 3
"""Workers that try a request before it fails."""
_PATIENCE = 60.0
"""Seconds after which a run begins with the workers that are there."""
_PAUSE, _WAIT, _DAY = 0.01, 0.2, 86400.0
"""Seconds between two looks at the workers, and at the threads of runs."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables that workers take over."""


T = TypeVar("T")


class _Stopped(BaseException):
    """Another of the runs that share the workers has failed, or the user has interrupted them all."""


@dataclass(eq=False)
class _Errand:
    """Tasks that one run waits for."""

    waiting: list[Task]
    running: set[Task] = field(default_factory=set)
    ended: list[Task] = field(default_factory=list)
    """Those whose end the run has not yet been told."""


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
        self.needs = max(needed, default=Needs(0, 0))
        self._count = count
        self._started = False
        self._open: dict[Worker, Task] = {}
        self._joining: dict[str, dict[str, Any]] = {}
        """The request to join, by the title of a plan."""
        self._joined: set[tuple[Worker, str]] = set()
        self._models: dict[str, str] = {}
        """A hash of the model, by the title of a plan."""
        self._last: dict[Worker, tuple[str, str, object]] = {}
        """What each worker did last: the model that it holds, the plan and the pass."""
        self._errands: list[_Errand] = []
        self._turn = threading.Lock()
        """Held by the run that computes. It is free only while runs wait for the workers."""
        self._several = False
        self._stopped = False
        self._looked = 0.0
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
        """Make every worker plan the suite; `SaevalError` if one cannot compute what this process would compute.

        A plan that has joined before does nothing.
        """
        if plan.title in self._joining:
            return
        self._start()
        self._joining[plan.title] = _joining(plan, store, self.folder, self.engine.device)
        self._models[plan.title] = digest_of([plan.spec.identity(), plan.spec.code]) if plan.spec else ""
        begun = time.monotonic()
        for worker in self._idle():
            self._send(worker, Task(self._joining[plan.title]))
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

    def together(self, runs: Sequence[Callable[[], T]]) -> list[T]:
        """Call all `runs` and return what each returns. One computes at a time, while the others wait for workers.

        So no worker is idle while any of the runs has something to do. An error in one ends all of them.
        """
        returned: dict[int, T] = {}
        errors: list[BaseException] = []

        def call(index: int, function: Callable[[], T]) -> None:
            with self._turn:
                try:
                    if not self._stopped:
                        returned[index] = function()
                except _Stopped:
                    pass
                except BaseException as error:
                    errors.append(error)
                    self._stopped = True

        if len(runs) == 1:
            return [runs[0]()]
        self._several = True
        threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(runs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # in short waits, so that an interruption is noticed
                    thread.join(_WAIT)
        finally:
            self._stopped = True
            for thread in threads:
                thread.join()
            self._several = self._stopped = False
        if errors:
            raise errors[0]
        return [returned[index] for index in range(len(runs))]

    def run(self, tasks: Iterable[Task], done: Callable[[Task], None]) -> None:
        """Run all tasks and call `done` with each as it ends; `SaevalError` if no worker is left.

        A task that fails is tried twice more, by other workers if there are any.
        """
        errand = _Errand(list(tasks))
        self._errands.append(errand)
        try:
            while errand.waiting or errand.running or errand.ended:
                self._hand_out()
                if not errand.ended:
                    self._look()
                while errand.ended:
                    task = errand.ended.pop(0)
                    for sentence in (task.answer or {}).get("warnings", ()):
                        log.warning("%s", sentence)
                    done(task)
                if not self.workers and (errand.waiting or errand.running):
                    raise self._nobody()
                if errand.waiting or errand.running:
                    self._pause()
        finally:
            self._errands.remove(errand)

    def _pause(self) -> None:
        """Wait for a moment, in which another run may compute."""
        if not self._several:
            time.sleep(_PAUSE)
            return
        self._turn.release()
        try:
            time.sleep(_PAUSE)
        finally:
            self._turn.acquire()
        if self._stopped:
            raise _Stopped

    def _hand_out(self) -> None:
        """Give each idle worker the task that suits what it holds: its last pass, plan or model, in this order.

        A worker that holds nothing suitable takes a model that few others work on.
        """
        for worker in self._idle():
            held, plan, pass_ = self._last.get(worker, ("", "", None))
            busy = Counter(self._models[task.request["name"]] for task in self._open.values())
            best: tuple[Any, _Errand, Task] | None = None
            for errand in self._errands:
                if (task := next((t for t in errand.waiting if self._may(worker, t)), None)) is None:
                    continue
                name = task.request["name"]
                model = self._models[name]
                cost = (model != held, busy[model] if model != held else 0, name != plan, _pass(task) != pass_)
                if best is None or cost < best[0]:
                    best = (cost, errand, task)
            if best is None:
                continue
            _, errand, task = best
            name = task.request["name"]
            if (worker, name) not in self._joined:
                self._send(worker, Task(self._joining[name]))
                continue
            errand.waiting.remove(task)
            errand.running.add(task)
            self._last[worker] = (self._models[name], name, _pass(task))
            self._send(worker, task)

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

    def _look(self) -> None:
        """Take the answers that are there; `SaevalError` from a worker that must not join."""
        if self._several and time.monotonic() - self._looked < _PAUSE:
            return  # another run has just looked for all
        self._looked = time.monotonic()
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
            elif task is not None:
                self._has_ended(task)

    def _has_ended(self, task: Task) -> None:
        errand = next((errand for errand in self._errands if task in errand.running), None)
        if errand is None:  # that of a run that has failed meanwhile
            return
        errand.running.discard(task)
        if task.answer is None and len(task.failures) < _TRIES:
            errand.waiting.insert(0, task)
        else:
            errand.ended.append(task)

    def _has_joined(self, worker: Worker, task: Task) -> None:
        if task.answer is not None and "refused" in task.answer:
            raise SaevalError(f"worker {worker.name} {task.answer['refused']}")
        if worker in self.workers and task.failures:
            raise SaevalError(f"worker {worker.name}: {task.failures[-1][1]}\n{task.failures[-1][2]}".strip())
        self._joined.add((worker, task.request["name"]))


def _pass(task: Task) -> object:
    """Return what of a task says which SAEs it needs."""
    return task.request.get("pass") or task.request.get("key")


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
        "do": "join", "suite": _body(plan), "source": plan.suite.marks.source, "name": plan.title,
        "part": plan.suite.part,
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
