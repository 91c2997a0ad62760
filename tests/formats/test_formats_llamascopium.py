"""Llamascopium's folders against its source, written out, and what of it is no SAE of one hook."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import K, assert_same
from llamascopium_files import HOOK, READS, formula, write
from saeval.base.errors import SaevalError
from saeval.registry.discovery import Plugins
from saeval.registry.format_recognition import readable
from saeval.registry.registry import Registry
from saeval_formats.llamascopium import Llamascopium

VARIANTS = [
    {"act_fn": act_fn, "norm_activation": norm, "sparsity_include_decoder_norm": by_norm, "hook_point_in": reads}
    for act_fn, norm, by_norm, reads in itertools.product(
        ("relu", "jumprelu", "topk"), ("dataset-wise", "token-wise", "inference"), (True, False), (HOOK, READS)
    )
    if not (norm == "token-wise" and reads == READS)
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_equals_the_formula(tmp_path, changes):
    folder = write(tmp_path, torch_file=changes["act_fn"] == "relu", **changes)
    assert_same(Llamascopium(), {"path": str(folder)}, formula(**changes))
    info = Llamascopium().info({"path": str(folder)})
    transcoder = changes["hook_point_in"] == READS
    assert (info.hook_name, info.input_hook) == (HOOK, READS if transcoder else None)
    name = {"relu": "standard"}.get(changes["act_fn"], changes["act_fn"])
    assert info.architecture == f"{name}{'_transcoder' * transcoder}"
    assert info.facts == {"model_name": "Qwen/Qwen3-1.7B", **({"k": K} if name == "topk" else {})}


def test_without_a_decoder_bias(tmp_path):
    assert_same(Llamascopium(), {"path": str(write(tmp_path, use_decoder_bias=False))}, formula(use_decoder_bias=False))


def test_several_below_a_folder(tmp_path):
    for name in ("L10", "L9"):
        write(tmp_path / name)
    assert list(Llamascopium().expand({"path": str(tmp_path), "sites": "*"})) == ["L9", "L10"]
    able, _ = readable(str(tmp_path / "L9"), Registry(Plugins()))
    assert list(able) == ["llamascopium"]


def test_identity(tmp_path):
    variants = [
        {}, {"act_fn": "topk"}, {"act_fn": "topk", "top_k": 7}, {"norm_activation": "inference"},
        {"sparsity_include_decoder_norm": False},
    ]  # fmt: skip
    paths = [write(tmp_path / str(index), **changes) for index, changes in enumerate(variants)]
    assert len({Llamascopium().info({"path": str(path)}).sha256 for path in paths}) == len(variants)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"sae_type": "clt"},
            "is a cross-layer transcoder: the output of a layer comes from the features of all layers",
        ),
        (
            {"sae_type": "crosscoder"},
            "is a crosscoder: its features come from the activations of several hooks at once",
        ),
        ({"sae_type": "lorsa"}, "is a sparse replacement of attention: .* cannot be evaluated as an SAE of one hook"),
        ({"sae_type": "molt"}, "is a mixture of linear transforms: its features multiply matrices, not decoder rows"),
        ({"act_fn": None}, "there is no 'act_fn'; supported: relu, jumprelu, topk"),
        ({"sae_type": "vae"}, "sae_type 'vae' is not supported; supported: sae"),
        ({"sae_type": None}, "there is no 'sae_type'; supported: sae"),
        (
            {"act_fn": "batchtopk"},
            "'act_fn: batchtopk' is not supported: .* other tokens of its batch; convert it to 'jum",
        ),
        ({"act_fn": "layertopk"}, "act_fn 'layertopk' is not supported; supported: relu, jumprelu, topk"),
        ({"norm_activation": "batch-wise"}, "'norm_activation: batch-wise' is not supported: a token's features would"),
        (
            {"norm_activation": "token-wise", "hook_point_in": READS},
            "'norm_activation: token-wise' is not for transcoders: the scale of a transcoder's input does not",
        ),
        ({"use_glu_encoder": True}, "'use_glu_encoder' is not supported"),
        ({"act_fn": "topk", "top_k": 81}, "'top_k' is 81, more than the 80 features"),
        ({"expansion_factor": 2}, r"'W_E' is \[32, 80\], expected \[32, 64\]; check config.json"),
        ({"expansion_factor": "2"}, "expected a positive number in 'expansion_factor'"),
        ({"hook_point_in": None}, "expected text in 'hook_point_in', found None"),
    ],
)
def test_wrong_configs(tmp_path, changes, sentence):
    folder = write(tmp_path, **changes)
    with pytest.raises(SaevalError, match=sentence) as raised:
        Llamascopium().info({"path": str(folder)})
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_wrong_files(tmp_path):
    folder = write(tmp_path / "one")
    path, reference = folder / "sae_weights.safetensors", {"path": str(folder)}
    tensors = load_file(path)
    norm = f"dataset_average_activation_norm.{HOOK}"
    for changes, sentence in (
        ({norm: torch.tensor(0.0)}, rf"expected a positive number in '{norm}' .*, found 0.0"),
        ({norm: torch.ones(2)}, rf"'{norm}' is \[2\], expected one number"),
        ({norm: torch.tensor(torch.nan)}, rf"'{norm}' holds 1 NaN"),
        ({"W_E_glu": tensors["W_E"].clone()}, r"unexpected tensor 'W_E_glu'"),
        ({"b_D": None}, r"'b_D' is missing\); check 'act_fn' and 'use_decoder_bias' of config.json"),
        ({norm: None}, rf"no '{norm}', which 'norm_activation: dataset-wise' of .*config.json needs"),
    ):
        save_file({name: t for name, t in {**tensors, **changes}.items() if t is not None}, path)
        with pytest.raises(SaevalError, match=sentence):
            Llamascopium().info(reference)
    (folder / "sae_weights.dcp").mkdir()
    with pytest.raises(
        SaevalError, match=r"sae_weights.dcp: is a checkpoint of several processes; save it as sae_weigh"
    ):
        Llamascopium().info(reference)
    (folder / "sae_weights.dcp").rmdir()
    path.unlink()
    with pytest.raises(SaevalError, match=r"no sae_weights.safetensors or sae_weights.pt; check 'path'"):
        Llamascopium().info(reference)
    torch.save({"model": {}}, folder / "sae_weights.pt")
    with pytest.raises(SaevalError, match=r"expected a dict of tensors in 'sae', found NoneType; check 'use'"):
        Llamascopium().info(reference)
    (folder / "config.json").write_text(json.dumps({"sae_type": "clt"}))
    (folder / "sae_weights.pt").unlink()
    with pytest.raises(SaevalError, match="is a cross-layer transcoder"):
        Llamascopium().info(reference)
    (folder / "config.json").unlink()
    with pytest.raises(SaevalError, match=r"no sae_weights.safetensors or sae_weights.pt; check 'path'"):
        Llamascopium().info(reference)
