"""Tiny random Hugging Face models of many architectures, with a tokenizer, for tests of adapters and loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from saeval.interfaces.data import Batch

VOCABULARY = 97
CONTEXT = 64
_BOTH = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
_COMMON = {
    **_BOTH, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {**_BOTH, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}

SIX_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT},
    "gpt_neox": {**_COMMON},
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": {**_GROUPED},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "qwen2": {**_GROUPED},
}
"""The families that adapters must support. Gemma 2 has a strong logit cap and a window shorter than a test's rows."""
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {**_GROUPED, "sliding_window": 4},
    "qwen3": {**_GROUPED, "head_dim": 16},
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 4},
    "gpt_neo": {
        **_BOTH, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "window_size": 4,
        "attention_types": [[["global", "local", "global"], 1]], "max_position_embeddings": CONTEXT,
    },
    "gpt_neox-sequential": {**_COMMON, "use_parallel_residual": False},
}  # fmt: skip
UNKNOWN_FAMILIES: dict[str, dict[str, Any]] = {
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {**_GROUPED, "residual_multiplier": 0.3, "logits_scaling": 7.0},
    "falcon": {**_COMMON, "ffn_hidden_size": 48, "parallel_attn": True, "bias": False},
}
"""Families without an entry in the table of layouts. Falcon adds its attention output to its MLP output in place."""
ODD_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "bart": {
        **_BOTH, "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48, "max_position_embeddings": CONTEXT,
    },
    "gemma3": {
        "text_config": {**_GROUPED, "head_dim": 16},
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
            "image_size": 28, "patch_size": 14,
        },
    },
}  # fmt: skip
"""A model whose forward cannot run on the meta device, one that counts padding as positions, and one with vision."""
FAMILIES = {**SIX_FAMILIES, **MORE_FAMILIES, **UNKNOWN_FAMILIES}


def tiny_model(family: str = "gpt2", kind: str = "causal", seed: int = 0, **config: object) -> PreTrainedModel:
    """Return a random model in evaluation mode with 3 blocks and d_model 32; no parameter is left at 0 or 1."""
    model_config = AutoConfig.for_model(family.split("-")[0], **{**(FAMILIES | ODD_FAMILIES)[family], **config})
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "reward":
        model_config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(model_config)
    else:
        model = AutoModelForCausalLM.from_config(model_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.eval()
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words `w1` .. `w96`; token 0 is BOS, EOS, padding and all unknown words."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **special)


def tiny_folder(path: Path, family: str = "gpt2", kind: str = "causal", seed: int = 0, **config: object) -> Path:
    """Save a tiny model and its tokenizer as a Hugging Face folder; return `path`."""
    tiny_model(family, kind, seed, **config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def tiny_batch(rows: int = 3, length: int = 10, seed: int = 0) -> Batch:
    """Return random rows without padding; each row is its own document."""
    tokens = torch.randint(1, VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return batch_of(tokens[:, :-1], torch.ones(rows, length, dtype=torch.bool), tokens[:, 1:])


def batch_of(tokens: Tensor, real: Tensor, targets: Tensor | None = None) -> Batch:
    """Return a batch of these tokens `[batch, seq]`; the mask is `real`, and targets are 0 unless given."""
    targets = torch.zeros_like(tokens) if targets is None else targets
    rows = np.arange(len(tokens))
    return Batch(tokens, targets, real.clone(), real, rows, rows)


def padded(batch: Batch, left: list[int], right: list[int], seed: int = 1) -> Batch:
    """Return the rows of a batch with `left` and `right` padding tokens around each, random and not real."""
    longest = max(a + batch.tokens.shape[1] + b for a, b in zip(left, right, strict=True))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (len(left), longest), generator=generator)
    real = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, start in enumerate(left):
        end = start + batch.tokens.shape[1]
        tokens[row, start:end], real[row, start:end] = batch.tokens[row], True
    return batch_of(tokens, real)
