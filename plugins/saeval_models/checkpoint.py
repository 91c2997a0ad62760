"""Where a model's files are, and what they hash to; known before any weight is loaded."""

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
"""Layers or experts of a model at most; no model has a tenth of it."""
_COUNTED = re.compile(r"(?:^n|^num|_)_?(?:\w+_)?(?:layers?|experts?|blocks?|stages?)$")

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_TEXTS = (".json", ".jinja", ".txt", ".model", ".spm", ".bpe", ".codes", ".vocab", ".tiktoken")
"""Suffixes of what some tokenizer reads: its vocabulary, its settings, its chat templates."""


@dataclass(frozen=True)
class Reference:
    """What a suite's `model:` may say, besides `use` and `adapter`."""

    path: str | None = None
    """A local folder in Hugging Face's format."""
    name: str | None = None
    """A model of the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "float32"
    attn_implementation: str | None = None
    """`eager`, `sdpa`, ...: transformers' own choice by default."""
    task: Task | None = None
    """By default read from the config: `*ForSequenceClassification` is a reward model."""
    reward_at: RewardAt = "last_token"
    """Which token of a text a reward model is read at: its last one, or its last one that is not the padding token,
    as transformers reads it. They differ where a text ends with a token that also is padding."""
    center_writing_weights: bool = False
    """Centre what is written to the residual stream, as TransformerLens does by default; for SAEs trained so."""


def parsed(given: Mapping[str, Any], adapter: str) -> Reference:
    """A checked reference; `SaevalError` names the wrong key."""
    reference = Reference(**validated(Reference, given, f"the model '{adapter}'"))
    if (reference.path is None) == (reference.name is None):
        raise SaevalError(f"the model '{adapter}' needs either 'path' (a local folder) or 'name' (a hub model)")
    if reference.path is not None and reference.revision is not None:
        raise SaevalError(f"'revision' of the model '{adapter}' belongs to a hub model's 'name', not to a 'path'")
    return reference


VALUE_HEAD = "v_head.summary.weight"
"""`[1, d_model]`; beside it `v_head.summary.bias`, `[1]`."""
TAKEN = "language models (...ForCausalLM) and reward models (...ForSequenceClassification)"


def architecture_task(name: str) -> Task | Literal[""] | None:
    """The task of a class of transformers': empty where its name does not say, None for one of another kind."""
    match = re.search(r"(?:For([A-Z]\w+)|(LMHeadModel))$", name)
    return _TASKS.get(match[1] or match[2]) if match else ""


@dataclass(frozen=True)
class Checkpoint:
    """A model's files: a local folder, or a hub model at a commit."""

    source: str
    """What `from_pretrained` takes."""
    revision: str | None
    config_file: Path
    local: bool
    adapter: PeftAdapter | None = None
    """What is put into the model that `source` names."""

    @property
    def name(self) -> str:
        if self.adapter is not None:
            return self.adapter.folder.resolve().name
        return self.base_name

    @property
    def base_name(self) -> str:
        """The model's own name, whatever is put into it."""
        return Path(self.source).resolve().name if self.local else self.source

    @cached_property
    def config(self) -> dict[str, Any]:
        """The raw `config.json`."""
        config = plain_json(self.config_file)
        if not isinstance(config, dict) or "model_type" not in config:
            raise SaevalError(f"{self.config_file} has no 'model_type': it is not a transformers model's config")
        check_sizes(self.config_file, config)
        if config.get("transformers_weights") is not None:  # transformers would read that file in place of the usual
            raise SaevalError(
                f"{self.config_file} names its weights ('transformers_weights'); take that out and call the file "
                "model.safetensors"
            )
        return config

    @property
    def architecture(self) -> str:
        """The class that was saved, `GPT2LMHeadModel`; empty where the config does not say."""
        found = self.config.get("architectures")
        return found[0] if isinstance(found, list) and found and isinstance(found[0], str) else ""

    def task(self, asked: Task | None = None) -> Task:
        """What the model is for: as asked, else by its architecture; `SaevalError` where these do not agree."""
        found = architecture_task(self.architecture)
        if found is None:
            raise SaevalError(f"{self.config_file} is of a {self.architecture}; saeval takes {TAKEN}")
        if asked == "reward" and found == "causal" and self.value_head:
            return asked
        if asked and found and asked != found:
            raise SaevalError(f"{self.config_file} is of a {self.architecture}: leave out 'task: {asked}'")
        return asked or found or "causal"

    @cached_property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what its weight files hold, by name; nothing of a hub model that is not here yet."""
        try:
            return shapes(weight_files(self.config_file.parent))
        except SaevalError:
            if self.local:
                raise
            return {}

    @property
    def value_head(self) -> bool:
        """Whether a language model's weights also hold a value head, as trl saves it."""
        return VALUE_HEAD in self.tensor_shapes

    @cached_property
    def weights(self) -> str:
        """What makes two models the same: a hash of config, weight files and adapter, or a hub commit."""
        if self.local:
            found = _combined([self.config_file, *weight_files(self.config_file.parent)])
        else:
            found = f"{self.source}@{self.revision}"
        return found if self.adapter is None else digest_of([found, _combined(self.adapter.files)])

    @property
    def weight_bytes(self) -> int | None:
        """The size of a local folder's weight files; None for a hub model, of which they may not be here."""
        return sum(file.stat().st_size for file in weight_files(self.config_file.parent)) if self.local else None

    @cached_property
    def offline(self) -> bool:
        """Whether to read from the cache alone, as the hub would only be waited for."""
        return not self.local and absence() is not None

    @property
    def chat_template(self) -> bool | None:
        """Whether the tokenizer has a chat template; None where there is nothing to tell it by."""
        if self._text("chat_template.jinja") is not None:
            return True
        try:
            settings = json.loads(self._text("tokenizer_config.json") or "")
        except (ValueError, RecursionError):
            return None
        return bool(settings.get("chat_template")) if isinstance(settings, dict) else None

    def _text(self, file: str) -> str | None:
        """The text of a file beside the config; None where there is none."""
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
        """Hash or hub commit of the tokenizer; empty where the folder has none."""
        folder = Path(self.tokenizer_source)
        if not self.local and self.tokenizer_source == self.source:
            return f"{self.source}@{self.revision}"
        if not _has_tokenizer(folder):
            return ""
        found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
        return _combined(sorted(file for file in found if file.suffix in _TEXTS and file.is_file()))

    @property
    def tokenizer_source(self) -> str:
        """What the tokenizer is loaded from: the adapter's folder where one was saved there, else `source`."""
        if self.adapter is not None and _has_tokenizer(self.adapter.folder):
            return str(self.adapter.folder)
        return self.source

    def check_alone(self) -> None:
        """`SaevalError` for a hub model that comes with an adapter: only that of a folder is read."""
        if not self.local and self._text(ADAPTER_CONFIG) is not None:
            raise SaevalError(
                f"hub model '{self.source}' holds an adapter ({ADAPTER_CONFIG}); download it and give its folder as "
                f"'path'"
            )


