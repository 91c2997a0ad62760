"""The `transformer_lens` adapter against the `huggingface` one on the same weights, and live bridges."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

from places import suffixes
from saeval.testing.architectures import (
    MORE_FAMILIES,
    SIX_FAMILIES,
    padded,
    tiny_batch,
    tiny_folder,
    tiny_model,
    tiny_tokenizer,
)
from saeval.testing.claims import some
from saeval_fidelity.downstream import later_streams
from saeval_models import HuggingFace, TransformerLens

FAMILIES = [*SIX_FAMILIES, *MORE_FAMILIES]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Specs and models of both adapters for a family."""
    made = {}

    def load(family):
        if family not in made:
            reference = {"path": str(tiny_folder(tmp_path_factory.mktemp(family), family))}
            ours = HuggingFace().spec({**reference, "attn_implementation": "eager"})
            theirs = TransformerLens().spec(reference)
            made[family] = (ours, ours.load("cpu")), (theirs, theirs.load("cpu"))
        return made[family]

    return load


def changed(activations, name):
    """Other activations of the same shape, the same ones for every adapter."""
    return activations + torch.randn(activations.shape, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize("left", [[0, 0, 0], [3, 1, 0]])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_adapters_agree_at_every_hook(both, family, left):
    (spec, plain), (lens_spec, lens) = both(family)
    hooks = lens_spec.hooks()
    after = {"ln_final.hook_normalized", spec.canonical("ln_final.hook_out")}
    own = {name: width for name, width in spec.hooks().items() if name.startswith("blocks.") or name in after}
    assert dict(hooks) == own
    assert set(hooks) == {f"blocks.{i}.{suffix}" for i in range(3) for suffix in suffixes(family)} | after
    batch = padded(tiny_batch(), left, [0, 2, 3])
    expected = plain.capture(batch, hooks, final=True, resumable=hooks)
    found = lens.capture(batch, hooks, final=True, resumable=hooks)
    real = batch.real
    torch.testing.assert_close(found.final[real], expected.final[real], **CLOSE)
    torch.testing.assert_close(lens.logits(batch)[real], plain.logits(batch)[real], **CLOSE)
    torch.testing.assert_close(lens.unembed(found.final[real]), lens.logits(batch)[real], **CLOSE)
    for name in some(hooks):
        torch.testing.assert_close(found.activations[name][real], expected.activations[name][real], **CLOSE)
        new = changed(expected.activations[name], name)
        ours, theirs = (m.resumed(batch, c, name, new, hooks) for m, c in ((plain, expected), (lens, found)))
        torch.testing.assert_close(theirs.final[real], ours.final[real], **CLOSE)
        streams = later_streams(name, list(hooks))
        assert streams or name in {"blocks.2.hook_resid_post", *after}
        for later in streams:  # may be empty: at the last hook
            torch.testing.assert_close(theirs.activations[later][real], ours.activations[later][real], **CLOSE)


@pytest.mark.parametrize("family", SIX_FAMILIES)
def test_the_bridge_runs_only_the_blocks_it_must(both, family):
    _, (_, model) = both(family)
    runs = [0, 0, 0]
    handles = []
    for index, block in enumerate(model.blocks):

        def note(*_, index=index):
            runs[index] += 1

        handles.append(block.register_forward_hook(note))
    name = "blocks.1.hook_mlp_out"
    captured = model.capture(tiny_batch(), [name], final=False, resumable=[name])
    first = list(runs)
    model.resume(tiny_batch(), captured, name, captured.activations[name])
    model.resume(tiny_batch(), captured, "blocks.2.hook_resid_post", captured.inputs[1])
    for handle in handles:
        handle.remove()
    assert first == [1, 0, 0]  # block 1 begins, and is left at its MLP's output
    assert runs == [1, 1, 1]


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_z"])
def test_gradients_agree(both, name):
    (_, plain), (_, lens) = both("gpt2")
    found = []
    for model in (plain, lens):
        captured = model.capture(tiny_batch(), [name], final=False, resumable=[name])
        start = captured.activations[name].clone().requires_grad_()
        logits = model.unembed(model.resume(tiny_batch(), captured, name, start).flatten(0, 1))
        found += torch.autograd.grad(logits.log_softmax(-1)[:, 5].sum(), start)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_identity_says_how_the_weights_were_processed(both):
    (spec, _), (lens_spec, _) = both("gpt2")
    assert lens_spec.identity()["processing"] == "none"
    assert lens_spec.identity()["adapter"] == "transformer_lens"
    assert lens_spec.identity()["weights"] == spec.identity()["weights"]


def bridge(family="gpt2", **kwargs):
    module = tiny_model(family, attn_implementation="eager")
    return build_bridge_from_module(module, type(module).__name__, hf_config=module.config, **kwargs)


def test_a_live_bridge_is_taken_as_it_is(both):
    (_, plain), (lens_spec, _) = both("gpt2")
    live = bridge()
    assert TransformerLens().accepts(live)
    assert not HuggingFace().accepts(live)
    spec = TransformerLens().wrap(live, tiny_tokenizer())
    assert dict(spec.hooks()) == dict(lens_spec.hooks())
    assert (spec.context, spec.identity()["processing"]) == (64, "as given")
    assert spec.canonical("transformer.h.2") == spec.canonical("blocks.2.hook_out") == "blocks.2.hook_resid_post"
    batch = tiny_batch()
    expected = plain.capture(batch, [], final=True).final
    torch.testing.assert_close(spec.load("cpu").capture(batch, [], final=True).final, expected, **CLOSE)


def test_a_live_bridge_with_folded_weights_resumes_exactly():
    live = bridge()
    raw = TransformerLens().wrap(live).identity()
    batch = tiny_batch()
    before = live(batch.tokens).log_softmax(-1)
    live.enable_compatibility_mode(disable_warnings=True)
    spec = TransformerLens().wrap(live)
    assert spec.identity() != raw
    model, names = spec.load("cpu"), list(spec.hooks())
    captured = model.capture(batch, names, final=True, resumable=names)
    torch.testing.assert_close(model.unembed(captured.final.flatten(0, 1)), live(batch.tokens).flatten(0, 1), **CLOSE)
    torch.testing.assert_close(model.logits(batch).log_softmax(-1), before, rtol=1e-4, atol=1e-4)
    _, cache = live.run_with_cache(batch.tokens)
    for name in some(names):
        own = name.replace("transformer.ln_f", "ln_final.hook_out").replace(
            "hook_mlp_in", "ln2.hook_in"
        )  # the bridge's hook_mlp_in fires only where it is asked to
        torch.testing.assert_close(captured.activations[name], cache[own].flatten(2), **CLOSE)
        again = model.resume(batch, captured, name, captured.activations[name])
        torch.testing.assert_close(again, captured.final, rtol=1e-4, atol=1e-4)
