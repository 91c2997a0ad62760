"""References to models that cannot be had: one sentence that names the file, what was found and what to do."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from saeval.base.errors import SaevalError
from saeval.testing.architectures import padded, tiny_batch, tiny_folder, tiny_model
from saeval_models import HuggingFace, TransformerLens


@pytest.mark.parametrize("adapter", [HuggingFace, TransformerLens])
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "needs either 'path' .* or 'name'"),
        ({"path": "a", "name": "b"}, "needs either 'path' .* or 'name'"),
        ({"path": "a", "revision": "main"}, "'revision' .* is for a hub model's 'name'"),
        ({"path": "a", "dtyp": "float32"}, "unknown parameter 'dtyp' .*; did you mean 'dtype'?"),
        ({"path": "a", "dtype": "float31"}, "'dtype' of the model '.*': .* 'float31'"),
        ({"path": "/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_a_wrong_reference_is_one_sentence(adapter, reference, message):
    with pytest.raises(SaevalError, match=message) as error:
        adapter().spec(reference)
    assert "\n" not in str(error.value)


def changed(folder, **config):
    """The folder with other settings in its config; None takes one away."""
    raw = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return folder


def load(path, adapter, reference):
    made = adapter().spec({"path": str(path), **reference})
    assert made.context
    assert made.identity()
    assert made.hooks()
    assert made.tokenizer()
    made.load("cpu")


def refusal(path, adapter=HuggingFace, **reference):
    """What is said where the model is specified, planned or loaded: one sentence that names the place."""
    with pytest.raises(SaevalError) as error:
        load(path, adapter, reference)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_folder_that_is_no_model(tmp_path):
    assert "has no config.json" in refusal(tmp_path)
    tiny_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights: expected model.safetensors" in refusal(tmp_path)
    tiny_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: broken JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "config.json has no 'model_type'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt99"}, "model_type 'gpt99': transformers .* has no such model$"),
        (
            {"model_type": "gpt99", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}},
            "the model comes with its own code, which saeval does not run$",
        ),
        ({"n_layer": "three"}, r"config\.json cannot be read: .*'n_layer': .* got .*; save the model again"),
        ({"n_positions": "many"}, r"config\.json cannot be read: .*'n_positions': .*'many'\); save the model again"),
        ({"n_head": 5}, r"config\.json describes no causal model .*divisible by num_heads"),
        ({"activation_function": "none"}, r"config\.json describes no causal model .*KeyError 'none'"),
        ({"n_embd": 64}, r"do not fit its config\.json: transformer\S+ is \[96\], not \[192\]"),
        ({"vocab_size": 98}, r"do not fit its config\.json: transformer\.wte\.weight is \[97, 32\], not \[98, 32\]"),
        ({"n_layer": 4}, r"lack transformer\.h\.3\."),
        ({"n_layer": 2}, r"have 3 blocks, but its config\.json has 2; save the model again"),
        ({"architectures": ["BertForMaskedLM"]}, "is the config of a BertForMaskedLM; saeval supports language models"),
        ({"model_type": "t5", "architectures": None}, r"config\.json describes no causal model"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path, config, message):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert re.search(message, refusal(changed(tiny_folder(tmp_path), **config)))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_whole(tmp_path):
    folder = tiny_folder(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content, message in (
        (whole[:-1], f"model.safetensors has {len(whole) - 1} bytes, but its header requires {len(whole)}"),
        (whole[:100], "model.safetensors is truncated or not a safetensors file; copy or download it again"),
        (b"", "model.safetensors is truncated or not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "model.safetensors is truncated or not a safetensors file"),
    ):
        file.write_bytes(content)
        with pytest.raises(SaevalError, match=message):  # before anything is planned
            HuggingFace().spec({"path": str(folder)})
    weights = load_file_of(whole, file)
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, file, metadata={"format": "pt"})
    assert "lack transformer.h.1.mlp.c_fc.weight: they are incomplete or of another architecture" in refusal(folder)


def load_file_of(content, file):
    file.write_bytes(content)
    return load_file(file)


def test_shards_that_are_not_all_there(tmp_path):
    tiny_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_model("gpt2").save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    model = HuggingFace().spec({"path": str(tmp_path)}).load("cpu")
    torch.testing.assert_close(model.logits(tiny_batch()), tiny_model("gpt2")(tiny_batch().tokens).logits.detach())
    shards[1].write_bytes(shards[1].read_bytes()[:-4])
    assert f"{shards[1].name} has " in refusal(tmp_path)
    shards[1].unlink()
    assert f"model.safetensors.index.json names {shards[1].name}, which are missing from the folder" in refusal(
        tmp_path
    )
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "is not an index of weights: it has no 'weight_map'" in refusal(tmp_path)


def test_a_pickle_is_read_as_tensors_and_not_run(tmp_path):
    tiny_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(tiny_model("gpt2").state_dict(), file)
    model = HuggingFace().spec({"path": str(tmp_path)}).load("cpu")
    torch.testing.assert_close(model.logits(tiny_batch()), tiny_model("gpt2")(tiny_batch().tokens).logits.detach())

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"transformer.wte.weight": Evil()}, file)
    said = "pytorch_model.bin: damaged, or a pickle with more than tensors, which is not run; save the model as safetensors"
    assert said in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(b"no pickle")
    assert said in refusal(tmp_path)
    torch.save(tiny_model("gpt2").state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    assert said in refusal(tmp_path)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    (tiny_folder(tmp_path) / "tokenizer.json").write_text("{")
    assert "cannot be loaded: Expecting property name" in refusal(tmp_path)


def test_an_attention_that_transformers_does_not_know(tmp_path):
    folder = tiny_folder(tmp_path)
    assert '"sdpaa"' in refusal(folder, attn_implementation="sdpaa")
    assert '"sdpaa"' in refusal(folder, TransformerLens, attn_implementation="sdpaa")


def test_a_model_of_another_task(tmp_path):
    reward = tiny_folder(tmp_path / "reward", "gpt2", "reward")  # whose head as a language model would be its embedding
    assert HuggingFace().spec({"path": str(reward)}).kind == "reward"
    assert "is the config of a GPT2ForSequenceClassification; remove 'task: causal'" in refusal(reward, task="causal")
    causal = tiny_folder(tmp_path / "causal", "llama")
    assert "is the config of a LlamaForCausalLM; remove 'task: reward'" in refusal(causal, task="reward")
    changed(causal, architectures=None, num_labels=1, id2label={"0": "reward"})
    assert "lack score.weight: they are incomplete or of another architecture" in refusal(causal, task="reward")
    assert "reward model, which transformer_lens cannot wrap; use 'huggingface'" in refusal_of_lens(reward)


def refusal_of_lens(path):
    with pytest.raises(SaevalError) as error:
        TransformerLens().spec({"path": str(path)})
    return str(error.value)


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path):
    model = tiny_model("gpt2", "reward")
    model.config.num_labels = 2
    model.score = torch.nn.Linear(32, 2, bias=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(SaevalError, match="has 2 labels; a reward model must have num_labels 1"):
        HuggingFace().spec({"path": str(tmp_path)}).hooks()


def test_a_family_that_no_bridge_wraps_is_known_before_its_weights_load(tmp_path):
    made = TransformerLens().spec({"path": str(tiny_folder(tmp_path, "bart"))})
    with pytest.raises(SaevalError, match=r"cannot wrap '.*', a BartForCausalLM; use 'huggingface'"):
        made.hooks()


@pytest.mark.parametrize(
    ("family", "options"),
    [("bart", {}), ("llama", {"dtype": "float64", "attn_implementation": "eager"})],
    ids=["counts-padding-as-positions", "makes-nan-of-padding"],
)
def test_left_padding_is_refused_where_it_would_change_the_numbers(tmp_path, family, options):
    model = HuggingFace().spec({"path": str(tiny_folder(tmp_path, family)), **options}).load("cpu")
    right, left = padded(tiny_batch(), [0, 0, 0], [1, 0, 2]), padded(tiny_batch(), [1, 0, 2], [1, 2, 0])
    name = "blocks.1.hook_resid_pre"
    captured = model.capture(right, [name], final=True)
    resumed = model.resume(right, captured, name, captured.activations[name])
    torch.testing.assert_close(resumed[right.real], captured.final[right.real])
    with pytest.raises(SaevalError, match=r"left padding changes the results of .*ForCausalLM; pad on the right"):
        model.capture(left, [name], final=True)


def test_live_models_that_read_both_ways_are_refused():
    sizes = {"num_layers": 2, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 16, "vocab_size": 97}
    with pytest.raises(SaevalError, match="T5ForConditionalGeneration is not supported; saeval supports"):
        HuggingFace().wrap(T5ForConditionalGeneration(T5Config(**sizes)))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(SaevalError, match="BertForMaskedLM is not supported; saeval supports"):
        HuggingFace().wrap(BertForMaskedLM(BertConfig(**small)))


def test_a_hub_model_that_is_not_here_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SaevalError, match="hub model 'nobody/nothing' at revision 'v1' cannot be downloaded") as error:
        HuggingFace().spec({"name": "nobody/nothing", "revision": "v1"})
    assert "\n" not in str(error.value)
    assert "HF_HUB_OFFLINE is set" in str(error.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path, waits):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SaevalError, match=r"127\.0\.0\.1:9 cannot be reached: ConnectError\); .* 'path' to its folder$"
    ):
        HuggingFace().spec({"name": "nobody/nothing"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SaevalError, match=r"'here' is a local folder: use 'path' for it$"):
        HuggingFace().spec({"name": "here"})
    assert sum(waits) < 1
