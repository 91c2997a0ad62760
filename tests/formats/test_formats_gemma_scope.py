"""Gemma Scope's files against SAELens' converters, and the hooks that their folders tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sae_lens
import torch
from safetensors.torch import load_file

from checkpoints import D, Formula, N, activations, assert_same
from gemma_scope_files import PLACE, first, params, second
from saeval.base.errors import SaevalError
from saeval_formats.gemma_scope import GemmaScope


def test_equals_the_converter(hub):
    folder = hub("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    first(folder)
    from sae_lens.loading.pretrained_sae_loaders import gemma_2_sae_huggingface_loader

    sizes = {"d_in": D, "d_sae": N}
    config, tensors, _ = gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "cpu", False, sizes
    )
    theirs = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**sizes, apply_b_dec_to_input=False))
    theirs.load_state_dict(tensors)
    with torch.no_grad():
        assert_same(GemmaScope(), {"path": str(folder)}, Formula(theirs.encode, theirs.decode))
    info = GemmaScope().info({"path": str(folder)})
    assert (info.architecture, info.hook_name) == ("jumprelu", config["hook_name"])
    assert info.facts == {"l0": 71, "width": "16k", "model_name": "google/gemma-2-2b"}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("release", "one", "affine"),
    [
        ("gemma-scope-2-1b-pt-res", "layer_13_width_16k_l0_big", False),
        ("gemma-scope-2-1b-pt-transcoders-all", "layer_3_width_16k_l0_big", False),
        ("gemma-scope-2-1b-pt-transcoders-all", "layer_3_width_16k_l0_big_affine", True),
    ],
)
def test_the_second_equals_the_library(hub, monkeypatch, release, one, affine, named):
    from sae_lens.loading import pretrained_sae_loaders, pretrained_saes_directory

    path = pretrained_saes_directory.get_pretrained_saes_directory()[release].saes_map[one]
    layer, transcodes = one.split("_")[1], "transcoder" in release
    reads = f"model.layers.{layer}.{'pre_feedforward_layernorm.' if transcodes else ''}output"
    writes = f"model.layers.{layer}.{'post_feedforward_layernorm.' if transcodes else ''}output"
    config = {"model_name": "google/gemma-3-1b-pt", "hf_hook_point_in": reads, "hf_hook_point_out": writes, "l0": 150}
    folder = hub("google/gemma-scope-2-1b-pt", path)
    second(folder, {**config, "affine_connection": affine, "type": "transcoder" if transcodes else "sae"}, affine)
    shapes = {name: list(tensor.shape) for name, tensor in load_file(folder / "params.safetensors").items()}
    monkeypatch.setattr(pretrained_sae_loaders, "get_safetensors_tensor_shapes", lambda *args: shapes)
    theirs = sae_lens.SAE.from_pretrained(release, one)
    if not named:  # without the config, by the folders
        (folder / "config.json").unlink()
    info = GemmaScope().info({"path": str(folder)})
    ours, x = GemmaScope().load({"path": str(folder)}), activations()
    with torch.no_grad():
        encoding = ours.encode(x)
        torch.testing.assert_close(encoding.feature_acts, theirs.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.decode(encoding, x), theirs(x), atol=1e-5, rtol=1e-5)
    expected_in = f"model.layers.{layer}.pre_feedforward_layernorm" if transcodes else None
    by_config = {True: f"model.layers.{layer}.post_feedforward_layernorm", False: f"model.layers.{layer}"}
    by_folder = {True: f"blocks.{layer}.hook_mlp_out", False: f"blocks.{layer}.hook_resid_post"}
    assert info.hook_name == (by_config if named else by_folder)[transcodes]
    assert info.input_hook == expected_in
    assert info.architecture == theirs.cfg.architecture()


@pytest.mark.parametrize(
    ("place", "hook", "reads"),
    [
        (PLACE, "blocks.20.hook_resid_post", None),
        ("gemma-scope-9b-it-res/layer_9/width_131k/average_l0_8", "blocks.9.hook_resid_post", None),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_104", "blocks.3.attn.hook_z", None),
        ("gemma-scope-9b-pt-mlp/layer_0/width_16k/average_l0_119", "blocks.0.hook_mlp_out", None),
        (
            "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_9",
            "blocks.5.hook_mlp_out",
            "blocks.5.ln2.hook_normalized",
        ),
        ("models--google--gemma-scope-2b-pt-res/snapshots/abc/layer_1/width_16k/x", "blocks.1.hook_resid_post", None),
        ("mine/layer_20/width_16k/average_l0_71", None, None),
        ("gemma-scope-2b-pt-res/mine", None, None),
    ],
)
def test_hooks_of_the_first(tmp_path, place, hook, reads):
    reference = {"path": str(first(tmp_path / place))}
    info = GemmaScope().info(reference)
    assert (info.hook_name, info.input_hook) == (hook, reads)
    given = GemmaScope().info({**reference, "hook_name": "a"})
    assert given.hook_name == "a"
    assert GemmaScope().load(reference).transcoder is (reads is not None)


def test_places(tmp_path):
    """A file by itself, folders below one, an SAE nobody names."""
    for layer in (10, 9):
        first(tmp_path / "gemma-scope-2b-pt-res" / f"layer_{layer}" / "width_16k" / "average_l0_7")
    root = tmp_path / "gemma-scope-2b-pt-res"
    found = GemmaScope().expand({"path": str(root), "sites": "*/width_16k/*"})
    assert list(found) == [f"layer_{layer}/width_16k/average_l0_7" for layer in (9, 10)]
    assert GemmaScope().info({"path": str(root / "layer_9/width_16k/average_l0_7/params.npz")}).hook_name is not None
    with pytest.raises(SaevalError, match=r"no params.npz or params.safetensors; it holds 2 SAEs in folders"):
        GemmaScope().info({"path": str(root)})
    with pytest.raises(SaevalError, match="found nothing"):
        GemmaScope().info({"path": str(root / "layer_11")})
    embedding = first(root / "embedding" / "width_4k" / "average_l0_6")
    with pytest.raises(SaevalError, match="SAEs of the embedding are not supported"):
        GemmaScope().info({"path": str(embedding)})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"W_enc": params()["W_enc"].T}, r"'W_enc' is transposed: found \[80, 32\], expected \[32, 80\]"),
        ({"threshold": None}, "'threshold' is missing"),
        ({"log_threshold": params()["threshold"]}, "unexpected tensor 'log_threshold'"),
        ({"b_enc": params()["b_enc"][:-1]}, "expected .* check the lengths of b_dec and b_enc"),
        ({"b_dec": np.arange(D)}, "'b_dec' is int64, expected a floating-point tensor"),
        ({"b_dec": np.full(D, np.nan, np.float32)}, "'b_dec' holds 32 NaN"),
        ({"W_dec": np.array([object()])}, "'W_dec' is object, expected a floating-point tensor"),
    ],
)
def test_wrong_arrays(tmp_path, changes, sentence):
    folder = first(tmp_path, **changes)
    with pytest.raises(SaevalError, match=sentence) as raised:
        GemmaScope().load({"path": str(folder)})
    assert str(folder / "params.npz") in str(raised.value)


class Payload:
    """An object that leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_nothing_is_executed(tmp_path):
    folder = first(tmp_path, W_dec=np.array([Payload(tmp_path / "executed")], dtype=object))
    with pytest.raises(SaevalError, match="'W_dec' is object"):
        GemmaScope().load({"path": str(folder)})
    assert not (tmp_path / "executed").exists()
    np.load(folder / "params.npz", allow_pickle=True)["W_dec"]
    assert (tmp_path / "executed").exists()  # the payload does work where it is unpickled


