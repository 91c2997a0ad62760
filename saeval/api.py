"""`run` and `evaluate`, the Python interface of saeval. The command line is a thin layer over it."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from saeval import arguments
from saeval.base.errors import Problem, SaevalError, SuiteError, blamed, searched_in, shown, suggestion
from saeval.base.guard import Guarded
from saeval.base.identity import Origin, code_identity
from saeval.base.lazy_torch import torch
from saeval.base.progress import Progress, Silence, Together
from saeval.base.progress import shown as shown_progress
from saeval.base.run_options import RunOptions
from saeval.collection import Results
from saeval.engine.crew import Crew, crew_of
from saeval.engine.kept_passes import KeptPasses
from saeval.engine.loop import Engine, join
from saeval.interfaces.live_objects import LiveKeys, LiveSAE, unwrap_module, unwrapping
from saeval.interfaces.metric import Metric
from saeval.interfaces.model import ModelSpec
from saeval.plan.cell import Cell
from saeval.plan.plan import Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.hookspecs import hookimpl
from saeval.registry.registry import Registry, accepting
from saeval.results.result import Result
from saeval.results.store import MANIFEST, Store
from saeval.suite import yaml_marks
from saeval.suite.by_model import parts
from saeval.suite.schema import load, validate
from saeval.suite.yaml_marks import Marks, beyond, override

log = logging.getLogger("saeval")


def find_suite(name: str | Path, registry: Registry) -> Path:
    """Return the file of a suite: `name` itself if it is a path, else the file of the registered suite."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):
        return path
    if str(name) in registry.suites:
        return registry.suites[str(name)].path
    candidates = [path.with_name(f"{path.name}{end}") for end in (".yaml", ".yml")]
    existing = [file for file in candidates if os.path.isfile(file)]
    near = f"; did you mean '{existing[0]}'?" if existing else suggestion(str(name), registry.suites.names())
    raise SuiteError([Problem(f"no such file{searched_in(path)}, and no suite has this name{near}", str(name))])


def prepare(
    suite: str | Path | Mapping[str, Any], registry: Registry, options: RunOptions, overrides: Iterable[str] = ()
) -> Plan:
    """Parse and plan a suite of one model, given as a path, a registered name or a mapping."""
    first, *more = prepare_parts(suite, registry, options, overrides)
    if more:
        models = ", ".join(planned.suite.part for planned in (first, *more))
        message = f"only `run`, `check` and `fetch` take a suite over several models; this one has {models}"
        raise SuiteError([first.suite.problem(message, "model")])
    return first


def prepare_parts(
    suite: str | Path | Mapping[str, Any], registry: Registry, options: RunOptions, overrides: Iterable[str] = ()
) -> list[Plan]:
    """Parse and plan a suite, given as a path, a registered name or a mapping: a plan for each of its models."""
    if isinstance(suite, Mapping):
        marks = Marks("suite")
        if problem := beyond(suite, marks):  # before it is copied
            raise SuiteError([problem])
        body = copy.deepcopy(dict(suite))
        for assignment in overrides:
            override(body, marks, assignment)
        parsed = validate(body, marks)
    else:
        parsed = load(find_suite(suite, registry), overrides)
    plans = [plan(part, registry, options) for part in parts(parsed)]
    everywhere = set.intersection(*({*planned.suite.lacking} for planned in plans))
    if everywhere:
        raise SuiteError(problem for place, problem in plans[0].suite.lacking.items() if place in everywhere)
    return plans


def execute(
    planned: Plan,
    out: str | Path,
    progress: Progress | None = None,
    manifest: str = MANIFEST,
    crew: Crew | None = None,
    kept: KeptPasses | None = None,
) -> Results:
    """Run a plan and store its results in `out/<suite>`; `SuiteError` if that folder belongs to another suite.

    `manifest` is the name of the file in which the run lists its cells, and `crew` the workers that compute, if it is
    not this process. Without one, the engine of the plan's options starts its own. `kept` has the
    passes of earlier calls.
    """
    (results,) = execute_all([[planned]], out, progress, manifest, crew, kept)
    return results


