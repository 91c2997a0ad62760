"""A user's own loaded model as a spec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saeval.errors import SaevalError
from saeval.fingerprint import tensors_sha256
from saeval.model import Model, ModelSpec
from saeval_models.layouts import Layout

if TYPE_CHECKING:  # annotations only: torch is not needed to list adapters
    from torch import nn

    from saeval_models.hooked import HookedModel

_NOT_NUMBERS = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def inherits(live: object, package: str, class_name: str) -> bool:
    """Whether an object's class descends from a library's, asked without importing the library."""
    return any(c.__name__ == class_name and c.__module__.split(".")[0] == package for c in type(live).__mro__)


def uncompiled(live: object) -> object:
    """The module that `torch.compile` wrapped, else the object itself."""
    return vars(live).get("_modules", {}).get("_orig_mod", live) if hasattr(live, "__dict__") else live


class LiveSpec(ModelSpec):
    """A model in memory, which is as it was after every pass. It is never moved: it may be in use elsewhere."""

    def __init__(
        self, adapter: str, owner: nn.Module, model: HookedModel, layout: Layout, config: Mapping[str, Any],
        context: int | None, tokenizer: Any, name: str,
    ) -> None:  # fmt: skip
        devices = sorted({str(parameter.device) for parameter in model.module.parameters()})
        if len(devices) > 1:
            raise SaevalError(f"the live model is spread over {' and '.join(devices)}; load it on one device")
        if devices == ["meta"]:
            raise SaevalError("the live model's weights are not in memory (offloaded, or never loaded); load it whole")
        self.name = name
        self.kind = model.kind
        self._adapter = adapter
        self._owner = owner
        """The user's object; the hooked module may be a part of it."""
        self._model = model
        self._layout = layout
        self._config = config
        self._context = context
        self._tokenizer = tokenizer

    def identity(self) -> Mapping[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        from saeval.traits import changes_digest  # late: it imports torch

        kept = {key: value for key, value in self._config.items() if key not in _NOT_NUMBERS}
        return {
            "adapter": self._adapter,
            "class": type(self._owner).__name__,
            "config": hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest(),
            # Buffers that are not saved take part in the numbers as well, such as rotary frequencies.
            "weights": tensors_sha256({**self._owner.state_dict(), **dict(self._owner.named_buffers())}),
            "code": changes_digest(self._owner),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "processing": "as given",
        }

    def hooks(self) -> Mapping[str, int]:
        return self._hooks

    @cached_property
    def _hooks(self) -> dict[str, int]:
        return self._model.widths()

    def canonical(self, hook_name: str) -> str:
        return self._layout.canonical(hook_name)

    @property
    def context(self) -> int | None:
        return self._context

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise SaevalError("the live model came without a tokenizer; pass tokenizer=... or data that is tokenised")
        return self._tokenizer

    def tokenizer_identity(self) -> str:
        if self._tokenizer is None:
            return ""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        special = json.dumps(self._tokenizer.special_tokens_map, sort_keys=True, default=str)
        return hashlib.sha256(f"{content}\n{special}".encode()).hexdigest()

    def facts(self) -> Mapping[str, Any]:
        name = self._config.get("_name_or_path") or self._config.get("model_name")
        found: dict[str, Any] = {"name": name, "model_type": self._config.get("model_type")}
        if self._tokenizer is not None:
            found["chat_template"] = bool(getattr(self._tokenizer, "chat_template", None))
        return {key: value for key, value in {**found, "context": self._context}.items() if value not in (None, "")}

    def load(self, device: str) -> Model:
        import torch  # late: torch is not needed to list adapters

        wanted, here = torch.device(device), self._model.device
        if wanted.type != here.type or wanted.index not in (None, here.index):
            raise SaevalError(f"the live model is on {here} and the run on {wanted}; give device='{here}', or move it")
        self._model.check()
        return self._model
