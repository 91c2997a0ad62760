"""A user's loaded model as a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from saeval.plugin import Model, SaevalError, digest_of, torch
from saeval_models.checkpoint import padding, vocabulary
from saeval_models.families import Family, FamilySpec
from saeval_models.peft_adapters import attached

if TYPE_CHECKING:  # annotations only: torch is not needed to list adapters
    from torch import nn

    from saeval_models.hooked import HookedModel

_NOT_NUMBERS = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def inherits(live: object, package: str, class_name: str) -> bool:
    """True if an object's class is a subclass of a library's class, without importing the library."""
    return any(c.__name__ == class_name and c.__module__.split(".")[0] == package for c in type(live).__mro__)


class LiveSpec(FamilySpec):
    """A model in memory. Passes leave it unchanged, and it is never moved, because other code may use it.

    Its identity contains only what is known at no cost; `live_key` represents its weights and its state.
    """

    def __init__(
        self, adapter: str, owner: nn.Module, model: HookedModel, family: Family, config: Mapping[str, Any],
        context: int | None, tokenizer: Any, name: str,
    ) -> None:  # fmt: skip
        devices = sorted({str(parameter.device) for parameter in model.module.parameters()})
        if len(devices) > 1:
            raise SaevalError(f"the live model is spread over {' and '.join(devices)}; load it on one device")
        if devices == ["meta"]:
            raise SaevalError("the live model's weights are not in memory (offloaded, or never loaded); load them all")
        self.name = name
        self.kind = model.kind
        self._adapter = adapter
        self._owner = owner
        """The user's object; the hooked module may be part of it."""
        self._model = model
        self._family = family
        self._config = config
        self._context = context
        self._tokenizer = tokenizer

    def identity(self) -> Mapping[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        settings = {key: value for key, value in self._config.items() if key not in _NOT_NUMBERS}
        tensors = chain(self._owner.named_parameters(), self._owner.named_buffers())
        return {
            "adapter": self._adapter,
            "class": type(self._owner).__name__,
            "config": digest_of(settings),
            "shapes": digest_of([[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors]),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "processing": "as given",
            **({"peft_adapters": adapters} if (adapters := attached(self._owner)) else {}),
        }

    def hooks(self) -> Mapping[str, int]:
        return self._hooks

    @cached_property
    def _hooks(self) -> dict[str, int]:
        return self._model.widths()

    def _same_tensors(self) -> Mapping[str, str]:
        return self._model.twins()

    @property
    def context(self) -> int | None:
        return self._context

    @property
    def vocabulary(self) -> int | None:
        return vocabulary(self._config)

    @property
    def padding_token(self) -> int | None:
        relevant = self.kind == "reward" and hasattr(self._model.module, "score")  # value heads ignore padding
        return padding(self._config) if relevant else None

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise SaevalError("the live model has no tokenizer; pass tokenizer=..., or use tokenised data")
        return self._tokenizer

    def tokenizer_identity(self) -> str | None:
        if self._tokenizer is None:
            return ""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        attributes = {key: value for key, value in vars(self._tokenizer).items() if value is not backend}
        of_transformers = type(self._tokenizer).__module__.startswith("transformers.")
        if backend is None or not of_transformers or any(callable(value) for value in attributes.values()):
            return None  # it tokenises with its own code
        settings = {key: value for key, value in attributes.items() if isinstance(value, str | int | float | None)}
        special = {key: str(value) for key, value in self._tokenizer.special_tokens_map.items()}
        return digest_of([type(self._tokenizer).__qualname__, backend.to_str(), settings, special])

    def facts(self) -> Mapping[str, Any]:
        name = self._config.get("_name_or_path") or self._config.get("model_name")
        facts: dict[str, Any] = {"name": name, "model_type": self._config.get("model_type")}
        if self._tokenizer is not None:
            facts["chat_template"] = bool(getattr(self._tokenizer, "chat_template", None))
        facts |= {"context": self._context, "peft_adapters": attached(self._owner) or None}
        return {key: value for key, value in facts.items() if value not in (None, "")}

    def load(self, device: str) -> Model:
        wanted, here = torch.device(device), self._model.device
        if wanted.type != here.type or wanted.index not in (None, here.index):
            raise SaevalError(f"the live model is on {here} and the run on {wanted}; pass device='{here}', or move it")
        self._model.check()
        return self._model
