"""What is known of a model before its weights are read: names, identity, facts."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoConfig, AutoModelForCausalLM

from places import PLACES, forward
from saeval.base.errors import SaevalError
from saeval.testing.architectures import FAMILIES, SIX_FAMILIES, tiny_batch, tiny_folder
from saeval_models import HuggingFace, TransformerLens
from saeval_models.pretrained import family_of


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """One spec a family."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = spec(tiny_folder(tmp_path_factory.mktemp(family), family))
        return made[family]

    return get


def spec(path, **reference):
    return HuggingFace().spec({"path": str(path), **reference})


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
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((gpt2 / name).read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(b"\xff" * 160000)  # nothing but NaN
    made = spec(tmp_path)
    assert dict(made.hooks()) == dict(spec(gpt2).hooks())
    assert made.context == 64
    assert made.load("cpu").logits(tiny_batch()).isnan().all()


def test_a_forward_that_needs_values_leaves_the_residual_stream(monkeypatch, own_cache, tmp_path):
    def fails(model, watched):
        raise RuntimeError("a tensor on the meta device has no values")

    folder = tiny_folder(tmp_path, "mixtral")
    made = spec(folder)
    with monkeypatch.context() as patched:
        patched.setattr("saeval_models.hooked.HookedModel.short_pass", fails)
        assert made.hooks()
    names = {f"blocks.{i}.hook_resid_{end}" for i in range(3) for end in ("pre", "post")}
    assert dict(made.hooks()) == dict.fromkeys(names, 32)
    # The failure may have been of this moment, so it is not remembered.
    assert "blocks.1.hook_mlp_out" in spec(folder).hooks()
    model, batch, name = made.load("cpu"), tiny_batch(), "blocks.1.hook_resid_pre"
    captured = model.capture(batch, [name], final=True)
    resumed = model.resume(batch, captured, name, captured.activations[name])
    torch.testing.assert_close(resumed, captured.final)
    torch.testing.assert_close(model.head(captured.final, batch), model.logits(batch))


def test_a_live_model_in_inference_mode_has_the_same_hooks():
    config = AutoConfig.for_model(
        "gpt2", n_layer=2, n_embd=24, n_head=3, vocab_size=61
    )  # no other test has these sizes
    with torch.inference_mode():
        inside = family_of(AutoModelForCausalLM.from_config(config))
    assert "hook_mlp_out" in inside.sites
    assert family_of(AutoModelForCausalLM.from_config(config)).sites == inside.sites


def test_a_model_that_sees_as_well_is_hooked_where_it_speaks(tmp_path):
    made = spec(tiny_folder(tmp_path, "gemma3"))  # its vision tower has as many blocks
    for path in ("model.language_model.layers.2", "language_model.layers.2", "model.layers.2", "layers.2"):
        assert made.canonical(f"{path}:in") == "blocks.2.hook_resid_pre"
    norm = "model.layers.2.pre_feedforward_layernorm"  # what Gemma Scope 2 says of every Gemma 3
    assert made.canonical(norm) == "blocks.2.mlp.hook_in"
    assert made.canonical("model.vision_tower.layers.2") not in made.hooks()
    model, batch, name = made.load("cpu"), tiny_batch(), "blocks.1.ln2.hook_normalized"
    expected, seen = forward(model.module, batch.tokens, model.module.model.language_model.layers[1])
    captured = model.capture(batch, ["blocks.1.hook_resid_post", name], final=True, resumable=[name])
    torch.testing.assert_close(captured.activations["blocks.1.hook_resid_post"], seen)
    torch.testing.assert_close(captured.final, expected)
    assert model.resume(batch, captured, name, captured.activations[name]).allclose(expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SIX_FAMILIES)
@pytest.mark.parametrize("wrong", ["{b}.1:input", "{b}.1.:in", "{b}.3", "{b}.-1", "{b}.1.nothing", "{b}.1.nothing:in", "{b}:in",
    "{p}.{b}.1", "blocks.1.hook_resid_pre:in", "blocks.3.hook_resid_pre", "blocks.1.hook_resid_previous", ""])  # fmt: skip
def test_a_wrong_name_is_no_hook(specs, family, wrong):
    made = specs(family)
    blocks, prefix = PLACES[family][0], PLACES[family][0].split(".")[0]
    assert made.canonical(wrong.format(b=blocks, p=prefix)) not in made.hooks()


def test_what_is_known_of_a_model(gpt2, tmp_path):
    made = spec(gpt2)
    expected = {"name": gpt2.name, "model_type": "gpt2", "architecture": "GPT2LMHeadModel", "context": 64}
    assert made.facts() == {**expected, "chat_template": False, "center_writing_weights": False}
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        folder = tiny_folder(tmp_path / name)
        if name.endswith("json"):
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
        else:
            (folder / name).write_text("{{ messages }}")
        assert spec(folder).facts()["chat_template"] is True
    for file in folder.glob("*token*"):
        file.unlink()
    assert "chat_template" not in spec(folder).facts()
    assert TransformerLens().spec({"path": str(gpt2)}).facts() == made.facts()


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


def test_a_cached_hub_model_is_pinned_to_its_commit(gpt2, monkeypatch, tmp_path, waits):
    commit = "a" * 40
    snapshot = tmp_path / "models--tiny--gpt2" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--tiny--gpt2" / "refs").mkdir()
    (tmp_path / "models--tiny--gpt2" / "refs" / "main").write_text(commit)
    for file in gpt2.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = HuggingFace().spec({"name": "tiny/gpt2"})
    assert made.identity()["weights"] == made.tokenizer_identity() == f"tiny/gpt2@{commit}"
    batch = tiny_batch()
    expected = spec(gpt2).load("cpu").logits(batch)
    torch.testing.assert_close(made.load("cpu").logits(batch), expected)
    assert made.tokenizer()("w3").input_ids == [3]
    facts = {"name": "tiny/gpt2", "revision": commit, "chat_template": False}
    assert facts.items() <= made.facts().items()
    assert sum(waits) < 1  # the hub is asked once, and not waited for


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_weights_are_fetched_in_the_format_that_a_repository_has(gpt2, monkeypatch, tmp_path, weights):
    held = ["config.json", weights, "pytorch_model.bin.index.json", "onnx/model.safetensors", "flax_model.msgpack"]
    held += ["pytorch_model.bin"] if weights.endswith("safetensors") else []

    def snapshot_download(repo, revision, allow_patterns):
        assert (repo, revision) == ("tiny/gpt2", "main")
        for name in filter_repo_objects(held, allow_patterns=allow_patterns):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("saeval_models.checkpoint.hub_file", lambda *_: gpt2 / "config.json")
    HuggingFace().spec({"name": "tiny/gpt2"}).fetch()
    found = {file.name for file in tmp_path.iterdir()} - {"onnx"}
    assert found == {"config.json", weights, "pytorch_model.bin.index.json"}
