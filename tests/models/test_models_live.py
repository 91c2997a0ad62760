"""A user's own loaded transformers model: taken as it is, and given back as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import saeval
from saeval.base.errors import SaevalError
from saeval.testing.architectures import tiny_batch, tiny_folder, tiny_model, tiny_tokenizer
from saeval.testing.claims import every
from saeval.testing.tiny import TinySAE
from saeval_models import HuggingFace, TransformerLens


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def evaluated(tmp_path):
    """Evaluates an SAE at three sites of a model on twelve random rows; returns the values."""
    tokens = np.random.default_rng(0).integers(1, 97, (12, 17))
    np.save(tmp_path / "tokens.npy", tokens)

    def run(model, **options):
        results = saeval.evaluate(
            model=model, data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 16, "bos": False},
            saes={s: (TinySAE(d_in=32), f"blocks.1.{s}") for s in ("hook_resid_pre", "attn.hook_z", "mlp.hook_in")},
            metrics=["ce", "reconstruction"], allow=["*"], **options,
        )  # fmt: skip
        assert not results.failed, results.failed[0].traceback
        return results.to_frame().set_index(["name", "metric", "quantity"])["value"]

    return run


def spec(path):
    return HuggingFace().spec({"path": str(path)})


def state(owner, module):
    """All that a user may have set on a model, besides its weights."""
    parts = dict(module.named_modules())
    return {
        "modules": parts,
        "training": {name: part.training for name, part in {**parts, "owner": owner}.items()},
        "hooks": {n: [*p._forward_hooks.values(), *p._forward_pre_hooks.values()] for n, p in parts.items()},
        "parameters": {n: (id(p), p.device, p.dtype, p.requires_grad, p.grad) for n, p in module.named_parameters()},
        "config": module.config.to_dict(),
    }


def own_gpt2():
    return tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5, attn_implementation="eager")


@pytest.mark.parametrize("lens", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_live_model_comes_back_as_it_was(evaluated, gpt2, lens, training):
    module = own_gpt2()
    owner = build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=module.config) if lens else module
    owner.train(training)
    module.train(training)
    module.transformer.h[1].train(not training)
    module.transformer.wte.weight.requires_grad_(False)
    seen = []
    module.transformer.h[2].register_forward_hook(lambda *_: seen.append(1))
    owner(tiny_batch().tokens)  # a bridge sets hooks of its own in its first pass
    before, weights = state(owner, module), {name: value.clone() for name, value in module.state_dict().items()}
    values = evaluated(owner)
    assert state(owner, module) == before
    assert every(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert len(seen) > 1
    expected = evaluated({"use": "huggingface", "path": str(gpt2), "attn_implementation": "eager"})
    assert values.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_failed_pass_leaves_training_as_it_was():
    live = own_gpt2().train()
    made = HuggingFace().wrap(live)
    model, batch, name = made.load("cpu"), tiny_batch(), "blocks.1.hook_mlp_out"
    captured = model.capture(batch, [name], final=True, resumable=[name])
    with pytest.raises(RuntimeError):
        model.resume(batch, captured, name, torch.zeros(3, 10, 31))
    with pytest.raises(RuntimeError):
        model.unembed(torch.zeros(4, 31))
    assert every(part.training for part in live.modules())


def test_a_head_is_run_in_evaluation_mode_too():
    live = own_gpt2().train()
    live.lm_head = torch.nn.Sequential(torch.nn.Dropout(0.9), live.lm_head)
    model, hidden = HuggingFace().wrap(live).load("cpu"), torch.randn(5, 32)
    torch.testing.assert_close(model.unembed(hidden), live.lm_head[1](hidden))
    assert live.lm_head[0].training


def test_a_live_model_is_not_moved(evaluated):
    live = tiny_model("gpt2")
    with pytest.raises(
        SaevalError, match="the live model is on cpu and the run on cuda; pass device='cpu', or move it"
    ):
        HuggingFace().wrap(live).load("cuda")
    live.lm_head.weight = torch.nn.Parameter(live.lm_head.weight.to("meta"))
    with pytest.raises(SaevalError, match="the live model is spread over cpu and meta; load it on one device"):
        evaluated(live)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives(evaluated, gpt2):
    expected = evaluated({"use": "huggingface", "path": str(gpt2)})
    for model in ({"use": "huggingface", "path": str(gpt2)}, tiny_model("gpt2").to("cuda")):
        found = evaluated(model, device="cuda")
        assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-3, abs=1e-4, nan_ok=True)


def test_what_is_known_of_a_live_model():
    tokenizer = tiny_tokenizer()
    assert HuggingFace().wrap(tiny_model("gpt2")).facts() == {"model_type": "gpt2", "context": 64}
    assert HuggingFace().wrap(tiny_model("gpt2"), tokenizer).facts()["chat_template"] is False
    tokenizer.chat_template = "{{ messages }}"
    assert HuggingFace().wrap(tiny_model("gpt2"), tokenizer).facts()["chat_template"] is True


def test_a_live_transformers_model(gpt2):
    live = tiny_model("gpt2").train()
    adapter = HuggingFace()
    assert adapter.accepts(live)
    assert not adapter.accepts(torch.nn.Linear(2, 2))
    assert not TransformerLens().accepts(live)
    made = adapter.wrap(live, tiny_tokenizer(), name="mine")
    assert (made.name, made.kind, made.context) == ("mine", "causal", 64)
    assert dict(made.hooks()) == dict(spec(gpt2).hooks())
    assert made.canonical("h.1:in") == "blocks.1.hook_resid_pre"
    batch = tiny_batch()
    torch.testing.assert_close(made.load("cpu").logits(batch), spec(gpt2).load("cpu").logits(batch))
    assert every(p.requires_grad for p in live.parameters())  # the user's own to train on
    name = "blocks.1.hook_mlp_out"
    captured = made.load("cpu").capture(batch, [name], final=True, resumable=[name])
    assert not captured.final.requires_grad


def test_a_live_models_identity_is_what_can_be_seen_of_it():
    first = HuggingFace().wrap(tiny_model("gpt2")).identity()
    assert HuggingFace().wrap(tiny_model("gpt2")).identity() == first
    assert HuggingFace().wrap(tiny_model("gpt2", layer_norm_epsilon=0.1)).identity() != first
    assert HuggingFace().wrap(tiny_model("gpt2", n_inner=40)).identity() != first
    assert HuggingFace().wrap(tiny_model("gpt2").bfloat16()).identity() != first


def test_an_ablated_live_model_is_computed_anew(evaluated, tmp_path):
    model = own_gpt2()
    before = evaluated(model, out=tmp_path)
    model.transformer.h[0].mlp.register_forward_hook(lambda module, args, out: out * 0)
    after = evaluated(model, out=tmp_path)
    assert (before - after).abs().max() > 1e-3


def test_a_live_models_tokenizer():
    made = HuggingFace().wrap(tiny_model("gpt2"), tiny_tokenizer())
    assert made.tokenizer_identity() == HuggingFace().wrap(tiny_model("gpt2"), tiny_tokenizer()).tokenizer_identity()
    special = tiny_tokenizer()
    special.split_special_tokens = not special.split_special_tokens
    assert HuggingFace().wrap(tiny_model("gpt2"), special).tokenizer_identity() != made.tokenizer_identity()

    class Own(type(special)):
        """A user's tokenizer may do anything before its backend does."""

    own = Own(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    assert HuggingFace().wrap(tiny_model("gpt2"), own).tokenizer_identity() is None
    bare = HuggingFace().wrap(tiny_model("gpt2"))
    assert bare.tokenizer_identity() == ""
    with pytest.raises(SaevalError, match="the live model has no tokenizer"):
        bare.tokenizer()


def test_a_live_model_without_a_head_is_refused():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97)
    with pytest.raises(SaevalError, match="GPT2Model has no head"):
        HuggingFace().wrap(GPT2Model(config))
    assert HuggingFace().wrap(GPT2LMHeadModel(config)).kind == "causal"
