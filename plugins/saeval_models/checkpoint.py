"""The files of a model and their hashes, without loading any weight."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from saeval.plugin import (
    SaevalError,
    digest_of,
    dtype_name,
    expand_user,
    quoted_value,
    read_text,
    searched_in,
    sha256_file,
    validated,
)
from saeval_models.gguf import GGUFFile
from saeval_models.peft_adapters import CONFIG as ADAPTER_CONFIG
from saeval_models.peft_adapters import PeftAdapter, adapter_in
from saeval_models.weights import plain_json, shapes, weight_files

DType = Annotated[Literal["float32", "float64", "bfloat16", "float16"], BeforeValidator(dtype_name)]
Task = Literal["causal", "reward"]
RewardAt = Literal["last_token", "before_padding"]
_TASKS: Mapping[str, Task] = {
    "CausalLM": "causal",
    "LMHeadModel": "causal",
    "ConditionalGeneration": "causal",
    "SequenceClassification": "reward",
}

MOST_MODULES = 4096
"""Maximum number of layers or experts; no model has a tenth of it."""
_COUNTED = re.compile(r"(?:^n|^num|_)_?(?:\w+_)?(?:layers?|experts?|blocks?|stages?)$")

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_TEXTS = (".json", ".jinja", ".txt", ".model", ".spm", ".bpe", ".codes", ".vocab", ".tiktoken")
"""Suffixes of tokenizer files: vocabularies, settings, chat templates."""


@dataclass(frozen=True)
class Reference:
    """The keys of a suite's `model:` besides `use` and `adapter`."""

    path: str | None = None
    """A local folder in Hugging Face format."""
    gguf_file: str | None = None
    """The name of a GGUF file in the folder, which is read instead of config and weights in Hugging Face format."""
    name: str | None = None
    """A model on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "float32"
    attn_implementation: str | None = None
    """`eager`, `sdpa`, ...; transformers' choice by default."""
    task: Task | None = None
    """`causal` or `reward`; by default, that of the config's architecture: `*ForSequenceClassification` is `reward`."""
    reward_at: RewardAt = "last_token"
    """The token at which a reward is read: the last token of the text, or, as in transformers, the last one that is
    not the padding token. They differ if a text ends with the padding token."""
    center_writing_weights: bool = False
    """Centre the weights that write to the residual stream, as TransformerLens does by default; for SAEs trained so."""


def parsed(entry: Mapping[str, Any], adapter: str) -> Reference:
    """Return the checked reference of a `model:` entry; `SaevalError` names the wrong key."""
    reference = Reference(**validated(Reference, entry, f"the model '{adapter}'"))
    if (reference.path is None) == (reference.name is None):
        raise SaevalError(f"the model '{adapter}' needs either 'path' (a local folder) or 'name' (a hub model)")
    if reference.path is not None and reference.revision is not None:
        raise SaevalError(f"'revision' of the model '{adapter}' is for a hub model's 'name', not for a 'path'")
    if reference.gguf_file is not None and reference.path is None:
        raise SaevalError(
            f"'gguf_file' of the model '{adapter}' is in a local folder; download it and set 'path' to its folder"
        )
    return reference


VALUE_HEAD = "v_head.summary.weight"
"""Name of a value head's weight, `[1, d_model]`; its bias is `v_head.summary.bias`, `[1]`."""
SUPPORTED = "language models (...ForCausalLM) and reward models (...ForSequenceClassification)"


def architecture_task(name: str) -> Task | Literal[""] | None:
    """Return the task of a transformers class by its name; empty if unclear, None for a class of another kind."""
    match = re.search(r"(?:For([A-Z]\w+)|(LMHeadModel))$", name)
    return _TASKS.get(match[1] or match[2]) if match else ""


