"""SAELens transcoders: the library's forward with the skip term, and the right two hooks in a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from saelens_files import activations, edit_config, edit_weights
from saeval.base.errors import SaevalError
from saeval.interfaces.substitute import Encoding
from saeval.testing import evaluate_tiny
from saeval.testing.architectures import tiny_model
from saeval.text.tokens import TokenDataset
from saeval_formats.saelens import SAELens
from transcoder_files import D_IN, D_OUT, D_SAE, KINDS, READS, WRITES, random_transcoder

pytestmark = pytest.mark.usefixtures("own_cache")


def loaded(folder, **reference):
    return SAELens().load({"path": str(folder), **reference}, "cpu", torch.float32)


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_library(tmp_path, kind, normalization):
    theirs = random_transcoder(kind, normalize_activations=normalization)
    theirs.save_model(tmp_path)
    theirs, ours, x = type(theirs).load_from_disk(tmp_path), loaded(tmp_path), activations()
    with torch.no_grad():
        encoding, acts, expected = ours.encode(x), theirs.encode(x), theirs(x)
        alone = theirs.decode(acts)
    assert torch.equal(encoding.feature_acts > 0, acts > 0)
    torch.testing.assert_close(encoding.feature_acts, acts, atol=1e-5, rtol=1e-5)
    found = ours.decode(encoding, torch.zeros(3, 7, D_OUT))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ("skip" in kind) == bool((found - alone).abs().max() > 0.1)

    changed = Encoding(acts * 0.5, encoding.context)
    with torch.no_grad():
        half = theirs.decode(acts * 0.5) + (expected - alone)
    torch.testing.assert_close(ours.decode(changed, x[..., :D_OUT]), half, atol=1e-5, rtol=1e-5)


def test_info(tmp_path):
    random_transcoder("jumprelu_skip_transcoder").save_model(tmp_path)
    info = SAELens().info({"path": str(tmp_path)})
    assert (info.d_in, info.d_sae, info.d_out) == (D_IN, D_SAE, D_OUT)
    assert (info.hook_name, info.input_hook) == (WRITES, READS)
    given = SAELens().info({"path": str(tmp_path), "hook_name": "a", "input_hook": "b"})
    assert (given.hook_name, given.input_hook) == ("a", "b")
    edit_config(tmp_path, metadata={"hook_name": "x", "hf_hook_name": "model.layers.1.norm.output"})
    info = SAELens().info({"path": str(tmp_path)})
    assert (info.hook_name, info.input_hook) == (None, "model.layers.1.norm")  # never what it reads for what it gives


def test_flat_configs(tmp_path):
    """The layout before version 6, which the library still reads."""
    random_transcoder("transcoder").save_model(tmp_path)
    flat = {"d_in": D_IN, "d_out": D_OUT, "d_sae": D_SAE, "dtype": "float32", "apply_b_dec_to_input": False}
    hooks = {"hook_name": READS, "hook_name_out": WRITES, "hook_layer": 1, "activation_fn_str": "relu"}
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "transcoder", **flat, **hooks}))
    info = SAELens().info({"path": str(tmp_path)})
    assert (info.hook_name, info.input_hook, info.d_out) == (WRITES, READS, D_OUT)
    x, theirs = activations(), sae_lens.Transcoder.load_from_disk(tmp_path)
    ours = loaded(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(ours.encode(x), x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("transcoder", {"apply_b_dec_to_input": True}, "'apply_b_dec_to_input' is not for transcoders"),
        ("transcoder", {"normalize_activations": "covariance_whitening"}, "is not for transcoders"),
        ("transcoder", {"d_out": None}, "expected a positive whole number in 'd_out', found None"),
        ("transcoder", {"d_out": D_IN}, r"'W_dec' is \[40, 9\], expected \[40, 12\]"),
        ("transcoder", {"architecture": "skip_transcoder"}, "'W_skip' is missing"),
        ("skip_transcoder", {"architecture": "transcoder"}, r"unexpected tensor 'W_skip' \[9, 12\]"),
    ],
)
def test_wrong_configs(tmp_path, kind, changes, sentence):
    random_transcoder(kind).save_model(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(SaevalError, match=sentence):
        SAELens().info({"path": str(tmp_path)})


def test_transposed_skip(tmp_path):
    random_transcoder("skip_transcoder").save_model(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update(W_skip=tensors["W_skip"].T))
    with pytest.raises(SaevalError, match=r"'W_skip' is transposed: found \[12, 9\], expected \[9, 12\]"):
        loaded(tmp_path)


def test_a_factor_of_the_inputs_is_refused(tmp_path):
    random_transcoder("transcoder", normalize_activations="expected_average_only_in").save_model(tmp_path)
    assert "not folded" in SAELens().info({"path": str(tmp_path)}).facts["activation_scale"]
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.0}))
    with pytest.raises(SaevalError, match="does not determine a transcoder's output scale"):
        SAELens().info({"path": str(tmp_path)})


@pytest.mark.parametrize("kind", ["transcoder", "jumprelu_skip_transcoder"])
def test_spliced_into_a_model(tmp_path, kind):
    """Through `evaluate`, from a file and as a live object, it does what hooks by hand do."""
    model = tiny_model("gpt2")
    mlp = model.transformer.h[1].mlp
    theirs = random_transcoder(kind, 32, 32, reads="transformer.h.1.mlp:in")
    theirs.save_model(tmp_path / "transcoder")
    rows = np.random.default_rng(0).integers(1, 97, (6, 13)).astype(np.int32)
    owners = np.arange(6, dtype=np.int32)

    results = evaluate_tiny(
        ["ce", "l0", "reconstruction"],
        model=model,
        saes=[{"use": "saelens", "path": str(tmp_path / "transcoder"), "name": "file"}, theirs],
        rows=TokenDataset.from_arrays(rows, np.repeat(owners[:, None], 13, axis=1), owners),
    )
    assert not results.failed, results.failed[0].traceback

    tokens, targets = torch.from_numpy(rows[:, :-1]).long(), torch.from_numpy(rows[:, 1:]).long()
    seen = {}
    handle = mlp.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    handle = mlp.register_forward_hook(lambda module, inputs, output: theirs(inputs[0]))
    with torch.no_grad():
        logits = model(tokens).logits
        error = (seen["y"] - theirs(seen["x"])).square().sum(-1).mean()
        l0 = (theirs.encode(seen["x"]) > 0).float().sum(-1).mean()
    handle.remove()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for name in ("file", type(theirs).__name__.lower()):
        assert results.value("ce.ce_sae", name)["value"] == pytest.approx(float(nll), abs=1e-5)
        assert results.value("reconstruction.mse", name)["value"] == pytest.approx(float(error), rel=1e-5)
        assert results.value("l0.l0", name)["value"] == pytest.approx(float(l0), rel=1e-6)


def test_a_live_transcoder_says_what_it_replaces():
    theirs = random_transcoder("transcoder", writes=None)
    with pytest.raises(SaevalError, match="name the hook that the transcoder replaces"):
        SAELens().wrap(theirs, None, "mine")
    live = SAELens().wrap(theirs, WRITES, "mine")
    assert (live.hook_name, live.input_hook, live.d_in, live.d_out) == (WRITES, READS, D_IN, D_OUT)


def test_decoder_norms_fold(tmp_path):
    theirs = random_transcoder("jumprelu_skip_transcoder")
    theirs.save_model(tmp_path)
    ours, x = loaded(tmp_path, fold_W_dec_norm=True), activations()
    theirs.fold_W_dec_norm()
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x).feature_acts, theirs.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.decode(ours.encode(x), x), theirs(x), atol=1e-5, rtol=1e-5)


def test_saved_by_hand_in_half_precision(tmp_path):
    theirs = random_transcoder("skip_transcoder")
    theirs.save_model(tmp_path)
    exact, x = loaded(tmp_path), activations()
    path = tmp_path / "sae_weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    ours = loaded(tmp_path)
    assert ours.W_skip.dtype == torch.float32
    torch.testing.assert_close(ours.decode(ours.encode(x), x), exact.decode(exact.encode(x), x), atol=0.3, rtol=0.05)
