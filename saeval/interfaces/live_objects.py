"""Live objects, which a caller passes from Python: their keys, their evaluation mode, and `LiveSAE`."""

from __future__ import annotations

import functools
import inspect
import re
import uuid
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from saeval.base.errors import SaevalError
from saeval.base.fingerprint import digest_of
from saeval.base.lazy_torch import is_tensor, torch
from saeval.interfaces.substitute import Encoding, Substitute

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
_DEPTH = 4


@dataclass(frozen=True)
class LiveKeys:
    """Keys of the live objects of one call: new on every call, unless the caller gives one.

    No inspection of an object can tell what it will compute, which may depend on any attribute, closure or packed
    weight. So results are reused only if the caller says, by the same key, that the objects are the same.
    """

    seed: str
    named: bool

    @classmethod
    def of_call(cls, key: str | None) -> LiveKeys:
        """Return the keys of a call, from the caller's `key`; new ones if it is None."""
        return cls(uuid.uuid4().hex if key is None else key, key is not None)

    def of(self, role: str, name: str, *facts: Any) -> str:
        """Return the key of one object. `facts` are plain data that are cheap to read, such as shapes."""
        return digest_of(["live", self.named, self.seed, role, name, *facts])


def unwrap_module(live: object) -> Any:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, else the object."""
    while isinstance(live, torch.nn.Module):
        parallel = isinstance(live, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel)
        inner = live._modules.get("module" if parallel else "_orig_mod")
        if inner is None:
            break
        live = inner
    return live


def unwrapping(live: object) -> str:
    """Return advice to unwrap a wrapper of another library, for a message; empty if it wraps no module."""
    inner = getattr(live, "module", None)
    return f"; unwrap it: pass its 'module', of {type(inner).__name__}" if isinstance(inner, torch.nn.Module) else ""


def modules_of(live: object) -> list[torch.nn.Module]:
    """Return the torch modules that an object is or holds, in attributes, lists or mappings, a few levels deep."""
    modules: dict[int, torch.nn.Module] = {}
    seen: set[int] = set()

    def walk(value: object, depth: int) -> None:
        if id(value) in seen or depth > _DEPTH or isinstance(value, torch.Tensor | type | ModuleType | FunctionType):
            return
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            modules.update((id(part), part) for part in value.modules())
            depth = 0
        held: list[Any] = list(vars(value).values()) if hasattr(value, "__dict__") else []
        if isinstance(value, MethodType):
            held = [value.__self__]
        elif isinstance(value, functools.partial):
            held = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, dict):
            held = list(value.values())
        elif isinstance(value, list | tuple | set):
            held = list(value)
        for item in held:
            walk(item, depth + 1)

    walk(live, 0)
    return list(modules.values())


@contextmanager
def evaluation_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Context manager that puts modules in evaluation mode, and at the end those that were training back."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False  # not `eval()`, which some classes use to change their weights
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class _Sparse:
    """The context of an encoding that `encode` returned as (values, indices)."""


class LiveSAE(Substitute):
    """An SAE around any object with `encode(x)` and `decode(acts)`, which runs in evaluation mode and is not changed.

    `encode` returns the feature activations `[batch, seq, d_sae]`, dense or sparse, or one of

    - `(acts, context)`: then `decode(acts, context)` is called;
    - `(values, indices)`, both `[batch, seq, k]`, perhaps followed by more: k activations per token and their
      features. `decode` is called with `(values, indices)` if it takes two arguments, else with dense activations.

    If the features of a token depend on earlier tokens, the object has an attribute `reads_earlier = True`. An
    attribute `seed` with a whole number is the seed that it was trained with.
    Any other return value of `encode` or `decode` is a `SaevalError`.
    """

    def __init__(self, module: Any, hook_name: str | None = None, name: str = "sae") -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(module, method, None)):
                message = f"{name}: a live SAE needs the method '{method}'; {type(module).__name__} has none"
                raise SaevalError(f"{message}{unwrapping(module)}")
        hook_name = hook_name or getattr(module, "hook_name", None) or _metadata_hook(module)
        if not hook_name:
            raise SaevalError(f"{name}: give the SAE's hook, as in saes=[(sae, 'blocks.2.hook_resid_pre')]")
        self.module = module
        self.name = name
        self.hook_name = str(hook_name)
        self._modules = modules_of(module)
        attributes: dict[str, Any] = {key: getattr(module, key, None) for key in _WEIGHTS}
        self._weights = {key: value.detach() for key, value in attributes.items() if is_tensor(value)}
        for part in self._modules:
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                raise SaevalError(f"{name}: the SAE's weights are not in memory (on the meta device); load them first")
        shown = _first_float(self._modules, self._weights)
        self._dtype = shown.dtype if shown is not None else None
        self._device = shown.device if shown is not None else None
        self.d_in, self.d_sae, self.d_out = _widths(module, self._weights)
        """`d_in` is 0 and `d_sae` None if unknown; `d_out` as in `SAEInfo`."""
        self.input_hook: str | None = None
        """As in `SAEInfo`."""
        self.reads_earlier = bool(getattr(module, "reads_earlier", False))
        seed = getattr(module, "seed", None)
        self.seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    def encode(self, activations: Tensor) -> Encoding:
        copied = activations.to(dtype=self._dtype or activations.dtype, copy=True)  # `encode` may write into it
        with self.evaluating():
            encoded = self.module.encode(copied)
        return self._encoding(encoded, activations)

    def decode(self, encoding: Encoding | None, activations: Tensor) -> Tensor:
        assert encoding is not None
        acts, context = encoding
        arguments = (acts,) if context is None else (acts, context)
        if isinstance(context, _Sparse):
            arguments = sparse(acts) if self._decodes_sparse else (acts,)
        with self.evaluating():
            decoded = self.module.decode(*arguments)
        if not is_tensor(decoded) or decoded.shape != activations.shape:
            raise SaevalError(
                f"{self.name}: 'decode' of {type(self.module).__name__} returned {_shown(decoded)}; expected one "
                f"tensor of the activations' shape {list(activations.shape)}"
            )
        return decoded

    def _encoding(self, encoded: Any, activations: Tensor) -> Encoding:
        """Convert the return value of `encode` to dense feature activations and a context."""
        acts, context = encoded, None
        if isinstance(encoded, tuple) and len(encoded) > 1 and _is_sparse_pair(*encoded[:2]):
            acts, context = self._scattered(encoded), _Sparse()
        elif isinstance(encoded, tuple) and len(encoded) == 2:
            acts, context = encoded
        elif isinstance(encoded, tuple) and len(encoded) == 1:
            (acts,) = encoded
        if is_tensor(acts) and acts.layout != torch.strided:
            acts = acts.to_dense()
        fits = is_tensor(acts) and acts.ndim == 3 and acts.shape[:2] == activations.shape[:2]
        if not fits or acts.shape[-1] != (self.d_sae or acts.shape[-1]):
            shape = ", ".join(str(size) for size in (*activations.shape[:-1], self.d_sae or "d_sae"))
            self._refuse(encoded, f"one tensor [{shape}], d_sae last, or a pair (values, indices)")
        self.d_sae = int(acts.shape[-1])
        return Encoding(acts, context)

    def _scattered(self, encoded: tuple[Any, ...]) -> Tensor:
        """Return dense feature activations from k values per token and the indices of their features."""
        values, indices = encoded[:2]
        width = self.d_sae
        if width is None:
            self._refuse(encoded, "an attribute 'd_sae' of the object, the number of its features")
        if values.shape[-1] == width and len(encoded) == 2:
            self._refuse(encoded, "fewer values than features, or dense activations; this is ambiguous")
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= width):
            got = f"indices from {int(indices.min())} to {int(indices.max())}"
            self._refuse(encoded, f"indices from 0 to {width - 1}; got {got}")
        dense = torch.zeros((*values.shape[:-1], width), dtype=values.dtype, device=values.device)
        return dense.scatter_add(-1, indices.long(), values)

    def _refuse(self, encoded: Any, expected: str) -> NoReturn:
        raise SaevalError(
            f"{self.name}: 'encode' of {type(self.module).__name__} returned {_shown(encoded)}; expected {expected}"
        )

    @property
    def _decodes_sparse(self) -> bool:
        """True if `decode` requires a second argument."""
        try:
            parameters = inspect.signature(self.module.decode).parameters.values()
        except (TypeError, ValueError):  # a builtin or an extension's method
            return False
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(p.kind in positional and p.default is p.empty for p in parameters) > 1

    def probe(self, context: int, width: int, d_out: int, device: str) -> str | None:
        """Encode and decode one synthetic row `[1, context, width]`; return a sentence on a wrong shape, else None."""
        own_device = self.device or torch.device(device)
        x = torch.linspace(-1, 1, context * width, device=own_device).reshape(1, context, width)
        y = torch.linspace(-1, 1, context * d_out, device=own_device).reshape(1, context, d_out)
        method = "encode"
        try:
            with torch.no_grad():
                encoding = self.encode(x)
                method = "decode"
                self.decode(encoding, y)
        except SaevalError as error:
            return str(error)
        except (Exception, SystemExit) as error:  # a user's object may raise anything
            line = (str(error).strip().splitlines() or [""])[0]
            # Torch has no class for shape mismatches. Any other failure costs the SAE's own cells, not the run.
            if re.search(r"\b(shapes?|sizes?)\b", line):
                return (
                    f"{self.name}: '{method}' of {type(self.module).__name__} fails on activations {list(x.shape)} of "
                    f"{self.input_hook or self.hook_name} ({line}); check the hook and the SAE's width"
                )
        return None

    def evaluating(self) -> AbstractContextManager[None]:
        """Context manager that puts the object's modules in evaluation mode."""
        return evaluation_mode(self._modules)

    @property
    def device(self) -> torch.device | None:
        return self._device

    @property
    def dtype(self) -> torch.dtype | None:
        return self._dtype

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Copies, made on access: metrics cannot change the user's object."""
        return _Copies(self._weights)

    def shapes(self) -> list[Any]:
        """Return the object's class, its widths, and its tensors' names, shapes and dtypes; it reads no tensor."""
        inner = [[n, list(t.shape), str(t.dtype)] for m in self._modules for n, t in m.named_parameters(recurse=False)]
        weights = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in self._weights.items()]
        return [type(self.module).__qualname__, self.d_in, getattr(self.module, "d_sae", None), weights, inner]


