"""The SAELens loader against SAELens itself: same features, same reconstructions, and nothing kept between calls."""

from __future__ import annotations

import json

import pytest
import sae_lens
import torch

from saelens_files import (
    D_IN,
    D_SAE,
    FLAT,
    HOOK,
    KINDS,
    K,
    activations,
    assert_same,
    edit_config,
    edit_weights,
    load,
    random_sae,
    saved,
)
from saeval.base.errors import SaevalError
from saeval.interfaces.substitute import Encoding
from saeval_formats.saelens import SAELens

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_library(tmp_path, kind, apply_b_dec_to_input, normalization):
    sae = random_sae(kind, apply_b_dec_to_input=apply_b_dec_to_input, normalize_activations=normalization)
    ours = load(saved(sae, tmp_path))
    assert_same(ours, type(sae).load_from_disk(tmp_path), activations())


def test_b_dec_to_input_matters(tmp_path):
    sae = random_sae("standard", apply_b_dec_to_input=True)
    saved(sae, tmp_path)
    x = activations()
    with_bias = load(tmp_path).encode(x).feature_acts
    edit_config(tmp_path, apply_b_dec_to_input=False)
    assert (load(tmp_path).encode(x).feature_acts - with_bias).abs().max() > 0.1


def test_exported_batch_topk(tmp_path):
    """A training class exported as jumprelu with one threshold."""
    torch.manual_seed(0)
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)
    config.metadata.hook_name = HOOK
    trained = sae_lens.BatchTopKTrainingSAE(config)
    with torch.no_grad():
        trained.W_enc.copy_(torch.randn_like(trained.W_enc))
        trained.b_dec.copy_(torch.randn_like(trained.b_dec))
    trained.topk_threshold.fill_(0.4)
    trained.save_inference_model(tmp_path)
    assert SAELens().info({"path": str(tmp_path)}).architecture == "jumprelu"
    assert_same(load(tmp_path), sae_lens.SAE.load_from_disk(tmp_path), activations())

    trained.save_model(tmp_path / "checkpoint")
    with pytest.raises(SaevalError, match="save_inference_model"):
        SAELens().info({"path": str(tmp_path / "checkpoint")})


def test_decoding_is_stateless(tmp_path):
    """Two batches may be encoded before either is decoded, and features may be changed in between."""
    sae = random_sae("topk", normalize_activations="layer_norm")
    ours = load(saved(sae, tmp_path))
    first, second = activations(1), activations(2) * 5
    encoding = ours.encode(first)
    expected = ours.decode(encoding, first)
    ours.decode(ours.encode(second), second)
    assert torch.equal(ours.decode(encoding, first), expected)

    pruned = ours.decode(Encoding(torch.zeros_like(encoding.feature_acts), encoding.context), first)
    with torch.no_grad():
        sae.encode(first)
        torch.testing.assert_close(pruned, sae.decode(torch.zeros(3, 7, D_SAE)), atol=1e-5, rtol=1e-5)


def test_rescaled_weights_belong_to_the_features(tmp_path):
    ours = load(saved(random_sae("topk-rescaled"), tmp_path))
    x = activations()
    encoding = ours.encode(x)
    by_hand = encoding.feature_acts @ ours.weights["W_dec"] + ours.weights["b_dec"]
    torch.testing.assert_close(ours.decode(encoding, x), by_hand)
    torch.testing.assert_close(ours.weights["W_dec"].norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_zero_activations_give_finite_reconstructions(tmp_path, normalization):
    ours = load(saved(random_sae("standard", normalize_activations=normalization), tmp_path))
    x = torch.zeros(1, 2, D_IN)
    assert torch.isfinite(ours.decode(ours.encode(x), x)).all()


def test_hook_z_takes_flattened_heads(tmp_path):
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.0.attn.hook_z")
    torch.manual_seed(0)
    theirs = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, reshape_activations="hook_z", metadata=metadata)
    )
    ours = load(saved(theirs, tmp_path))
    x = activations()
    with torch.no_grad():
        heads = x.reshape(3, 7, 4, D_IN // 4)
        expected = theirs.decode(theirs.encode(heads)).reshape(3, 7, D_IN)
    assert ours.d_in == D_IN
    assert ours.hook_name == "blocks.0.attn.hook_z"
    torch.testing.assert_close(ours.decode(ours.encode(x), x), expected, atol=1e-5, rtol=1e-5)


def test_dtypes(tmp_path):
    """float16 files are computed with in float32; reconstructions come in the dtype of the activations."""
    saved(random_sae("standard"), tmp_path)
    x = activations()
    exact = load(tmp_path).encode(x).feature_acts
    edit_weights(tmp_path, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    ours = SAELens().load({"path": str(tmp_path)})
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.encode(x).feature_acts, exact, atol=2e-2, rtol=2e-2)
    assert ours.decode(ours.encode(x.bfloat16()), x.bfloat16()).dtype == torch.bfloat16
    assert SAELens().load({"path": str(tmp_path)}, "cpu", torch.float64).weights["W_enc"].dtype == torch.float64


def test_overflow_of_a_narrow_dtype(tmp_path):
    saved(random_sae("standard"), tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors["W_enc"].mul_(1e6))
    with pytest.raises(SaevalError, match=r"'W_enc' overflows torch\.float16"):
        SAELens().load({"path": str(tmp_path)}, "cpu", torch.float16)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("standard", {"activation_fn_str": "relu", "hook_name": HOOK}),
        ("standard", {"activation_fn_str": "relu", "hook_point": HOOK}),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_name": HOOK}),
        ("jumprelu", {"architecture": "jumprelu", "activation_fn_str": "relu", "hook_name": HOOK}),
        ("gated", {"architecture": "gated", "activation_fn_str": "relu", "hook_name": HOOK}),
    ],
)
def test_flat_configs(tmp_path, kind, said):
    """The layout before version 6, which the library still reads."""
    saved(random_sae(kind), tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**FLAT, **said}))
    info = SAELens().info({"path": str(tmp_path)})
    assert (info.hook_name, info.architecture, info.d_in, info.d_sae) == (HOOK, kind, D_IN, D_SAE)
    assert info.facts["model_name"] == "tiny"
    assert info.facts["context_size"] == 16
    assert_same(load(tmp_path), sae_lens.SAE.load_from_disk(tmp_path), activations())


