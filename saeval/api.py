"""`run` and `evaluate`: saeval from Python. The command line is a thin layer over these."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from saeval import arguments
from saeval.base.errors import Problem, SaevalError, SuiteError, blamed, searched_in, shown, suggestion
from saeval.base.guard import Guarded
from saeval.base.identity import Origin, code_identity
from saeval.base.lazy_torch import torch
from saeval.base.progress import Progress
from saeval.base.run_options import RunOptions
from saeval.collection import Results
from saeval.engine.loop import Engine
from saeval.interfaces.live_objects import LiveKeys, LiveSAE, unwrap_module, unwrapping
from saeval.interfaces.metric import Metric
from saeval.interfaces.model import ModelSpec
from saeval.plan.plan import Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.hookspecs import hookimpl
from saeval.registry.registry import Registry, accepting
from saeval.results.store import Store
from saeval.suite import yaml_marks as suitefile
from saeval.suite.schema import load, validate
from saeval.suite.yaml_marks import Marks, beyond, override

log = logging.getLogger("saeval")

_OWN = (
    "model", "saes", "data", "metrics", "controls", "groups", "precision", "tokenizer", "out", "key", "name", "plugins",
    "options",
)  # fmt: skip


def find_suite(name: str | Path, registry: Registry) -> Path:
    """The file of a suite: a path as it stands, else the registered suite of that name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):
        return path
    if str(name) in registry.suites:
        return registry.suites[str(name)].path
    named = [path.with_name(f"{path.name}{end}") for end in (".yaml", ".yml")]
    beside = [file for file in named if os.path.isfile(file)]
    near = f"; did you mean '{beside[0]}'?" if beside else suggestion(str(name), registry.suites.names())
    raise SuiteError([Problem(f"no such file{searched_in(path)}, and no suite has this name{near}", str(name))])


def prepare(
    suite: str | Path | Mapping[str, Any], registry: Registry, options: RunOptions, overrides: Iterable[str] = ()
) -> Plan:
    """Parse and plan a suite: a path, a registered name, or the suite itself as a mapping."""
    if isinstance(suite, Mapping):
        marks = Marks("suite")
        if problem := beyond(suite, marks):  # before it is copied
            raise SuiteError([problem])
        body = copy.deepcopy(dict(suite))
        for assignment in overrides:
            override(body, marks, assignment)
        return plan(validate(body, marks), registry, options)
    return plan(load(find_suite(suite, registry), overrides), registry, options)


def execute(made: Plan, out: str | Path, progress: Progress | None = None) -> Results:
    """Run a plan into `out/<suite>`; `SuiteError` where that folder belongs to another suite."""
    refuse_namesakes([made], out)
    store = Store(Path(out) / made.name)
    engine = Engine(made, store, progress)
    layout = made.suite.body.leaderboard.model_dump()
    results = Results(engine.run(), layout, made.name, store.folder, made.registry)
    results.forward_passes = engine.forward_passes
    return results


