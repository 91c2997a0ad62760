"""Formats with one file per layer: Qwen Scope, and the transcoders of circuit-tracer."""

from __future__ import annotations

import json

import pytest
import sae_lens
import torch
from sae_lens.loading.pretrained_sae_loaders import qwen_scope_sae_huggingface_loader
from safetensors.torch import save_file

from checkpoints import D, Formula, K, N, assert_same, assert_same_in_a_suite
from layer_files import CONFIG, KINDS, READS, REPOSITORY, WIDTH, WRITES, qwen, qwen_formula, traced, traced_formula
from saeval.base.errors import SaevalError
from saeval.registry.discovery import Plugins
from saeval.registry.format_recognition import readable
from saeval.registry.registry import Registry
from saeval_formats.circuit_tracer import CircuitTracer
from saeval_formats.qwen_scope import QwenScope

pytestmark = pytest.mark.usefixtures("own_cache")


def test_qwen_scope_equals_the_library(hub):
    """By the repository's name, in the layout of the hub's cache."""
    repo = f"Qwen/{REPOSITORY}"
    path = qwen(hub(repo, "."))
    config, tensors, _ = qwen_scope_sae_huggingface_loader(repo, "layer3.sae.pt")
    sizes = {
        "d_in": D,
        "d_sae": config["d_sae"],
        "k": config["activation_fn_kwargs"]["k"],
        "apply_b_dec_to_input": False,
    }
    theirs = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**sizes))
    theirs.load_state_dict(tensors)
    with torch.no_grad():
        assert_same(QwenScope(), {"path": str(path)}, Formula(theirs.encode, theirs.decode), WIDTH)
    info = QwenScope().info({"path": str(path)})
    assert (info.architecture, info.hook_name) == ("topk", config["hook_name"])
    assert info.facts == {"k": K, "model_name": config["model_name"]}
    reference = {"repo": repo, "path": "layer*.sae.pt", "hook_name": "blocks.{}.hook_resid_post"}
    assert QwenScope().expand(reference)["3"]["hook_name"] == "blocks.3.hook_resid_post"


def test_qwen_scope_with_k(tmp_path):
    path = qwen(tmp_path / "mine")
    assert_same(QwenScope(), {"path": str(path), "k": K}, qwen_formula(), WIDTH)
    digests = {QwenScope().info({"path": str(path), "k": k}).sha256 for k in (K, K + 1)}
    assert len(digests) == 2
    assert QwenScope().info({"path": str(path.rename(tmp_path / "x.pt")), "k": K}).hook_name is None


@pytest.mark.parametrize(
    ("folder", "changes", "options", "sentence"),
    [
        ("mine", {}, {}, "no k: no folder in its path is named like SAE-Res-Qwen3-1.7B-Base-W32K-L0_50; add 'k:'"),
        ("SAE-Res-X-W32K-L0_5", {}, {}, r"has 1024 features, but its folder's name says 32K \(32768\); check 'path'"),
        ("mine", {}, {"k": 1025}, "'k' is 1025, more than the 1024 features"),
        ("mine", {}, {"k": 0}, "expected a positive whole number in 'k', found 0"),
        (
            "mine",
            {"W_enc": torch.zeros(D, WIDTH)},
            {"k": 3},
            r"'W_enc' is transposed: found \[32, 1024\], expected \[1024, 32\]",
        ),
        ("mine", {"b_dec": None}, {"k": 3}, "'b_dec' is missing"),
        ("mine", {"threshold": torch.zeros(1)}, {"k": 3}, "unexpected tensor 'threshold'"),
    ],
)
def test_wrong_qwen_scope(tmp_path, folder, changes, options, sentence):
    path = qwen(tmp_path / folder, **changes)
    with pytest.raises(SaevalError, match=sentence) as raised:
        QwenScope().info({"path": str(path), **options})
    assert str(path) in str(raised.value)


def test_k_of_qwen_scope_is_a_number():
    with pytest.raises(SaevalError, match="'k' of SAE format 'qwen_scope': input should be a valid integer, got True"):
        QwenScope().info({"path": "layer3.sae.pt", "k": True})


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_circuit_tracer_equals_the_formula(tmp_path, kind, early):
    path = traced(tmp_path, kind=kind, early=early)
    assert_same(CircuitTracer(), {"path": str(path)}, traced_formula(kind))
    info = CircuitTracer().info({"path": str(path)})
    assert (info.architecture, info.hook_name, info.input_hook) == (kind, WRITES, READS)
    assert info.facts == {"model_name": "Qwen/Qwen3-4B"}


