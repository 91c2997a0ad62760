"""The `model:` of a suite as the spec of the model that its adapter would load."""

from __future__ import annotations

from typing import cast

from saeval.base.errors import Problem, SaevalError, UnknownNameError, blamed
from saeval.base.guard import Guarded
from saeval.base.identity import code_identity
from saeval.base.parameters import ParameterError
from saeval.base.run_options import RunOptions
from saeval.interfaces.model import ModelSpec
from saeval.registry.format_recognition import paths
from saeval.registry.registry import Registry
from saeval.suite.schema import Suite


def model_spec(suite: Suite, registry: Registry, options: RunOptions, problems: list[Problem]) -> ModelSpec | None:
    """Return the model's spec; None for a suite without a model, or, with problems, if its entry is wrong."""
    if suite.live_model is not None:
        return suite.live_model  # type: ignore[no-any-return]
    raw = suite.body.model
    if raw is None:
        return None
    assert not isinstance(raw, list), "a suite over several models is planned in parts"
    entry = {"use": raw} if isinstance(raw, str) else dict(raw)
    use, adapter, dtype = entry.pop("use", None), entry.pop("adapter", None), options.dtype
    names = sorted({*registry.models.names(), *registry.adapters.names()})
    if adapter is not None and not isinstance(adapter, str):
        problems.append(suite.problem(f"'adapter' is a name, got {adapter!r}", "model", "adapter"))
        return None
    if not isinstance(use, str):
        problems.append(suite.problem(f"'model' needs 'use', one of: {', '.join(names)}", "model"))
        return None
    try:
        if use in registry.models:
            registered = registry.models[use]
            with blamed(f"model '{use}'", registry.models.entry(use).origin):
                entry = {**registered.reference, **entry}
            chosen = adapter or registered.adapter
        elif use in registry.adapters:
            chosen = use
        else:
            raise _unknown(registry, use, names)
        if dtype is not None:
            entry["dtype"] = dtype
        adapter_entry = registry.adapters.entry(chosen)
        with blamed(f"model adapter '{chosen}'", adapter_entry.origin):
            spec = adapter_entry.thing().spec(entry)
            if not isinstance(spec, ModelSpec):
                raise TypeError(f"'spec' returned {type(spec).__name__}, which is not a ModelSpec")
            spec.code = code_identity(adapter_entry.thing, adapter_entry.origin)
            if use in registry.models:
                spec.name = use

        def placed(message: str) -> Problem:  # for the adapter's later errors, wherever in the suite they occur
            return suite.problem(message, "model", "use")

        return cast(ModelSpec, Guarded(spec, f"model adapter '{chosen}'", adapter_entry.origin, placed))
    except ParameterError as error:
        for fault, problem in zip(error.faults, suite.problems(error, "model"), strict=True):
            from_option = dtype is not None and fault.location == ("dtype",)
            problems.append(Problem(f"{options.spelled('dtype', dtype)}: {fault.sentence}") if from_option else problem)
    except SaevalError as error:
        unknown_adapter = isinstance(error, UnknownNameError) and error.kind == registry.adapters.kind
        problems += suite.problems(error, "model", "adapter" if adapter and unknown_adapter else "use")
    return None


def _unknown(registry: Registry, use: str, names: list[str]) -> SaevalError:
    if paths(use):
        entry = f"write {{use: ADAPTER, path: {use}}}, with an adapter of {', '.join(registry.adapters.names())}"
        return SaevalError(f"no registered model is named '{use}', which is a path; {entry}")
    return UnknownNameError(registry.models.kind, use, names, failures=registry.plugins.failures)
