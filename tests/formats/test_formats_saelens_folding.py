"""What SAELens folds into weights, folded from the files of an unfinished run: the library's own folding, per kind."""

from __future__ import annotations

import json

import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from saelens_files import D_IN, KINDS, activations, assert_same, edit_config, load, random_sae, saved
from saeval.base.errors import SaevalError
from saeval_formats.saelens import SAELens

pytestmark = pytest.mark.usefixtures("own_cache")

WHITENING = "activation_whitening.safetensors"


def statistics(seed: int = 3) -> dict[str, torch.Tensor]:
    """Of activations that vary a hundred times less in some directions than in others, in float64 as SAELens keeps."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64))[0]
    spread = torch.logspace(-1, 1, D_IN, dtype=torch.float64)
    mean = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    return {
        "mean": mean,
        "matrix": (axes / spread).contiguous(),
        "inverse_matrix": (spread[:, None] * axes.T).contiguous(),
    }


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whitening(tmp_path, kind, apply_b_dec_to_input):
    """Against the library's folding, and against whitening the activations by hand."""
    sae = random_sae(kind, normalize_activations="covariance_whitening", apply_b_dec_to_input=apply_b_dec_to_input)
    saved(sae, tmp_path)
    found = statistics()
    with pytest.raises(SaevalError, match=f"without {WHITENING}: the weights are for whitened activations"):
        load(tmp_path)
    save_file(found, tmp_path / WHITENING)
    ours, x = load(tmp_path), activations()

    # On whitened activations, in the units that the SAE was trained in.
    z = ((x.double() - found["mean"]) @ found["matrix"]).float()
    with torch.no_grad():
        acts = sae.encode(z)
        z_hat = sae.decode(acts).double()
    x_hat = (z_hat @ found["inverse_matrix"] + found["mean"]).float()
    encoding = ours.encode(x)
    torch.testing.assert_close(encoding.feature_acts, acts, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(encoding, x), x_hat, atol=5e-5, rtol=1e-5)

    sae.double().fold_activation_whitening(found["mean"], found["matrix"], found["inverse_matrix"])
    sae.to(torch.float64)
    exact = SAELens().load({"path": str(tmp_path)}, "cpu", torch.float64)
    assert_same(exact, sae, activations().double())


def test_whitening_is_part_of_the_identity(tmp_path):
    saved(random_sae("standard", normalize_activations="covariance_whitening"), tmp_path)
    save_file(statistics(), tmp_path / WHITENING)
    before = SAELens().info({"path": str(tmp_path)}).sha256
    save_file(statistics(seed=4), tmp_path / WHITENING)
    assert SAELens().info({"path": str(tmp_path)}).sha256 != before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("mean"), "'mean' is missing"),
        (lambda s: s.update(matrix=s["matrix"][:, :-1].contiguous()), r"'matrix' is \[12, 11\], expected \[12, 12\]"),
        (lambda s: s["mean"].fill_(float("nan")), "'mean' holds 12 NaN"),
    ],
)
def test_wrong_whitening(tmp_path, change, sentence):
    saved(random_sae("standard", normalize_activations="covariance_whitening"), tmp_path)
    found = statistics()
    change(found)
    save_file(found, tmp_path / WHITENING)
    with pytest.raises(SaevalError, match=sentence) as raised:
        load(tmp_path)
    assert str(tmp_path / WHITENING) in str(raised.value)


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "topk-rescaled"])
def test_decoder_norms(tmp_path, kind, normalization):
    sae = random_sae(kind, normalize_activations=normalization)
    saved(sae, tmp_path)
    ours = load(tmp_path, fold_W_dec_norm=True)
    plain = load(tmp_path)
    sae.fold_W_dec_norm()
    assert_same(ours, sae, activations())
    torch.testing.assert_close(ours.weights["W_dec"].norm(dim=-1), torch.ones(ours.d_sae))
    x = activations()
    torch.testing.assert_close(ours.decode(ours.encode(x), x), plain.decode(plain.encode(x), x), atol=1e-5, rtol=1e-5)
    asked = {"path": str(tmp_path), "fold_W_dec_norm": True}
    assert SAELens().info(asked).sha256 != SAELens().info({"path": str(tmp_path)}).sha256


def test_decoder_norms_of_a_dead_row(tmp_path):
    """A row of zeros stays one, as in the library."""
    sae = random_sae("standard")
    with torch.no_grad():
        sae.W_dec[5] = 0
    saved(sae, tmp_path)
    sae.fold_W_dec_norm()
    assert_same(load(tmp_path, fold_W_dec_norm=True), sae, activations())


def test_decoder_norms_that_would_choose_other_features(tmp_path):
    saved(random_sae("topk"), tmp_path)
    with pytest.raises(SaevalError, match="'fold_W_dec_norm' is not for this SAE: the choice of the k largest"):
        load(tmp_path, fold_W_dec_norm=True)
    with pytest.raises(NotImplementedError):
        sae_lens.SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)
    with pytest.raises(SaevalError, match="'fold_W_dec_norm' of SAE format 'saelens': input should be a valid boolean"):
        load(tmp_path, fold_W_dec_norm="sometimes")


def test_the_run_that_wrote_the_factor(tmp_path):
    """As the library's own scaler saves it beside a training checkpoint."""
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    sae = random_sae("standard", normalize_activations="expected_average_only_in")
    saved(sae, tmp_path)
    ActivationScaler(scaling_factor=0.25).save(str(tmp_path / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(0.25)
    assert_same(load(tmp_path), sae, activations())

    found = statistics()
    whitening = ActivationWhitening(found["mean"], found["matrix"], found["inverse_matrix"])
    ActivationScaler(whitening=whitening).save(str(tmp_path / "activation_scaler.json"))
    with pytest.raises(
        SaevalError, match="'has_whitening' contradicts 'normalize_activations: expected_average_only_in'"
    ):
        load(tmp_path)
    edit_config(tmp_path, normalize_activations="covariance_whitening")
    assert load(tmp_path).d_in == D_IN
    assert set(load_file(tmp_path / WHITENING)) == {"mean", "matrix", "inverse_matrix"}
    assert json.loads((tmp_path / "activation_scaler.json").read_text())["has_whitening"]