def execute_all(
    suites: Sequence[Sequence[Plan]], out: str | Path, progress: Progress | None = None, manifest: str = MANIFEST,
    crew: Crew | None = None, kept: KeptPasses | None = None,
) -> Iterator[Results]:  # fmt: skip
    """Run the plans of several suites, and yield the results of each suite in order.

    This process runs one plan after the other. Workers take tasks of all plans together, and keep the model that they
    hold as long as it has tasks. Each suite has the plans of all its models, which share its folder. `kept` has the
    passes of earlier calls.
    """
    plans = [planned for suite in suites for planned in suite]
    refuse_namesakes(plans, out)
    if crew is None and (own := crew_of(plans, out)) is not None:
        with own:
            yield from execute_all(suites, out, progress, manifest, own, kept)
        return
    jobs = [(planned, [c for p in suite for c in p.cells]) for suite in suites for planned in suite]
    shared = Together(progress or Silence())

    def job(planned: Plan, cells: Sequence[Cell], shown: Progress | None) -> tuple[list[Result], int]:
        engine = Engine(planned, Store(Path(out) / planned.name, manifest), shown, crew, cells, kept)
        return engine.run(), engine.forward_passes

    done: Iterator[tuple[list[Result], int]]
    if crew is None:
        done = (job(*one, progress) for one in jobs)
    else:
        for planned in plans:  # a worker that cannot take part is refused before the first batch
            join(planned, Store(Path(out) / planned.name, manifest), crew)
        shows = [progress] if len(jobs) == 1 else [shared.part() for _ in jobs]
        try:
            done = iter(crew.together([partial(job, *one, shown) for one, shown in zip(jobs, shows, strict=True)]))
        finally:
            shared.close()
    for suite in suites:
        parts_of = [next(done) for _ in suite]
        layout = suite[0].suite.body.leaderboard.model_dump()
        own_results = [result for found, _ in parts_of for result in found]
        results = Results(own_results, layout, suite[0].name, Path(out) / suite[0].name, suite[0].registry)
        results.forward_passes = sum(passes for _, passes in parts_of)
        yield results


