"""GGUF files of tiny models: what loads, what is recorded, and one sentence for each that cannot be read."""

from __future__ import annotations

import importlib.util
import math
import re
import struct
from pathlib import Path

import pytest
import torch
import yaml

import saeval
from gguf_files import write_llama
from saeval.base.errors import SaevalError
from saeval.cli import main
from saeval.testing import TinySAE
from saeval.testing.architectures import tiny_batch, tiny_folder, tiny_model, tiny_tokenizer
from saeval_models import HuggingFace, TransformerLens

HOOK = "blocks.1.hook_resid_pre"
TEXTS = ["w1 some words, and w1 more of them", "other words: w1 w1 w1 and w1 again"]


@pytest.fixture
def file(tmp_path):
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"))
    return tmp_path / "tiny.gguf"


def spec(file, adapter=HuggingFace, **reference):
    return adapter().spec({"path": str(file.parent), "gguf_file": file.name, **reference})


def refusal(file, **reference):
    def load():
        made = spec(file, **reference)
        made.hooks()
        made.load("cpu")

    with pytest.raises(SaevalError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_model_is_that_of_the_values_in_the_file(tmp_path, monkeypatch):
    """And not of the file of the same name in the working folder."""
    model, folder = tiny_model("llama"), tmp_path / "model"
    folder.mkdir()
    values = write_llama(folder / "tiny.gguf", model, quantized=["up_proj", "embed_tokens"])
    assert not torch.equal(values["model.embed_tokens.weight"], model.model.embed_tokens.weight)
    model.load_state_dict(values)
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama", seed=1))
    monkeypatch.chdir(tmp_path)
    gguf, batch = spec(Path("model/tiny.gguf")), tiny_batch()
    assert gguf.tokenizer()
    loaded = gguf.load("cpu")
    logits = loaded.module(batch.tokens).logits
    assert torch.allclose(logits, model(batch.tokens).logits, atol=1e-6)
    assert gguf.identity()["quantization"] == gguf.facts()["quantization"] == "Q8_0 (F32: 26, Q8_0: 4)"
    assert gguf.name == "tiny"


def test_hooks_widths_and_context_are_those_of_the_same_model_in_safetensors(file, tmp_path):
    other = HuggingFace().spec({"path": str(tiny_folder(tmp_path / "folder", "llama"))})
    gguf = spec(file)
    assert gguf.hooks() == other.hooks()
    assert (gguf.context, gguf.vocabulary, gguf.parameters) == (other.context, other.vocabulary, other.parameters)
    assert gguf.warnings() == []


def test_the_key_follows_the_content_of_the_file(file, tmp_path):
    before = spec(file).identity()
    moved = file.rename(tmp_path / "renamed.gguf")
    assert spec(moved).identity() == before
    write_llama(moved, tiny_model("llama", seed=1))
    assert spec(moved).identity()["weights"] != before["weights"]


def test_tokenizer_files_beside_the_file_take_precedence(file):
    gguf = spec(file)
    inside = gguf.tokenizer()
    assert inside.convert_ids_to_tokens(inside("wo w1").input_ids) == ["wo", "Ġ", "w", "1"]
    assert gguf.tokenizer_identity() == gguf.checkpoint.weights
    assert gguf.facts()["chat_template"] is False

    tiny_tokenizer().save_pretrained(file.parent)
    beside = spec(file)
    assert beside.tokenizer()("w1 w2").input_ids == [1, 2]
    assert beside.tokenizer_identity() != gguf.tokenizer_identity()


def test_a_file_without_a_tokenizer_serves_tokens(tmp_path):
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), tokenizer=False)
    assert spec(tmp_path / "tiny.gguf").tokenizer_identity() == ""
    with pytest.raises(SaevalError, match="has no tokenizer"):
        spec(tmp_path / "tiny.gguf").tokenizer()


def test_tensors_that_transformers_leaves_out_are_a_warning(tmp_path):
    """Such as the frequencies of Llama 3's rotary embedding, for which it would need another setting."""
    extra = {"rope_freqs.weight": torch.ones(4).numpy()}
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), extra=extra)
    (warning,) = spec(tmp_path / "tiny.gguf").warnings()
    assert warning == "the weights of 'tiny' hold a tensor that a llama model does not use: rope_freqs.weight"


