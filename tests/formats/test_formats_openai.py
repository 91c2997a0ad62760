"""The openai loader against `Autoencoder` of openai/sparse_autoencoder, its formula written out here."""

from __future__ import annotations

import shutil

import pytest
import torch

from checkpoints import D, K, N, activations, assert_same, assert_same_in_a_suite, suite
from openai_files import ACTIVATIONS, STATISTICS, formula_of, state_of
from saeval.base.errors import SaevalError
from saeval_formats.openai import OpenAI


@pytest.fixture
def saved(tmp_path):
    def save(state, name="6.pt"):
        torch.save(state, tmp_path / name)
        return {"path": str(tmp_path / name)}

    return save


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_library(saved, activation):
    state = state_of(activation)
    assert_same(OpenAI(), saved(state), formula_of(state))
    # Statistics of training are no part of it.
    assert_same(OpenAI(), saved({k: v for k, v in state.items() if k not in STATISTICS}), formula_of(state))


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_in_a_suite(tmp_path, saved, activation):
    state, hook = state_of(activation), "blocks.2.hook_mlp_out"
    entry = {"use": "openai", **saved(state), "hook_name": hook}
    assert_same_in_a_suite(tmp_path, entry, formula_of(state), hook)


def test_layers_by_glob(tmp_path, saved):
    for layer in (0, 2):
        saved(state_of(), f"{layer}.pt")
    entry = {"use": "openai", "path": str(tmp_path / "?.pt"), "hook_name": "blocks.{}.hook_resid_post", "name": "v5"}
    results = suite(tmp_path, [entry], metrics=["l0"])
    assert {r.subject for r in results} == {"v5/0", "v5/2"}
    with pytest.raises(SaevalError, match="the checkpoint does not say its hook"):
        suite(tmp_path, [{"use": "openai", "path": str(tmp_path / "0.pt")}])


def test_zero_activations_give_finite_reconstructions(saved):
    sae = OpenAI().load(saved(state_of()))
    x = torch.zeros(1, 2, D)
    assert torch.isfinite(sae.decode(sae.encode(x), x)).all()


def test_decoding_is_stateless(saved):
    sae = OpenAI().load(saved(state_of()))
    first, second = activations(1), activations(2) * 5
    encoding = sae.encode(first)
    expected = sae.decode(encoding, first)
    sae.decode(sae.encode(second), second)
    assert torch.equal(sae.decode(encoding, first), expected)


def test_identity(tmp_path, saved):
    one = OpenAI().info(saved(state_of(), "a.pt"))
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    same = OpenAI().info({"path": str(tmp_path / "b.pt")})
    other = OpenAI().info(saved(state_of(activation_state_dict={"k": K - 1, "postact_fn": "ReLU"}), "c.pt"))
    assert len({one.sha256, other.sha256}) == 2
    assert (one.architecture, one.facts["k"], one.hook_name) == ("topk", K, None)
    assert one.sha256 == same.sha256
    assert OpenAI().info(saved(state_of("ReLU"))).architecture == "standard"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"encoder.weight": torch.zeros(D, N)},
            r"'encoder.weight' is transposed: found \[32, 80\], expected \[80, 32\]",
        ),
        (
            {"decoder.weight": torch.zeros(D, N - 1)},
            r"'decoder.weight' is \[32, 79\], expected \[32, 80\]; check 'pre_bias'",
        ),
        ({"pre_bias": torch.zeros(D, 1)}, r"'pre_bias' is \[32, 1\], expected one dimension, d_in"),
        ({"encoder.bias": torch.zeros(N)}, r"unexpected tensor 'encoder.bias' \[80\]"),
        ({"latent_bias": torch.full((N,), torch.inf)}, r"'latent_bias' holds 80 NaN or infinite values"),
        ({"activation": "Identity"}, r"'activation' is 'Identity', expected 'ReLU' or 'TopK'"),
        ({"activation": torch.zeros(1)}, r"'activation' is Tensor, expected 'ReLU' or 'TopK'"),
        ({"activation_state_dict": {}}, r"expected a positive whole number in 'activation_state_dict.k', found None"),
        ({"activation_state_dict": {"k": torch.ones(99)}}, r"expected a positive whole number in 'activation_state_dict.k', found 'Tensor'"),
        ({"activation_state_dict": {"k": N + 1}}, r"k' is 81, more than the 80 features"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, r"'postact_fn' of its TopK is 'Identity'"),
        ({"activation_state_dict": [K]}, r"expected a dict in 'activation_state_dict', found list"),
        ({"config": {"k": 3}}, r"expected a tensor in 'config', found dict"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, saved, changes, sentence):
    with pytest.raises(SaevalError, match=sentence) as raised:
        OpenAI().load(saved(state_of(**changes)))
    assert str(tmp_path / "6.pt") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tied_weights_are_missing(saved):
    state = state_of()
    state["decoder.linear.weight"] = state.pop("decoder.weight").T
    with pytest.raises(SaevalError, match=r"'decoder.weight' is missing\); check 'use'"):
        OpenAI().info(saved(state))


def test_wrong_references():
    with pytest.raises(SaevalError, match=r"unknown parameter 'layer' of SAE format 'openai'"):
        OpenAI().info({"path": "x", "layer": 3})
    with pytest.raises(SaevalError, match=r"needs the parameter 'path', the .pt file"):
        OpenAI().info({})
