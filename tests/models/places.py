"""Where a model's hooks are, and what it computes there, in plain PyTorch: written down apart from the adapters."""

from __future__ import annotations

import torch

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
    assert suffix in paths, f"'{suffix}' has no place: add its module and end to `paths` in tests/models/places.py"
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
