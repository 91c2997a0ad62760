"""The `huggingface` adapter: any causal or reward model that transformers loads."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

from saeval.plugin import Model, ModelAdapter, ModelSpec, SaevalError, cached, digest_of, libraries
from saeval_models.checkpoint import (
    TAKEN,
    VALUE_HEAD,
    Reference,
    architecture_task,
    located,
    longest_context,
    padding,
    parsed,
    vocabulary,
)  # fmt: skip
from saeval_models.families import BOUNDARIES, Family, FamilySpec, known_family
from saeval_models.library_errors import library_errors
from saeval_models.live import LiveSpec, inherits
from saeval_models.weights import check_checksums, tensors, weight_files

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from saeval_models.hooked import HookedModel  # late: it imports transformers


_MOST_A_BYTE = 16
"""Parameters a byte of weights that no format packs."""
_FEW = 10**8
"""Parameters that fit into any memory, whatever the weights are."""
log = logging.getLogger("saeval")
_CAUSAL_ONLY = "saeval takes causal models"
_WITH_VALUE_HEAD = ("trl", "PreTrainedModelWrapper")
"""The class of trl's that holds a language model and a value head."""


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
                f"{self.checkpoint.adapter.folder} holds an adapter, whose weights 'center_writing_weights' would not "
                f"centre; merge it into its model and save that"
            )
        if reference.reward_at == "before_padding":
            self._check_reward_at()

    def _check_reward_at(self) -> None:
        """`SaevalError` where a reward cannot be read before padding."""
        if self.kind != "reward":
            raise SaevalError(f"'reward_at' is for reward models, and '{self.name}' is a language model; leave it out")
        if padding(self.checkpoint.config) is None:
            raise SaevalError(
                f"'reward_at: before_padding' needs a padding token, and {self.checkpoint.config_file} has no "
                "'pad_token_id'; leave 'reward_at' out: without one transformers reads the last token, too"
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
            **self._adapter_facts(),
        }

    def _adapter_facts(self) -> dict[str, Any]:
        adapter = self.checkpoint.adapter
        return {"peft_adapter": adapter.kind, "base": self.checkpoint.base_name} if adapter is not None else {}

    def hooks(self) -> Mapping[str, int]:
        return self._outline["hooks"]  # type: ignore[no-any-return]

    @cached_property
    def _outline(self) -> dict[str, Any]:
        """What the model says without its values; kept between runs, since to build it takes seconds of imports."""
        files = weight_files(self.checkpoint.config_file.parent) if self.checkpoint.local else []
        check_checksums(files)
        if not self.code:  # nothing tells whether the adapter is the one of another time
            return self._outlined()
        words = [
            self.adapter,
            self.code,
            self.kind,
            self.reference.task,
            self.checkpoint.config,
            sorted(self.checkpoint.tensor_shapes.items()),
            libraries(),
        ]
        return cached("models", digest_of(words), self._outlined)

    def _outlined(self) -> dict[str, Any]:
        hooks, unused = self._hooks(), self._unused()
        try:
            twins = self._empty.twins()
        except Exception:  # a forward that cannot run so
            twins = {}
        parameters = sum(p.numel() for p in self._empty.module.parameters())
        return {"hooks": hooks, "twins": twins, "unused": unused, "parameters": parameters}

    def _hooks(self) -> dict[str, int]:
        model = self._empty
        try:
            return model.widths()
        except Exception:
            # Some forwards cannot run without values, as those that route tokens to experts.
            if self._family.sites is not BOUNDARIES:
                raise
            width = int(self._config.get_text_config().hidden_size)
            return {name: width for name, site in model.sites.items() if site.suffix in BOUNDARIES}

    @cached_property
    def _empty(self) -> HookedModel:
        """The model on the meta device, where tensors have shapes and no values."""
        import torch  # late: see the module's own imports

        from saeval_models.pretrained import family_of, hooked  # late: it imports transformers

        what = f"{self.checkpoint.config_file} describes no {self.kind} model that transformers can build"
        with library_errors(what, f"saeval takes {TAKEN}"), torch.device("meta"):
            module = self._auto_class.from_config(self._config, attn_implementation="eager")
        self._check_size(module)
        if self.kind == "causal":
            self._check_decoder(module)
        return hooked(module, family_of(module))

    def _check_size(self, module: PreTrainedModel) -> None:
        """`SaevalError` for a config far beyond its weights: transformers would make up what they lack."""
        described, stored = sum(p.numel() for p in module.parameters()), self.checkpoint.weight_bytes
        if stored is not None and described > max(_FEW, _MOST_A_BYTE * stored):
            raise SaevalError(
                f"{self.checkpoint.config_file} describes {described:,} parameters, and the weights beside it are "
                f"{stored:,} bytes; check its sizes, such as 'vocab_size'"
            )

    def _check_decoder(self, module: PreTrainedModel) -> None:
        """`SaevalError` for an encoder under a language model's head, such as BERT without 'is_decoder'."""
        # The config's own field does not tell: GPT-NeoX has one that its model never looks at.
        said = {part.is_decoder for part in module.modules() if isinstance(getattr(part, "is_decoder", None), bool)}
        if said == {False}:
            raise SaevalError(
                f"{self.checkpoint.config_file} does not say 'is_decoder': true, so {type(module).__name__} does not "
                f"read from left to right: its scores would see their targets; {_CAUSAL_ONLY}"
            )

    def _unused(self) -> list[str]:
        """The tensors of local weights that the model does not use; `SaevalError` for weights that are not its own.

        No values are read.
        """
        if not self.checkpoint.local:
            return []
        module, report = self._read(device_map="meta", attn_implementation="eager")
        return self._check(module, report)

    def warnings(self) -> list[str]:
        if not (unused := self._outline["unused"]):
            return []
        shown = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        tensors = "a tensor" if len(unused) == 1 else "tensors"
        return [f"the weights of '{self.name}' hold {tensors} that {self._class_name} does not use: {shown}"]

    @property
    def _class_name(self) -> str:
        return self.checkpoint.architecture or f"a {self.checkpoint.config['model_type']} model"

    @cached_property
    def _family(self) -> Family:
        config = self.checkpoint.config
        if (known := known_family(config["model_type"], config)) is not None:
            return known
        from saeval_models.pretrained import family_of  # late: it imports transformers

        return family_of(self._empty.module)

    def _same_tensors(self) -> Mapping[str, str]:
        return self._outline["twins"]  # type: ignore[no-any-return]

    @cached_property
    def _config(self) -> PretrainedConfig:
        import transformers  # late: slow to import

        raw, file = self.checkpoint.config, self.checkpoint.config_file
        if raw["model_type"] not in transformers.CONFIG_MAPPING:
            code = "; the model brings code of its own, which saeval does not run" if "auto_map" in raw else ""
            known = f"transformers {transformers.__version__} has no such model"
            raise SaevalError(f"{file} is of model_type '{raw['model_type']}': {known}{code}")
        with library_errors(f"{file} cannot be read", "save the model again"):
            config = transformers.AutoConfig.from_pretrained(**self._source)
        if getattr(config.get_text_config(), "is_causal", True) is False:
            raise SaevalError(
                f"{file} says 'is_causal': false, so the model does not read from left to right: its scores would see "
                f"their targets; {_CAUSAL_ONLY}"
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
        """Whether rewards are read from a value head beside a language model's own."""
        task = architecture_task(self.checkpoint.architecture)
        return self.kind == "reward" and (
            task == "causal" or (task == "" and VALUE_HEAD in self.checkpoint.tensor_shapes)
        )

    @property
    def padding_token(self) -> int | None:
        asked = self.kind == "reward" and self.reference.reward_at == "last_token" and not self._has_value_head
        return padding(self.checkpoint.config) if asked else None

    @property
    def context(self) -> int | None:
        raw = self.checkpoint.config  # read without transformers where it suffices: a finished suite needs no more
        found = raw.get("max_position_embeddings") or raw.get("n_positions")
        return found if isinstance(found, int) else longest_context(self._config)

    @property
    def vocabulary(self) -> int | None:
        # Read without transformers where it suffices; what is not in the file is the library's default.
        found = vocabulary(self.checkpoint.config)
        return found if found is not None else getattr(self._config.get_text_config(), "vocab_size", None)

    @property
    def parameters(self) -> int | None:
        return int(self._outline["parameters"])

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # late: slow to import

        if not self.tokenizer_identity():
            raise SaevalError(f"{self.checkpoint.source} has no tokenizer files; save the tokenizer beside the model")
        _ = self._config  # transformers reads it for a tokenizer, too, whose fault it would seem
        with library_errors(f"the tokenizer of {self.checkpoint.source} cannot be loaded", "save it again"):
            where = {"pretrained_model_name_or_path": self.checkpoint.tokenizer_source}
            return AutoTokenizer.from_pretrained(**{**self._source, **where})

    def tokenizer_identity(self) -> str:
        return self.checkpoint.tokenizer

    def facts(self) -> Mapping[str, Any]:
        files = self.checkpoint
        found = {
            "name": files.name, "revision": files.revision, "model_type": files.config["model_type"],
            "architecture": files.architecture, "context": self.context, "chat_template": files.chat_template,
            "center_writing_weights": self.reference.center_writing_weights, **self._adapter_facts(),
        }  # fmt: skip
        return {key: value for key, value in found.items() if value not in (None, "")}

    def fetch(self) -> None:
        from huggingface_hub import snapshot_download  # late: only for models of the hub

        if self.checkpoint.local:
            return
        repo, revision = self.checkpoint.source, self.checkpoint.revision
        wanted = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
        with library_errors(f"hub model '{self.name}' cannot be downloaded", "check its name and the network"):
            here = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
            if not any(here.glob("*.safetensors")):  # the older format, which is read where there is no other
                snapshot_download(repo, revision=revision, allow_patterns=["pytorch_model*.bin"])

    def load(self, device: str) -> Model:
        from saeval_models.pretrained import hooked  # late: it imports transformers

        module = self._pretrained(device)
        before = padding(self.checkpoint.config) if self.reference.reward_at == "before_padding" else None
        score = self._value_head(module) if self._has_value_head else None
        model = hooked(module, self._family, score, before)
        model.check()
        return model

    def _value_head(self, module: PreTrainedModel) -> nn.Linear:
        """The value head of local weights, on the model's device and in its dtype."""
        from torch import nn  # late: see the module's own imports

        files, stem = weight_files(self.checkpoint.config_file.parent), VALUE_HEAD.removesuffix("weight")
        found = tensors(files, [VALUE_HEAD, f"{stem}bias"])
        weight, width = found[VALUE_HEAD], int(module.config.get_text_config().hidden_size)
        if tuple(weight.shape) != (1, width):
            raise SaevalError(
                f"{self._where}: the value head {VALUE_HEAD} is {list(weight.shape)}, expected [1, {width}]"
            )
        head = nn.Linear(width, 1, bias=f"{stem}bias" in found)
        head.load_state_dict({name.removeprefix(stem): tensor for name, tensor in found.items()})
        return head.requires_grad_(False).float().to(module.device)  # as trl keeps it, whatever the model's dtype

    @property
    def _where(self) -> str:
        return f"the weights of {self.checkpoint.source}"

    def _read(self, **options: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """What transformers makes of the weights, and its report of what did not fit; nothing in a pickle is run."""
        try:
            where = self._where
            with library_errors(f"{where} cannot be loaded", "check them and the model's entry"), _quietly():
                # Sizes that do not fit are told of below; transformers would only log them.
                # An adapter is applied below, since transformers would report on its keys alone: it finds none here.
                # Nor does it ask the hub for one, for which it would wait half a minute where that is away.
                return self._auto_class.from_pretrained(  # type: ignore[no-any-return]
                    **self._source, **options, output_loading_info=True, ignore_mismatched_sizes=True,
                    adapter_kwargs={"subfolder": "none", "local_files_only": True},
                )  # fmt: skip
        except SaevalError as error:
            if isinstance(error.__cause__, UnpicklingError):
                what = "are damaged, or a pickle of more than tensors, which is not run"
                raise SaevalError(f"{where} {what}; save them as safetensors") from error
            raise

    def _pretrained(self, device: str) -> PreTrainedModel:
        import torch  # late: see the module's own imports

        options: dict[str, Any] = {"dtype": getattr(torch, self.reference.dtype)}
        if self.reference.attn_implementation:
            options["attn_implementation"] = self.reference.attn_implementation
        self.checkpoint.check_alone()
        module, report = self._read(**options)
        unused = self._check(module, report)
        if unused and not self.checkpoint.local:  # those of a folder are known before
            log.warning("%s hold tensors that the model does not use: %s", self._where, ", ".join(unused[:3]))
        if self.checkpoint.adapter is not None:
            with _quietly():
                self.checkpoint.adapter.apply(module)
        # Nothing here pools by token id; a padding id only makes transformers warn of right padding without a mask.
        vars(module.config)["pad_token_id"] = None  # past the checks of those configs that take no None
        if self.reference.center_writing_weights:
            from saeval_models.centring import centre_writing_weights  # late: it imports transformers

            centre_writing_weights(module, self._family, self.name)
        return module.requires_grad_(False).eval().to(device)  # type: ignore[no-any-return]

    def _check(self, module: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
        """Refuse weights that are not this model's: transformers would fill gaps with random numbers.

        Returns the names of tensors that the model does not use.
        """
        from saeval_models.pretrained import base_of  # late: it imports transformers

        where = self._where
        if report["mismatched_keys"]:
            name, found, expected = min(report["mismatched_keys"], key=lambda entry: str(entry[0]))
            raise SaevalError(f"{where} are not of its config.json: {name} is {list(found)}, not {list(expected)}")
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise SaevalError(
                f"{where} lack {missing}: they are incomplete, or of another architecture; copy the model again, or "
                f"check 'architectures' in its config and 'task: {self.kind}'"
            )
        blocks = sum(1 for _ in base_of(module)[1].get_submodule(self._family.blocks).children())
        numbered = re.compile(rf"(?:^|\.){re.escape(self._family.blocks)}\.(\d+)\.")
        found = [int(match[1]) for match in map(numbered.search, report["unexpected_keys"]) if match]
        if found and max(found) >= blocks:
            raise SaevalError(f"{where} have {max(found) + 1} blocks, its config.json {blocks}; save the model again")
        head = VALUE_HEAD.removesuffix("weight") if self._has_value_head else None
        shape, width = self.checkpoint.tensor_shapes.get(VALUE_HEAD), int(module.config.get_text_config().hidden_size)
        if head and shape not in (None, (1, width)):
            raise SaevalError(f"{where}: the value head {VALUE_HEAD} is {list(shape or ())}, expected [1, {width}]")
        unused = sorted(name for name in report["unexpected_keys"] if not (head and name.startswith(head)))
        self._refuse_heads(module, unused)
        return unused

    def _refuse_heads(self, module: PreTrainedModel, unused: list[str]) -> None:
        """`SaevalError` for a head of one output that nobody said to leave out: the model may be a reward model."""
        if self.kind != "causal" or self.reference.task is not None:
            return
        one = (1, int(module.config.get_text_config().hidden_size))
        name = next((name for name in unused if self.checkpoint.tensor_shapes.get(name) == one), None)
        if name is None:
            return
        alone = "'task: causal' for the language model alone"
        if name == VALUE_HEAD:
            remedy = f"add 'task: reward' to 'model' to read it as the reward of a text's last token, or {alone}"
        else:
            remedy = f"if it is a reward model's, name that class in 'architectures' of config.json; else add {alone}"
        raise SaevalError(
            f"{self._where} also hold {name} {list(one)}, a head of one output that {type(module).__name__} does not "
            f"use; {remedy}"
        )


class HuggingFace(ModelAdapter):
    """`model: {use: huggingface, path: folder}` or `{use: huggingface, name: gpt2, revision: main}`.

    A folder may hold an adapter of peft's, beside its model or alone.
    """

    name = "huggingface"

    def spec(self, reference: Mapping[str, Any]) -> ModelSpec:
        return PretrainedSpec(parsed(reference, self.name))

    def accepts(self, live: object) -> bool:
        from saeval.plugin import unwrap_module  # late: it imports torch

        found = unwrap_module(live)
        kinds = (("transformers", "PreTrainedModel"), ("peft", "PeftModel"), _WITH_VALUE_HEAD)
        return any(inherits(found, *kind) for kind in kinds)

    def wrap(self, live: object, tokenizer: Any = None, name: str = "model") -> ModelSpec:
        from saeval.plugin import unwrap_module  # late: torch and transformers
        from saeval_models.pretrained import family_of, hooked

        owner: Any = unwrap_module(live)
        module, score = owner, None
        if inherits(owner, *_WITH_VALUE_HEAD):
            module, score = owner.pretrained_model, owner.v_head.summary
        if inherits(owner, "peft", "PeftModel"):
            if owner.active_peft_config.is_prompt_learning:
                raise SaevalError(
                    f"the live model's adapter is a {owner.active_peft_config.peft_type.value}, which adds tokens that "
                    f"no document has; pass the model without it"
                )
            module = owner.get_base_model()  # with the adapter's layers in their places
        family = family_of(module)
        model, config = hooked(module, family, score), module.config
        return LiveSpec(self.name, owner, model, family, config.to_dict(), longest_context(config), tokenizer, name)


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar and no report of transformers' while weights load: what is wrong is said in an error."""
    from transformers.utils import logging  # late: slow to import

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
