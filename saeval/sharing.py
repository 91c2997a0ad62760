"""Values that many cells share must not be written into: a write is found out by the tensors' own version counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


class WrittenInPlaceError(RuntimeError):
    """A function wrote into an argument that others share."""


def called(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    """`function(**arguments)`; `WrittenInPlaceError` if it wrote into a tensor among them, also where it raised."""
    before = [(name, tensor, tensor._version) for name, value in arguments.items() for tensor in _tensors(value)]
    try:
        return function(**arguments)
    finally:
        for name, tensor, version in before:
            if tensor._version != version:
                raise WrittenInPlaceError(
                    f"{what} writes in place into '{name}', which other metrics share; "
                    f"work on a copy, such as {name}.clone()"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_inference():  # those keep no version, and refuse writes by themselves
            yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
