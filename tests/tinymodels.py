"""Tiny random Hugging Face models of many families, with a tokenizer, for any test that needs a real one."""

from __future__ import annotations

from pathlib import Path

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

torch.set_num_threads(1)  # for tensors this small, threads only wait for each other

VOCABULARY = 97
CONTEXT = 64
_BOTH = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
_COMMON = {
    **_BOTH, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {**_BOTH, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}

SIX_FAMILIES: dict[str, dict] = {
    "gpt2": {**_GPT},
    "gpt_neox": {**_COMMON},
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": {**_GROUPED},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "qwen2": {**_GROUPED},
}
"""What the adapters promise. Gemma 2 caps its logits hard, and its window is shorter than the rows of a test."""
MORE_FAMILIES: dict[str, dict] = {
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
UNKNOWN_FAMILIES: dict[str, dict] = {
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {**_GROUPED, "residual_multiplier": 0.3, "logits_scaling": 7.0},
    "falcon": {**_COMMON, "ffn_hidden_size": 48, "parallel_attn": True, "bias": False},
}
"""Families without an entry in the table of layouts. Falcon adds its attention into what its MLP gave, in place."""
ODD_FAMILIES: dict[str, dict] = {
    "mixtral": {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "bart": {
        **_BOTH, "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "max_position_embeddings": CONTEXT,
    },
    "gemma3": {
        "text_config": {**_GROUPED, "head_dim": 16},
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
            "image_size": 28, "patch_size": 14,
        },
    },
}  # fmt: skip
"""One whose forward cannot run on the meta device, one that counts padding as positions, one that sees as well."""
FAMILIES = {**SIX_FAMILIES, **MORE_FAMILIES, **UNKNOWN_FAMILIES}


def tiny_model(family: str = "gpt2", kind: str = "causal", seed: int = 0, **config: object) -> PreTrainedModel:
    """A random model in evaluation mode, 3 blocks, d_model 32; no parameter is left at 0 or 1."""
    made = AutoConfig.for_model(family.split("-")[0], **{**(FAMILIES | ODD_FAMILIES)[family], **config})
    torch.manual_seed(seed)
    if kind == "reward":
        made.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(made)
    else:
        model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w1` .. `w96`; token 0 is BOS, EOS, padding and every unknown word."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **special)


def tiny_folder(path: Path, family: str = "gpt2", kind: str = "causal", seed: int = 0, **config: object) -> Path:
    """Save a tiny model and its tokenizer as a Hugging Face folder; returns `path`."""
    tiny_model(family, kind, seed, **config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def tiny_batch(rows: int = 3, length: int = 10, seed: int = 0) -> Batch:
    """Random rows without padding; each row is its own document."""
    tokens = torch.randint(1, VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return batch_of(tokens[:, :-1], torch.ones(rows, length, dtype=torch.bool), tokens[:, 1:])


def batch_of(tokens: Tensor, real: Tensor, targets: Tensor | None = None) -> Batch:
    """A batch of these tokens; the mask is `real`."""
    targets = torch.zeros_like(tokens) if targets is None else targets
    rows = np.arange(len(tokens))
    return Batch(tokens, targets, real.clone(), real, rows, rows)


def padded(batch: Batch, left: list[int], right: list[int], seed: int = 1) -> Batch:
    """The rows of a batch with so many random tokens before and after each, none of them real."""
    longest = max(a + batch.tokens.shape[1] + b for a, b in zip(left, right, strict=True))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (len(left), longest), generator=generator)
    real = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, start in enumerate(left):
        end = start + batch.tokens.shape[1]
        tokens[row, start:end], real[row, start:end] = batch.tokens[row], True
    return batch_of(tokens, real)


_LLAMA = ("model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", "post_attention_layernorm")
_GEMMA2 = (
    "model.layers", "post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm", "mlp.down_proj",
    "pre_feedforward_layernorm",
)  # fmt: skip
_NEOX = (
    "gpt_neox.layers", "attention", "attention.dense", "mlp", "mlp.dense_4h_to_h", "post_attention_layernorm",
)  # fmt: skip
PLACES = {
    "gpt2": ("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj", "ln_2"),
    "gptj": ("transformer.h", "attn", "attn.out_proj", "mlp", "mlp.fc_out", ""),
    "gpt_neo": ("transformer.h", "attn", "attn.attention.out_proj", "mlp", "mlp.c_proj", "ln_2"),
    "gpt_neox": _NEOX, "gpt_neox-sequential": _NEOX, "gemma2": _GEMMA2, "gemma3_text": _GEMMA2,
    "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "mistral": _LLAMA, "gemma": _LLAMA,
}  # fmt: skip
"""Where each known family keeps blocks, attention output, its projection, MLP output, its projection, the MLP's norm."""

SUFFIXES = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post",
    "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in",
)  # fmt: skip
"""What TransformerLens calls the sites of a block."""
_NOT_THERE = {"gpt_neox": ("hook_resid_mid",), "gptj": ("hook_resid_mid", "hook_mlp_in", "ln2.hook_normalized")}


def suffixes(family: str) -> list[str]:
    """The sites that a family's blocks have: no middle in parallel ones, no norm of the MLP's own in GPT-J."""
    return [suffix for suffix in SUFFIXES if suffix not in _NOT_THERE.get(family, ())]


def place(model, family, block, suffix):
    """The module of a hook and whether the hook is its input, written down apart from the adapter's table."""
    blocks, attn, proj, mlp, down, norm = PLACES[family]
    paths = {
        "hook_resid_pre": ("", True), "hook_resid_post": ("", False), "hook_attn_out": (attn, False),
        "hook_mlp_out": (mlp, False), "attn.hook_z": (proj, True), "mlp.hook_post": (down, True),
        "hook_mlp_in": (norm, True), "ln2.hook_normalized": (norm, False), "mlp.hook_in": ("mlp", True),
    }  # fmt: skip
    path, is_input = paths[suffix]
    return model.get_submodule(f"{blocks}.{block}.{path}".rstrip(".")), is_input


def truth(model, family, block, suffix, tokens, new=None):
    """The activation at a hook in plain PyTorch, and the final state of a full pass with `new` in its place."""
    if suffix == "hook_resid_mid":  # what enters the block plus what its attention adds
        _, before = forward(model, tokens, *place(model, family, block, "hook_resid_pre"))
        attn_out = place(model, family, block, "hook_attn_out")
        final, seen = forward(model, tokens, *attn_out, None if new is None else (lambda tensor: new - before))
        return before + seen, final
    if suffix == "ln2.hook_normalized":
        norm, _ = place(model, family, block, suffix)
        gain = norm.weight + 1 if family.startswith("gemma") else norm.weight
        bias = getattr(norm, "bias", None)
        output = None if new is None else (lambda tensor: new * gain + (0 if bias is None else bias))
        final, _ = forward(model, tokens, norm, False, output)
        _, x = forward(model, tokens, norm, True)
        eps = (
            model.config.layer_norm_epsilon
            if family in ("gpt2", "gpt_neo")
            else getattr(model.config, "rms_norm_eps", 1e-5)
        )
        if bias is not None:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(), final
    change = None if new is None else (lambda tensor: new)
    final, seen = forward(model, tokens, *place(model, family, block, suffix), change)
    return seen, final


def forward(model, tokens, module=None, is_input=False, change=None, **inputs):
    """The final hidden state of a full pass in which `change` has been applied at a module, and what was there."""
    seen = []

    def apply(tensor):
        seen.append(tensor)
        return tensor if change is None else change(tensor)

    def before(_, args, kwargs):
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    def after(_, args, output):
        return (apply(output[0]), *output[1:]) if isinstance(output, tuple) else apply(output)

    handle = None
    if module is not None:
        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if is_input
            else module.register_forward_hook(after)
        )
    with torch.no_grad():
        final = model.base_model(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
    if handle is not None:
        handle.remove()
    return final, seen[0] if seen else None
