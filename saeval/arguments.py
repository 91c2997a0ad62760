"""Checks the arguments of `run` and `evaluate`: for a wrong one, one sentence with an example of a valid one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from saeval.base.errors import SaevalError, shown, suggestion
from saeval.base.parameters import ParameterError
from saeval.base.run_options import RunOptions
from saeval.engine.kept_passes import KeptPasses
from saeval.registry.discovery import Plugins

F = TypeVar("F", bound=Callable[..., Any])


def named(value: Any) -> bool:
    """True for a mapping whose keys are text."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _listed(value: Any, valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(valid, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_entry(value: Any) -> bool:
    return isinstance(value, str) or named(value)


_REQUIRED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "controls": (
        lambda value: _listed(value, _is_entry),
        "a list of names and of mappings, such as controls=['mean', {'use': 'random'}]",
    ),
    "data": (
        _is_entry,
        'the name of a source or a mapping; for text in memory, pass data={"texts": [...], "context": 128}',
    ),
    "hooks": (
        lambda value: _listed(value, _is_text),
        "a list of names and patterns, such as hooks=['blocks.*.hook_resid_post']",
    ),
    "metrics": (
        lambda value: isinstance(value, Sequence) and not isinstance(value, str),
        "a list, such as metrics=['ce', 'l0']",
    ),
    "model": (
        lambda value: not isinstance(value, Mapping) or named(value),
        "the name of a model, a mapping by names or a loaded model",
    ),
    "name": (_is_text, "text, such as name='evaluate'"),
    "out": (lambda value: isinstance(value, str | Path), "a folder, such as out='results'"),
    "suite": (
        lambda value: isinstance(value, Path) or _is_entry(value),
        "a YAML file, the name of a suite or a mapping, such as run('quickstart')",
    ),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "groups": (
        lambda value: named(value) and all(_listed(names, _is_text) for names in value.values()),
        "a mapping of lists of names, such as groups={'seeds': ['sae-*']}",
    ),
    "judge": (_is_entry, "the name or entry of a judge, such as judge={'use': 'recorded', 'path': 'answers.jsonl'}"),
    "key": (
        lambda value: isinstance(value, str) and bool(value.strip()),
        "a name for the live objects, such as key='my-run-3'",
    ),
    "kept": (lambda value: isinstance(value, KeptPasses), "a saeval.KeptPasses(), made once before the calls"),
    "options": (
        lambda value: isinstance(value, RunOptions),
        "a saeval.RunOptions, such as options=RunOptions(limit=8)",
    ),
    "plugins": (lambda value: isinstance(value, Plugins), "a saeval.Plugins, such as plugins=Plugins(['mine.py'])"),
    "precision": (named, "a mapping, such as precision={'ce.delta_ce': 0.005}"),
    "progress": (
        lambda value: (
            isinstance(value, bool)
            or all(callable(getattr(value, method, None)) for method in ("started", "advanced", "finished"))
        ),
        "True, False or an object with the methods started, advanced, finished, such as saeval.Lines()",
    ),
    "tokenizer": (callable, "a loaded tokenizer"),
}
"""The condition that an argument meets if it is not None, and the end of a sentence on what was expected."""


def _wrong(call: str, name: str, expected: str, value: Any) -> SaevalError:
    return SaevalError(f"{call}: {name} is {expected}; got {shown(value)}")


def check(call: str, **given: Any) -> None:
    """Raise `SaevalError` for the first wrong argument of a call."""
    for name, value in given.items():
        valid, expected = _REQUIRED.get(name) or _OPTIONAL[name]
        if not (valid(value) or (value is None and name in _OPTIONAL)):
            raise _wrong(call, name, expected, value)


def options(function: Callable[..., Any], given: RunOptions | None, changes: Mapping[str, Any]) -> RunOptions:
    """Return the options `given` to a function, or the defaults, with `changes`; `SaevalError` for a wrong option."""
    call, parameters = function.__name__, inspect.signature(function).parameters.values()
    keywords = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    names = {field.name for field in fields(RunOptions)}
    for name in changes:
        if name not in names:
            raise SaevalError(f"{call}: unknown option '{name}'{suggestion(name, keywords)}")
    try:
        return replace(given or RunOptions(), **changes)
    except ParameterError as error:
        raise SaevalError(f"{call}: {error}") from None


def takes_options(function: F) -> F:
    """Show all run options in the function's signature in place of `**changes`, so that `help` lists them."""
    signature = inspect.signature(function)
    *parameters, _ = signature.parameters.values()
    added = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type)
        for option in fields(RunOptions)
    ]
    function.__signature__ = signature.replace(parameters=[*parameters, *added])  # type: ignore[attr-defined]
    return function


def assignments(call: str, value: Any) -> list[str]:
    """Return a list of assignments, each as for `--set`."""
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    entries = list(value) if listed else []
    if not listed or not all(map(_is_text, entries)):
        raise _wrong(call, "overrides", "a list of assignments, such as overrides=['data.sequences=64']", value)
    return entries
