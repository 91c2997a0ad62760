"""The state after the final norm: hooks of its own, from which only the unembedding runs."""

from __future__ import annotations

import functools

import pytest
import torch

from odd_architectures import made
from saeval import SaevalError
from saeval.testing import TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.architectures import SIX_FAMILIES, padded, tiny_batch, tiny_folder, tiny_model
from saeval.testing.claims import every, some
from saeval_models import HuggingFace, TransformerLens
from saeval_models.hooked import gain_unit

NAME = "ln_final.hook_normalized"
NORMS = {"gpt2": "transformer.ln_f", "gptj": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}


def norm_of(model, family):
    return model.get_submodule(NORMS.get(family, "model.norm"))


def before_gain(norm, output, family):
    """What a norm's output was before its gain and bias."""
    gain = norm.weight + 1 if family.startswith("gemma") else norm.weight
    bias = getattr(norm, "bias", None)
    return ((output if bias is None else output - bias) / gain).detach()


@functools.cache
def folder(family, tmp):
    return str(tiny_folder(tmp / family, family))


@pytest.mark.parametrize("adapter", [HuggingFace, TransformerLens])
@pytest.mark.parametrize("family", [*SIX_FAMILIES, "falcon", "opt"])
def test_what_is_there_and_what_comes_of_new_activations_there(family, adapter, tmp_path_factory):
    spec = adapter().spec({"path": folder(family, tmp_path_factory.getbasetemp())})
    assert spec.hooks()[NAME] == 32
    model, plain, batch = spec.load("cpu"), tiny_model(family), tiny_batch()
    final = plain.base_model(batch.tokens).last_hidden_state.detach()
    captured = model.capture(batch, [NAME], True, [NAME])
    norm = norm_of(plain, family) if family in SIX_FAMILIES else plain.base_model.get_submodule({"falcon": "ln_f", "opt": "decoder.final_layer_norm"}[family])  # fmt: skip
    torch.testing.assert_close(captured.activations[NAME], before_gain(norm, final, family), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.resume(batch, captured, NAME, captured.activations[NAME]), captured.final)
    new = torch.randn(captured.final.shape, generator=torch.Generator().manual_seed(0))
    gain = norm.weight + 1 if family.startswith("gemma") else norm.weight
    expected = new * gain.detach() + (norm.bias.detach() if getattr(norm, "bias", None) is not None else 0)
    torch.testing.assert_close(model.resume(batch, captured, NAME, new), expected, atol=1e-5, rtol=1e-5)
    runs = []
    handles = [block.register_forward_hook(lambda *_: runs.append(1)) for block in model.blocks]
    model.resume(batch, captured, NAME, new)
    assert not runs  # only the unembedding is left
    for handle in handles:
        handle.remove()
    path = spec.canonical("ln_final.hook_out")
    out = model.capture(batch, [path], True, [path])
    torch.testing.assert_close(out.activations[path], out.final)
    torch.testing.assert_close(model.resume(batch, out, path, new), new)
    assert path in spec.hooks()


def test_a_pass_that_needs_no_more_is_cut_there_and_padding_changes_nothing(tmp_path):
    model = HuggingFace().spec({"path": str(tiny_folder(tmp_path))}).load("cpu")
    batch = tiny_batch()
    cut = model.capture(batch, [NAME], False)
    assert cut.final is None
    for rows in (padded(batch, [0, 0, 0], [2, 0, 1]), padded(batch, [2, 0, 1], [0, 2, 0])):
        seen = model.capture(rows, [NAME], True, [NAME])
        torch.testing.assert_close(seen.activations[NAME][rows.real], cut.activations[NAME].flatten(0, 1))


