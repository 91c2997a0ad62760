"""A class's `__init__` as the schema of its YAML parameters."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from saeval.base.errors import quoted, suggestion

MOST_ROWS = 10**9
"""Sequences that a suite, a batch or a limit may ask for."""
MOST_REPEATS = 10_000
Repeats = Annotated[int, Field(le=MOST_REPEATS)]
"""A number of draws, steps or copies. Each of them takes time and memory, so that more are a slip of the keyboard."""
_LARGEST = 2**63
"""Integers beyond it fit into no array, and those of thousands of digits are not even shown."""


class ParameterError(ValueError):
    """Wrong parameters: `faults` are (key, sentence) pairs."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(sentence for _, sentence in faults))


def schema(cls: type) -> type[BaseModel]:
    """A pydantic model with one field for each parameter of `cls.__init__`."""
    init = cls.__init__  # type: ignore[misc]
    if init is object.__init__:
        return create_model(cls.__name__, __config__=_CONFIG)
    hints = typing.get_type_hints(init, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(init).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{cls.__qualname__}.__init__ takes *{name}: parameters must be named to be a schema")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return create_model(cls.__name__, __config__=_CONFIG, **fields)


_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=False, protected_namespaces=())


def validated(cls: type, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The parameters of `cls`, defaults filled in; `ParameterError` lists every fault of `given`."""
    model = schema(cls)
    try:
        made = model(**given)  # also where there is no field, so that a typo does not pass
        for name in model.model_fields:
            if any(not -_LARGEST <= number < _LARGEST for number in _integers(getattr(made, name))):
                raise ParameterError([(name, f"'{name}' of {what}: an integer of at most 64 bits was expected")])
        return {name: getattr(made, name) for name in model.model_fields}
    except ValidationError as error:
        raise ParameterError([_fault(e, model, what) for e in error.errors()]) from None


def _integers(value: Any) -> Iterator[int]:
    """The integers in a value, in lists and mappings too."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _integers(one)


def _fault(error: Any, model: type[BaseModel], what: str) -> tuple[str, str]:
    path = [str(part) for part in error["loc"]]
    key = path[0] if path else ""
    if error["type"] == "extra_forbidden":
        known = suggestion(key, model.model_fields) or "; it has none"
        return key, f"unknown parameter '{key}' of {what}{known}"
    if error["type"] == "missing":
        return "", f"{what} needs the parameter '{key}'"
    return key, f"'{'.'.join(path)}' of {what}: {lowered(error['msg'])}, got {quoted(error['input'])}"


def lowered(message: str) -> str:
    """A pydantic sentence as the middle of ours."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def parameter_names(function: Any, *, skip: int = 0) -> dict[str, Any]:
    """Parameter names of a function with their defaults (`inspect.Parameter.empty` where none)."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)}
