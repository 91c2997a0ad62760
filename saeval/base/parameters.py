"""Validation of YAML parameters, with a class's `__init__` as their schema."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from saeval.base.errors import SaevalError, quoted_value, suggestion

M = TypeVar("M", bound=BaseModel)

MAX_REPEATS = 10_000
Repeats = Annotated[int, Field(le=MAX_REPEATS)]
"""A number of draws, steps or copies, at most 10,000: each takes time and memory, so a larger one is a typo."""
_LARGEST = 2**63
"""Larger integers do not fit into arrays, and Python does not print those with thousands of digits."""


Location = tuple[str | int, ...]
"""The keys and indices that lead to a value in nested data."""
FaultKind = Literal["unknown", "missing", "wrong"]


@dataclass(frozen=True)
class Fault:
    """One fault of validated data: its place and a sentence."""

    location: Location
    sentence: str
    kind: FaultKind = "wrong"
    """An `unknown` key, a `missing` key, or a `wrong` value."""


class ParameterError(SaevalError):
    """Wrong parameters, with one `Fault` each in `faults`."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(fault.sentence for fault in self.faults))

    def followed_by(self, words: str) -> ParameterError:
        """Return the same error with `words` at the end of its last sentence."""
        *others, last = self.faults
        return ParameterError([*others, replace(last, sentence=f"{last.sentence}{words}")])


@contextmanager
def at_key(*location: str | int, kind: FaultKind = "wrong") -> Iterator[None]:
    """Context manager that gives a `SaevalError` about a user's value the value's place, as a `ParameterError`.

    `location` are the keys that lead to the value in the entry; an error that has a place keeps it.
    """
    try:
        yield
    except ParameterError:
        raise
    except SaevalError as error:
        raise ParameterError([Fault(location, str(error), kind)]) from error


def schema(cls: type) -> type[BaseModel]:
    """Return a pydantic model with one field per parameter of `cls.__init__`."""
    return _schema(cls)


@functools.lru_cache(maxsize=512)  # 2 ms for each of 60 classes would be most of a small run's planning
def _schema(cls: Any) -> type[BaseModel]:
    init = cls.__init__
    if init is object.__init__:
        return create_model(cls.__name__, __config__=_CONFIG)
    hints = typing.get_type_hints(init, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(init).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{cls.__qualname__}.__init__ takes *{name}: name each parameter, since they are a schema")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return create_model(cls.__name__, __config__=_CONFIG, **fields)


_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=False, protected_namespaces=())


def validated(cls: type, given: Mapping[str, Any], what: str, *, strict: bool | None = None) -> dict[str, Any]:
    """Return the parameters of `cls` from `given`, with defaults; `ParameterError` lists every fault.

    `what` names the owner in messages, such as `metric 'ce'`. With `strict`, values are not converted: `"8"` and
    `8.0` are not an `int`.
    """
    model = validated_as(schema(cls), given, what, strict=strict)  # even without fields: it finds unknown keys
    values = {name: getattr(model, name) for name in type(model).model_fields}
    for name, value in values.items():
        if any(not -_LARGEST <= number < _LARGEST for number in _integers(value)):
            sentence = f"'{name}' of {what}: an integer of at most 64 bits was expected"
            raise ParameterError([Fault((name,), sentence)])
    return values


def validated_as(model: type[M], given: Mapping[str, Any], what: str = "", *, strict: bool | None = None) -> M:
    """Return `given` as a pydantic model; `ParameterError` lists every fault.

    `what` names the owner in messages, such as `metric 'ce'`; `strict` is as in `validated`.
    """
    try:
        validated = model.model_validate(dict(given), strict=strict)
    except ValidationError as error:
        raise ParameterError(faults(error, given, model, what)) from None
    if converted := list(_converted(given, validated)):
        raise ParameterError(_fault_of_kind(*place, what) for place in converted)
    return validated


def _converted(given: Any, value: Any, location: Location = ()) -> Iterator[tuple[Location, Any, Any]]:
    """Yield the place, the given and the validated value of each text that became a number, or truth value or number
    that became the other: pydantic converts them, but `yes` in quotes is not true, and true is not 1."""
    if given is value:
        return
    if isinstance(value, BaseModel):
        value = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        for key in given.keys() & value.keys():
            yield from _converted(given[key], value[key], (*location, key))
    elif isinstance(given, list | tuple) and isinstance(value, list | tuple) and len(given) == len(value):
        for index, (before, after) in enumerate(zip(given, value, strict=True)):
            yield from _converted(before, after, (*location, index))
    elif isinstance(value, int | float):
        other_kind = isinstance(given, int | float) and isinstance(given, bool) != isinstance(value, bool)
        if isinstance(given, str) or other_kind:
            yield location, given, value


def _fault_of_kind(location: Location, given: Any, value: Any, what: str) -> Fault:
    quotes = " without quotes" if isinstance(given, str) else ""
    expected = "true or false" if isinstance(value, bool) else "a number"
    of = f" of {what}" if what else ""
    path = ".".join(map(str, location))
    return Fault(location, f"'{path}'{of}: expected {expected}{quotes}, got {quoted_value(given)}")


def faults(error: ValidationError, given: Any, model: type[BaseModel] | None = None, what: str = "") -> list[Fault]:
    """Return the faults that pydantic found in `given`, one per place."""
    by_location: dict[Location, Fault] = {}
    for detail in error.errors(include_url=False):
        location = _location(detail, given)
        by_location.setdefault(location, _fault(detail, location, model, what))  # unions report every branch
    return list(by_location.values())


def _integers(value: Any) -> Iterator[int]:
    """Yield the integers in a value, and in lists and mappings."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _integers(item)


def _location(detail: ErrorDetails, given: Any) -> Location:
    """Return pydantic's location without the branches of unions, which are not keys of the data."""
    location: Location = ()
    for part in detail["loc"]:
        keys = given if isinstance(given, Mapping) else range(len(given)) if isinstance(given, list | tuple) else ()
        if part in keys:
            location, given = (*location, part), given[part]
    return (*location, detail["loc"][-1]) if detail["type"] == "missing" else location


def _fault(detail: ErrorDetails, location: Location, model: type[BaseModel] | None, what: str) -> Fault:
    path, of = ".".join(map(str, location)), f" of {what}" if what else ""
    if detail["type"] == "extra_forbidden":
        key = str(location[-1])
        hint = suggestion(key, _keys(model, location[:-1])) or "; it has none"
        return Fault(location, f"unknown {'parameter' if what else 'key'} '{key}'{of}{hint}", "unknown")
    if detail["type"] == "missing":
        return Fault(
            location, f"{what} needs the parameter '{path}'" if what else f"the key '{path}' is missing", "missing"
        )
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    message = message[:1].lower() + message[1:]
    if not location:
        return Fault(location, f"{what}: {message}" if what else message)
    return Fault(location, f"'{path}'{of}: {message}, got {quoted_value(detail['input'])}")


def _keys(model: type[BaseModel] | None, location: Location) -> list[str]:
    """Return the keys that a pydantic model has at a location."""
    for part in location:
        field = model.model_fields.get(str(part)) if model else None
        model = field.annotation if field and isinstance(field.annotation, type) else None
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def parameter_names(function: Any) -> dict[str, Any]:
    """Return a function's parameter names with their defaults (`inspect.Parameter.empty` if there is none)."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)}