def located(reference: Reference) -> Checkpoint:
    """The files a reference names. `SaevalError` where they cannot be found."""
    if reference.path is not None:
        folder = expand_user(reference.path)
        if not folder.is_dir():
            expected = "'path' is a local Hugging Face folder, 'name' a hub model"
            raise SaevalError(f"{folder} is not a folder{searched_in(folder)}; {expected}")
        adapter = adapter_in(folder)
        if adapter is not None and not (folder / "config.json").is_file():
            return _adapted(adapter)
        if not (folder / "config.json").is_file():
            raise SaevalError(f"{folder} has no config.json; expected a folder written by save_pretrained")
        weight_files(folder)
        return Checkpoint(str(folder), None, folder / "config.json", local=True, adapter=adapter)
    assert reference.name is not None
    config_file = hub_file(reference.name, "config.json", reference.revision)
    # In the hub's cache a file's folder is named by its commit, which then pins the weights too.
    in_snapshot = config_file.parent.parent.name == "snapshots"
    revision = config_file.parent.name if in_snapshot else reference.revision or "main"
    return Checkpoint(reference.name, revision, config_file, local=False)


def _adapted(adapter: PeftAdapter) -> Checkpoint:
    """The model that an adapter was trained on, with that adapter."""
    folder, name = adapter.base()
    revision = adapter.config.get("revision")
    base = located(Reference(path=str(folder)) if folder is not None else Reference(name=name, revision=revision))
    if base.adapter is not None:
        raise SaevalError(f"{adapter.folder}: its model {base.source} holds an adapter, too; merge that one first")
    return replace(base, adapter=adapter)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def longest_context(config: Any) -> int | None:
    """Positions that a transformers config allows; None where it sets no bound."""
    config = config.get_text_config()
    found = (getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((int(n) for n in found if n), None)


def check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    """`SaevalError` for a config of more layers or experts than any model has: they are built one by one."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for name, value in (entry for part in parts for entry in part.items()):
        if isinstance(value, int) and _COUNTED.search(name) and value > MOST_MODULES:
            raise SaevalError(f"{file}: '{name}' is {quoted_value(value)}, more than the {MOST_MODULES} saeval builds")


def vocabulary(config: Mapping[str, Any]) -> int | None:
    """Token ids that a model embeds, from its config as plain data; None where that does not say."""
    text = config.get("text_config")
    found = (text if isinstance(text, Mapping) else config).get("vocab_size", config.get("d_vocab"))
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def padding(config: Mapping[str, Any]) -> int | None:
    """The padding token of a model's config as plain data; None where it has none."""
    text = config.get("text_config")
    found = (text if isinstance(text, Mapping) else config).get("pad_token_id", config.get("pad_token_id"))
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _combined(files: Iterable[Path]) -> str:
    lines = [f"{file.name} {sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_PATIENCE_SECONDS = 3.0


def absence() -> str | None:
    """Why the hub cannot be asked, None where it can: one request, where the hub's own client makes six."""
    from huggingface_hub import constants  # late: not needed to list adapters
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # the client's library, and so its errors, differ between versions
        return f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}"
    return None


def hub_file(name: str, file: str, revision: str | None) -> Path:
    """A file of a hub model; `SaevalError` where it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # late: not needed to list adapters

    remedy = "check the name"
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = absence()
        remedy = "download it where there is a network and give its folder as 'path'" if reason else remedy
        if reason is None:
            return Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError) as error:
        reason = type(error).__name__
    at = f" at revision '{revision}'" if revision else ""
    if Path(name).is_dir():
        remedy = f"'{name}' is a local folder: give it as 'path'"
    raise SaevalError(f"{file} of hub model '{name}'{at} could not be had ({reason}); {remedy}")
