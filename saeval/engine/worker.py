"""`WorkerSession`: what a worker does with the requests of a run. It plans the suite itself and shares the store."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.base.errors import SaevalError, SuiteError, said
from saeval.base.fingerprint import digest_of
from saeval.base.lazy_torch import torch
from saeval.base.memory import keep_freed_memory
from saeval.base.progress import Silence
from saeval.base.provenance import version
from saeval.base.run_options import FlagOptions, RunOptions
from saeval.base.whole_files import write_whole
from saeval.engine.crew import identities
from saeval.engine.evaluator import Evaluator
from saeval.engine.loop import Engine, facts_of
from saeval.engine.passes import pass_of
from saeval.engine.running_pass import RunningPass, shard_key
from saeval.plan.blocks import Block
from saeval.plan.plan import Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.store import Store, finite
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from saeval.interfaces.model import Model


class _Refused(Exception):  # noqa: N818 - an answer
    """Why this process cannot take part, as the end of a sentence that begins with its name."""


class WorkerSession:
    """Answers the requests of a run: `answer` takes the text that `Worker.send` got and returns that of its answer.

    The plan, the model and the SAEs stay in memory from one request to the next. Sums and results go into the run's
    results folder, which all processes share: an answer holds only counts.
    """

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        """By name of the suite."""
        self._models: dict[str, Model] = {}
        self._current: tuple[tuple[str, str], Evaluator] | None = None
        """The suite and the pass of the last block, and its evaluator, which holds the SAEs."""

    def answer(self, request: str) -> str:
        """Return the answer to a request. An error is an answer, too: a sentence and a traceback."""
        asked = json.loads(request)
        with _warnings() as sentences:
            try:
                with torch.no_grad():
                    answer = getattr(self, f"_{asked['do']}")(asked)
            except _Refused as refusal:
                answer = {"refused": str(refusal)}
            except Exception as error:
                trace = "".join(traceback.format_exception(error))
                answer = {"error": str(error) if isinstance(error, SaevalError) else said(error), "traceback": trace}
        return json.dumps(finite({**answer, "warnings": [] if asked["do"] == "join" else sentences}))

    def _join(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        os.environ.update(asked["environment"])
        keep_freed_memory()
        with suppress(OSError):  # a folder of the first machine alone: absolute paths still work
            os.chdir(asked["in"])
        _check_store(asked)
        if asked["saeval"] != version():
            raise _Refused(f"has saeval {version()}, and this run needs {asked['saeval']}: install that version there")
        plugins = _plugins(asked)
        options = (FlagOptions if asked["flags"] else RunOptions)(**asked["options"])
        try:
            suite = validate(asked["suite"], Marks(asked["source"]))
            suite.part = asked["part"]
            planned = plan(suite, Registry(plugins), options)
        except SaevalError as error:
            raise _Refused(f"cannot plan the suite '{asked['name']}': {error}") from None
        planned.options = replace(planned.options, checkpoint_seconds=1e9)  # a shard is short, and computed again
        _check_identities(asked, planned)
        self._engines[asked["name"]] = engine = Engine(planned, Store(asked["store"]))
        engine.notifies = False
        return {}

    def _engine(self, asked: Mapping[str, Any]) -> Engine:
        """Return the engine of the request's suite, with its model and the folds that have no value."""
        engine = self._engines[asked["name"]]
        spec = engine.plan.spec
        if engine.model is None and asked["model"] and spec is not None:
            key = digest_of([spec.identity(), spec.code, engine.plan.options.device])
            if key not in self._models:
                self._forget_model()
                self._models[key] = spec.load(engine.plan.options.device)
            engine.model = self._models[key]
        engine.take_folds(set(asked["folds"]), asked["without"])
        return engine

    def _forget_model(self) -> None:
        """Leave the model to be freed, with the SAEs: a worker holds one model at a time."""
        self._models.clear()
        for engine in self._engines.values():
            engine.model = None
        if self._current is not None:
            self._current[1].release_weights()
            self._current = None

    def _preflight(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._engine(asked)
        planned = pass_of(engine.plan, asked["pass"])
        cells = [cell for cell in engine.plan.cells if cell.key in set(asked["cells"])]
        portions = engine.preflight.summations(cells, asked["memory"])
        dataset = planned.dataset(engine.plan)
        evaluator = Evaluator(engine.model, planned.summations, engine.totals, dataset.n_clusters, dataset)
        block = Block(*asked["block"])
        running = RunningPass(engine.plan, engine.store, planned, evaluator, asked["batch_size"], block)
        running.run_ahead(portions, block.end)
        evaluator.release_weights()
        try:
            left_out = engine.preflight.judge(cells)
        except SuiteError as error:
            return {"problems": [[problem.message, problem.where] for problem in error.problems]}
        return {
            "left_out": left_out,
            "records": {cell.key: engine.preflight.record(cell) for cell in cells},
            "forward_passes": evaluator.passes + engine.preflight.forward_passes,
            "batch_size": running.place.batch_size,
        }

    def _block(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._engine(asked)
        planned = pass_of(engine.plan, asked["pass"])
        key = planned.key(engine.plan)
        if self._current is not None and self._current[0] != (asked["name"], key):  # other suites number other nodes
            self._current[1].release_weights()
            self._current = None
        dataset = planned.dataset(engine.plan)
        evaluator = Evaluator(engine.model, planned.summations, engine.totals, dataset.n_clusters, dataset)
        if self._current is not None:
            evaluator.keep_weights_of(self._current[1])
        self._current = (asked["name"], key), evaluator
        block = Block(*asked["block"])
        running = RunningPass(engine.plan, engine.store, planned, evaluator, asked["batch_size"], block)
        running.advance(block.end, Silence())
        running.save()
        return {
            "shard": shard_key(key, block), "forward_passes": evaluator.passes, "tokens": running.place.tokens,
            "of_model": facts_of(engine.model) if engine.model else {},
        }  # fmt: skip

    def _cell(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._engine(asked)
        engine.records[asked["key"]] = asked["record"]
        engine.conclude_alone(next(cell for cell in engine.plan.cells if cell.key == asked["key"]))
        return {"forward_passes": 0}


def _check_store(asked: Mapping[str, Any]) -> None:
    """Refuse unless this process sees and can write the run's results folder."""
    folder = Path(asked["store"])
    if not Path(asked["present"]).is_file():
        raise _Refused(f"does not see the files of {folder.parent}: --out must be a folder that all workers share")
    probe = Path(asked["present"]).with_name(f"written-by-{os.getpid()}")
    try:
        write_whole(probe, bytes(2**16), "free some space")
    except SaevalError as error:
        raise _Refused(f"cannot write into the shared folder: {error}") from None


def _plugins(asked: Mapping[str, Any]) -> Plugins:
    """Return the plugins of the run; refuse if one is lacking here or has another version."""
    try:
        plugins = Plugins(asked["files"], discover=asked["discover"])
    except SaevalError as error:
        raise _Refused(f"lacks a plugin of this run: {error}") from None
    here = {str(origin): origin.version for origin in plugins.origins.values()}
    for origin, needed in asked["plugins"].items():
        if origin not in here:
            why = next((f": {failure.error}" for failure in plugins.failures if str(failure.origin) == origin), "")
            raise _Refused(f"lacks the plugin {origin} of this run{why or '; install it there'}")
        if here[origin] != needed:
            raise _Refused(f"has another version of the plugin {origin}: {here[origin]}, and the run has {needed}")
    return plugins


def _check_identities(asked: Mapping[str, Any], planned: Plan) -> None:
    """Refuse unless all paths and names of the suite stand for the same things here."""
    here = identities(planned)
    for name, sha256 in asked["weights"].items():
        if here["weights"].get(name) != sha256:
            raise _Refused(f"finds other weights under the path of SAE '{name}'; copy the same files to all machines")
    if here["model"] != asked["model"]:
        raise _Refused(f"finds another model '{planned.spec.name if planned.spec else ''}'; copy the same files there")
    if here["rows"] != asked["rows"]:
        raise _Refused("reads other rows of the suite's data; copy the same files to all machines")
    if [cell.key for cell in planned.cells] != asked["keys"]:
        raise _Refused("has other code of saeval, a metric, a format or a model; install the same code on all machines")


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect saeval's warnings, which the process that shows the progress prints, once."""
    sentences: list[str] = []

    class _Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                sentences.append(record.getMessage())

    log, handler = logging.getLogger("saeval"), _Collecting()
    log.addHandler(handler)
    try:
        yield sentences
    finally:
        log.removeHandler(handler)
