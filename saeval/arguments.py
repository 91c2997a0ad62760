"""Checks the arguments of `run` and `evaluate`: for a wrong one, one sentence with an example of a valid one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from saeval.base.errors import SaevalError, shown, suggestion
from saeval.base.parameters import ParameterError
from saeval.base.progress import Progress
from saeval.base.run_options import RunOptions
from saeval.registry.discovery import Plugins

F = TypeVar("F", bound=Callable[..., Any])

_TEXTS = 'data={"texts": [...], "context": 128}'


def named(value: Any) -> bool:
    """True for a mapping whose keys are text."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _wrong(call: str, name: str, expected: str, value: Any) -> SaevalError:
    return SaevalError(f"{call}: {name} is {expected}; got {shown(value)}")


def options(call: str, given: Any, changes: Mapping[str, Any], parameters: Iterable[str]) -> RunOptions:
    """Return the options `given`, or the defaults, with `changes`; `SaevalError` for an unknown or wrong option.

    For an unknown name, the other `parameters` of the function are suggested, too.
    """
    if given is not None and not isinstance(given, RunOptions):
        raise _wrong(call, "options", "a saeval.RunOptions, such as options=RunOptions(limit=8)", given)
    names = [field.name for field in fields(RunOptions)]
    for name in changes:
        if name not in names:
            raise SaevalError(f"{call}: unknown option '{name}'{suggestion(name, [*names, *parameters])}")
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


def names_and_mappings(call: str, name: str, value: Any, example: str) -> list[Any]:
    """Return a list of names and of mappings, such as the entries of a suite."""
    listed = isinstance(value, list | tuple)
    if not listed or not all(isinstance(entry, str) or named(entry) for entry in value):
        raise _wrong(call, name, f"a list of names and of mappings, such as {name}={example}", value)
    return [entry if isinstance(entry, str) else dict(entry) for entry in value]


def data(call: str, value: Any) -> str | dict[str, Any]:
    """Return the `data:` of a suite."""
    if isinstance(value, str):
        return value
    if not named(value):
        raise _wrong(call, "data", f"the name of a source or a mapping; for text in memory, pass {_TEXTS}", value)
    return dict(value)


def groups(call: str, value: Any) -> dict[str, list[str]]:
    """Return lists of names by the name of their group."""
    lists = named(value) and all(isinstance(names, list | tuple) for names in value.values())
    if not lists or not all(isinstance(name, str) for names in value.values() for name in names):
        raise _wrong(call, "groups", "a mapping of lists of names, such as groups={'seeds': ['sae-*']}", value)
    return {group: list(names) for group, names in value.items()}


def precision(call: str, value: Any) -> dict[str, Any]:
    """Return target standard errors by `metric.value`."""
    if not named(value):
        raise _wrong(call, "precision", "a mapping, such as precision={'ce.delta_ce': 0.005}", value)
    return dict(value)


def text(call: str, name: str, value: Any, example: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise _wrong(call, name, f"text, such as {name}={example}", value)
    return value


def key(call: str, value: Any) -> str | None:
    """Return the caller's name for the live objects; None without one."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _wrong(call, "key", "a name for the live objects, such as key='my-run-3'", value)
    return value


def folder(call: str, value: Any) -> str | Path:
    """Return the folder for results."""
    if not isinstance(value, str | Path):
        raise _wrong(call, "out", "a folder, such as out='results'", value)
    return value


def assignments(call: str, value: Any) -> list[str]:
    """Return a list of assignments, each as for `--set`."""
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    entries = list(value) if listed else []
    if not listed or not all(isinstance(entry, str) for entry in entries):
        raise _wrong(call, "overrides", "a list of assignments, such as overrides=['data.sequences=64']", value)
    return entries


def progress(call: str, value: Any) -> Progress | None:
    """Return the progress display; None for no display."""
    if value is not None and not all(callable(getattr(value, name, None)) for name in _PROGRESS_METHODS):
        methods = ", ".join(_PROGRESS_METHODS)
        raise _wrong(call, "progress", f"an object with the methods {methods}, such as saeval.Lines()", value)
    return value  # type: ignore[no-any-return]


_PROGRESS_METHODS = ("started", "advanced", "finished")


def plugins(call: str, value: Any) -> Plugins:
    """Return the given plugins; for None, all installed ones."""
    if value is not None and not isinstance(value, Plugins):
        raise _wrong(call, "plugins", "a saeval.Plugins, such as plugins=Plugins(['mine.py'])", value)
    return value if value is not None else Plugins()
