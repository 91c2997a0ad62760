"""SAELens' own objects: those that only its classes compute, and those that a user passes live."""

from __future__ import annotations

import sys

import pytest
import sae_lens
import torch

import saeval
from saelens_files import (
    D_IN,
    D_SAE,
    HOOK,
    KINDS,
    activations,
    edit_config,
    edit_weights,
    load,
    matching_pursuit,
    random_sae,
    saved,
    temporal,
)  # fmt: skip
from saeval.base.errors import SaevalError
from saeval.testing import TinyModel, evaluate_tiny, tiny_tokens
from saeval_formats.saelens import SAELens
from saeval_formats.saelens_objects import LibrarySAE

pytestmark = pytest.mark.usefixtures("own_cache")

OBJECTS = {
    "matching_pursuit": matching_pursuit,
    "matching_pursuit-layer_norm": lambda: matching_pursuit(normalize_activations="layer_norm"),
    "temporal": temporal,
    "temporal-untied": lambda: temporal(tied_weights=False, sae_diff_type="relu"),
    "temporal-scaled": lambda: temporal(
        normalize_activations="constant_scalar_rescale", activation_normalization_factor=0.3
    ),
    "temporal-rescaled": lambda: temporal(normalize_activations="constant_norm_rescale"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_only_the_library_computes(tmp_path, kind, caplog):
    theirs = OBJECTS[kind]()
    theirs.save_model(tmp_path)
    info, ours, x = SAELens().info({"path": str(tmp_path)}), load(tmp_path), activations()
    assert (info.architecture, info.hook_name, info.d_in, info.d_sae) == (kind.split("-")[0], HOOK, D_IN, D_SAE)
    with torch.no_grad():
        expected, acts = theirs(x), theirs.encode(x)
        encoding = ours.encode(x)
        assert 0 < (acts > 0).float().mean() < 1
        torch.testing.assert_close(encoding.feature_acts, acts)
        torch.testing.assert_close(ours.decode(encoding, x), expected, atol=1e-5, rtol=1e-5)
    assert "only decodes" not in caplog.text
    assert isinstance(ours, LibrarySAE)


def test_the_librarys_version_is_in_the_key_of_what_it_computes(tmp_path, monkeypatch):
    temporal().save_model(tmp_path / "temporal")
    saved(random_sae("standard"), tmp_path / "standard")
    references = [{"path": str(tmp_path / name)} for name in ("temporal", "standard")]
    before = [SAELens().info(reference).sha256 for reference in references]
    monkeypatch.setattr("saeval_formats.saelens_config.version", lambda name: "0.0")
    after = [SAELens().info(reference).sha256 for reference in references]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_settings_and_weights_of_the_librarys_are_checked(tmp_path):
    temporal().save_model(tmp_path)
    before = SAELens().info({"path": str(tmp_path)}).sha256
    edit_config(tmp_path, kval_topk=7)
    assert SAELens().info({"path": str(tmp_path)}).sha256 != before
    edit_config(tmp_path, n_heads=3)
    with pytest.raises(SaevalError, match="SAELens cannot build this SAE"):
        SAELens().info({"path": str(tmp_path)})
    edit_config(tmp_path, n_heads=2, bottleneck_factor=2)
    with pytest.raises(SaevalError, match=r"'attn_layers\.0\.k_ctx\.weight' is \[10, 40\], expected \[20, 40\]"):
        SAELens().info({"path": str(tmp_path)})
    edit_config(tmp_path, bottleneck_factor=4)
    edit_weights(tmp_path, lambda tensors: tensors["attn_layers.0.v_ctx.weight"].fill_(float("nan")))
    with pytest.raises(SaevalError, match=r"'attn_layers\.0\.v_ctx\.weight' holds 1600 NaN"):
        load(tmp_path)
    with pytest.raises(SaevalError, match="'fold_W_dec_norm' is not for 'matching_pursuit' SAEs"):
        load(saved(matching_pursuit(), tmp_path / "mp"), fold_W_dec_norm=True)


def test_without_the_library(tmp_path, monkeypatch):
    """Dense SAEs need no SAELens; what does says how to get it."""
    dense, pursuit = saved(random_sae("jumprelu"), tmp_path / "dense"), saved(matching_pursuit(), tmp_path / "pursuit")
    for name in [name for name in sys.modules if name.split(".")[0] == "sae_lens"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    assert load(dense).d_sae == D_SAE
    reference = {"release": "gpt2-small-res-jb", "id": "blocks.8.hook_resid_pre"}
    for call in (
        lambda: SAELens().info({"path": str(pursuit)}),
        lambda: SAELens().info(reference),
        lambda: SAELens().expand({"release": "gpt2-small-res-jb", "ids": "*"}),
    ):
        with pytest.raises(SaevalError, match=r'pip install "saeval\[saelens\]"'):
            call()


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_live_objects_keep_nothing(kind, normalization):
    """Batches may be encoded before others are decoded, and the object is as it was."""
    theirs = random_sae(kind, normalize_activations=normalization)
    live = SAELens().wrap(theirs, None, "mine")
    before = dict(vars(theirs))
    first, second = activations(1), activations(2) * 5
    with torch.no_grad():
        expected = [theirs(first), theirs(second)]
        encodings = [live.encode(first), live.encode(second)]
        for x, encoding, x_hat in zip((first, second), encodings, expected, strict=True):
            torch.testing.assert_close(live.decode(encoding, x), x_hat, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(live.decode(encoding, x), x_hat, atol=1e-6, rtol=1e-6)  # twice is once
    assert vars(theirs) == before


def test_live_weights_belong_to_the_features():
    live = SAELens().wrap(random_sae("topk-rescaled"), None, "mine")
    x = activations()
    with torch.no_grad():
        encoding = live.encode(x)
        by_hand = encoding.feature_acts @ live.weights["W_dec"] + live.weights["b_dec"]
        torch.testing.assert_close(live.decode(encoding, x), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("used_before", [False, True])
def test_live_hook_z_takes_flattened_heads(used_before):
    theirs = random_sae("standard")
    theirs.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    theirs.turn_on_forward_pass_hook_z_reshaping()
    x = activations()
    heads = x.reshape(3, 7, 4, D_IN // 4)
    with torch.no_grad():
        if used_before:
            theirs(heads)
        live = SAELens().wrap(theirs, None, "mine")
        found = live.decode(live.encode(x), x)
        torch.testing.assert_close(found, theirs(heads).flatten(-2), atol=1e-6, rtol=1e-6)
        assert theirs(heads).shape == heads.shape  # the user's own calls are as they were


def test_live_objects_in_a_suite():
    """Two live SAEs of one hook, whose features and reconstructions are asked for in any order."""
    saes = [random_sae("standard", seed=seed, normalize_activations="layer_norm") for seed in (0, 1)]
    for sae in saes:
        sae.cfg.metadata.hook_name = HOOK
    model, rows = TinyModel(d_model=D_IN), tiny_tokens()
    results = evaluate_tiny(["l0", "reconstruction", "ce"], model=model, saes=saes, rows=rows)
    assert not results.failed, results.failed[0].traceback
    batch = rows.batch(range(len(rows)), "cpu")
    x = model.capture(batch, [HOOK], False).activations[HOOK]
    for name, sae in zip(("standardsae", "standardsae-1"), saes, strict=True):
        with torch.no_grad():
            error = ((x - sae(x)).square().sum(-1)[batch.mask]).mean()
        assert results.value("reconstruction.mse", name)["value"] == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)), "save_inf"),
    ],
)
def test_live_objects_that_are_refused(made, sentence):
    with pytest.raises(SaevalError, match=sentence):
        saeval.evaluate(model=None, saes=[(made(), HOOK)], data={"use": "python-stdlib"}, metrics=["l0"])