@pytest.mark.parametrize("normalization", ["LN", "LNPre", "RMS", "RMSPre"])
def test_a_hooked_transformer_has_it_too(normalization):
    pytest.importorskip("transformer_lens.HookedTransformer", reason="transformer-lens 4 has no HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=32, d_head=8, n_heads=4, d_vocab=97, act_fn="gelu", seed=0, device="cpu",
        normalization_type=normalization,
    )  # fmt: skip
    live = HookedTransformer(config).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    spec, batch = TransformerLens().wrap(live), tiny_batch()
    assert spec.hooks()[NAME] == 32
    model = spec.load("cpu")
    logits, cache = live.run_with_cache(batch.tokens)
    captured = model.capture(batch, [NAME], True, [NAME])
    torch.testing.assert_close(captured.activations[NAME], cache[NAME])
    new = torch.randn(captured.final.shape, generator=torch.Generator().manual_seed(0))
    expected = live.run_with_hooks(batch.tokens, fwd_hooks=[(NAME, lambda x, hook: new)])
    torch.testing.assert_close(model.head(model.resume(batch, captured, NAME, new)), expected)
    torch.testing.assert_close(model.head(model.resume(batch, captured, NAME, captured.activations[NAME])), logits)


def test_a_family_without_such_a_norm_says_what_it_has(tmp_path):
    hooks = HuggingFace().spec({"path": str(tiny_folder(tmp_path, "bart"))}).hooks()
    assert hooks
    assert NAME not in hooks
    with pytest.raises(SaevalError, match=rf"model 'model' has no hook '{NAME}'; known: blocks\.0\."):
        evaluate_tiny(["ce"], model=tiny_model("bart"), saes=[TinySAE(NAME, d_in=32)])


@pytest.mark.parametrize(("name", "unit"), [("nemotron", 0.0), ("phi", 1.0), ("olmo2", 1.0), ("olmo", None)])
def test_the_gain_of_a_norm_is_found_by_its_own_code(name, unit):
    model, batch = made(name), tiny_batch(rows=2, length=6)
    norm = model.get_submodule("model.final_layernorm" if name == "phi" else "model.norm")
    assert gain_unit(norm) == unit
    spec = HuggingFace().wrap(model)
    assert (NAME in spec.hooks()) == (unit is not None)
    if unit is not None:
        torch.nn.init.normal_(norm.weight)
        adapter = spec.load("cpu")
        captured = adapter.capture(batch, [NAME], True, [NAME])
        gain = norm.weight.detach() + (1 - unit)
        bias = norm.bias.detach() if getattr(norm, "bias", None) is not None else 0
        torch.testing.assert_close(captured.activations[NAME] * gain + bias, captured.final)


SAES = {"sae": (TinySAE(d_in=32), NAME), "path": (TinySAE(d_in=32), "transformer.ln_f")}
OPTIONS = {"saes": SAES, "controls": ["identity", "mean"], "allow": ["*"], "batch_size": 8}


def test_an_sae_there_is_evaluated_with_its_controls_and_its_proof():
    rows = tiny_tokens(vocab=97, rows=16, context=10)
    metrics = ["ce", "kl", "l0", "reconstruction", "downstream_reconstruction"]
    results = evaluate_tiny(metrics, model=tiny_model("gpt2"), rows=rows, **OPTIONS)
    assert not results.failed, results.failed[0].reason
    of_ce = [r for r in results if r.metric == "ce"]
    for result in some(of_ce):
        (proof,) = result.provenance["resumes"].values()
        assert proof["max_relative_error"] < 1e-5
        assert proof["change_by_noise"] > 0.1
    (clean,) = {r.values["ce_clean"]["value"] for r in of_ce}
    same = [r.values["ce_sae"]["value"] for r in of_ce if r.subject.startswith("identity")]
    assert every(abs(value - clean) < 1e-5 for value in some(same))
    hooks = {r.subject: r.cell["subjects"][0]["hook_name"] for r in of_ce}
    assert (hooks["sae"], hooks["path"]) == (NAME, "transformer.ln_f")


def test_the_reward_resumes_from_there_too():
    model = tiny_model("gpt2", "reward")
    results = evaluate_tiny(["margin_recovered"], model=model, rows=TinyPairs(vocab=97), **OPTIONS)
    assert not results.failed, results.failed[0].reason
    changes = {r.subject: r.values["change"]["value"] for r in results}
    assert changes["identity"] < 1e-5
    assert changes["sae"] > 1e-3