def test_settings_that_transformers_leaves_out_are_a_warning(tmp_path):
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), llama__rope__scaling__original_context_length=32)
    (warning,) = spec(tmp_path / "tiny.gguf").warnings()
    assert "transformers ignores llama.rope.scaling.original_context_length" in warning


def test_a_bridge_wraps_it(file):
    pytest.importorskip("transformer_lens")
    bridge, batch = spec(file, TransformerLens).load("cpu"), tiny_batch()
    assert torch.allclose(bridge.module(batch.tokens).logits, tiny_model("llama")(batch.tokens).logits, atol=1e-5)


def entry(file):
    return {"use": "huggingface", "path": str(file.parent), "gguf_file": file.name}


def test_evaluate_reads_it(file):
    data = {"texts": TEXTS, "context": 8}
    saes = [(TinySAE(d_in=32), HOOK)]
    (result,) = saeval.evaluate(model=entry(file), saes=saes, data=data, metrics=["ce"], preflight="warn")
    assert result.status == "ok", result.reason


def test_the_command_line_reads_it(file, tmp_path, saelens_folder, capsys):
    sae, texts = saelens_folder(d_in=32, d_sae=16, hook_name=HOOK), tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    data = {"use": "text", "path": str(texts), "context": 8}
    suite = {
        "suite": "s",
        "model": entry(file),
        "saes": [{"use": "saelens", "path": str(sae)}],
        "data": data,
        "metrics": ["l0"],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(suite))
    assert main(["check", str(tmp_path / "s.yaml")]) == 0
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--preflight", "warn"]) == 0
    capsys.readouterr()
    model, text = (yaml.safe_dump(part, default_flow_style=True, width=1000) for part in (entry(file), data))
    assert main(["doctor", str(sae), "--model", model, "--data", text]) == 1
    assert "explains -0." in capsys.readouterr().out  # a random SAE


def test_a_reference_to_a_file_that_is_not_there(file):
    said = refusal(file.with_name("other.gguf"))
    assert said == f"{file.with_name('other.gguf')} is not a file; 'gguf_file' is one of: tiny.gguf"
    with pytest.raises(SaevalError, match="'gguf_file' of the model 'huggingface' is in a local folder; download it"):
        HuggingFace().spec({"name": "gpt2", "gguf_file": "a.gguf"})
    with pytest.raises(SaevalError, match=r"has no config.json; .*, or 'gguf_file: tiny.gguf'"):
        HuggingFace().spec({"path": str(file.parent)})


@pytest.mark.parametrize("library", ["gguf", "accelerate"])
def test_the_extra_is_not_installed(file, monkeypatch, library):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find(name))
    assert refusal(file).endswith("needs the gguf library; pip install 'saeval[gguf]'")


@pytest.mark.parametrize("length", [3, 20, 100, 400, 2000, 20_000])
def test_a_file_that_is_cut_short(file, length):
    file.write_bytes(file.read_bytes()[:length])
    assert re.search("is not a GGUF file|ends within its header|its header requires", refusal(file))


def test_a_file_of_another_kind(file):
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    assert refusal(file) == f"{file} is not a GGUF file: it does not start with 'GGUF'"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "has GGUF version 1, expected 2 or 3" in refusal(file)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert "does not state its architecture" in refusal(file)


def test_numbers_that_no_file_has(file):
    """Counts, lengths and dimensions of any size: nothing is made of that size."""
    content, most = file.read_bytes(), struct.pack("<Q", 2**64 - 1)
    for place in (8, 16, 24):
        file.write_bytes(content[:place] + most + content[place + 8 :])
        assert "damaged" in refusal(file)
    file.write_bytes(content)
    lie(file, "llama.block_count", 2**32 - 1)
    assert "'llama.block_count' is 4294967295, more than the maximum of 4096" in refusal(file)
    kind = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    file.write_bytes(content[:kind] + struct.pack("<I", 999) + content[kind + 4 :])
    assert "output_norm.weight has the quantization type 999, which gguf" in refusal(file)


