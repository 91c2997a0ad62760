"""The sites inside the blocks of many architectures: in the right place, what their names say, resumed exactly."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

from layouts import LAYOUTS, MARK, PAGE, table
from odd_architectures import EXACT, VARIANTS, made
from saeval.base.errors import SaevalError
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.architectures import padded, tiny_batch
from saeval.testing.claims import every, some
from saeval_models import HuggingFace, TransformerLens

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
KNOWN = EXACT | VARIANTS
NORMED = {
    "bert-decoder": lambda block, pre, attn, mlp: block.output.LayerNorm(
        block.attention.output.LayerNorm(pre + attn) + mlp
    ),
    "bloom-normed": lambda block, pre, attn, mlp: (
        block.post_attention_layernorm(block.input_layernorm(pre) + attn) + mlp
    ),
    "openai-gpt": lambda block, pre, attn, mlp: block.ln_2(block.ln_1(pre + attn) + mlp),
    "opt-350m": lambda block, pre, attn, mlp: block.final_layer_norm(block.self_attn_layer_norm(pre + attn) + mlp),
}
"""What leaves the blocks in which norms change the residual stream."""


def hooked(model, tokens, places):
    """The logits of a plain pass, and what was at `places`: modules, ends, and functions that change the tensors."""
    seen, handles = [None] * len(places), []
    for index, (module, end, change) in enumerate(places):

        def see(tensor, index=index, change=change):
            seen[index] = tensor.detach().reshape(*tokens.shape, -1).clone()
            return None if change is None else change(seen[index]).reshape(tensor.shape)

        def before(module, args, kwargs, see=see):
            key = None if args else "hidden_states"
            new = see(args[0] if args else kwargs[key])
            return None if new is None else ((new, *args[1:]), kwargs) if args else (args, {**kwargs, key: new})

        def after(module, args, output, see=see):
            new = see(output if isinstance(output, torch.Tensor) else output[0])
            return new if new is None or isinstance(output, torch.Tensor) else type(output)((new, *output[1:]))

        handles.append(
            module.register_forward_pre_hook(before, with_kwargs=True)
            if end == "in"
            else module.register_forward_hook(after)
        )
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, seen


def place_of(model, name, layout, hook):
    """The module of a hook, its end, and the factor and shift from the activation to the module's tensor."""
    suffix = hook.split(".", 2)[2] if hook.startswith("blocks.") else ""
    path, _, end = hook.partition(":") if not suffix else (*layout.place(suffix)[:1], "", layout.place(suffix)[1])
    module = model.get_submodule(f"{KNOWN[name][0]}.{layout.block}.{path}".rstrip(".") if suffix else path)
    factor, shift = torch.ones(()), torch.zeros(())
    if suffix == "ln2.hook_normalized":
        factor = module.weight.detach() + layout.plus_one
        shift = shift if getattr(module, "bias", None) is None else module.bias.detach()
    elif suffix in ("hook_attn_out", "hook_mlp_out"):
        factor = torch.tensor(1 / layout.scale)
    return module, end or "out", factor, shift


def clean_pass(model, name, layout, hooks, tokens):
    """The activation at each hook in one plain pass."""
    middle = f"blocks.{layout.block}.hook_resid_mid"
    places = {hook: place_of(model, name, layout, hook) for hook in hooks if hook != middle}
    _, seen = hooked(model, tokens, [(module, end, None) for module, end, _, _ in places.values()])
    clean = {h: (value - p[3]) / p[2] for (h, p), value in zip(places.items(), seen, strict=True)}
    if middle in hooks:  # the block's input plus what attention adds
        pre, attn = (clean[middle.replace("resid_mid", suffix)] for suffix in ("resid_pre", "attn_out"))
        clean[middle] = pre + attn
    return clean


def plain_resume(model, name, layout, hook, clean, new, tokens):
    """The logits of a plain pass with `new` at a hook."""
    if hook.endswith("hook_resid_mid"):
        new = new - clean[hook.replace("resid_mid", "resid_pre")]
        hook = hook.replace("resid_mid", "attn_out")
    module, end, factor, shift = place_of(model, name, layout, hook)
    logits, _ = hooked(model, tokens, [(module, end, lambda _: new * factor + shift)])
    return logits