@dataclass(frozen=True)
class Checkpoint:
    """A model's files: a local folder, or a hub model at a commit."""

    source: str
    """The argument of `from_pretrained`: a folder or a hub name."""
    revision: str | None
    config_file: Path
    local: bool
    adapter: PeftAdapter | None = None
    """The adapter that is applied to the model at `source`."""
    gguf: GGUFFile | None = None
    """The file that holds config, weights and perhaps the tokenizer, instead of those in Hugging Face format."""

    @property
    def name(self) -> str:
        return self.base_name if self.adapter is None else self.adapter.folder.resolve().name

    @property
    def base_name(self) -> str:
        """The name of the model without its adapter."""
        if self.gguf is not None:
            return self.gguf.path.stem
        return Path(self.source).resolve().name if self.local else self.source

    @cached_property
    def config(self) -> dict[str, Any]:
        """The raw `config.json`, or what transformers derives from a GGUF file's header."""
        if self.gguf is not None:
            check_sizes(self.gguf.path, self.gguf.config)
            return self.gguf.config
        config = plain_json(self.config_file)
        if not isinstance(config, dict) or "model_type" not in config:
            raise SaevalError(f"{self.config_file} has no 'model_type': it is not the config of a transformers model")
        check_sizes(self.config_file, config)
        if config.get("transformers_weights") is not None:  # transformers would read that file instead
            raise SaevalError(
                f"{self.config_file} names its weights ('transformers_weights'); remove that key and rename the file "
                "to model.safetensors"
            )
        return config

    @property
    def architecture(self) -> str:
        """The saved model's class, such as `GPT2LMHeadModel`; empty if the config does not name it."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    def task(self, requested: Task | None = None) -> Task:
        """Return the requested task, or that of the architecture by default; `SaevalError` if they disagree."""
        declared = architecture_task(self.architecture)
        if declared is None:
            raise SaevalError(f"{self.config_file} is the config of a {self.architecture}; saeval supports {SUPPORTED}")
        # The weights of a language model may include a value head, as trl saves it.
        if requested == "reward" and declared == "causal" and VALUE_HEAD in self.tensor_shapes:
            return requested
        if requested and declared and requested != declared:
            raise SaevalError(f"{self.config_file} is the config of a {self.architecture}; remove 'task: {requested}'")
        return requested or declared or "causal"

    @cached_property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors in the weight files, by name; empty for a hub model that is not downloaded."""
        if self.gguf is not None:
            return {name: tensor.shape for name, tensor in self.gguf.tensors.items()}
        try:
            return shapes(self.weight_files)
        except SaevalError:
            if self.local:
                raise
            return {}

    @cached_property
    def weights(self) -> str:
        """The identity of the model: a hash of config, weight files and adapter, or a hub commit."""
        if self.gguf is not None:
            base = self.gguf.sha256
        elif self.local:
            base = _combined([self.config_file, *self.weight_files])
        else:
            base = f"{self.source}@{self.revision}"
        return base if self.adapter is None else digest_of([base, _combined(self.adapter.files)])

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights of a local folder."""
        return [self.gguf.path] if self.gguf is not None else weight_files(self.config_file.parent)

    @property
    def weight_bytes(self) -> int | None:
        """The size of a local folder's weight files; None for a hub model, which may not be downloaded."""
        return sum(file.stat().st_size for file in self.weight_files) if self.local else None

    @cached_property
    def offline(self) -> bool:
        """True if only the cache is read, because the hub cannot be reached."""
        return not self.local and absence() is not None

    @property
    def chat_template(self) -> bool | None:
        """True if the tokenizer has a chat template; None if that is unknown."""
        if self.gguf_tokenizer is not None:
            return bool(self.gguf_tokenizer.metadata.get("tokenizer.chat_template"))
        if self._text("chat_template.jinja") is not None:
            return True
        try:
            settings = json.loads(self._text("tokenizer_config.json") or "")
        except (ValueError, RecursionError):
            return None
        return bool(settings.get("chat_template")) if isinstance(settings, dict) else None

    def _text(self, file: str) -> str | None:
        """Return the text of a file beside the config; None if there is none."""
        path = self.config_file.parent / file
        if self.adapter is not None and (self.adapter.folder / file).is_file():
            path = self.adapter.folder / file
        try:
            if not (self.local or self.offline or path.is_file()):
                path = hub_file(self.source, file, self.revision)
            return read_text(path)
        except (OSError, ValueError, SaevalError):
            return None

    @cached_property
    def tokenizer(self) -> str:
        """The hash or hub commit of the tokenizer; empty if there is none."""
        if self.gguf_tokenizer is not None:
            return self.gguf_tokenizer.sha256
        folder = Path(self.tokenizer_source)
        if not self.local and self.tokenizer_source == self.source:
            return f"{self.source}@{self.revision}"
        if not _has_tokenizer(folder):
            return ""
        files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
        return _combined(sorted(file for file in files if file.suffix in _TEXTS and file.is_file()))

    @property
    def gguf_tokenizer(self) -> GGUFFile | None:
        """The GGUF file if it has the tokenizer: tokenizer files beside it take precedence."""
        inside = self.gguf is not None and "tokenizer.ggml.model" in self.gguf.metadata
        return self.gguf if inside and not _has_tokenizer(self.config_file.parent) else None

    @property
    def tokenizer_source(self) -> str:
        """The source of the tokenizer: the adapter's folder if it has one, else `source`."""
        if self.adapter is not None and _has_tokenizer(self.adapter.folder):
            return str(self.adapter.folder)
        return self.source

    def check_alone(self) -> None:
        """Raise `SaevalError` for a hub model with an adapter: adapters are read only from local folders."""
        if not self.local and self._text(ADAPTER_CONFIG) is not None:
            raise SaevalError(
                f"hub model '{self.source}' holds an adapter ({ADAPTER_CONFIG}); download it and set 'path' to its "
                f"folder"
            )


