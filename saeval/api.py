"""`run` and `evaluate`: saeval from Python. The command line is a thin layer over these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch

from saeval.engine import Engine
from saeval.errors import Problem, SaevalError, SuiteError, blamed, suggestion
from saeval.guard import Guarded
from saeval.hookspecs import hookimpl
from saeval.metric import Metric
from saeval.model import ModelSpec
from saeval.options import Options
from saeval.plan import Plan, plan
from saeval.plugins import Plugins, code_identity
from saeval.progress import Progress
from saeval.registry import Registry, accepting
from saeval.results import Results
from saeval.sae import LiveSAE
from saeval.store import Store
from saeval.suite import load, validate
from saeval.suitefile import Marks

_OWN = ("model", "saes", "data", "metrics", "controls", "groups", "precision", "tokenizer", "out", "name", "plugins")


def find_suite(name: str | Path, registry: Registry) -> Path:
    """The file of a suite: a path as it stands, else the registered suite of that name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    if str(name) in registry.suites:
        return registry.suites[str(name)].path
    near = suggestion(str(name), registry.suites.names())
    raise SuiteError([Problem(f"no such file, and no suite has this name{near}", str(name))])


def prepare(
    suite: str | Path | Mapping[str, Any], registry: Registry, options: Options, overrides: Iterable[str] = ()
) -> Plan:
    """Parse and plan a suite: a path, a registered name, or the suite itself as a mapping."""
    if isinstance(suite, Mapping):
        return plan(validate(dict(suite), Marks("suite")), registry, options)
    return plan(load(find_suite(suite, registry), overrides), registry, options)


def execute(made: Plan, out: str | Path, progress: Progress | None = None) -> Results:
    """Run a plan into `out/<suite>`."""
    store = Store(Path(out) / made.name)
    engine = Engine(made, store, progress)
    layout = made.suite.body.leaderboard.model_dump()
    results = Results(engine.run(), layout, made.name, store.folder, made.registry)
    results.forward_passes = engine.forward_passes
    return results


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    limit: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    sae_device: str | None = None,
    sae_dtype: str = "float32",
    batch_size: int | Literal["auto"] | None = None,
    fresh: bool = False,
    checkpoint_seconds: float = 60.0,
    allow: Sequence[str] = (),
    overrides: Iterable[str] = (),
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run a suite: a YAML file, a registered name, or a mapping of the same form.

    Finished cells are taken from `out/<suite>`. Raises `SuiteError` for whatever is wrong with the
    suite, before any weight is loaded.
    """
    registry = Registry(plugins or Plugins())
    options = Options(
        limit, device, dtype, sae_device, sae_dtype, batch_size, fresh, checkpoint_seconds, tuple(allow)
    )  # fmt: skip
    return execute(prepare(suite, registry, options, overrides), out, progress)


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
    name: str = "evaluate",
    plugins: Plugins | None = None,
    **options: Any,
) -> Results:
    """Evaluate live objects.

    `model` is a loaded transformers model, a TransformerBridge, or what a suite's `model:` takes;
    `saes` a list (or a mapping by name) of registered names, `saes:` entries, objects with `encode`
    and `decode`, or `(object, hook_name)` pairs; `metrics` a list of names, of one-key mappings with
    parameters, and of `Metric` classes. The rest is as in a suite. Without `out` nothing is kept.
    Raises `SaevalError` for whatever is wrong with these.
    """
    registry = Registry(plugins or Plugins())
    body: dict[str, Any] = {
        "suite": name,
        "data": data if isinstance(data, str) else dict(data),
        "metrics": _metric_entries(metrics, registry.plugins),
        "controls": [c if isinstance(c, str) else dict(c) for c in controls],
        "groups": {k: list(v) for k, v in (groups or {}).items()},
        "precision": dict(precision or {}),
    }
    entries, live = _split(saes, registry)
    live_model = model if model is not None and not isinstance(model, str | Mapping) else None
    if live_model is None and model is not None:
        body["model"] = model if isinstance(model, str) else dict(model)
    body["saes"] = entries or ["live"]
    suite = validate(body, Marks("evaluate"), live)
    if not entries:
        suite.body.saes = []
    if live_model is not None and options.get("dtype"):
        raise SaevalError("a live model has its dtype already; convert it yourself, or leave out dtype=")
    if live_model is not None:
        suite.live_model = _wrap(live_model, tokenizer, registry)
        if isinstance(device := getattr(live_model, "device", None), torch.device):
            options.setdefault("device", str(device))
    known = [f.name for f in fields(Options)]
    for option in options:
        if option not in known:
            raise SaevalError(f"evaluate: unknown option '{option}'{suggestion(option, [*known, *_OWN])}")
    made = plan(suite, registry, Options(**options))
    if out is not None:
        return execute(made, out)
    with TemporaryDirectory() as folder:
        return execute(made, folder)


def _metric_entries(metrics: Sequence[Any], plugins: Plugins) -> list[Any]:
    """Suite entries; classes are registered as a plugin of their own."""
    if isinstance(metrics, str | Mapping) or not isinstance(metrics, Sequence):
        raise SaevalError(f"evaluate: metrics is a list, such as metrics=['ce', 'l0']; got {metrics!r}")
    entries: list[Any] = []
    for metric in metrics:
        if isinstance(metric, type) and issubclass(metric, Metric):
            plugins.add(_Supplied(metric), f"metrics={metric.__qualname__}")
            entries.append(getattr(metric, "name", metric.__qualname__))
        elif isinstance(metric, str | Mapping):
            entries.append(metric if isinstance(metric, str) else dict(metric))
        else:
            raise SaevalError(f"evaluate: a metric is a name, a mapping or a Metric class; got {metric!r}")
    return entries


class _Supplied:
    """A metric class handed over from Python, as a plugin."""

    def __init__(self, metric: type[Metric]) -> None:
        self._metric = metric

    @hookimpl
    def saeval_metrics(self) -> list[type[Metric]]:
        return [self._metric]


def _split(saes: Sequence[Any] | Mapping[str, Any], registry: Registry) -> tuple[list[Any], dict[str, LiveSAE]]:
    """Suite entries, and live objects by name."""
    if isinstance(saes, str) or not isinstance(saes, Mapping | Sequence):
        raise SaevalError(
            "evaluate: saes is a list or a mapping by name, such as saes=[(sae, 'blocks.2.hook_resid_pre')]"
        )
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
                raise SaevalError(
                    f"evaluate: an SAE with its hook is a pair (object, hook_name); got {len(sae)} things"
                )
            module, hook_name = sae if isinstance(sae, tuple) else (sae, None)
            base = name or type(module).__name__.lower()
            label = base if base not in live else f"{base}-{sum(n.startswith(base) for n in live)}"
            if found := accepting(registry.loaders, module, registry.plugins):
                loader, entry = found
                with blamed(f"SAE format '{entry.name}'", entry.origin):
                    live[label] = loader.wrap(module, hook_name, label)
            else:
                live[label] = LiveSAE(module, hook_name, label)
    return entries, live


def _wrap(model: Any, tokenizer: Any, registry: Registry) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    if found := accepting(registry.adapters, model, registry.plugins):
        adapter, entry = found
        with blamed(f"model adapter '{entry.name}'", entry.origin):
            spec = adapter.wrap(model, tokenizer)
            spec.code = code_identity(entry.thing, entry.origin)
        return cast(ModelSpec, Guarded(spec, f"model adapter '{entry.name}'", entry.origin))
    raise SaevalError(
        f"no adapter takes a {type(model).__name__}; pass a transformers model, a TransformerBridge, "
        f"or what a suite's 'model:' takes"
    )