def what_leaves(name, block, layout, sites, tokens, model):
    """The residual stream after a block, from the terms that are added to what enters it."""
    pre, attn, mlp = sites["hook_resid_pre"], sites["hook_attn_out"], sites["hook_mlp_out"]
    if layout.form == "normed":
        return NORMED[name](block, pre, attn, mlp)
    if name == "gemma4_text":  # adds a third term, and multiplies
        _, (third,) = hooked(model, tokens, [(block.post_per_layer_input_norm, "out", None)])
        return (pre + attn + mlp + third) * block.layer_scalar
    return pre + attn + mlp


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_sites_of_an_architecture(name):
    layout, model = LAYOUTS[name], made(name)
    blocks = model.get_submodule(KNOWN[name][0])
    spec = HuggingFace().wrap(model)
    adapter, bare = spec.load("cpu"), tiny_batch(rows=2, length=9)
    generator = torch.Generator().manual_seed(3)
    hooks = [hook for hook in spec.hooks() if hook.startswith("blocks.")]
    names = [f"blocks.{layout.block}.{suffix}" for suffix in layout.suffixes()]
    assert sorted(hook for hook in hooks if hook.startswith(f"blocks.{layout.block}.")) == sorted(names)
    # Each name is what it says, in every block.
    at = {hook: value.detach() for hook, value in adapter.capture(bare, hooks, final=True).activations.items()}
    for index, block in enumerate(some(blocks)):
        prefix = f"blocks.{index}."
        sites = {hook.removeprefix(prefix): value for hook, value in at.items() if hook.startswith(prefix)}
        if "hook_attn_out" in sites:
            leaves = what_leaves(name, block, layout, sites, bare.tokens, model)
            if not (name == "rwkv" and index == 0):  # whose first block begins with a norm
                torch.testing.assert_close(sites["hook_resid_post"], leaves, **CLOSE)
        if "hook_resid_mid" in sites:
            between = sites["hook_resid_pre"] + sites["hook_attn_out"]
            torch.testing.assert_close(sites["hook_resid_mid"], between, **CLOSE)
            assert layout.form == "sequential"
    # Activations and resumes equal plain hooks, with any padding.
    inner = [hook for hook in spec.hooks() if hook.startswith(f"{KNOWN[name][0]}.{layout.block}.")]
    paths = [inner[0], inner[-1]]
    clean = clean_pass(model, name, layout, names + paths, bare.tokens)
    mixed = padded(bare, *(([3, 0], [0, 3]) if layout.left else ([0, 0], [1, 3])))
    batches = [bare, mixed]
    captured = [adapter.capture(batch, names + paths, final=True, resumable=names + paths) for batch in batches]
    logits, _ = hooked(model, bare.tokens, [])
    torch.testing.assert_close(adapter.head(captured[0].final, bare), logits, **CLOSE)
    moved = []
    for hook in some(names + paths):
        new = clean[hook] + clean[hook].std() * torch.randn(clean[hook].shape, generator=generator)
        expected = plain_resume(model, name, layout, hook, clean, new, bare.tokens)
        moved.append(not torch.allclose(expected, logits, rtol=1e-2, atol=1e-3))
        for batch, kept in some(zip(batches, captured, strict=True)):
            real, value = batch.real, kept.activations[hook]
            about = {"msg": lambda text, hook=hook: f"{hook}: {text}"}
            torch.testing.assert_close(value[real], clean[hook].flatten(0, 1), **CLOSE, **about)
            replaced = value.clone()
            replaced[real] = new.flatten(0, 1)
            resumed = adapter.head(adapter.resume(batch, kept, hook, replaced), batch)[real]
            torch.testing.assert_close(resumed, expected.flatten(0, 1), **CLOSE, **about)
    assert every(moved[: len(names)] or moved[:1])  # a module inside a block may do little
    if not layout.left:
        with pytest.raises(SaevalError, match=r"left padding changes the results of .*; pad on the right"):
            adapter.capture(padded(bare, [3, 1], [0, 0]), names, final=True)
    if layout.bridge is not False and names:
        in_a_bridge(model, layout, names, bare, adapter, captured[0])


def in_a_bridge(model, layout, names, batch, adapter, captured):
    """A TransformerBridge has the same activations at its hooks of the same names, and resumes as well."""
    lacking = layout.bridge if isinstance(layout.bridge, tuple) else ()
    there = [name for name in names if name.split(".", 2)[2] not in lacking]
    changed = {name: 1.5 * captured.activations[name] for name in there}
    expected = {name: adapter.resume(batch, captured, name, changed[name]) for name in there}
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    model.eval()
    spec = TransformerLens().wrap(bridge)
    assert set(there) <= set(spec.hooks())
    lens = spec.load("cpu")
    own = lens.capture(batch, there, final=True, resumable=there)
    for name in some(there):
        torch.testing.assert_close(own.activations[name], captured.activations[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lens.resume(batch, own, name, changed[name]), expected[name], rtol=1e-3, atol=1e-3)


def test_the_page_has_the_table():
    assert PAGE.read_text().split(MARK)[1] == table(), "run `python tests/models/layouts.py`"


def test_a_site_that_a_block_lacks_is_refused_in_one_sentence():
    for name, hook in some({"gemma3n_text": "blocks.1.hook_attn_out", "mamba": "blocks.1.hook_mlp_out"}.items()):
        with pytest.raises(SaevalError, match=rf"model 'model' has no hook '{hook}'; ") as error:
            evaluate_tiny(["ce"], model=made(name), saes=[TinySAE(hook, d_in=32)])
        assert "\n" not in str(error.value)