def test_circuit_tracer_in_a_suite(tmp_path):
    path = traced(tmp_path / "set", layer=1, kind="jumprelu_skip_transcoder")
    hook = "blocks.1.hook_resid_post"
    entry = {"use": "circuit_tracer", "path": str(path), "hook_name": hook, "input_hook": hook}
    assert_same_in_a_suite(tmp_path, entry, traced_formula("jumprelu_skip_transcoder"), hook)


def test_a_folder_of_layers(tmp_path):
    for layer in (10, 9):
        traced(tmp_path / "set", layer)
        qwen(tmp_path / REPOSITORY, layer)
    (tmp_path / "set" / "README.md").write_text("# Transcoders")
    (tmp_path / "set" / "features").mkdir()
    found = CircuitTracer().expand({"path": str(tmp_path / "set"), "sites": "*"})
    assert list(found) == ["layer_9", "layer_10"]
    assert [CircuitTracer().info(entry).hook_name for entry in found.values()] == [
        f"blocks.{n}.hook_mlp_out" for n in (9, 10)
    ]
    assert list(QwenScope().expand({"path": str(tmp_path / REPOSITORY), "sites": ["layer1?"]})) == ["layer10"]
    registry = Registry(Plugins())
    for loader, folder in ((CircuitTracer(), "set"), (QwenScope(), REPOSITORY)):
        with pytest.raises(SaevalError, match=r"is a folder, expected a file; it holds 2 SAEs: add 'sites: \"\*\"'"):
            loader.info({"path": str(tmp_path / folder)})
        with pytest.raises(SaevalError, match=r"no file matches 'sites: layer_3'; did you mean|no file matches"):
            loader.expand({"path": str(tmp_path / folder), "sites": "layer_3"})
        able, _ = readable(str(tmp_path / folder), registry)
        assert able == {loader.name: {"use": loader.name, "path": str(tmp_path / folder), "sites": "*"}}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {**CONFIG, "model_kind": "cross_layer_transcoder"},
            r"config.yaml: is a cross-layer transcoder: the output of a",
        ),
        ({**CONFIG, "model_kind": "crosscoder"}, "model_kind 'crosscoder' is not supported; supported: transcoder_set"),
        ({**CONFIG, "feature_input_hook": 3}, "expected text in 'feature_input_hook', found 3"),
        ({**CONFIG, "feature_input_hook": None}, "no 'feature_input_hook' in .*config.yaml; add 'input_hook:'"),
        (None, "no 'feature_input_hook' in .*config.yaml; add 'input_hook:'"),
        (["layers"], "expected a YAML mapping, found list"),
    ],
)
def test_wrong_configs_of_circuit_tracer(tmp_path, config, sentence):
    path = traced(tmp_path, config=config)
    with pytest.raises(SaevalError, match=sentence) as raised:
        CircuitTracer().info({"path": str(path)})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["W_enc_3", "W_dec_3"])
def test_pieces_of_a_cross_layer_transcoder(tmp_path, name):
    path = tmp_path / f"{name}.safetensors"
    save_file({name: torch.zeros(N, D), "b_enc_3": torch.zeros(N)}, path)
    with pytest.raises(
        SaevalError, match=r"is a cross-layer transcoder: .* so it cannot be evaluated as an SAE of one hook"
    ):
        CircuitTracer().info({"path": str(path)})
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder")
    with pytest.raises(SaevalError, match="is a cross-layer transcoder"):
        CircuitTracer().info({"path": str(tmp_path)})


def test_a_list_of_files_elsewhere(tmp_path):
    """The configs for Gemma Scope name files of its repository, and lie in a folder without weights."""
    listed = ["hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz"]
    (tmp_path / "config.yaml").write_text(json.dumps({**CONFIG, "transcoders": listed}))
    with pytest.raises(
        SaevalError, match=r"config.yaml: 'transcoders' lists files of other repositories; read each by"
    ):
        CircuitTracer().info({"path": str(tmp_path)})


def test_no_layer_in_a_name(tmp_path):
    path = traced(tmp_path).rename(tmp_path / "mine.safetensors")
    with pytest.raises(SaevalError, match=r"no layer in the file's name; add 'input_hook:'"):
        CircuitTracer().info({"path": str(path)})
    info = CircuitTracer().info({"path": str(path), "input_hook": "a", "hook_name": "b"})
    assert (info.hook_name, info.input_hook) == ("b", "a")
