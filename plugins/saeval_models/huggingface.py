"""The `huggingface` adapter: any causal or reward model that transformers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from saeval.errors import SaevalError
from saeval.model import Model, ModelAdapter, ModelSpec
from saeval_models.checkpoint import Reference, located, longest_context, parsed
from saeval_models.layouts import BOUNDARIES, Layout, known_layout
from saeval_models.live import LiveSpec, inherits

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from transformers import PretrainedConfig, PreTrainedModel

    from saeval_models.hooked import HookedModel


class PretrainedSpec(ModelSpec):
    """A checkpoint that transformers loads."""

    adapter: ClassVar[str] = "huggingface"

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.checkpoint = located(reference)
        self.name = self.checkpoint.name
        self.kind = reference.task or self.checkpoint.task

    def identity(self) -> Mapping[str, Any]:
        return {
            "adapter": self.adapter,
            "weights": self.checkpoint.weights,
            "dtype": self.reference.dtype,
            "attn_implementation": self.reference.attn_implementation or "default",
            "task": self.kind,
            "processing": "none",
        }

    def hooks(self) -> Mapping[str, int]:
        return self._hooks

    @cached_property
    def _hooks(self) -> dict[str, int]:
        model = self._empty
        try:
            return model.widths()
        except Exception:
            # Some forwards cannot run without values, as those that route tokens to experts.
            if self._layout.sites is not BOUNDARIES:
                raise
            width = int(self._config.get_text_config().hidden_size)
            return {name: width for name, site in model.sites.items() if site.suffix in BOUNDARIES}

    @cached_property
    def _empty(self) -> HookedModel:
        """The model on the meta device, where tensors have shapes and no values."""
        import torch  # late: see the module's own imports

        from saeval_models.pretrained import hooked, layout_of

        try:
            with torch.device("meta"):
                module = self._auto_class.from_config(self._config, attn_implementation="eager")
        except (ValueError, ImportError) as error:
            raise SaevalError(f"transformers has no {self.kind} model for '{self.name}': {first_line(error)}") from None
        return hooked(module, layout_of(module))

    @cached_property
    def _layout(self) -> Layout:
        from saeval_models.pretrained import layout_of

        config = self.checkpoint.config
        return known_layout(config["model_type"], config) or layout_of(self._empty.module)

    def canonical(self, hook_name: str) -> str:
        return self._layout.canonical(hook_name)

    @cached_property
    def _config(self) -> PretrainedConfig:
        from transformers import AutoConfig  # late: slow to import

        try:
            return AutoConfig.from_pretrained(**self._source)  # type: ignore[no-any-return]
        except (OSError, ValueError, KeyError) as error:
            raise SaevalError(f"{self.checkpoint.config_file} cannot be read: {first_line(error)}") from None

    @property
    def _source(self) -> dict[str, Any]:
        return {
            "pretrained_model_name_or_path": self.checkpoint.source,
            "revision": self.checkpoint.revision or "main",
            "trust_remote_code": False,
        }

    @property
    def _auto_class(self) -> Any:
        import transformers  # late: slow to import

        reward = self.kind == "reward"
        return transformers.AutoModelForSequenceClassification if reward else transformers.AutoModelForCausalLM

    @property
    def context(self) -> int | None:
        raw = self.checkpoint.config  # read without transformers where it suffices: a finished suite needs no more
        found = raw.get("max_position_embeddings") or raw.get("n_positions")
        return int(found) if found else longest_context(self._config)

    @property
    def parameters(self) -> int | None:
        return sum(p.numel() for p in self._empty.module.parameters())

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # late: slow to import

        if not self.tokenizer_identity():
            raise SaevalError(f"{self.checkpoint.source} has no tokenizer files; save the tokenizer beside the model")
        try:
            return AutoTokenizer.from_pretrained(**self._source)
        except (OSError, ValueError, KeyError) as error:
            raise SaevalError(f"the tokenizer of '{self.name}' cannot be loaded: {first_line(error)}") from None

    def tokenizer_identity(self) -> str:
        return self.checkpoint.tokenizer

    def load(self, device: str) -> Model:
        from saeval_models.pretrained import hooked

        return hooked(self._pretrained(device), self._layout)

    def _pretrained(self, device: str) -> PreTrainedModel:
        import torch  # late: see the module's own imports
        from safetensors import SafetensorError

        options: dict[str, Any] = {"dtype": getattr(torch, self.reference.dtype), "output_loading_info": True}
        if self.reference.attn_implementation:
            options["attn_implementation"] = self.reference.attn_implementation
        try:
            with _quietly():
                module, report = self._auto_class.from_pretrained(**self._source, **options)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise SaevalError(f"the weights of '{self.name}' cannot be loaded: {first_line(error)}") from None
        if report["missing_keys"]:  # transformers would fill them with random numbers
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise SaevalError(f"the weights of '{self.name}' lack {missing}: is 'task: {self.kind}' what they are?")
        # Nothing here pools by token id; a padding id only makes transformers warn of right padding without a mask.
        module.config.pad_token_id = None
        return module.requires_grad_(False).eval().to(device)  # type: ignore[no-any-return]


class HuggingFace(ModelAdapter):
    """`model: {use: huggingface, path: folder}` or `{use: huggingface, name: gpt2, revision: main}`."""

    name = "huggingface"

    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        return PretrainedSpec(parsed(reference, self.name))

    def accepts(self, live: object) -> bool:
        return inherits(live, "transformers", "PreTrainedModel")

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        from saeval_models.pretrained import hooked, layout_of

        module: Any = live
        layout = layout_of(module)
        model, config = hooked(module, layout), module.config
        return LiveSpec(self.name, module, model, layout, config.to_dict(), longest_context(config), tokenizer, name)


def first_line(error: BaseException) -> str:
    """The first line of a library's message: the rest is advice for its own users."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar of transformers' while weights load: the command line has its own."""
    from transformers.utils import logging  # late: slow to import

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
