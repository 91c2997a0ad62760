"""Snapshots of values as plain data, compared before and after a call to see if the call changed them."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.base.lazy_torch import is_tensor, torch
from saeval.base.stateless import FROZEN, Stateless
from saeval.interfaces.substitute import Substitute

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 2**20
_PLAIN = (int, float, str, bytes, type(None))
_SEQUENCES = (list, tuple, deque)
"""Tuples, since a union of types would be made at each of very many calls."""


class Care(IntEnum):
    """The thoroughness of a comparison of values."""

    VERSIONS = 0
    """Containers, and tensors by their version counters, which miss writes through `.numpy()` and `.data`."""
    ARRAYS = 1
    """Also numpy arrays, by their contents."""
    EVERYTHING = 2
    """Also tensors, by their contents."""


def contents(value: Any, care: Care, package: str | None = None) -> Any:
    """Return plain data that stays equal as long as the contents of `value` do.

    Objects other than tensors, arrays, containers and dataclasses are compared by identity; those with a class from
    `package`, a top-level name, also by their attributes.
    """
    return _contents(value, care, package, frozenset())


def _contents(value: Any, care: Care, package: str | None, within: frozenset[int]) -> Any:
    if is_tensor(value):
        return _of_tensor(value, care)
    if isinstance(value, np.ndarray):
        return id(value), value.shape, _digest(value) if care >= Care.ARRAYS else 0
    if isinstance(value, _PLAIN):
        return repr(value)  # NaN does not equal itself
    if id(value) in within:  # a container that holds itself
        return id(value)
    inside = within | {id(value)}

    def of(item: Any) -> Any:
        return _contents(item, care, package, inside)

    if isinstance(value, _SEQUENCES):
        return type(value).__name__, tuple(map(of, value))
    if isinstance(value, Mapping):
        return type(value).__name__, tuple((repr(key), of(value[key])) for key in list(value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, Substitute):
        return id(value), tuple(_of_tensor(t, care) for t in weights_of(value))
    if is_dataclass(value) and not isinstance(value, type):
        return id(value), tuple(of(getattr(value, field.name, None)) for field in fields(value))
    if _package(type(value)) == "torch" and isinstance(value, torch.Generator):
        return _digest(value.get_state().cpu().numpy())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if type(value).__module__ == "itertools":
        return repr(value)
    if package is not None and _package(type(value)) == package and hasattr(value, "__dict__"):
        return id(value), tuple((name, of(attribute)) for name, attribute in sorted(vars(value).items()))
    return id(value)


def weights_of(substitute: Substitute) -> list[Tensor]:
    """Return every tensor in a substitute's attributes, in lists and mappings there, and in torch modules."""
    tensors: list[Tensor] = []
    for attribute in vars(substitute).values():
        items = list(attribute.values()) if isinstance(attribute, Mapping) else attribute
        for item in items if isinstance(items, list | tuple) else [items]:
            if isinstance(item, torch.nn.Module):
                tensors += [*item.parameters(), *item.buffers()]
            elif is_tensor(item):
                tensors.append(item)
    return list({id(tensor): tensor for tensor in tensors}.values())


def state(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the state that a function can keep between calls, by name.

    It has the attributes of a method's object and class, and a function's own attributes and defaults. State in
    globals or closures cannot be distinguished from constants, and is left out.
    """
    if isinstance(function, functools.partial):
        return state(function.func)
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    values: dict[str, Any] = {}
    if isinstance(plain, FunctionType):
        values |= {f"default {i} of {plain.__name__}": x for i, x in enumerate(plain.__defaults__ or ())}
        values |= {name: x for name, x in {**(plain.__kwdefaults__ or {}), **vars(plain)}.items() if name[:2] != "__"}
    snapshot = {name: contents(x, Care.EVERYTHING) for name, x in values.items()}
    return snapshot | attributes(owner) if isinstance(owner, Stateless) else snapshot


def attributes(owner: Stateless) -> dict[str, Any]:
    """Return the attributes of an object and its class by name, without cached properties."""
    values: dict[str, Any] = {}
    classes = [cls for cls in type(owner).__mro__ if issubclass(cls, Stateless) and cls is not Stateless]
    cached = {name for cls in classes for name, x in vars(cls).items() if isinstance(x, functools.cached_property)}
    for cls in reversed(classes):
        data = {name: x for name, x in vars(cls).items() if not callable(x) and not hasattr(x, "__get__")}
        values |= {name: x for name, x in data.items() if not name.startswith(("__", "_abc"))}
    values |= {name: x for name, x in vars(owner).items() if name not in cached and name != FROZEN}
    return {name: contents(x, Care.EVERYTHING, _package(type(owner))) for name, x in values.items()}


def freeze(owner: Stateless) -> None:
    """Make an object refuse new attributes, and record the present ones."""
    vars(owner)[FROZEN] = attributes(owner)


def frozen_state(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the state of a function when its object was frozen, or its present state if it has no such object."""
    inner = function.func if isinstance(function, functools.partial) else function
    return {**state(function), **getattr(getattr(inner, "__self__", None), "__dict__", {}).get(FROZEN, {})}


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _digest(array: np.ndarray) -> str:
    if array.dtype.hasobject:
        return repr(array.tolist())
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _of_tensor(tensor: Tensor, care: Care) -> Any:
    version = None if tensor.is_inference() else tensor._version  # inference tensors have no version and refuse writes
    readable = care >= Care.EVERYTHING and tensor.layout == torch.strided and tensor.device.type != "meta"
    return id(tensor), version, tuple(tensor.shape), _checksum(tensor) if readable and not tensor.is_quantized else ()


def _checksum(tensor: Tensor) -> tuple[int, ...]:
    """Return weighted sums of the bits, computed on the tensor's device in chunks, since a copy might not fit."""
    with torch.no_grad():
        flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        bits, weights = flat.view(integer), _weights(tensor.device)
        sums = [(part.long() * weights[: len(part)]).sum() for part in bits.split(_CHUNK)]
        return tuple(torch.stack(sums).tolist()) if sums else ()


@functools.cache
def _weights(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (_CHUNK,), generator=generator).mul_(2).add_(1).to(device)
