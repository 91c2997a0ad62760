"""The `huggingface` adapter: causal and reward models that transformers loads."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

from saeval.plugin import (
    Model,
    ModelAdapter,
    ModelSpec,
    SaevalError,
    cached,
    digest_of,
    libraries,
    torch,
    unwrap_module,
)
from saeval_models.checkpoint import (
    SUPPORTED,
    VALUE_HEAD,
    Reference,
    architecture_task,
    located,
    longest_context,
    padding,
    parsed,
    vocabulary,
)  # fmt: skip
from saeval_models.families import BOUNDARIES, Family, FamilySpec, NoGraph
from saeval_models.library_errors import library_errors, quietly
from saeval_models.live import LiveSpec, inherits
from saeval_models.weights import check_checksums, tensors, weight_files

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from transformers import PretrainedConfig, PreTrainedModel

    from saeval_models.hooked import HookedModel  # late: it imports transformers


_MOST_A_BYTE = 16
"""More parameters per byte of weights than any format stores."""
_FEW = 10**8
"""A number of parameters that fits into any memory."""
log = logging.getLogger("saeval")
_CAUSAL_ONLY = "saeval supports causal models"
_WITH_VALUE_HEAD = ("trl", "PreTrainedModelWrapper")
"""trl's class of a language model with a value head."""