def located(reference: Reference) -> Checkpoint:
    """Return the checkpoint that a reference names; `SaevalError` if it cannot be found."""
    if reference.path is not None:
        folder = expand_user(reference.path)
        if not folder.is_dir():
            expected = "'path' must be a local Hugging Face folder; use 'name' for a hub model"
            raise SaevalError(f"{folder} is not a folder{searched_in(folder)}; {expected}")
        adapter = adapter_in(folder)
        if reference.gguf_file is not None:
            if adapter is not None:
                raise SaevalError(f"{folder} holds an adapter, which saeval does not apply to a GGUF file; merge it")
            return _in_gguf(folder, reference.gguf_file)
        if adapter is not None and not (folder / "config.json").is_file():
            return _adapted(adapter)
        if not (folder / "config.json").is_file():
            gguf_file = next((file.name for file in sorted(folder.glob("*.gguf"))), None)
            other = f", or 'gguf_file: {gguf_file}'" if gguf_file else ""
            raise SaevalError(f"{folder} has no config.json; expected a folder written by save_pretrained{other}")
        weight_files(folder)
        return Checkpoint(str(folder), None, folder / "config.json", local=True, adapter=adapter)
    assert reference.name is not None
    config_file = hub_file(reference.name, "config.json", reference.revision)
    # In the hub's cache, the name of a file's folder is its commit, which also identifies the weights.
    in_snapshot = config_file.parent.parent.name == "snapshots"
    revision = config_file.parent.name if in_snapshot else reference.revision or "main"
    return Checkpoint(reference.name, revision, config_file, local=False)


def _in_gguf(folder: Path, name: str) -> Checkpoint:
    """Return the checkpoint of a GGUF file in a folder."""
    file = folder / name
    if not file.is_file():
        others = ", ".join(other.name for other in sorted(folder.glob("*.gguf"))[:5])
        remedy = f"'gguf_file' is one of: {others}" if others else "the folder has no GGUF file"
        raise SaevalError(f"{file} is not a file; {remedy}")
    gguf = GGUFFile(file)
    gguf.check()
    check_counts(file, gguf.counts)  # before transformers makes a config of that size
    return Checkpoint(str(folder), None, file, local=True, gguf=gguf)


def _adapted(adapter: PeftAdapter) -> Checkpoint:
    """Return the checkpoint of an adapter's base model, with the adapter."""
    folder, name = adapter.base()
    revision = adapter.config.get("revision")
    base = located(Reference(path=str(folder)) if folder is not None else Reference(name=name, revision=revision))
    if base.adapter is not None:
        raise SaevalError(f"{adapter.folder}: its base model {base.source} also holds an adapter; merge that one first")
    return replace(base, adapter=adapter)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def longest_context(config: Any) -> int | None:
    """Return the number of positions that a transformers config allows; None if it sets no limit."""
    config = config.get_text_config()
    limits = (getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((int(n) for n in limits if n), None)


def check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `SaevalError` for a config with more layers or experts than any model, since each would be built."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for part in parts:
        check_counts(file, {name: value for name, value in part.items() if _COUNTED.search(name)})


def check_counts(file: Path, counts: Mapping[str, Any]) -> None:
    """Raise `SaevalError` for more layers or experts than any model has; other values than integers are ignored."""
    for name, value in counts.items():
        if isinstance(value, int) and value > MOST_MODULES:
            raise SaevalError(f"{file}: '{name}' is {quoted_value(value)}, more than the maximum of {MOST_MODULES}")


def vocabulary(config: Mapping[str, Any]) -> int | None:
    """Return the size of the vocabulary in a model's config as plain data; None if the config does not state it."""
    text = config.get("text_config")
    size = (text if isinstance(text, Mapping) else config).get("vocab_size", config.get("d_vocab"))
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def padding(config: Mapping[str, Any]) -> int | None:
    """Return the padding token in a model's config as plain data; None if it has none."""
    text = config.get("text_config")
    token = (text if isinstance(text, Mapping) else config).get("pad_token_id", config.get("pad_token_id"))
    return token if isinstance(token, int) and not isinstance(token, bool) else None


def _combined(files: Iterable[Path]) -> str:
    lines = [f"{file.name} {sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_PATIENCE_SECONDS = 3.0


def absence() -> str | None:
    """Return the reason why the hub cannot be reached, or None: one request, where the hub's client makes six."""
    from huggingface_hub import constants  # late: not needed to list adapters
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # the errors depend on the client's HTTP library and version
        return f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}"
    return None


def hub_file(name: str, file: str, revision: str | None) -> Path:
    """Return the path of a hub model's file; `SaevalError` if it cannot be downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # late: not needed to list adapters

    remedy = "check the name"
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = absence()
        remedy = "download it with network access and set 'path' to its folder" if reason else remedy
        if reason is None:
            return Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError) as error:
        reason = type(error).__name__
    at = f" at revision '{revision}'" if revision else ""
    if Path(name).is_dir():
        remedy = f"'{name}' is a local folder: use 'path' for it"
    raise SaevalError(f"{file} of hub model '{name}'{at} cannot be downloaded ({reason}); {remedy}")
