"""What the SAELens loader refuses: one sentence each, naming the file, what was found and what expected."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from saelens_files import D_SAE, edit_config, edit_weights, load, random_sae, saved
from saeval.base.errors import SaevalError
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval_formats.saelens import SAELens

pytestmark = pytest.mark.usefixtures("own_cache")

TORCH = ("dictionary_learning", "openai", "apollo")


def transposed(tensors):
    tensors["W_enc"] = tensors["W_enc"].T


def drop(tensors):
    del tensors["b_enc"]


def extra(tensors):
    tensors["log_threshold"] = torch.zeros(D_SAE)


def narrow(tensors):
    tensors["b_dec"] = tensors["b_dec"][:-1]


def whole(tensors):
    tensors["b_dec"] = tensors["b_dec"].int()


def infinite(tensors):
    tensors["b_dec"][3] = float("inf")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (transposed, r"'W_enc' is transposed: found \[40, 12\], expected \[12, 40\]"),
        (drop, r"'b_enc' is missing"),
        (extra, r"unexpected tensor 'log_threshold' \[40\]"),
        (narrow, r"'b_dec' is \[11\], expected \[12\]; check 'd_in'"),
        (whole, r"'b_dec' is I32, expected a floating-point tensor"),
        (infinite, r"'b_dec' holds 1 NaN or infinite values of 12"),
    ],
)
def test_wrong_weights(tmp_path, change, sentence):
    saved(random_sae("standard"), tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(SaevalError, match=sentence) as raised:
        load(tmp_path)
    assert str(tmp_path / "sae_weights.safetensors") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "crosscoder"},
            r"'crosscoder' is not supported; supported: abstopk, gated, jumprelu, .* transcoder",
        ),
        ({"architecture": "abstopk", "k": 41}, r"'k' is 41, more than the 40 features"),
        ({"architecture": ["standard"]}, r"is not supported; supported"),
        ({"d_sae": 41}, r"'W_enc' is \[12, 40\], expected \[12, 41\]"),
        ({"d_in": "12"}, r"expected a positive whole number in 'd_in', found '12'"),
        ({"architecture": "topk"}, r"expected a positive whole number in 'k', found nothing"),
        ({"architecture": "topk", "k": 41}, r"'k' is 41, more than the 40 features"),
        ({"architecture": "gated"}, r"'b_gate' is missing"),
        ({"normalize_activations": "covariance_whitening"}, r"'normalize_activations: covariance_whitening'"),
        ({"apply_b_dec_to_input": "yes"}, r"expected true or false in 'apply_b_dec_to_input', found 'yes'"),
        ({"metadata": {"hook_head_index": 3}}, r"an SAE of one head"),
        ({"metadata": {"hook_name": 3}}, r"cfg.json: expected text in 'hook_name', found 3"),
        ({"metadata": {"hook_name": ["a"]}}, r"expected text in 'hook_name', found \['a'\]"),
        ({"metadata": [1]}, r"expected an object in 'metadata'"),
    ],
)
def test_wrong_configs(tmp_path, changes, sentence):
    saved(random_sae("standard"), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(SaevalError, match=sentence):
        SAELens().info({"path": str(tmp_path)})


def test_broken_files(tmp_path):
    folder = saved(random_sae("standard"), tmp_path / "sae")
    reference = {"path": str(folder)}
    weights = folder / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(SaevalError, match=r"sae_weights.safetensors: truncated"):
        SAELens().info(reference)
    weights.unlink()
    with pytest.raises(SaevalError, match=r"sae_weights.safetensors: no such file"):
        SAELens().info(reference)
    for text, sentence in [("{", "broken JSON"), ("[]", "expected a JSON object, found list")]:
        (folder / "cfg.json").write_text(text)
        with pytest.raises(SaevalError, match=sentence):
            SAELens().info(reference)
    with pytest.raises(SaevalError, match=r"expected a folder .* found nothing"):
        SAELens().info({"path": str(tmp_path / "absent")})
    with pytest.raises(SaevalError, match=r"expected a folder .* found a file"):
        SAELens().info({"path": str(folder / "cfg.json")})


@pytest.mark.parametrize("path", ["x" * 5000, "x\0y", "~nobodyhere/x"])
@pytest.mark.parametrize("use", ["saelens", "sparsify", "gemma_scope", "llama_scope", *TORCH])
def test_a_path_that_cannot_be_looked_for(use, path):
    loader = Registry(Plugins()).loaders[use]()
    for call in (loader.expand, loader.info):
        with pytest.raises(SaevalError, match="cannot be accessed") as raised:
            call({"path": path})
        assert len(str(raised.value)) < 200


def test_wrong_references():
    with pytest.raises(
        SaevalError, match=r"unknown parameter 'hook_nme' of SAE format '\w+'; did you mean 'hook_name'\?"
    ):
        SAELens().info({"path": "x", "hook_nme": "y"})
    with pytest.raises(SaevalError, match="needs the parameter 'path'"):
        SAELens().info({})


class Payload:
    """A pickle that leaves a trace where it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_nothing_is_executed(tmp_path):
    trace = tmp_path / "executed"
    payload = pickle.dumps(Payload(trace))
    pickle.loads(payload)
    assert trace.exists()  # the payload does work where it is unpickled
    trace.unlink()

    folder = saved(random_sae("standard"), tmp_path / "sae")
    (folder / "sae_weights.safetensors").write_bytes(payload)
    for call in (SAELens().info, lambda reference: SAELens().load(reference, "cpu", torch.float32)):
        with pytest.raises(SaevalError, match="not a safetensors file"):
            call({"path": str(folder)})
    assert not trace.exists()