def test_flat_activations_that_the_library_would_ignore(tmp_path):
    saved(random_sae("standard"), tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**FLAT, "activation_fn_str": "tanh-relu", "hook_name": HOOK}))
    with pytest.raises(SaevalError, match="'tanh-relu' of a standard SAE is not supported"):
        SAELens().info({"path": str(tmp_path)})


def test_scaling_factor_of_old_files(tmp_path):
    saved(random_sae("standard"), tmp_path)
    plain = load(tmp_path).encode(activations()).feature_acts
    edit_weights(tmp_path, lambda tensors: tensors.update(scaling_factor=torch.ones(D_SAE)))
    assert torch.equal(load(tmp_path).encode(activations()).feature_acts, plain)
    edit_weights(tmp_path, lambda tensors: tensors["scaling_factor"].mul_(1.1))
    with pytest.raises(SaevalError, match="'scaling_factor' is not all ones"):
        load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_input_scale(tmp_path, kind):
    """No-op as in the library without the factor; with the factor of an unfinished run, what folding it gives."""
    sae = random_sae(kind, normalize_activations="expected_average_only_in")
    saved(sae, tmp_path)
    assert "not folded" in SAELens().info({"path": str(tmp_path)}).facts["activation_scale"]
    assert_same(load(tmp_path), sae, activations())
    before = SAELens().info({"path": str(tmp_path)}).sha256

    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 1.7, "has_whitening": False}))
    sae.fold_activation_norm_scaling_factor(1.7)
    assert_same(load(tmp_path), sae, activations())
    assert SAELens().info({"path": str(tmp_path)}).sha256 != before

    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": -2}))
    with pytest.raises(SaevalError, match=r"expected a positive number in 'scaling_factor' .*, found -2"):
        load(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": True}))
    with pytest.raises(SaevalError, match="whitening"):
        load(tmp_path)


def test_info_reads_no_weights(tmp_path):
    saved(random_sae("topk"), tmp_path)
    info = SAELens().info({"path": str(tmp_path)})
    assert (info.hook_name, info.d_in, info.d_out, info.d_sae, info.architecture) == (HOOK, D_IN, D_IN, D_SAE, "topk")
    assert info.facts["k"] == K
    assert info.facts["prepend_bos"] is False
    edit_weights(tmp_path, lambda tensors: tensors["W_enc"].fill_(float("nan")))
    SAELens().info({"path": str(tmp_path)})  # values are not looked at
    with pytest.raises(SaevalError, match=r"'W_enc' holds 480 NaN or infinite values of 480"):
        load(tmp_path)


def test_identity(tmp_path):
    """The hash follows the numbers, not the name or the place."""
    info = SAELens().info
    one = {"path": str(saved(random_sae("topk"), tmp_path / "one"))}
    two = {"path": str(saved(random_sae("topk"), tmp_path / "two"))}
    other = {"path": str(saved(random_sae("topk", seed=1), tmp_path / "other"))}
    assert info(one).sha256 == info(two).sha256 != info(other).sha256
    edit_config(tmp_path / "two", metadata={"hook_name": "blocks.0.hook_resid_pre", "neuronpedia_id": "x"})
    assert info(one).sha256 == info(two).sha256
    edit_config(tmp_path / "two", k=K - 1)
    assert info(one).sha256 != info(two).sha256


def test_hook_name_of_the_reference_wins(tmp_path):
    saved(random_sae("standard"), tmp_path)
    assert load(tmp_path, hook_name="blocks.9.hook_mlp_out").hook_name == "blocks.9.hook_mlp_out"
    assert SAELens().info({"path": str(tmp_path), "hook_name": "x"}).hook_name == "x"
    edit_config(tmp_path, metadata={})
    assert SAELens().info({"path": str(tmp_path)}).hook_name is None


def test_sites_of_a_run(tmp_path):
    """Each folder below that holds an SAE, by its path; globs in `path` besides."""
    for place in ("a/blocks.10.hook_resid_pre", "a/blocks.2.hook_resid_pre", "b/blocks.2.hook_mlp_out"):
        saved(random_sae("standard"), tmp_path / place)
    found = SAELens().expand({"path": str(tmp_path / "a"), "sites": "blocks.*"})
    assert list(found) == ["blocks.2.hook_resid_pre", "blocks.10.hook_resid_pre"]
    assert SAELens().info(found["blocks.10.hook_resid_pre"]).hook_name == HOOK
    assert list(SAELens().expand({"path": str(tmp_path / "*"), "sites": "*.2.*"})) == [
        "a/blocks.2.hook_resid_pre",
        "b/blocks.2.hook_mlp_out",
    ]
    assert SAELens().expand({"path": str(tmp_path / "a")}) == {"": {"path": str(tmp_path / "a")}}
    with pytest.raises(SaevalError, match=r"a: no SAE matches 'sites: blocks\.3\*'"):
        SAELens().expand({"path": str(tmp_path / "a"), "sites": "blocks.3*"})
    with pytest.raises(SaevalError, match=r"no cfg.json; it holds 2 SAEs in folders: add 'sites:"):
        SAELens().info({"path": str(tmp_path / "a")})
