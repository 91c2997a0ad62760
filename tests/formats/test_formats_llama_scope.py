"""Llama Scope's files against SAELens where that is right, and against OpenMOSS' inference, written plainly."""

from __future__ import annotations

import json
import math

import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from checkpoints import D, Formula, activations, assert_same
from llama_scope_files import CONFIG, HOOK, formula, write
from saeval.base.errors import SaevalError
from saeval_formats.llama_scope import LlamaScope


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"hook_point_in": "blocks.7.ln2.hook_normalized", "dataset_average_activation_norm": {"in": 5.0, "out": 0.7}},
    ],
)
def test_equals_the_formula(tmp_path, changes):
    folder = write(tmp_path, **changes)
    assert_same(LlamaScope(), {"path": str(folder)}, formula(folder))
    info = LlamaScope().info({"path": str(folder)})
    assert (info.hook_name, info.input_hook) == (HOOK, changes.get("hook_point_in"))
    assert info.architecture == ("jumprelu_transcoder" if "hook_point_in" in changes else "jumprelu")


def test_equals_the_library(hub):
    """Its converter knows one factor and decoder columns of norm 1, as the published SAEs have."""
    release, one = "llama_scope_lxr_8x", "l7r_8x"
    factor = sae_lens.loading.pretrained_saes_directory.get_norm_scaling_factor(release, one)
    mean = math.sqrt(D) / factor
    folder = hub("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L7R-8x")
    write(folder, unit=True, dataset_average_activation_norm={"in": mean, "out": mean}, jump_relu_threshold=0.1)
    theirs = sae_lens.SAE.from_pretrained(release, one)
    with torch.no_grad():
        assert_same(LlamaScope(), {"path": str(folder)}, Formula(theirs.encode, theirs.decode))


def test_already_standardised(tmp_path):
    folder = write(tmp_path, norm_activation="inference", dataset_average_activation_norm=None)
    ones = {**CONFIG, "dataset_average_activation_norm": {"in": math.sqrt(D), "out": math.sqrt(D)}}
    ours = LlamaScope().load({"path": str(folder)})
    (folder / "hyperparams.json").write_text(json.dumps(ones))
    x = activations()
    torch.testing.assert_close(ours.encode(x).feature_acts, formula(folder).encode(x), atol=1e-5, rtol=1e-5)


def test_a_dead_column_is_never_active(tmp_path):
    folder = write(tmp_path, jump_relu_threshold=1e-6)
    path = folder / "checkpoints" / "final.safetensors"
    tensors = load_file(path)
    tensors["decoder.weight"][:, 3] = 0
    save_file(tensors, path)
    acts = LlamaScope().load({"path": str(folder)}).encode(activations()).feature_acts
    assert not acts[..., 3].any()
    assert acts[..., 4].any()
    assert torch.isfinite(acts).all()


def test_identity(tmp_path):
    found = {
        LlamaScope().info({"path": str(write(tmp_path / str(index), **changes))}).sha256
        for index, changes in enumerate(
            [
                {},
                {"jump_relu_threshold": 0.4},
                {"dataset_average_activation_norm": {"in": 2.5, "out": 2.6}},
                {"sparsity_include_decoder_norm": False},
                {"apply_decoder_bias_to_pre_encoder": True},
            ]
        )
    }
    assert len(found) == 5
    assert LlamaScope().info({"path": str(write(tmp_path / "again", top_k=9))}).sha256 in found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"act_fn": "topk"}, "act_fn 'topk' is not supported; supported: jumprelu"),
        ({"use_glu_encoder": True}, "'use_glu_encoder' and SAEs without a decoder bias"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not supported"),
        (
            {"dataset_average_activation_norm": None},
            "expected a positive number in 'dataset_average_activation_norm.in' .*, found nothing",
        ),
        (
            {"dataset_average_activation_norm": {"in": 0, "out": 1}},
            "expected a positive number in .*norm.in' .*, found 0",
        ),
        ({"jump_relu_threshold": None}, "expected a positive number or 0 in 'jump_relu_threshold' .*, found None"),
        ({"jump_relu_threshold": 0}, "'jump_relu_threshold' is 0, the library's default: it was never calibrated"),
        ({"jump_relu_threshold": False}, "expected a positive number or 0 in 'jump_relu_threshold' .*, found False"),
        ({"apply_decoder_bias_to_pre_encoder": None}, "expected true or false in 'apply_decoder_bias_to_pre_enc"),
        ({"d_model": 31}, r"'encoder.weight' is \[80, 32\], expected \[80, 31\]; check hyperparams.json"),
        ({"hook_point_in": 3}, "expected text in 'hook_point_in', found 3"),
        ({"hook_point_out": ["x"]}, "expected text in 'hook_point_out'"),
        ({"d_sae": "80"}, "expected a positive whole number in 'd_sae', found '80'"),
    ],
)
def test_wrong_configs(tmp_path, changes, sentence):
    folder = write(tmp_path, **changes)
    with pytest.raises(SaevalError, match=sentence) as raised:
        LlamaScope().info({"path": str(folder)})
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update({"encoder.weight": t["encoder.weight"].T.contiguous()}), "'encoder.weight' is transposed"),
        (lambda t: t.pop("decoder.bias"), "'decoder.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensor 'extra'"),
        (lambda t: t["decoder.bias"].fill_(float("nan")), "'decoder.bias' holds 32 NaN"),
    ],
)
def test_wrong_weights(tmp_path, change, sentence):
    folder = write(tmp_path)
    path = folder / "checkpoints" / "final.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(SaevalError, match=sentence) as raised:
        LlamaScope().load({"path": str(folder)})
    assert str(path) in str(raised.value)


def test_missing_files(tmp_path):
    folder = write(tmp_path / "one")
    assert list(LlamaScope().expand({"path": str(tmp_path), "sites": "o*"})) == ["one"]
    (folder / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(SaevalError, match=r"final.safetensors: no such file"):
        LlamaScope().info({"path": str(folder)})
    (folder / "hyperparams.json").unlink()
    with pytest.raises(SaevalError, match=r"no hyperparams.json; check 'path'"):
        LlamaScope().info({"path": str(folder)})