def test_broken_files(tmp_path):
    folder = first(tmp_path)
    content = (folder / "params.npz").read_bytes()
    for broken in (content[:-30], content[:1000], b"", b"PK no zip"):
        (folder / "params.npz").write_bytes(broken)
        with pytest.raises(SaevalError, match=r"params.npz: truncated or not an npz file"):
            GemmaScope().info({"path": str(folder)})
    middle = bytearray(content)
    middle[5000:5100] = bytes(100)
    (folder / "params.npz").write_bytes(bytes(middle))
    with pytest.raises(SaevalError, match=r"params.npz: damaged"):
        GemmaScope().load({"path": str(folder)})


@pytest.mark.parametrize(
    ("config", "affine", "sentence"),
    [
        ({"architecture": "relu"}, False, "architecture 'relu' is not supported; supported: jump_relu"),
        ({"hf_hook_point_in": 3}, False, "expected text in 'hf_hook_point_in', found 3"),
        (
            {"type": "clt"},
            False,
            "is a cross-layer transcoder: the output of a layer comes from the features of all lay",
        ),
        ({"type": "crosscoder"}, False, "is a crosscoder: its features come from the activations of several hooks at"),
        ({"type": "vae"}, False, "type 'vae' is not supported; supported: sae, transcoder"),
        ({"affine_connection": True}, False, "'affine_connection: True', but params.safetensors has no affine_skip"),
        ({"affine_connection": False}, True, "'affine_connection: False', but params.safetensors has an affine_skip"),
    ],
)
def test_wrong_configs_of_the_second(tmp_path, config, affine, sentence):
    folder = second(tmp_path, config, affine)
    with pytest.raises(SaevalError, match=sentence):
        GemmaScope().info({"path": str(folder)})


@pytest.mark.parametrize("place", ["clt/width_262k_l0_medium_affine", "crosscoder/layer_7_13_17_22_width_65k_l0_big"])
def test_several_hooks_by_the_folder(tmp_path, place):
    """Without a config, as published, and with the weights of one layer in a file of their own."""
    path = (second(tmp_path / place) / "params.safetensors").rename(tmp_path / place / "params_layer_0.safetensors")
    with pytest.raises(
        SaevalError, match=r"params_layer_0.safetensors: is a cross.*, so it cannot be evaluated as an SA"
    ):
        GemmaScope().info({"path": str(path)})


def test_half_precision_and_identity(tmp_path):
    one = first(tmp_path / "one")
    two = first(tmp_path / "two", **{name: array.astype(np.float16) for name, array in params().items()})
    info = lambda folder: GemmaScope().info({"path": str(folder)})  # noqa: E731
    assert info(one).sha256 != info(two).sha256
    assert info(one).sha256 == info(first(tmp_path / "three")).sha256
    assert GemmaScope().load({"path": str(two)}).dtype == torch.float32
