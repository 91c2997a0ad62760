"""Architectures beyond the table of layouts: each resumes exactly, or one sentence refuses it before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saeval
from odd_architectures import _COMMON, EXACT, made
from saeval.base.errors import SaevalError
from saeval.testing.architectures import padded, tiny_batch
from saeval.testing.claims import every, some
from saeval.testing.tiny import TinySAE
from saeval_models import HuggingFace

SEVERAL_STREAMS = ("gemma3n_text",)
"""Their blocks pass on more than one residual stream, so none is offered as a hook."""
RUN_IN_FULL = ("gemma3n_text", "gemma4_text")
"""Their later blocks read what earlier ones leave beside the hidden state."""
NOT_PADDED_LEFT = ("rwkv",)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


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
        with pytest.raises(SaevalError, match=r"left padding changes the results of .*; pad on the right"):
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
    "bert": (_COMMON, "BertLMHeadModel is not causal"),
    "roberta": ({**_COMMON, "type_vocab_size": 1}, "RobertaForCausalLM is not causal"),
    "xlm": (
        {"vocab_size": 97, "emb_dim": 32, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64},
        "XLMWithLMHeadModel has no blocks to hook: it keeps the parts of blocks in separate lists (attentions, layer_norm1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_in_one_sentence(name):
    arguments, said = REFUSED[name]
    with pytest.raises(SaevalError) as error:
        HuggingFace().wrap(made(name, **arguments)).load("cpu")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