class _Copies(UserDict[str, "Tensor"]):
    def __getitem__(self, name: str) -> Tensor:
        return self.data[name].clone()


def sparse(acts: Tensor) -> tuple[Tensor, Tensor]:
    """Return dense activations as (values, indices), `[batch, seq, k]`: k is the largest number for any token."""
    k = max(1, int((acts != 0).sum(-1).max()))
    indices = (acts != 0).float().topk(k, dim=-1).indices
    return acts.gather(-1, indices), indices


def _is_sparse_pair(values: Any, indices: Any) -> bool:
    return (
        is_tensor(values)
        and is_tensor(indices)
        and values.shape == indices.shape
        and values.is_floating_point()
        and indices.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
    )


def _widths(module: Any, weights: Mapping[str, Tensor]) -> tuple[int, int | None, int | None]:
    """Return `d_in`, `d_sae` and `d_out` (None if it is `d_in`), from the weights or else the object's attributes."""
    encoder, decoder = weights.get("W_enc"), weights.get("W_dec")
    if decoder is not None and decoder.ndim == 2:
        d_sae, d_out = decoder.shape
        transcodes = encoder is not None and encoder.ndim == 2 and encoder.shape[1] == d_sae
        d_in = encoder.shape[0] if encoder is not None and transcodes else d_out
        return int(d_in), int(d_sae), int(d_out) if d_out != d_in else None
    widths = {key: value for key in ("d_in", "d_sae") if isinstance(value := getattr(module, key, None), int)}
    return widths.get("d_in", 0), widths.get("d_sae"), None


def _first_float(modules: Iterable[torch.nn.Module], weights: Mapping[str, Tensor]) -> Tensor | None:
    """Return one of the object's weights, for its dtype and device; None if it exposes none."""
    parameters = (parameter for module in modules for parameter in module.parameters(recurse=False))
    return next((t for t in [*weights.values(), *parameters] if t.is_floating_point()), None)


def _metadata_hook(module: Any) -> str | None:
    return getattr(getattr(getattr(module, "cfg", None), "metadata", None), "hook_name", None)


def _shown(value: Any) -> str:
    """Return the type and shape of a value, for a sentence."""
    if is_tensor(value):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        name = type(value).__name__ if type(value) not in (tuple, list) else f"a {type(value).__name__}"
        return f"{name} of {', '.join(_shown(item) for item in value[:4]) or 'nothing'}"
    return f"a {type(value).__name__}"
