"""What a value holds, as plain data that can be compared: before and after a call, to see whether it was changed."""

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


class Care(IntEnum):
    """How closely values are compared."""

    VERSIONS = 0
    """Tensors by their version counters, which writes through `.numpy()` and `.data` leave alone; containers."""
    ARRAYS = 1
    """Numpy arrays by their contents, too."""
    EVERYTHING = 2
    """Tensors by their contents, too."""


def contents(value: Any, care: Care, package: str | None = None) -> Any:
    """Plain data that is equal as long as `value` holds the same.

    Objects other than tensors, arrays, containers and dataclasses are told by their identity; those of classes of
    `package`, a top-level name, by their attributes as well.
    """
    return _contents(value, care, package, frozenset())


def _contents(value: Any, care: Care, package: str | None, within: frozenset[int]) -> Any:
    if isinstance(value, int | float | str | bytes | None):
        return repr(value)  # NaN is equal to itself only so
    if id(value) in within:  # a container that holds itself
        return id(value)
    inside = within | {id(value)}

    def of(one: Any) -> Any:
        return _contents(one, care, package, inside)

    if is_tensor(value):
        return _of_tensor(value, care)
    if isinstance(value, np.ndarray):
        return id(value), value.shape, _digest(value) if care >= Care.ARRAYS else 0
    if isinstance(value, list | tuple | deque):
        return type(value).__name__, tuple(of(one) for one in value)
    if isinstance(value, Mapping):
        return type(value).__name__, tuple((repr(key), of(value[key])) for key in list(value))
    if isinstance(value, set | frozenset):
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
        return id(value), tuple((name, of(one)) for name, one in sorted(vars(value).items()))
    return id(value)


def weights_of(substitute: Substitute) -> list[Tensor]:
    """Every tensor that a substitute holds: in its attributes, in lists and mappings there, and in torch modules."""
    found: list[Tensor] = []
    for held in vars(substitute).values():
        several = list(held.values()) if isinstance(held, Mapping) else held
        for one in several if isinstance(several, list | tuple) else [several]:
            if isinstance(one, torch.nn.Module):
                found += [*one.parameters(), *one.buffers()]
            elif is_tensor(one):
                found.append(one)
    return list({id(tensor): tensor for tensor in found}.values())


def state(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function keeps between calls, by name.

    The attributes of the object whose method it is, and those of its class; a function's own attributes and mutable
    defaults. What it keeps in globals or closures cannot be told from constants there.
    """
    if isinstance(function, functools.partial):
        return state(function.func)
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    found: dict[str, Any] = {}
    if isinstance(plain, FunctionType):
        found |= {f"default {i} of {plain.__name__}": x for i, x in enumerate(plain.__defaults__ or ())}
        found |= {name: x for name, x in {**(plain.__kwdefaults__ or {}), **vars(plain)}.items() if name[:2] != "__"}
    kept = {name: contents(x, Care.EVERYTHING) for name, x in found.items()}
    return kept | attributes(owner) if isinstance(owner, Stateless) else kept


def attributes(thing: Stateless) -> dict[str, Any]:
    """The attributes of an object and of its class by name, without properties that are cached there."""
    found: dict[str, Any] = {}
    own = [cls for cls in type(thing).__mro__ if issubclass(cls, Stateless) and cls is not Stateless]
    cached = {name for cls in own for name, x in vars(cls).items() if isinstance(x, functools.cached_property)}
    for cls in reversed(own):
        found |= {n: x for n, x in vars(cls).items() if not n.startswith(("__", "_abc")) and _is_data(x)}
    found |= {name: x for name, x in vars(thing).items() if name not in cached and name != FROZEN}
    return {name: contents(x, Care.EVERYTHING, _package(type(thing))) for name, x in found.items()}


def freeze(thing: Stateless) -> None:
    """Refuse new attributes from here on, and remember those there are."""
    vars(thing)[FROZEN] = attributes(thing)


def frozen_state(function: Callable[..., Any]) -> dict[str, Any]:
    """The state of a function as it was when its object was frozen; as it is where there is no such object."""
    inner = function.func if isinstance(function, functools.partial) else function
    return {**state(function), **getattr(getattr(inner, "__self__", None), "__dict__", {}).get(FROZEN, {})}


def _is_data(x: Any) -> bool:
    return not callable(x) and not hasattr(x, "__get__")


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _digest(array: np.ndarray) -> str:
    if array.dtype.hasobject:
        return repr(array.tolist())
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _of_tensor(tensor: Tensor, care: Care) -> Any:
    version = None if tensor.is_inference() else tensor._version  # those keep none, and refuse writes by themselves
    looked_at = care >= Care.EVERYTHING and tensor.layout == torch.strided and tensor.device.type != "meta"
    return id(tensor), version, tuple(tensor.shape), _checksum(tensor) if looked_at and not tensor.is_quantized else ()


def _checksum(tensor: Tensor) -> tuple[int, ...]:
    """Weighted sums of the bits, where the tensor is: a copy of it might not fit there."""
    with torch.no_grad():
        flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        bits, weights = flat.view(whole), _weights(tensor.device)
        sums = [(part.long() * weights[: len(part)]).sum() for part in bits.split(_CHUNK)]
        return tuple(torch.stack(sums).tolist()) if sums else ()


@functools.cache
def _weights(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (_CHUNK,), generator=generator).mul_(2).add_(1).to(device)
