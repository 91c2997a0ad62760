"""Architectures beyond the table of layouts, as random models."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_EXPERTS = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_PER_LAYER = {
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 97,
    "head_dim": 8,
}
_GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
EXACT: dict[str, tuple[str, dict]] = {
    "apertus": ("model.layers", _GROUPED),
    "bert-decoder": ("bert.encoder.layer", {**_COMMON, "is_decoder": True}),
    "biogpt": ("biogpt.layers", _COMMON),
    "bloom": ("transformer.h", {"vocab_size": 97, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "cohere2": ("model.layers", {**_GROUPED, "sliding_window": 4, "logit_scale": 0.25}),
    "ctrl": ("transformer.h", {**_GPT, "dff": 48}),
    "deepseek_v3": (
        "model.layers",
        {
            **_COMMON, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "diffllama": ("model.layers", _GROUPED),
    "falcon-alibi": ("transformer.h", {**_COMMON, "alibi": True, "parallel_attn": False}),
    "gemma3_text": ("model.layers", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma3n_text": (
        "model.layers",
        {**_GROUPED, **_MIXED, **_PER_LAYER, "altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4},
    ),
    "gemma4_text": ("model.layers", {**_GROUPED, **_MIXED, **_PER_LAYER, "global_head_dim": 8}),
    "glm4": ("model.layers", {**_GROUPED, "head_dim": 8}),
    "gpt_oss": (
        "model.layers",
        {
            **_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "jamba": (
        "model.layers",
        {
            **_GROUPED, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("model.layers", _GROUPED),
    "llama4_text": (
        "model.layers",
        {**_GROUPED, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 4},
    ),
    "mamba": ("backbone.layers", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}),
    "modernbert-decoder": ("model.layers", _COMMON),
    "mpt": ("transformer.blocks", {"vocab_size": 97, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    "nemotron": ("model.layers", _GROUPED),
    "olmo2": ("model.layers", _GROUPED),
    "openai-gpt": ("transformer.h", _GPT),
    "opt": ("model.decoder.layers", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("model.layers", _COMMON),
    "phi3": ("model.layers", _GROUPED),
    "qwen3_moe": ("model.layers", {**_EXPERTS, "head_dim": 8}),
    "qwen3_next": (
        "model.layers",
        {
            **_EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
    ),
    "rwkv": (
        "rwkv.blocks",
        {
            "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32, "intermediate_size": 48,
            "context_length": 64, "rescale_every": 2,
        },
    ),
    "smollm3": ("model.layers", _GROUPED),
    "stablelm": ("model.layers", _GROUPED),
    "starcoder2": ("model.layers", _GROUPED),
    "xglm": (
        "model.layers",
        {"vocab_size": 97, "d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    ),
}  # fmt: skip
"""Where each keeps its blocks, and a tiny configuration of it."""
VARIANTS: dict[str, tuple[str, dict]] = {
    "bloom-normed": ("transformer.h", {**EXACT["bloom"][1], "apply_residual_connection_post_layernorm": True}),
    "cohere": ("model.layers", {**_GROUPED, "logit_scale": 0.25}),
    "falcon": ("transformer.h", _COMMON),
    "falcon-new": ("transformer.h", {**_COMMON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "granite": ("model.layers", {**_GROUPED, "residual_multiplier": 0.3, "logits_scaling": 7.0}),
    "mamba2": (
        "backbone.layers",
        {
            "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, "num_heads": 8, "head_dim": 8,
            "n_groups": 1, "chunk_size": 8,
        },
    ),
    "mixtral": ("model.layers", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    "olmo": ("model.layers", _GROUPED),
    "olmo3": ("model.layers", {**_GROUPED, **_MIXED}),
    "olmoe": ("model.layers", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "opt-350m": ("model.decoder.layers", {**EXACT["opt"][1], "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "qwen2_moe": ("model.layers", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "stablelm-parallel": ("model.layers", {**_GROUPED, "use_parallel_residual": True}),
}  # fmt: skip
"""More of them, and other forms of the same."""


def made(name, **config):
    """A random model, its matrices tripled, so that what one block does shows in the logits."""
    known = EXACT | VARIANTS
    arguments = {**(known[name][1] if name in known else {}), **config}
    kind = name if name in ("openai-gpt", "modernbert-decoder") else name.split("-")[0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    return model.eval()
