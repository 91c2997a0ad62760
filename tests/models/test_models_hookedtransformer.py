"""A user's own `HookedTransformer`, which transformer-lens 3 has and 4 has not."""

from __future__ import annotations

import pytest
import torch
import transformer_lens

from places import SUFFIXES
from saeval.testing.architectures import padded, tiny_batch, tiny_model, tiny_tokenizer
from saeval.testing.claims import some
from saeval_models import HuggingFace, TransformerLens

pytest.importorskip("transformer_lens.HookedTransformer", reason="transformer-lens 4 has no HookedTransformer")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def hooked_transformer(**options):
    torch.manual_seed(0)
    config = {
        "n_layers": 3, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_mlp": 48, "d_vocab": 97,
        "act_fn": "gelu", "normalization_type": "LN", "device": "cpu", **options,
    }  # fmt: skip
    model = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


def changed(activations, name):
    """Other activations of the same shape."""
    return activations + torch.randn(activations.shape, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True},
        {"normalization_type": "RMS", "gated_mlp": True, "output_logits_soft_cap": 3.0},
        {"normalization_type": "RMS", "gated_mlp": True, "original_architecture": "Olmo2ForCausalLM"},
        {"use_hook_mlp_in": True},
        {"normalization_type": "LNPre"},
    ],
    ids=["gpt2-like", "parallel", "capped", "norms-after", "hook_mlp_in", "folded"],
)
def test_a_live_hooked_transformer_resumes_exactly(options):
    live = hooked_transformer(**options)
    assert TransformerLens().accepts(live)
    spec = TransformerLens().wrap(live, tiny_tokenizer())
    model, batch = spec.load("cpu"), tiny_batch()
    absent = ("hook_resid_mid",) if "parallel_attn_mlp" in options else ()
    inside = {f"blocks.{i}.{suffix}" for i in range(3) for suffix in SUFFIXES if suffix not in absent}
    assert set(spec.hooks()) == inside | {"ln_final.hook_normalized"}
    captured = model.capture(batch, spec.hooks(), final=True, resumable=spec.hooks())
    live.set_use_hook_mlp_in(True)
    _, cache = live.run_with_cache(batch.tokens)
    logits = live(batch.tokens)
    torch.testing.assert_close(model.head(captured.final, batch), logits, **CLOSE)
    torch.testing.assert_close(model.logits(batch), logits, **CLOSE)
    for name, width in some(spec.hooks().items()):
        clean = captured.activations[name]
        assert width == clean.shape[-1]
        new = changed(clean, name)
        resumed = model.head(model.resume(batch, captured, name, new), batch)
        if name.endswith("mlp.hook_in"):  # a name of bridges and of sae-lens; HookedTransformer has no such point
            seen = []
            mlp = live.blocks[int(name.split(".")[1])].mlp
            handle = mlp.register_forward_pre_hook(lambda _, args, new=new, seen=seen: seen.append(args[0]) or (new,))
            expected = live(batch.tokens)
            handle.remove()
            torch.testing.assert_close(clean, seen[0], **CLOSE)
        else:
            hook = (name, lambda z, hook, new=new: new.reshape(z.shape))
            expected = live.run_with_hooks(batch.tokens, fwd_hooks=[hook])
            torch.testing.assert_close(clean, cache[name].flatten(2), **CLOSE)
        torch.testing.assert_close(resumed, expected, **CLOSE)
    wide = padded(batch, [4, 2, 0], [0, 2, 4])
    found = model.capture(wide, [], final=True).final[wide.real].reshape(3, 10, -1)
    torch.testing.assert_close(found, captured.final, **CLOSE)


@pytest.mark.parametrize("folded", [False, True])
def test_its_names_are_those_of_the_same_weights_in_transformers(folded):
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    plain = tiny_model("gpt2")
    live = hooked_transformer(d_mlp=128, act_fn="gelu_new", normalization_type="LNPre" if folded else "LN")
    processing = {"fold_ln": folded, "center_writing_weights": False, "center_unembed": False}
    live.load_and_process_state_dict(convert_gpt2_weights(plain, live.cfg), fold_value_biases=False, **processing)
    batch = tiny_batch()
    spec, own = HuggingFace().wrap(plain), TransformerLens().wrap(live)
    names = [name for name in spec.hooks() if name.startswith("blocks.")]
    expected = spec.load("cpu").capture(batch, names, final=False).activations
    found = own.load("cpu").capture(batch, own.hooks(), final=False).activations
    different = {name for name in names if not torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)}
    # Folding takes the norm's gain into the MLP, which then reads what the norm made before it: only that has moved.
    assert different == ({f"blocks.{i}.mlp.hook_in" for i in range(3)} if folded else set())


def test_a_live_models_identity_is_what_can_be_seen_of_it():
    one, two = TransformerLens().wrap(hooked_transformer()), TransformerLens().wrap(hooked_transformer())
    assert one.identity() == two.identity()
    other = hooked_transformer().to(torch.float64)
    assert TransformerLens().wrap(other).identity() != one.identity()
    assert one.hooks() == two.hooks()
