"""Architectures beyond the table of layouts: each resumes exactly, or one sentence refuses it before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import saeval
from saeval.base.errors import SaevalError
from saeval.testing.architectures import padded, tiny_batch
from saeval.testing.claims import every, some
from saeval.testing.tiny import TinySAE
from saeval_models import HuggingFace

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
            **_COMMON, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
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
SEVERAL_STREAMS = ("gemma3n_text",)
"""Their blocks pass on more than one residual stream, so none is offered as a hook."""
RUN_IN_FULL = ("gemma3n_text", "gemma4_text")
"""Their later blocks read what earlier ones leave beside the hidden state."""
NOT_PADDED_LEFT = ("rwkv",)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def made(name, **config):
    """A random model, its matrices tripled, so that what one block does shows in the logits."""
    arguments = {**(EXACT[name][1] if name in EXACT else {}), **config}
    kind = name if name in ("openai-gpt", "modernbert-decoder") else name.split("-")[0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    return model.eval()


def replaced(model, path, end, new, tokens, **inputs):
    """The model's logits with `new` at one end of a module, in plain PyTorch."""

    def before(module, args, kwargs):
        if args:
            return (new.reshape(args[0].shape), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new.reshape(kwargs["hidden_states"].shape)}

    def after(module, args, output):
        if isinstance(output, torch.Tensor):
            return new.reshape(output.shape)
        return type(output)((new.reshape(output[0].shape), *output[1:]))

    module = model.get_submodule(path)
    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if end == "in"
        else module.register_forward_hook(after)
    )
    with torch.no_grad():
        logits = model(tokens, use_cache=False, **inputs).logits
    handle.remove()
    return logits


def places(name, model, hooks):
    """Hooks at the ends of two blocks and at two modules inside one, with their modules' paths."""
    blocks = EXACT[name][0]
    found = {} if name in SEVERAL_STREAMS else {
        f"blocks.{index}.hook_resid_{end}": (f"{blocks}.{index}", {"pre": "in", "post": "out"}[end])
        for index in (0, 2) for end in ("pre", "post")
    }  # fmt: skip
    inner = [hook for hook in hooks if hook.startswith(f"{blocks}.2.") and not hook.endswith(":in")]
    assert len(inner) > 1
    return found | {hook: (hook, "out") for hook in (inner[0], inner[-1])}


@pytest.mark.parametrize("name", EXACT)
def test_resuming_is_what_a_plain_hook_does(name):
    model = made(name)
    spec = HuggingFace().wrap(model)
    adapter, bare = spec.load("cpu"), tiny_batch(rows=2, length=9)
    with torch.no_grad():
        logits = model(bare.tokens, use_cache=False).logits
    chosen = places(name, model, spec.hooks())
    assert set(chosen) <= set(spec.hooks())
    generator = torch.Generator().manual_seed(3)
    captured = adapter.capture(bare, chosen, final=True, resumable=chosen)
    torch.testing.assert_close(adapter.head(captured.final, bare), logits, **CLOSE)
    changed = []
    for hook, (path, end) in some(chosen.items()):
        clean = captured.activations[hook]
        torch.testing.assert_close(adapter.resume(bare, captured, hook, clean), captured.final, **CLOSE)
        new = clean + clean.std() * torch.randn(clean.shape, generator=generator)
        expected = replaced(model, path, end, new, bare.tokens)
        found = adapter.head(adapter.resume(bare, captured, hook, new), bare)
        torch.testing.assert_close(found, expected, **CLOSE, msg=lambda text, hook=hook: f"{hook}: {text}")
        changed.append(not torch.allclose(expected, logits, rtol=1e-2, atol=1e-3))
    # a module inside a block may do little; where those are all there is, the attention does not
    assert every(changed[:1] if name in SEVERAL_STREAMS else changed[:-2])
    assert any(changed)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", EXACT)
