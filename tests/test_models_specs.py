"""What is known of a model before its weights are read: names, identity, errors; and live models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from saeval.errors import SaevalError
from saeval_models import HuggingFace, TransformerLens
from tinymodels import FAMILIES, tiny_batch, tiny_folder, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("gpt2"))


def spec(path, **reference):
    return HuggingFace().spec({"path": str(path), **reference})


def test_listing_the_adapters_imports_no_library():
    heavy = "{'torch', 'transformers', 'transformer_lens', 'huggingface_hub'}"
    code = f"import sys, saeval_models; saeval_models.saeval_models(); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


CANONICAL = {
    "gpt2": {
        "transformer.h.2": "blocks.2.hook_resid_post",
        "transformer.h.2:out": "blocks.2.hook_resid_post",
        "transformer.h.2:in": "blocks.2.hook_resid_pre",
        "h.2": "blocks.2.hook_resid_post",
        "h.1.attn": "blocks.1.hook_attn_out",
        "h.1.attn.c_proj": "blocks.1.hook_attn_out",
        "h.1.attn.c_proj:in": "blocks.1.attn.hook_z",
        "h.1.mlp": "blocks.1.hook_mlp_out",
        "transformer.h.1.mlp.act": "blocks.1.mlp.hook_post",
        "h.1.ln_1": "transformer.h.1.ln_1",
        "h.1.mlp:in": "blocks.1.mlp.hook_in",
        "h.1.mlp.c_fc:in": "blocks.1.mlp.hook_in",
        "h.1.ln_2": "blocks.1.mlp.hook_in",
        "h.1.ln_2:in": "blocks.1.hook_mlp_in",
        "h.1.ln_2:normalized": "h.1.ln_2:normalized",
        "h.1.attn:in": "transformer.h.1.attn:in",
        "blocks.1.ln2.hook_in": "blocks.1.hook_mlp_in",
        "blocks.1.ln2.hook_out": "blocks.1.mlp.hook_in",
        "blocks.1.ln2.hook_normalized": "blocks.1.ln2.hook_normalized",
        "blocks.1.hook_resid_mid": "blocks.1.hook_resid_mid",
        "blocks.1.hook_in": "blocks.1.hook_resid_pre",
        "blocks.1.mlp.out.hook_in": "blocks.1.mlp.hook_post",
        "blocks.1.hook_nonsense": "blocks.1.hook_nonsense",
        "transformer.wte": "transformer.wte",
        "h.2:sideways": "h.2:sideways",
        "nonsense": "nonsense",
    },
    "gptj": {
        "h.1.attn": "blocks.1.hook_attn_out",
        "blocks.1.hook_resid_mid": "blocks.1.hook_resid_mid",
        "h.1.mlp:in": "blocks.1.mlp.hook_in",
        "h.1.ln_1": "transformer.h.1.ln_1",  # attention reads it too
        "blocks.1.ln2.hook_in": "blocks.1.ln2.hook_in",
    },
    "gpt_neox": {
        "layers.1": "blocks.1.hook_resid_post",
        "gpt_neox.layers.1.attention.dense:in": "blocks.1.attn.hook_z",
        "layers.1.post_attention_layernorm:in": "blocks.1.hook_mlp_in",
    },
    "llama": {
        "model.layers.0.self_attn": "blocks.0.hook_attn_out",
        "layers.0.mlp.down_proj:in": "blocks.0.mlp.hook_post",
        "layers.0.mlp.up_proj:in": "model.layers.0.mlp.up_proj:in",  # the gate reads the MLP's input too
        "layers.0.post_attention_layernorm:in": "blocks.0.hook_mlp_in",
    },
    "gemma2": {
        "layers.0.mlp": "model.layers.0.mlp",
        "layers.0.post_feedforward_layernorm": "blocks.0.hook_mlp_out",
        "layers.0.self_attn.o_proj": "model.layers.0.self_attn.o_proj",
    },
}  # fmt: skip


@pytest.mark.parametrize(("family", "given"), [(f, g) for f, names in CANONICAL.items() for g in names])
def test_one_site_has_one_name(tmp_path, family, given):
    made = spec(tiny_folder(tmp_path, family))
    expected = CANONICAL[family][given]
    assert made.canonical(given) == expected
    assert made.canonical(expected) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_is_its_own_canonical_name_and_can_be_captured(tmp_path, family):
    made = spec(tiny_folder(tmp_path, family))
    hooks = made.hooks()
    assert [name for name in hooks if made.canonical(name) != name] == []
    batch = tiny_batch(rows=2, length=6)
    captured = made.load("cpu").capture(batch, hooks, final=True)
    assert {name: tuple(a.shape) for name, a in captured.activations.items()} == {
        n: (2, 6, w) for n, w in hooks.items()
    }


def test_parallel_blocks_have_no_middle(tmp_path):
    assert "blocks.0.hook_resid_mid" not in spec(tiny_folder(tmp_path / "a", "gpt_neox")).hooks()
    assert "blocks.0.hook_resid_mid" in spec(tiny_folder(tmp_path / "b", "gpt_neox-sequential")).hooks()


def test_hooks_are_known_without_reading_the_weights(gpt2, tmp_path):
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    made = spec(tmp_path)
    assert dict(made.hooks()) == dict(spec(gpt2).hooks())
    assert made.context == 64
    with pytest.raises(SaevalError, match=r"the weights of '.*' cannot be loaded"):
        made.load("cpu")


def test_a_forward_that_needs_values_leaves_the_residual_stream(tmp_path):
    made = spec(tiny_folder(tmp_path, "mixtral"))
    names = {f"blocks.{i}.hook_resid_{end}" for i in range(3) for end in ("pre", "post")}
    assert dict(made.hooks()) == dict.fromkeys(names, 32)
    model, batch, name = made.load("cpu"), tiny_batch(), "blocks.1.hook_resid_pre"
    captured = model.capture(batch, [name], final=True)
    resumed = model.resume(batch, captured, name, captured.activations[name])
    torch.testing.assert_close(resumed, captured.final)


def test_the_identity_follows_weights_config_and_dtype_and_not_the_place(gpt2, tmp_path):
    first = spec(gpt2).identity()
    tiny_folder(tmp_path / "same")
    assert spec(tmp_path / "same").identity() == first
    assert spec(gpt2, dtype="bfloat16").identity() != first
    assert spec(tiny_folder(tmp_path / "other", seed=1)).identity() != first
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    (tmp_path / "same" / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.1}))
    assert spec(tmp_path / "same").identity() != first
    assert json.loads(json.dumps(dict(first))) == first


def test_the_tokenizer_and_its_hash(gpt2, tmp_path):
    made = spec(gpt2)
    assert made.tokenizer()("w5 w7").input_ids == [5, 7]
    tiny_folder(tmp_path)
    assert spec(tmp_path).tokenizer_identity() == made.tokenizer_identity() != ""
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace("w5", "v5"))
    assert spec(tmp_path).tokenizer_identity() != made.tokenizer_identity()
    for file in tmp_path.glob("*token*"):
        file.unlink()
    assert spec(tmp_path).tokenizer_identity() == ""
    with pytest.raises(SaevalError, match="has no tokenizer files; save the tokenizer beside the model"):
        spec(tmp_path).tokenizer()


@pytest.mark.parametrize("adapter", [HuggingFace, TransformerLens])
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "needs either 'path' .* or 'name'"),
        ({"path": "a", "name": "b"}, "needs either 'path' .* or 'name'"),
        ({"path": "a", "revision": "main"}, "'revision' .* belongs to a hub model's 'name'"),
        ({"path": "a", "dtyp": "float32"}, "unknown parameter 'dtyp' .*; did you mean 'dtype'?"),
        ({"path": "a", "dtype": "float31"}, "'dtype' of the model '.*': .* 'float31'"),
        ({"path": "/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_a_wrong_reference_is_one_sentence(adapter, reference, message):
    with pytest.raises(SaevalError, match=message) as error:
        adapter().spec(reference)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_one_sentence(gpt2, tmp_path):
    with pytest.raises(SaevalError, match=r"has no config\.json"):
        spec(tmp_path)
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    with pytest.raises(SaevalError, match=r"has no weights: expected model\.safetensors"):
        spec(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SaevalError, match=r"config\.json is not JSON"):
        spec(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SaevalError, match="has no 'model_type'"):
        spec(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt99"}')
    with pytest.raises(SaevalError, match=r"cannot be read: .*gpt99"):
        spec(tmp_path).hooks()


def test_a_hub_model_that_is_not_here_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SaevalError, match="hub model 'nobody/nothing' at revision 'v1' could not be had") as error:
        HuggingFace().spec({"name": "nobody/nothing", "revision": "v1"})
    assert "\n" not in str(error.value)


def test_a_cached_hub_model_is_pinned_to_its_commit(gpt2, monkeypatch, tmp_path):
    commit = "a" * 40
    snapshot = tmp_path / "models--tiny--gpt2" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--tiny--gpt2" / "refs").mkdir()
    (tmp_path / "models--tiny--gpt2" / "refs" / "main").write_text(commit)
    for file in gpt2.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = HuggingFace().spec({"name": "tiny/gpt2"})
    assert made.identity()["weights"] == made.tokenizer_identity() == f"tiny/gpt2@{commit}"
    batch = tiny_batch()
    expected = spec(gpt2).load("cpu").logits(batch)
    torch.testing.assert_close(made.load("cpu").logits(batch), expected)
    assert made.tokenizer()("w3").input_ids == [3]


def test_weights_of_another_task_are_refused(tmp_path):
    reward = tiny_folder(tmp_path / "reward", "llama", "reward")
    assert spec(reward).kind == "reward"
    with pytest.raises(SaevalError, match=r"lack lm_head\.weight: is 'task: causal' what they are\?"):
        spec(reward, task="causal").load("cpu")
    causal = tiny_folder(tmp_path / "causal", "llama")
    with pytest.raises(SaevalError, match=r"lack score\.weight|has 2 labels"):
        spec(causal, task="reward").load("cpu")


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
    assert all(p.requires_grad for p in live.parameters())  # the user's own to train on
    name = "blocks.1.hook_mlp_out"
    captured = made.load("cpu").capture(batch, [name], final=True, resumable=[name])
    assert not captured.final.requires_grad


def test_a_live_models_identity_is_its_weights_and_config():
    first = HuggingFace().wrap(tiny_model("gpt2")).identity()
    assert HuggingFace().wrap(tiny_model("gpt2")).identity() == first
    assert HuggingFace().wrap(tiny_model("gpt2", seed=1)).identity() != first
    assert HuggingFace().wrap(tiny_model("gpt2", layer_norm_epsilon=0.1)).identity() != first
    assert HuggingFace().wrap(tiny_model("gpt2").bfloat16()).identity() != first


def test_a_live_models_tokenizer():
    made = HuggingFace().wrap(tiny_model("gpt2"), tiny_tokenizer())
    assert made.tokenizer_identity() == HuggingFace().wrap(tiny_model("gpt2"), tiny_tokenizer()).tokenizer_identity()
    bare = HuggingFace().wrap(tiny_model("gpt2"))
    assert bare.tokenizer_identity() == ""
    with pytest.raises(SaevalError, match="came without a tokenizer"):
        bare.tokenizer()


def test_a_live_model_without_a_head_is_refused():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97)
    with pytest.raises(SaevalError, match="GPT2Model has no head"):
        HuggingFace().wrap(GPT2Model(config))
    assert HuggingFace().wrap(GPT2LMHeadModel(config)).kind == "causal"
