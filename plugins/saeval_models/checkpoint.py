"""Where a model's files are, and what they hash to; known before any weight is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from saeval.errors import SaevalError, expanded
from saeval.fingerprint import sha256_file
from saeval.parameters import ParameterError, validated
from saeval.textfile import read_text
from saeval_models.hub import absence, hub_file
from saeval_models.weights import plain_text, weight_files

DType = Literal["float32", "float64", "bfloat16", "float16"]
Task = Literal["causal", "reward"]
_TASKS: Mapping[str, Task] = {
    "CausalLM": "causal",
    "LMHeadModel": "causal",
    "ConditionalGeneration": "causal",
    "SequenceClassification": "reward",
}

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


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
    center_writing_weights: bool = False
    """Centre what is written to the residual stream, as TransformerLens does by default; for SAEs trained so."""


def parsed(given: Mapping[str, Any], adapter: str) -> Reference:
    """A checked reference; `SaevalError` names the wrong key."""
    try:
        reference = Reference(**validated(Reference, given, f"the model '{adapter}'"))
    except ParameterError as error:
        raise SaevalError(str(error)) from None
    if (reference.path is None) == (reference.name is None):
        raise SaevalError(f"the model '{adapter}' needs either 'path' (a local folder) or 'name' (a hub model)")
    if reference.path is not None and reference.revision is not None:
        raise SaevalError(f"'revision' of the model '{adapter}' belongs to a hub model's 'name', not to a 'path'")
    return reference


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

    @property
    def name(self) -> str:
        return Path(self.source).resolve().name if self.local else self.source

    @cached_property
    def config(self) -> dict[str, Any]:
        """The raw `config.json`."""
        try:
            config = json.loads(plain_text(self.config_file))
        except ValueError as error:
            raise SaevalError(f"{self.config_file} is not JSON ({error}); save the model again") from None
        if not isinstance(config, dict) or "model_type" not in config:
            raise SaevalError(f"{self.config_file} has no 'model_type': it is not a transformers model's config")
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
        if asked and found and asked != found:
            raise SaevalError(f"{self.config_file} is of a {self.architecture}: leave out 'task: {asked}'")
        return asked or found or "causal"

    @cached_property
    def weights(self) -> str:
        """What makes two models the same: a hash of config and weight files, or a hub commit."""
        if not self.local:
            return f"{self.source}@{self.revision}"
        return _combined([self.config_file, *weight_files(self.config_file.parent)])

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
        except ValueError:
            return None
        return bool(settings.get("chat_template")) if isinstance(settings, dict) else None

    def _text(self, file: str) -> str | None:
        """The text of a file beside the config; None where there is none."""
        path = self.config_file.parent / file
        try:
            if not (self.local or self.offline or path.is_file()):
                path = hub_file(self.source, file, self.revision)
            return read_text(path)
        except (OSError, ValueError, SaevalError):
            return None

    @cached_property
    def tokenizer(self) -> str:
        """Hash or hub commit of the tokenizer; empty where the folder has none."""
        if not self.local:
            return f"{self.source}@{self.revision}"
        files = [self.config_file.parent / name for name in _TOKENIZER_FILES]
        found = [file for file in files if file.is_file()]
        return _combined(found) if found else ""


def located(reference: Reference) -> Checkpoint:
    """The files a reference names. `SaevalError` where they cannot be found."""
    if reference.path is not None:
        folder = expanded(reference.path)
        if not folder.is_dir():
            raise SaevalError(f"{folder} is not a folder; 'path' is a local Hugging Face folder, 'name' a hub model")
        if not (folder / "config.json").is_file():
            raise SaevalError(f"{folder} has no config.json; expected a folder written by save_pretrained")
        weight_files(folder)
        return Checkpoint(str(folder), None, folder / "config.json", local=True)
    assert reference.name is not None
    config_file = hub_file(reference.name, "config.json", reference.revision)
    # In the hub's cache a file's folder is named by its commit, which then pins the weights too.
    in_snapshot = config_file.parent.parent.name == "snapshots"
    revision = config_file.parent.name if in_snapshot else reference.revision or "main"
    return Checkpoint(reference.name, revision, config_file, local=False)


def longest_context(config: Any) -> int | None:
    """Positions that a transformers config allows; None where it sets no bound."""
    config = config.get_text_config()
    found = (getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((int(n) for n in found if n), None)


def _combined(files: Iterable[Path]) -> str:
    lines = [f"{file.name} {sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