def test_padding_changes_nothing(name, side):
    adapter, bare = HuggingFace().wrap(made(name)).load("cpu"), tiny_batch(rows=2, length=9)
    wide = padded(bare, *(([3, 1], [0, 0]) if side == "left" else ([0, 0], [1, 3])))
    hooks = (
        ["model.layers.2.mlp"] if name in SEVERAL_STREAMS else ["blocks.2.hook_resid_pre", "blocks.1.hook_resid_post"]
    )
    expected = adapter.capture(bare, hooks, final=True, resumable=hooks)
    if side == "left" and name in NOT_PADDED_LEFT:
        with pytest.raises(SaevalError, match=r"padding on the left changes what .* makes; pad on the right"):
            adapter.capture(wide, hooks, final=True)
        return
    found = adapter.capture(wide, hooks, final=True, resumable=hooks)
    torch.testing.assert_close(found.final[wide.real], expected.final.flatten(0, 1), **CLOSE)
    for hook in some(hooks):
        new = 1.5 * found.activations[hook]
        plain = adapter.resume(bare, expected, hook, 1.5 * expected.activations[hook])
        torch.testing.assert_close(adapter.resume(wide, found, hook, new)[wide.real], plain.flatten(0, 1), **CLOSE)


@pytest.mark.parametrize(("name", "full"), [("phi", False), ("rwkv", False), *((name, True) for name in RUN_IN_FULL)])
def test_blocks_before_the_hook_run_only_where_they_must(name, full):
    adapter, batch = HuggingFace().wrap(made(name)).load("cpu"), tiny_batch(rows=2, length=9)
    hook = f"{EXACT[name][0]}.2.{'feed_forward' if name == 'rwkv' else 'mlp'}"
    captured = adapter.capture(batch, [hook], final=True, resumable=[hook])
    adapter.resume(batch, captured, hook, captured.activations[hook])  # the first one finds out
    runs = []
    for index, block in enumerate(adapter.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    adapter.resume(batch, captured, hook, captured.activations[hook])
    assert runs == ([0, 1, 2, 3] if full else [2, 3])


@pytest.mark.parametrize("name", ["gemma4_text", "rwkv"])
def test_the_identity_loses_nothing(name, tmp_path):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (4, 13)))
    hook = "blocks.2.hook_resid_pre"
    results = saeval.evaluate(
        model=made(name), data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 12, "bos": False},
        saes=[(TinySAE(d_in=32), hook)], metrics=["ce", "kl"], controls=["identity"], allow=["*"],
    )  # fmt: skip
    values = results.to_frame().set_index(["name", "quantity"])["value"]
    assert [result.reason for result in results if result.status != "ok"] == []
    assert values["identity", "kl_sae"] == pytest.approx(0, abs=1e-5)
    assert values["identity", "delta_ce"] == pytest.approx(0, abs=1e-5)
    assert values["tinysae", "kl_sae"] > 1e-3


def test_nothing_that_a_block_left_behind_serves_the_next_pass():
    """A block that remembers its keys from pass to pass: the clean pass would make a short one look exact."""
    model = made("phi")
    kept = {}
    first, last = model.model.layers[0].mlp, model.model.layers[3].mlp
    first.register_forward_hook(lambda module, args, out: kept.update(state=out))
    last.register_forward_hook(lambda module, args, out: out + 3 * kept["state"][: len(out)])
    adapter = HuggingFace().wrap(model).load("cpu")
    one, two, hook = tiny_batch(rows=2, length=9), tiny_batch(rows=2, length=9, seed=5), "blocks.2.hook_resid_pre"
    captured = adapter.capture(one, [hook], final=True, resumable=[hook])
    adapter.capture(two, [hook], final=True)
    resumed = adapter.resume(one, captured, hook, captured.activations[hook])
    torch.testing.assert_close(resumed, captured.final, **CLOSE)


REFUSED = {
    "bert": (_COMMON, "BertLMHeadModel does not read from left to right"),
    "roberta": ({**_COMMON, "type_vocab_size": 1}, "RobertaForCausalLM does not read from left to right"),
    "xlm": (
        {"vocab_size": 97, "emb_dim": 32, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64},
        "XLMWithLMHeadModel has no blocks to hook: it keeps their parts in lists of their own (attentions, layer_norm1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_in_one_sentence(name):
    arguments, said = REFUSED[name]
    with pytest.raises(SaevalError) as error:
        HuggingFace().wrap(made(name, **arguments)).load("cpu")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
