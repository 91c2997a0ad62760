"""Llama Scope's files against SAELens where that is right, and against OpenMOSS' inference, written plainly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from checkpoints import D, Formula, N, activations, assert_same, random_tensors
from saeval.base.errors import SaevalError
from saeval_formats.llama_scope import LlamaScope
from test_formats_saelens_releases import hub  # noqa: F401

SHAPES = {"encoder.weight": (N, D), "encoder.bias": (N,), "decoder.weight": (D, N), "decoder.bias": (D,)}
HOOK = "blocks.7.hook_resid_post"
CONFIG = {
    "hook_point_in": HOOK, "hook_point_out": HOOK, "use_decoder_bias": True, "expansion_factor": 8, "d_model": D,
    "d_sae": N, "act_fn": "jumprelu", "jump_relu_threshold": 0.35, "norm_activation": "dataset-wise",
    "apply_decoder_bias_to_pre_encoder": False, "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
    "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "top_k": 50,
}  # fmt: skip


def write(folder: Path, unit: bool = False, **changes) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(SHAPES)
    if unit:
        tensors["decoder.weight"] /= tensors["decoder.weight"].norm(dim=0)
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def formula(folder: Path) -> Formula:
    """OpenMOSS' inference: parameters standardised by the mean norms, decoder columns of norm 1, then the threshold.

    Its features are in the units of the model's activations; they come back to those of training by their ratio.
    """
    t = load_file(folder / "checkpoints" / "final.safetensors")
    said = json.loads((folder / "hyperparams.json").read_text())
    means = said["dataset_average_activation_norm"]
    s_in, s_out = math.sqrt(D) / means["in"], math.sqrt(D) / means["out"]
    encoder, bias = t["encoder.weight"], t["encoder.bias"] / s_in
    decoder, offset = t["decoder.weight"] * s_in / s_out, t["decoder.bias"] / s_out
    units = torch.full((N,), s_in)
    if said["sparsity_include_decoder_norm"]:
        norms = decoder.norm(dim=0)
        encoder, bias, decoder, units = encoder * norms[:, None], bias * norms, decoder / norms, s_in / norms

    def encode(x):
        if said["apply_decoder_bias_to_pre_encoder"]:
            x = x - t["decoder.bias"] / s_in
        pre = x @ encoder.T + bias
        return torch.where(pre > said["jump_relu_threshold"], pre, 0.0) * units

    return Formula(encode, lambda acts: (acts / units) @ decoder.T + offset)


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


def test_equals_the_library(hub):  # noqa: F811
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