def lie(file, key, value):
    """Change a number of the header."""
    content = file.read_bytes()
    at = content.index(key.encode()) + len(key) + 4
    form = struct.pack("<f" if isinstance(value, float) else "<I", value)
    file.write_bytes(content[:at] + form + content[at + 4 :])


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("block_count", 9, "'llama.block_count' is 9, but it holds the tensors of 3 blocks"),
        ("block_count", 2, "'llama.block_count' is 2, but it holds the tensors of 3 blocks"),
        ("attention.head_count", 8, r"blk.0.attn_q.weight is \[32, 32\], but by the header's numbers it is \[64, 32\] \(.*llama.attention.head_count 8"),
        ("attention.head_count_kv", 3, r"blk.0.attn_k.weight is \[16, 32\], but .* it is \[24, 32\]"),
        ("feed_forward_length", 100, r"blk.0.ffn_gate.weight is \[48, 32\], but .* it is \[100, 32\] \(.*llama.feed_forward_length 100"),
        ("embedding_length", 64, r"token_embd.weight is \[97, 32\], but by the header's numbers it is \[97, 64\]"),
        ("vocab_size", 50, r"token_embd.weight is \[97, 32\], but by the header's numbers it is \[50, 32\]"),
        ("attention.head_count", 3, "'llama.embedding_length' is 32, which 'llama.attention.head_count', 3, does not divide"),
        ("attention.head_count", 0, "'llama.embedding_length' is 32, which 'llama.attention.head_count', 0, does not divide"),
        ("attention.layer_norm_rms_epsilon", math.nan, "expected a number of 0 or more in 'llama.attention.layer_norm_rms_epsilon', found nan"),
        ("attention.layer_norm_rms_epsilon", -1.0, "expected a number of 0 or more in 'llama.attention.layer_norm_rms_epsilon', found -1.0"),
        ("rope.freq_base", math.inf, "expected a finite number in 'llama.rope.freq_base', found inf"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_the_tensors_are_found_before_a_weight_is_read(file, monkeypatch, key, value, fault):
    lie(file, f"llama.{key}", value)
    monkeypatch.setattr("gguf.dequantize", None)
    with pytest.raises(SaevalError) as error:
        spec(file).hooks()
    assert re.fullmatch(rf"{re.escape(str(file))}: {fault}.*; (copy or )?convert it again", str(error.value))


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "unknown_token_id"])
def test_special_tokens_that_the_tokenizer_lacks(file, key, capfd):
    lie(file, f"tokenizer.ggml.{key}", 500)
    with pytest.raises(SaevalError) as error:
        spec(file).tokenizer()
    fault = f"{file}: 'tokenizer.ggml.{key}' is 500, but its tokenizer has the tokens 0 to 96; convert it again, or"
    assert str(error.value).startswith(fault)
    assert capfd.readouterr() == ("", "")


def test_joined_embeddings_need_no_unembedding(tmp_path):
    model = tiny_model("llama")
    model.lm_head = torch.nn.Identity()
    write_llama(tmp_path / "tiny.gguf", model)
    tied = spec(tmp_path / "tiny.gguf")
    assert tied.hooks()
    assert tied.warnings() == []


def test_an_architecture_that_transformers_cannot_read(tmp_path):
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), architecture="rwkv7")
    said = refusal(tmp_path / "tiny.gguf")
    assert "cannot be read by transformers" in said
    assert "GGUF model with architecture rwkv7 is not supported yet; use the model's safetensors files" in said


def test_a_part_of_a_model(file, tmp_path):
    shard = file.rename(tmp_path / "tiny-00001-of-00003.gguf")
    assert "is one of 3 parts of a model" in refusal(shard)
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), split__count=2)
    assert "is one of 2 parts of a model, and saeval reads a single file; join them" in refusal(tmp_path / "tiny.gguf")


def test_a_tensor_that_is_missing(tmp_path):
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    write_llama(tmp_path / "tiny.gguf", model)
    with pytest.raises(SaevalError, match=r"tiny.gguf lacks blk.1.ffn_up.weight: it is incomplete; copy or convert it"):
        spec(tmp_path / "tiny.gguf").hooks()


def test_an_adapter_beside_it_is_refused(file):
    pytest.importorskip("peft")
    (file.parent / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (file.parent / "adapter_model.bin").write_bytes(b"")
    assert "holds an adapter, which saeval does not apply to a GGUF file" in refusal(file)