@arguments.takes_options
def run(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    overrides: Iterable[str] = (),
    plugins: Plugins | None = None,
    progress: Progress | bool | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Results:
    """Run a suite and return its results, which are stored in `out/<suite>`.

    `suite` is a YAML file, a registered name, or a mapping of the same form as the file. `overrides` are assignments
    such as `"data.sequences=64"`, as for `--set`. `plugins` are the installed ones by default, and `progress` shows
    how far the run is: True, or an object such as `saeval.Lines()`; by default only a notebook shows it. Finished
    cells are read from `out/<suite>` instead of being computed again.

    Raises `SuiteError` for an error in the suite, before any weight is loaded, and for a fatal finding of the
    preflight on the first batch: an SAE that is not loaded correctly, a model that returns NaN, a hook from which the
    model does not resume correctly. `allow` names SAEs to use anyway, `skip_failing` makes the cells that fail the
    preflight failed cells, `preflight="warn"` only logs a warning, and `preflight="off"` examines nothing. An error
    inside a cell raises nothing: that cell has the status `failed`.

    Every field of `RunOptions` is also a keyword: `run(suite, limit=8)` is `run(suite, options=RunOptions(limit=8))`.
    Keywords override fields of `options`.
    """
    arguments.check("run", suite=suite, options=options, progress=progress, out=out, plugins=plugins)
    chosen, assignments = arguments.options(run, options, changes), arguments.assignments("run", overrides)
    registry = Registry(Plugins() if plugins is None else plugins)
    (results,) = execute_all([prepare_parts(suite, registry, chosen, assignments)], out, shown_progress(progress))
    return results


@arguments.takes_options
def evaluate(
    *,
    model: Any = None,
    saes: Sequence[Any] | Mapping[str, Any] = (),
    hooks: Sequence[str] = (),
    data: str | Mapping[str, Any],
    metrics: Sequence[str | Mapping[str, Any] | type[Metric]],
    controls: Sequence[str | Mapping[str, Any]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    precision: Mapping[str, float] | None = None,
    judge: str | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    out: str | Path | None = None,
    key: str | None = None,
    kept: KeptPasses | None = None,
    name: str = "evaluate",
    plugins: Plugins | None = None,
    progress: Progress | bool | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Results:
    """Evaluate objects in memory, and return the results.

    - `model`: a loaded transformers model, a TransformerBridge, or a `model:` entry of a suite. `tokenizer` is the
      loaded tokenizer of a live model, needed for text.
    - `saes`: a list, or a mapping by name, of registered names, `saes:` entries of a suite, objects with `encode` and
      `decode`, and `(object, hook_name)` pairs.
    - `hooks`: names and patterns of hooks at which controls and metrics run without an SAE.
    - `data`: a `data:` entry of a suite, or text in memory: `{"texts": [...], "context": 128}`.
    - `metrics`: a list of names, one-key mappings with parameters, and `Metric` classes.
    - `controls`, `groups`, `precision`, `judge`: as in a suite. `progress`: as for `run`.
    - `options`, and its fields as keywords, such as `limit`: as for `run`. A live model stays on its own device, which
      is then the default of `device`.

    Without `out` nothing is stored. With `out`, results are stored in `out/<name>`, but those of live objects (models,
    SAEs, `Metric` classes) are computed again in every call, since saeval cannot tell if an object has changed.
    `key="my-run-3"` states that the live objects are the same in every call with this `out`, `key` and their names:
    such a call reads finished results and resumes after an interruption. Choose another key whenever a weight, a
    setting or the code of one of them changes.

    `kept`, a `KeptPasses`, lets calls on the same loaded model and rows share their clean passes, as in a training
    loop: later calls run the model only with the SAEs spliced in. It cannot be combined with `key`.

    Raises `SaevalError` for a wrong argument or a fatal finding of the preflight. In a training loop, when an SAE may
    not be good yet, `preflight="warn"` logs the findings and continues; `preflight="off"` examines nothing.
    """
    arguments.check(
        "evaluate", key=key, metrics=metrics, plugins=plugins, name=name, data=data, controls=controls, groups=groups,
        hooks=hooks, precision=precision, judge=judge, tokenizer=tokenizer, model=model, options=options, kept=kept,
        progress=progress,
        **({} if out is None else {"out": out}),
    )  # fmt: skip
    keys = LiveKeys.of_call(key)
    metric_entries = _metric_entries(metrics)
    metric_classes = [metric for metric in metrics if isinstance(metric, type)]
    live_model = None if isinstance(model, str | Mapping) else model
    if kept is not None:
        if key is not None or live_model is None:
            with_what = "a 'key'" if key is not None else "a model that saeval loads"
            raise SaevalError(f"evaluate: kept=KeptPasses() is for a loaded model and no key; it got {with_what}")
        kept.begin(live_model, metric_classes)
        plugins = plugins or kept.plugins
    installed = Plugins() if plugins is None else plugins
    registry = Registry(_extended(installed, metric_classes, keys, kept) if metric_classes else installed)
    entries, live = _split(saes, registry)
    body: dict[str, Any] = {
        "suite": name,
        "data": data,
        "saes": entries or ["live"],
        **({"hooks": hooks} if hooks else {}),
        "metrics": metric_entries,
        "controls": controls,
        "groups": groups or {},
        "precision": precision or {},
        "judge": judge,
    }
    if live_model is None:
        body["model"] = model
    suite = validate(body, Marks("evaluate"), live)
    suite.live_keys, suite.keeps_model = keys, kept is not None
    if not entries:
        suite.body.saes = []
    chosen = arguments.options(evaluate, options, changes)
    if live_model is not None:
        if chosen.dtype is not None:
            raise SaevalError("a live model already has a dtype; convert it yourself, or leave out dtype=")
        suite.live_model = _wrap(live_model, tokenizer, registry, kept.keys if kept else keys)
        # A live model is never moved, so its device replaces the default.
        requested = changes.get("device", "auto" if chosen.device == RunOptions.device else chosen.device)
        device = getattr(live_model, "device", None)
        if isinstance(device, torch.device) and requested == "auto":
            chosen = replace(chosen, device=str(device))
    planned = plan(suite, registry, chosen)
    if kept is not None and out is None:
        results = execute(planned, kept.folder, shown_progress(progress), kept=kept)
        passing = [c.key for c in planned.cells if any(s.key in planned.passing for s in c.subjects)]
        Store(kept.folder / planned.name).drop_results(passing)
        results.folder = None
        return results
    if out is not None:
        if not keys.named and (live or metric_classes or (live_model is not None and suite.live_model.live_key)):
            _warn_never_reused(str(out))
        return execute(planned, out, shown_progress(progress), kept=kept)
    with TemporaryDirectory() as folder:
        results = execute(planned, folder, shown_progress(progress))
    results.folder = None
    return results


@functools.cache
def _warn_never_reused(out: str) -> None:
    """Log a warning once per folder, not in every step of a training loop."""
    log.warning(
        "results of live objects are written to %s and computed again in every call; name the objects with key='...' "
        "to reuse their results",
        out,
    )


def _extended(plugins: Plugins, metrics: Iterable[type], keys: LiveKeys, kept: KeptPasses | None) -> Plugins:
    """Return a copy of the caller's plugins to which the `Metric` classes of the call are added."""
    extended = plugins.copy()
    for metric in metrics:
        name = f"metrics={metric.__qualname__}"
        version = kept.key_of_class(metric) if kept else keys.of("metric", metric.__qualname__)
        while name in extended.origins:  # several classes from one function have the same name
            name += "'"
        extended.add(_Supplied(metric), name, version)
    return extended


def _metric_entries(metrics: Sequence[Any]) -> list[Any]:
    """Return suite entries for `metrics`; a class is given by its `name`."""
    entries: list[Any] = []
    for metric in metrics:
        if isinstance(metric, type) and issubclass(metric, Metric):
            entries.append(getattr(metric, "name", metric.__qualname__))
        elif isinstance(metric, str) or arguments.named(metric):
            entries.append(metric)
        else:
            raise SaevalError(f"evaluate: a metric is a name, a mapping or a Metric class; got {shown(metric)}")
    return entries


class _Supplied:
    """A plugin that supplies one metric class given to `evaluate`."""

    def __init__(self, metric: type) -> None:
        self._metric = metric

    @hookimpl
    def saeval_metrics(self) -> list[type]:
        return [self._metric]


def _split(saes: Sequence[Any] | Mapping[str, Any], registry: Registry) -> tuple[list[Any], dict[str, LiveSAE]]:
    """Split `saes` into suite entries and live objects by name."""
    lone_pair = isinstance(saes, tuple) and len(saes) == 2 and hasattr(saes[0], "encode") and isinstance(saes[1], str)
    listed = isinstance(saes, Mapping | Sequence) and not isinstance(saes, str | bytes) and not lone_pair
    if not listed or (isinstance(saes, Mapping) and not arguments.named(saes)):
        expected = "a list or a mapping by name, such as saes=[(sae, 'blocks.2.hook_resid_pre')]"
        raise SaevalError(f"evaluate: saes is {expected}; got {shown(saes)}")
    named = list(saes.items()) if isinstance(saes, Mapping) else [(None, sae) for sae in saes]
    entries: list[Any] = []
    live: dict[str, LiveSAE] = {}
    for name, sae in named:
        if isinstance(sae, str):
            if name and name != sae:
                raise SaevalError(f"a registered SAE cannot be renamed: pass '{sae}' in a list, not as '{name}'")
            entries.append(sae)
        elif isinstance(sae, Mapping):
            entries.append({**sae, **({"name": name} if name else {})})
        else:
            if isinstance(sae, tuple) and len(sae) != 2:
                raise SaevalError(f"evaluate: an SAE with its hook is a pair (object, hook_name); got {shown(sae)}")
            module, hook_name = sae if isinstance(sae, tuple) else (sae, None)
            module = unwrap_module(module)
            base = name or type(module).__name__.lower()
            label = base if base not in live else f"{base}-{sum(n.startswith(base) for n in live)}"
            if accepted := accepting(registry.loaders, module, registry.plugins):
                loader, entry = accepted
                with blamed(f"SAE format '{entry.name}'", entry.origin):
                    live[label] = loader.wrap(module, hook_name, label)
            else:
                live[label] = LiveSAE(module, hook_name, label)
    return entries, live


def _wrap(model: Any, tokenizer: Any, registry: Registry, keys: LiveKeys) -> ModelSpec:
    """Return the spec of a live model. A `ModelSpec` is used as it is: its own identity determines the keys."""
    if isinstance(model, ModelSpec):
        model.code = code_identity(type(model), Origin("evaluate", "model", keys.of("code", model.name), True))
        return model
    model = unwrap_module(model)
    if accepted := accepting(registry.adapters, model, registry.plugins):
        adapter, entry = accepted
        with blamed(f"model adapter '{entry.name}'", entry.origin):
            spec = adapter.wrap(model, tokenizer)
            spec.code = code_identity(entry.thing, entry.origin)
            spec.live_key = keys.of("model", type(model).__qualname__)
        return cast(ModelSpec, Guarded(spec, f"model adapter '{entry.name}'", entry.origin))
    raise SaevalError(
        f"no adapter accepts an object of type {type(model).__name__}; pass a transformers model, a TransformerBridge, "
        f"or a 'model:' entry of a suite{unwrapping(model)}"
    )


def refuse_namesakes(plans: Sequence[Plan], out: Path | str) -> None:
    """Raise `SuiteError` if a plan's results folder belongs to another suite file.

    A suite that was edited, moved or copied is the same suite: the other file must still exist, still have this name,
    and differ. Suites given as mappings have no file and are not compared.
    """
    problems: list[Problem] = []
    for index, planned in enumerate(plans):
        file, folder = planned.suite.file, Path(out) / planned.name
        if file is None:
            continue
        earlier = [(p.name, p.suite.file) for p in plans[:index] if p.suite.file is not None and p.name == planned.name]
        stored = [(m["suite"], Path(m["file"])) for m in Store(folder).manifests() if m.get("file")]
        for name, namesake in [*earlier, *stored]:
            if namesake is not None and _different_suites(name, namesake, file):
                message = (
                    f"another suite, {namesake}, is named '{name}' and has its results in {folder}; rename one of "
                    f"them, or choose another --out"
                )
                problems.append(planned.suite.problem(message, "suite"))
                break
    if problems:
        raise SuiteError(problems)


def _different_suites(name: str, stored: Path, file: Path) -> bool:
    if not stored.is_file() or stored.resolve() == file.resolve():
        return False
    try:
        there, _ = yaml_marks.read(stored)
        here, _ = yaml_marks.read(file)
    except SuiteError:  # it is no longer a suite
        return False
    return there.get("suite") == name and there != here