class PretrainedSpec(FamilySpec):
    """A checkpoint that transformers loads."""

    adapter: ClassVar[str] = "huggingface"

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.checkpoint = located(reference)
        self.name = self.checkpoint.name
        self.kind = self.checkpoint.task(reference.task)
        if self.checkpoint.adapter is not None and reference.center_writing_weights:
            raise SaevalError(
                f"{self.checkpoint.adapter.folder} holds an adapter, whose weights 'center_writing_weights' does not "
                f"centre; merge it into its base model and save the result"
            )
        if reference.reward_at == "last_token":
            return
        if self.kind != "reward":
            raise SaevalError(f"'reward_at' is for reward models, and '{self.name}' is a language model; leave it out")
        if padding(self.checkpoint.config) is None:
            raise SaevalError(
                f"'reward_at: before_padding' needs a padding token, and {self.checkpoint.config_file} has no "
                "'pad_token_id'; leave 'reward_at' out: without one, transformers also reads the last token"
            )

    def identity(self) -> Mapping[str, Any]:
        return {
            "adapter": self.adapter,
            "weights": self.checkpoint.weights,
            "dtype": self.reference.dtype,
            "attn_implementation": self.reference.attn_implementation or "default",
            "task": self.kind,
            "processing": "center_writing_weights" if self.reference.center_writing_weights else "none",
            **({"reward_at": self.reference.reward_at} if self.reference.reward_at != "last_token" else {}),
            **self._origin(),
        }

    def _origin(self) -> dict[str, Any]:
        """Facts about a model with an adapter, or in a GGUF file."""
        adapter, gguf = self.checkpoint.adapter, self.checkpoint.gguf
        if gguf is not None:
            return {"quantization": gguf.quantization}
        return {"peft_adapter": adapter.kind, "base": self.checkpoint.base_name} if adapter is not None else {}

    def hooks(self) -> Mapping[str, int]:
        return self._outline["hooks"]  # type: ignore[no-any-return]

    @cached_property
    def _outline(self) -> dict[str, Any]:
        """Facts about the model that need no weight values; cached between runs, because imports take seconds."""
        check_checksums(self.checkpoint.weight_files if self.checkpoint.local else [])
        if not self._traced[1]:
            return self._outlined()
        return self._remembered("models", self._outlined, sorted(self.checkpoint.tensor_shapes.items()))

    def _remembered(self, kind: str, make: Callable[[], dict[str, Any]], *words: Any) -> dict[str, Any]:
        """Return plain data about the model that depends on its config, on `words` and on code; cached between runs."""
        if not self.code:  # the adapter's version is unknown, so a cached entry may be of another one
            return make()
        words = self.adapter, self.code, self.kind, self.reference.task, self.checkpoint.config, words, libraries()
        return cached(kind, digest_of(words), make)

    def _outlined(self) -> dict[str, Any]:
        hooks, unused = self._hooks(), self._unused()
        try:
            twins = self._empty.twins()
        except Exception:  # the forward pass cannot run on the meta device
            twins = {}
        parameters = sum(p.numel() for p in self._empty.module.parameters())
        return {"hooks": hooks, "twins": twins, "unused": unused, "parameters": parameters}

    def _hooks(self) -> dict[str, int]:
        model = self._empty
        try:
            return model.widths()
        except Exception:
            # Some forward passes need values.
            width = int(self._config.get_text_config().hidden_size)
            return {name: width for name, site in model.sites.items() if site.suffix in BOUNDARIES}

    @cached_property
    def _empty(self) -> HookedModel:
        from saeval_models.pretrained import hooked  # late: it imports transformers

        return hooked(self._skeleton, self._family)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        """The model on the meta device, where tensors have shapes but no values."""
        from saeval_models.pretrained import without_weights  # late: it imports transformers

        failure = f"{self.checkpoint.config_file} describes no {self.kind} model that transformers can build"
        with library_errors(failure, f"saeval supports {SUPPORTED}"):
            module = without_weights(self._auto_class.from_config, self._config)
        self._check_size(module)
        if self.kind == "causal":
            self._check_decoder(module)
        return module

    def _check_size(self, module: PreTrainedModel) -> None:
        """Raise `SaevalError` if the config is far larger than the weights: transformers would fill in the rest."""
        described, stored = sum(p.numel() for p in module.parameters()), self.checkpoint.weight_bytes
        if stored is not None and described > max(_FEW, _MOST_A_BYTE * stored):
            raise SaevalError(
                f"{self.checkpoint.config_file} describes {described:,} parameters, but the weights beside it have "
                f"only {stored:,} bytes; check its sizes, such as 'vocab_size'"
            )

    def _check_decoder(self, module: PreTrainedModel) -> None:
        """Raise `SaevalError` for an encoder with a language model's head, such as BERT without 'is_decoder'."""
        # The config's own field is unreliable: GPT-NeoX has one that its model ignores.
        flags = {part.is_decoder for part in module.modules() if isinstance(getattr(part, "is_decoder", None), bool)}
        if flags == {False}:
            raise SaevalError(
                f"{self.checkpoint.config_file} does not set 'is_decoder': true, so {type(module).__name__} is not "
                f"causal: its scores would depend on their targets; {_CAUSAL_ONLY}"
            )

    def _unused(self) -> list[str]:
        """Return the tensors of local weights that the model does not use; `SaevalError` if weights do not fit it.

        Reads no values.
        """
        if not self.checkpoint.local:
            return []
        if self.checkpoint.gguf is not None:  # transformers would unpack every weight
            return self.checkpoint.gguf.unused(self._empty.module, self._blocks(self._empty.module))
        module, report = self._read(device_map="meta", attn_implementation="eager")
        return self._check(module, report)

    def warnings(self) -> list[str]:
        ignored = self.checkpoint.gguf.warnings() if self.checkpoint.gguf is not None else []
        if not (unused := self._outline["unused"]):
            return ignored
        shown = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        tensors = "a tensor" if len(unused) == 1 else "tensors"
        class_name = self.checkpoint.architecture or f"a {self.checkpoint.config['model_type']} model"
        return [*ignored, f"the weights of '{self.name}' hold {tensors} that {class_name} does not use: {shown}"]

    @property
    def _family(self) -> Family:
        return self._traced[0]

    @cached_property
    def _traced(self) -> tuple[Family, bool]:
        """The family, and whether a pass proved it: a failure, perhaps of this machine, is not to be remembered."""

        def made() -> dict[str, Any]:
            from saeval_models.pretrained import traced_family  # late: it imports transformers

            return traced_family(self._skeleton).written()

        try:
            return Family.read(self._remembered("families", made)), True
        except NoGraph as failure:
            return failure.family, False

    def _same_tensors(self) -> Mapping[str, str]:
        return self._outline["twins"]  # type: ignore[no-any-return]

    @cached_property
    def _config(self) -> PretrainedConfig:
        import transformers  # late: slow to import

        raw, file = self.checkpoint.config, self.checkpoint.config_file
        if raw["model_type"] not in transformers.CONFIG_MAPPING:
            code = "; the model comes with its own code, which saeval does not run" if "auto_map" in raw else ""
            fault = f"transformers {transformers.__version__} has no such model"
            raise SaevalError(f"{file} has model_type '{raw['model_type']}': {fault}{code}")
        # Of special tokens outside the vocabulary, transformers warns for each config that it makes.
        with library_errors(f"{file} cannot be read", "save the model again"), quietly():
            if self.checkpoint.gguf is None:
                config = transformers.AutoConfig.from_pretrained(**self._source)
            else:
                config = transformers.AutoConfig.for_model(**raw)
        if getattr(config.get_text_config(), "is_causal", True) is False:
            raise SaevalError(
                f"{file} sets 'is_causal': false, so the model is not causal: its scores would depend on their "
                f"targets; {_CAUSAL_ONLY}"
            )
        return config  # type: ignore[no-any-return]

    @property
    def _source(self) -> dict[str, Any]:
        return {
            "pretrained_model_name_or_path": self.checkpoint.source,
            "revision": self.checkpoint.revision or "main",
            "trust_remote_code": False,
            "local_files_only": self.checkpoint.offline,
        }

    @property
    def _auto_class(self) -> Any:
        import transformers  # late: slow to import

        head = self.kind == "reward" and not self._has_value_head
        return transformers.AutoModelForSequenceClassification if head else transformers.AutoModelForCausalLM

    @property
    def _has_value_head(self) -> bool:
        """True if rewards are read from a value head beside the head of a language model."""
        task = architecture_task(self.checkpoint.architecture)
        return self.kind == "reward" and (
            task == "causal" or (task == "" and VALUE_HEAD in self.checkpoint.tensor_shapes)
        )

    @property
    def padding_token(self) -> int | None:
        relevant = self.kind == "reward" and self.reference.reward_at == "last_token" and not self._has_value_head
        return padding(self.checkpoint.config) if relevant else None

    @property
    def context(self) -> int | None:
        raw = self.checkpoint.config  # suffices for most models, without importing transformers
        positions = raw.get("max_position_embeddings") or raw.get("n_positions")
        return positions if isinstance(positions, int) else longest_context(self._config)

    @property
    def vocabulary(self) -> int | None:
        # The file suffices for most models, without importing transformers, which knows the defaults.
        size = vocabulary(self.checkpoint.config)
        return size if size is not None else getattr(self._config.get_text_config(), "vocab_size", None)

    @property
    def parameters(self) -> int | None:
        return int(self._outline["parameters"])

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # late: slow to import

        if not self.tokenizer_identity():
            raise SaevalError(f"{self.checkpoint.source} has no tokenizer files; save the tokenizer beside the model")
        _ = self._config  # transformers also reads it for the tokenizer; its errors must not name the tokenizer
        if self.checkpoint.gguf_tokenizer is not None:
            self.checkpoint.gguf_tokenizer.check_tokenizer()
        with library_errors(f"the tokenizer of {self.checkpoint.source} cannot be loaded", "save it again"):
            where: dict[str, Any] = {"pretrained_model_name_or_path": self.checkpoint.tokenizer_source}
            if self.checkpoint.gguf_tokenizer is not None:
                where["gguf_file"] = self.checkpoint.gguf_tokenizer.gguf_file
            elif self.checkpoint.gguf is not None:
                where["config"] = self._config
            return AutoTokenizer.from_pretrained(**{**self._source, **where})

    def tokenizer_identity(self) -> str:
        return self.checkpoint.tokenizer

    def facts(self) -> Mapping[str, Any]:
        files = self.checkpoint
        facts = {
            "name": files.name, "revision": files.revision, "model_type": files.config["model_type"],
            "architecture": files.architecture, "context": self.context, "chat_template": files.chat_template,
            "center_writing_weights": self.reference.center_writing_weights, **self._origin(),
        }  # fmt: skip
        return {key: value for key, value in facts.items() if value not in (None, "")}

    def fetch(self) -> None:
        from huggingface_hub import snapshot_download  # late: only for models of the hub

        if self.checkpoint.local:
            return
        repo, revision = self.checkpoint.source, self.checkpoint.revision
        wanted = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
        with library_errors(f"hub model '{self.name}' cannot be downloaded", "check its name and the network"):
            here = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
            if not any(here.glob("*.safetensors")):  # the older format, if there is no other
                snapshot_download(repo, revision=revision, allow_patterns=["pytorch_model*.bin"])

    def load(self, device: str) -> Model:
        from saeval_models.pretrained import hooked  # late: it imports transformers

        module = self._pretrained(device)
        before = padding(self.checkpoint.config) if self.reference.reward_at == "before_padding" else None
        score = self._value_head(module) if self._has_value_head else None
        model = hooked(module, self._family, score, before)
        model.check()
        return model

    def _value_head(self, module: PreTrainedModel) -> torch.nn.Linear:
        """Return the value head of local weights, in float32 on the model's device."""
        files, stem = weight_files(self.checkpoint.config_file.parent), VALUE_HEAD.removesuffix("weight")
        loaded = tensors(files, [VALUE_HEAD, f"{stem}bias"])
        head = torch.nn.Linear(loaded[VALUE_HEAD].shape[1], 1, bias=f"{stem}bias" in loaded)
        head.load_state_dict({name.removeprefix(stem): tensor for name, tensor in loaded.items()})
        return head.requires_grad_(False).float().to(module.device)  # as in trl, for any dtype of the model

    @property
    def _where(self) -> str:
        gguf = self.checkpoint.gguf
        return f"the weights of {self.checkpoint.source if gguf is None else gguf.path}"

    def _read(self, **options: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """Load the model with transformers; return it and the report of mismatches. No code in a pickle is run."""
        if self.checkpoint.gguf is not None:
            options |= {**self.checkpoint.gguf.options(), "config": self._config}  # else it reads the header again
        try:
            where = self._where
            with library_errors(f"{where} cannot be loaded", "check them and the model's entry"), quietly():
                # `_check` reports mismatched sizes, which transformers would only log.
                # Adapters are applied later, because transformers would report only their keys: it finds none here.
                # Nor does it ask the hub for one, which takes half a minute if the hub is unreachable.
                return self._auto_class.from_pretrained(  # type: ignore[no-any-return]
                    **self._source, **options, output_loading_info=True, ignore_mismatched_sizes=True,
                    adapter_kwargs={"subfolder": "none", "local_files_only": True},
                )  # fmt: skip
        except SaevalError as error:
            if isinstance(error.__cause__, UnpicklingError):
                fault = "are damaged, or a pickle with more than tensors, which is not run"
                raise SaevalError(f"{where} {fault}; save them as safetensors") from error
            raise

    def _pretrained(self, device: str) -> PreTrainedModel:
        options: dict[str, Any] = {"dtype": getattr(torch, self.reference.dtype)}
        if self.reference.attn_implementation:
            options["attn_implementation"] = self.reference.attn_implementation
        self.checkpoint.check_alone()
        module, report = self._read(**options)
        unused = self._check(module, report)
        # `warnings` has reported those of a folder; for a GGUF file, only one of transformers' two readers reports any.
        if unused and (not self.checkpoint.local or self.checkpoint.gguf is not None):
            log.warning("%s hold tensors that the model does not use: %s", self._where, ", ".join(unused[:3]))
        if self.checkpoint.adapter is not None:
            with quietly():
                self.checkpoint.adapter.apply(module)
        # No pass here pools by token id; a padding id only makes transformers warn of right padding without a mask.
        vars(module.config)["pad_token_id"] = None  # bypasses configs that refuse None
        if self.reference.center_writing_weights:
            from saeval_models.centring import centre_writing_weights  # late: it imports transformers

            centre_writing_weights(module, self._family, self.name)
        return module.requires_grad_(False).eval().to(device)  # type: ignore[no-any-return]

    def _check(self, module: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
        """Refuse weights that do not fit the model, because transformers would fill gaps with random numbers.

        Returns the names of tensors that the model does not use.
        """
        where, config = self._where, "config.json" if self.checkpoint.gguf is None else "header"
        if report["mismatched_keys"]:
            name, shape, expected = min(report["mismatched_keys"], key=lambda entry: str(entry[0]))
            raise SaevalError(f"{where} do not fit its {config}: {name} is {list(shape)}, not {list(expected)}")
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            entry = f"check 'architectures' in its config and 'task: {self.kind}'"
            remedy = entry if self.checkpoint.gguf is None else "convert it again"
            raise SaevalError(
                f"{where} lack {missing}: they are incomplete or of another architecture; copy the model again, or "
                f"{remedy}"
            )
        blocks = self._blocks(module)
        numbered = re.compile(rf"(?:^|\.){re.escape(self._family.blocks)}\.(\d+)\.")
        indices = [int(match[1]) for match in map(numbered.search, report["unexpected_keys"]) if match]
        if indices and max(indices) >= blocks:
            raise SaevalError(
                f"{where} have {max(indices) + 1} blocks, but its {config} has {blocks}; save the model again"
            )
        head = VALUE_HEAD.removesuffix("weight") if self._has_value_head else None
        shape, width = self.checkpoint.tensor_shapes.get(VALUE_HEAD), int(module.config.get_text_config().hidden_size)
        if head and shape not in (None, (1, width)):
            raise SaevalError(f"{where}: the value head {VALUE_HEAD} is {list(shape or ())}, expected [1, {width}]")
        unused = sorted(name for name in report["unexpected_keys"] if not (head and name.startswith(head)))
        self._refuse_heads(module, unused)
        return unused

    def _blocks(self, module: PreTrainedModel) -> int:
        """Return the number of blocks of a model."""
        from saeval_models.pretrained import base_of  # late: it imports transformers

        return sum(1 for _ in base_of(module)[1].get_submodule(self._family.blocks).children())

    def _refuse_heads(self, module: PreTrainedModel, unused: list[str]) -> None:
        """Raise `SaevalError` for an unused head with one output, unless 'task' is set: it may be a reward model."""
        if self.kind != "causal" or self.reference.task is not None:
            return
        head = (1, int(module.config.get_text_config().hidden_size))
        name = next((name for name in unused if self.checkpoint.tensor_shapes.get(name) == head), None)
        if name is None:
            return
        ignore = "'task: causal' to ignore it"
        if name == VALUE_HEAD:
            remedy = f"add 'task: reward' to 'model' to read the reward at a text's last token, or {ignore}"
        else:
            remedy = f"if it is a reward model, name its class in 'architectures' of config.json; else add {ignore}"
        raise SaevalError(
            f"{self._where} also hold {name} {list(head)}, a head with one output that {type(module).__name__} does "
            f"not use; {remedy}"
        )


class HuggingFace(ModelAdapter):
    """Causal and reward models that transformers loads.

    `model: {use: huggingface, path: folder}` or `{use: huggingface, name: gpt2, revision: main}`. A folder may hold a
    peft adapter, beside its base model or alone. `gguf_file` is the name of a GGUF file in the folder, whose weights
    are unpacked; it needs `saeval[gguf]`. `dtype` is float32 by default; `attn_implementation` is that of transformers.
    `task` is `causal` or `reward`, by default that of the config's architecture. `reward_at: before_padding` reads a
    reward at the last token that is not the padding token, as transformers does; the default is `last_token`.
    `center_writing_weights: true` centres the weights that write to the residual stream, as TransformerLens does by
    default.
    """

    name = "huggingface"

    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        return PretrainedSpec(parsed(reference, self.name))

    def accepts(self, live: object) -> bool:
        module = unwrap_module(live)
        kinds = (("transformers", "PreTrainedModel"), ("peft", "PeftModel"), _WITH_VALUE_HEAD)
        return any(inherits(module, *kind) for kind in kinds)

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        from saeval_models.pretrained import family_of, hooked  # late: it imports transformers

        owner: Any = unwrap_module(live)
        module, score = owner, None
        if inherits(owner, *_WITH_VALUE_HEAD):
            module, score = owner.pretrained_model, owner.v_head.summary
        if inherits(owner, "peft", "PeftModel"):
            if owner.active_peft_config.is_prompt_learning:
                raise SaevalError(
                    f"the live model's adapter is a {owner.active_peft_config.peft_type.value}, which adds tokens "
                    f"that are not in the documents; pass the model without it"
                )
            module = owner.get_base_model()  # with the adapter's layers in their places
        family = family_of(module)
        model, config = hooked(module, family, score), module.config
        return LiveSpec(self.name, owner, model, family, config.to_dict(), longest_context(config), tokenizer, name)
