"""The arguments of `run` and `evaluate`, checked: a wrong one is one sentence that shows a right one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from saeval.base.errors import SaevalError, quoted, suggestion
from saeval.base.lazy_torch import torch
from saeval.base.parameters import ParameterError, validated
from saeval.base.progress import Progress
from saeval.base.run_options import Options
from saeval.registry.discovery import Plugins

_TEXTS = 'data={"texts": [...], "context": 128}'
_MOST = 80
"""Characters of a wrong value that a message shows."""


def shown(value: Any) -> str:
    """A wrong value for a message: itself where it is short, else its type."""
    text = quoted(value)
    plain = len(text) <= _MOST and "\n" not in text and " at 0x" not in text
    return text if plain else f"an object of type {type(value).__name__}"


def named(value: Any) -> bool:
    """Whether it is a mapping by names."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _wrong(call: str, name: str, expected: str, value: Any) -> SaevalError:
    return SaevalError(f"{call}: {name} is {expected}; got {shown(value)}")


def options(call: str, given: Mapping[str, Any], others: Iterable[str] = ()) -> Options:
    """Options from keyword arguments; `SaevalError` for the first that is unknown or wrong. `others` are suggested."""
    known = [field.name for field in fields(Options) if field.name != "command_line"]
    for name in given:
        if name not in known:
            raise SaevalError(f"{call}: unknown option '{name}'{suggestion(name, [*known, *others])}")
    try:
        return Options(**validated(Options, {name: _plain(value) for name, value in given.items()}, call))
    except ParameterError as error:
        name, sentence = error.faults[0]
        if name in _EXPECTED:
            raise _wrong(call, name, _EXPECTED[name], given[name]) from None
        raise SaevalError(f"{call}: {sentence}") from None


_EXPECTED = {
    "limit": "a number of sequences, such as limit=8",
    "batch_size": "a number of sequences or 'auto', such as batch_size=16",
    "device": "the name of a device, such as device='cuda'",
    "sae_device": "the name of a device, such as sae_device='cpu'",
    "dtype": "the name of a dtype, such as dtype='bfloat16'",
    "sae_dtype": "the name of a dtype, such as sae_dtype='float32'",
    "fresh": "true or false",
    "checkpoint_seconds": "a number of seconds, such as checkpoint_seconds=60",
    "allow": "a list of names or globs, such as allow=['mine']",
    "preflight": "'stop', 'warn' or 'off', such as preflight='warn'",
    "skip_failing": "true or false",
}


def _plain(value: Any) -> Any:
    """Devices and dtypes of torch by their names, numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value).removeprefix("torch.") if isinstance(value, torch.device | torch.dtype) else value


def names_and_mappings(call: str, name: str, value: Any, example: str) -> list[Any]:
    """A list of names and of mappings, such as the entries of a suite."""
    listed = isinstance(value, list | tuple)
    if not listed or not all(isinstance(one, str) or named(one) for one in value):
        raise _wrong(call, name, f"a list of names and of mappings, such as {name}={example}", value)
    return [one if isinstance(one, str) else dict(one) for one in value]


def data(call: str, value: Any) -> str | dict[str, Any]:
    """The `data:` of a suite."""
    if isinstance(value, str):
        return value
    if not named(value):
        raise _wrong(call, "data", f"the name of a source or a mapping; for text in memory, pass {_TEXTS}", value)
    return dict(value)


def groups(call: str, value: Any) -> dict[str, list[str]]:
    """Lists of names by the name of their group."""
    lists = named(value) and all(isinstance(some, list | tuple) for some in value.values())
    if not lists or not all(isinstance(one, str) for some in value.values() for one in some):
        raise _wrong(call, "groups", "a mapping of lists of names, such as groups={'seeds': ['sae-*']}", value)
    return {name: list(some) for name, some in value.items()}


def precision(call: str, value: Any) -> dict[str, Any]:
    """Standard errors by the values that they are of."""
    if not named(value):
        raise _wrong(call, "precision", "a mapping, such as precision={'ce.delta_ce': 0.005}", value)
    return dict(value)


def text(call: str, name: str, value: Any, example: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise _wrong(call, name, f"text, such as {name}={example}", value)
    return value


def key(call: str, value: Any) -> str | None:
    """The caller's name for the live objects, None without one."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _wrong(call, "key", "a name for the live objects, such as key='my-run-3'", value)
    return value


def folder(call: str, value: Any) -> str | Path:
    """Where results go."""
    if not isinstance(value, str | Path):
        raise _wrong(call, "out", "a folder, such as out='results'", value)
    return value


def assignments(call: str, value: Any) -> list[str]:
    """What `--set` takes, several times."""
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    found = list(value) if listed else []
    if not listed or not all(isinstance(one, str) for one in found):
        raise _wrong(call, "overrides", "a list of assignments, such as overrides=['data.sequences=64']", value)
    return found


def progress(call: str, value: Any) -> Progress | None:
    """Who is told how far a run is; nobody for None."""
    if value is not None and not all(callable(getattr(value, name, None)) for name in _TOLD):
        methods = ", ".join(_TOLD)
        raise _wrong(call, "progress", f"an object with the methods {methods}, such as saeval.Lines()", value)
    return value  # type: ignore[no-any-return]


_TOLD = ("started", "advanced", "finished")


def plugins(call: str, value: Any) -> Plugins:
    """The plugins that are given; all that are installed for None."""
    if value is not None and not isinstance(value, Plugins):
        raise _wrong(call, "plugins", "a saeval.Plugins, such as plugins=Plugins(['mine.py'])", value)
    return value if value is not None else Plugins()