@arguments.takes_options
def run(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    overrides: Iterable[str] = (),
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Results:
    """Run a suite: a YAML file, a registered name, or a mapping of the same form.

    Finished cells are taken from `out/<suite>`. Raises `SuiteError` for whatever is wrong with the
    suite, before any weight is loaded, and for what the preflight finds on the first batch: an SAE that is not loaded
    correctly, a model that gives NaN, a hook where it does not resume correctly. `allow` names SAEs to use anyway,
    `skip_failing` leaves out what fails as failed cells, and `preflight="warn"` only logs a warning; with `"off"`
    nothing is examined.

    Every field of `RunOptions` is a keyword, too: `run(suite, limit=8)` is `run(suite, options=RunOptions(limit=8))`.
    With both, the keywords change the `options`.
    """
    if not isinstance(suite, str | Path) and not arguments.named(suite):
        what = "a YAML file, the name of a suite or a mapping, such as run('quickstart')"
        raise SaevalError(f"run: suite is {what}; got {shown(suite)}")
    chosen = arguments.options("run", options, changes, ("out", "overrides", "plugins", "progress", "options"))
    progress, out = arguments.progress("run", progress), arguments.folder("run", out)
    assigned = arguments.assignments("run", overrides)
    registry = Registry(arguments.plugins("run", plugins))
    return execute(prepare(suite, registry, chosen, assigned), out, progress)


@arguments.takes_options
def evaluate(
    *,
    model: Any = None,
    saes: Sequence[Any] | Mapping[str, Any],
    data: str | Mapping[str, Any],
    metrics: Sequence[str | Mapping[str, Any] | type[Metric]],
    controls: Sequence[str | Mapping[str, Any]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    precision: Mapping[str, float] | None = None,
    tokenizer: Any = None,
    out: str | Path | None = None,
    key: str | None = None,
    name: str = "evaluate",
    plugins: Plugins | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Results:
    """Evaluate live objects.

    `model` is a loaded transformers model, a TransformerBridge, or what a suite's `model:` takes;
    `saes` a list (or a mapping by name) of registered names, `saes:` entries, objects with `encode`
    and `decode`, or `(object, hook_name)` pairs; `metrics` a list of names, of one-key mappings with
    parameters, and of `Metric` classes; `data` what a suite's `data:` takes, or text in memory,
    `{"texts": [...], "context": 128}`. The rest is as in a suite. Without `out` nothing is kept.

    With `out` the results are stored. Nothing tells whether a live object (model, SAE, `Metric` class)
    is the same as in an earlier call, so its results are computed anew in every call, unless you say
    so: `key="my-run-3"` names all live objects of the call, and a later call under the same `out`,
    `key` and names takes finished results from there and resumes after an interruption. You answer
    for it: choose another key whenever a weight, a setting or the code of one of them has changed.

    Raises `SaevalError` for whatever is wrong with these.

    `options` and their keywords, such as `device` and `limit`, are those of `run`; a live model computes where it is,
    so that `device` need not be given. Inside a training loop, where an SAE may not be any good
    yet, `preflight="warn"` logs what the preflight finds and goes through; `preflight="off"` examines nothing.
    """
    call = "evaluate"
    keys = LiveKeys.of_call(arguments.key(call, key))
    metric_entries = _metric_entries(metrics)
    supplied = [metric for metric in metrics if isinstance(metric, type)]
    own = arguments.plugins(call, plugins)
    registry = Registry(_extended(own, supplied, keys) if supplied else own)
    body: dict[str, Any] = {
        "suite": arguments.text(call, "name", name, "'evaluate'"),
        "data": arguments.data(call, data),
        "metrics": metric_entries,
        "controls": arguments.names_and_mappings(call, "controls", controls, "['mean', {'use': 'random'}]"),
        "groups": arguments.groups(call, groups if groups is not None else {}),
        "precision": arguments.precision(call, precision if precision is not None else {}),
    }
    if out is not None:
        arguments.folder(call, out)
    if tokenizer is not None and not callable(tokenizer):
        raise SaevalError(f"{call}: tokenizer is a loaded tokenizer; got {shown(tokenizer)}")
    entries, live = _split(saes, registry)
    live_model = model if model is not None and not isinstance(model, str | Mapping) else None
    if live_model is None and model is not None:
        if not isinstance(model, str) and not arguments.named(model):
            what = "the name of a model, a mapping by names or a loaded model"
            raise SaevalError(f"{call}: model is {what}; got {shown(model)}")
        body["model"] = model if isinstance(model, str) else dict(model)
    body["saes"] = entries or ["live"]
    suite = validate(body, Marks("evaluate"), live)
    suite.live_keys = keys
    if not entries:
        suite.body.saes = []
    chosen = arguments.options(call, options, changes, _OWN)
    if live_model is not None:
        if chosen.dtype is not None:
            raise SaevalError("a live model has its dtype already; convert it yourself, or leave out dtype=")
        suite.live_model = _wrap(live_model, tokenizer, registry, keys)
        # It is never moved, so the default gives way to the device where it is.
        asked = changes.get("device", "auto" if chosen.device == RunOptions.device else chosen.device)
        device = getattr(live_model, "device", None)
        if isinstance(device, torch.device) and asked == "auto":
            chosen = replace(chosen, device=str(device))
    made = plan(suite, registry, chosen)
    if out is not None:
        if not keys.named and (live or supplied or (live_model is not None and suite.live_model.live_key)):
            _note_never_reused(str(out))
        return execute(made, out)
    with TemporaryDirectory() as folder:
        results = execute(made, folder)
    results.folder = None
    return results


@functools.cache
def _note_never_reused(out: str) -> None:
    """Once for each folder, not in every step of a training loop."""
    log.warning(
        "results of live objects are written to %s and computed anew in every call; name the objects with key='...' to "
        "reuse them",
        out,
    )


def _extended(plugins: Plugins, metrics: Iterable[type], keys: LiveKeys) -> Plugins:
    """The plugins of one call: the caller's own, which stay as they are, and the `Metric` classes handed over."""
    made = plugins.copy()
    for metric in metrics:
        name = f"metrics={metric.__qualname__}"
        version = keys.of("metric", metric.__qualname__)
        while name in made.origins:  # classes that one function made
            name += "'"
        made.add(_Supplied(metric), name, version)
    return made


def _metric_entries(metrics: Sequence[Any]) -> list[Any]:
    """Suite entries; a class is named by its `name`."""
    if isinstance(metrics, str | Mapping) or not isinstance(metrics, Sequence):
        raise SaevalError(f"evaluate: metrics is a list, such as metrics=['ce', 'l0']; got {shown(metrics)}")
    entries: list[Any] = []
    for metric in metrics:
        if isinstance(metric, type) and issubclass(metric, Metric):
            entries.append(getattr(metric, "name", metric.__qualname__))
        elif isinstance(metric, str) or arguments.named(metric):
            entries.append(metric if isinstance(metric, str) else dict(metric))
        else:
            raise SaevalError(f"evaluate: a metric is a name, a mapping or a Metric class; got {shown(metric)}")
    return entries


class _Supplied:
    """A metric class handed over from Python, as a plugin."""

    def __init__(self, metric: type) -> None:
        self._metric = metric

    @hookimpl
    def saeval_metrics(self) -> list[type]:
        return [self._metric]


def _split(saes: Sequence[Any] | Mapping[str, Any], registry: Registry) -> tuple[list[Any], dict[str, LiveSAE]]:
    """Suite entries, and live objects by name."""
    lone_pair = isinstance(saes, tuple) and len(saes) == 2 and hasattr(saes[0], "encode") and isinstance(saes[1], str)
    listed = isinstance(saes, Mapping | Sequence) and not isinstance(saes, str | bytes) and not lone_pair
    if not listed or (isinstance(saes, Mapping) and not arguments.named(saes)):
        what = "a list or a mapping by name, such as saes=[(sae, 'blocks.2.hook_resid_pre')]"
        raise SaevalError(f"evaluate: saes is {what}; got {shown(saes)}")
    named = list(saes.items()) if isinstance(saes, Mapping) else [(None, sae) for sae in saes]
    entries: list[Any] = []
    live: dict[str, LiveSAE] = {}
    for name, sae in named:
        if isinstance(sae, str):
            if name and name != sae:
                raise SaevalError(f"the registered SAE '{sae}' keeps its name; give it in a list, not as '{name}'")
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
            if found := accepting(registry.loaders, module, registry.plugins):
                loader, entry = found
                with blamed(f"SAE format '{entry.name}'", entry.origin):
                    live[label] = loader.wrap(module, hook_name, label)
            else:
                live[label] = LiveSAE(module, hook_name, label)
    return entries, live


def _wrap(model: Any, tokenizer: Any, registry: Registry, keys: LiveKeys) -> ModelSpec:
    """A spec of the model; one that the caller wrote has an identity of its own, and answers for that."""
    if isinstance(model, ModelSpec):
        model.code = code_identity(type(model), Origin("evaluate", "model", keys.of("code", model.name), True))
        return model
    model = unwrap_module(model)
    if found := accepting(registry.adapters, model, registry.plugins):
        adapter, entry = found
        with blamed(f"model adapter '{entry.name}'", entry.origin):
            spec = adapter.wrap(model, tokenizer)
            spec.code = code_identity(entry.thing, entry.origin)
            spec.live_key = keys.of("model", type(model).__qualname__)
        return cast(ModelSpec, Guarded(spec, f"model adapter '{entry.name}'", entry.origin))
    raise SaevalError(
        f"no adapter takes an object of type {type(model).__name__}; pass a transformers model, a TransformerBridge, "
        f"or what a suite's 'model:' takes{unwrapping(model)}"
    )


def refuse_namesakes(plans: Sequence[Plan], out: Path | str) -> None:
    """`SuiteError` where a results folder belongs to another suite file than the one that is to run.

    A suite that was edited, moved or copied is the same one: the other file has to be there, to have this name still,
    and to differ. Suites given as mappings have no file and are not compared.
    """
    problems: list[Problem] = []
    for index, made in enumerate(plans):
        own, folder = made.suite.file, Path(out) / made.name
        if own is None:
            continue
        earlier = [(p.name, p.suite.file) for p in plans[:index] if p.suite.file is not None and p.name == made.name]
        listed = [(m["suite"], Path(m["file"])) for m in Store(folder).manifests() if m.get("file")]
        for name, other in [*earlier, *listed]:
            if other is not None and _another(name, other, own):
                message = (
                    f"another suite, {other}, is named '{name}' and has its results in {folder}; give one of them "
                    f"another name, or choose another --out"
                )
                problems.append(made.suite.problem(message, "suite"))
                break
    if problems:
        raise SuiteError(problems)


def _another(name: str, other: Path, own: Path) -> bool:
    if not other.is_file() or other.resolve() == own.resolve():
        return False
    try:
        there, _ = suitefile.read(other)
        here, _ = suitefile.read(own)
    except SuiteError:  # it is no suite any more
        return False
    return there.get("suite") == name and there != here
