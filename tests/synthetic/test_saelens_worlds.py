"""Synthetic models that sae-lens has saved: equal activations from equal draws, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

from given import evaluated
from saeval.plugin import SaevalError
from saeval_synthetic.saelens_files import load

synthetic = pytest.importorskip("sae_lens.synthetic")
N, ROWS = 60, 200


def saved(folder, hierarchy=True, correlated=True):
    """A synthetic model with everything in it, and its folder."""
    from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig

    config = synthetic.SyntheticModelConfig(
        num_features=N, hidden_dim=12, seed=5, bias=2.0,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=0.1),
        hierarchy=synthetic.HierarchyConfig(
            total_root_nodes=3, branching_factor=3, max_depth=2, mutually_exclusive_portion=0.6,
            compensate_probabilities=True, scale_children_by_parent=True,
        ) if hierarchy else None,
        correlation=LowRankCorrelationConfig(rank=4, correlation_scale=0.3) if correlated else None,
        mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(2.0, 1.0),
        std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(0.3, 0.2),
    )  # fmt: skip
    model = synthetic.SyntheticModel(config)
    model.save(folder)
    return model


class Recorded:
    """The draws of `torch.manual_seed(0)` in the order of sae-lens, for features that all fire by its own rule."""

    def __init__(self, generator):
        torch.manual_seed(0)
        if generator.low_rank_correlation is not None:
            factor, spread = generator.low_rank_correlation
            self.eps, eta = torch.randn(ROWS, factor.shape[1]), torch.randn(ROWS, N)
            fires = self.eps @ factor.T + eta * spread > generator.correlation_thresholds
            self.tail = norm.sf(eta.double().numpy())
        else:
            fires = torch.bernoulli(generator.firing_probabilities.expand(ROWS, -1)) > 0
            self.tail = np.where(fires, 1e-6, 1 - 1e-6)
        self.deltas = np.zeros((ROWS, N), np.float32)
        self.deltas[fires.numpy()] = torch.randn(int(fires.sum())).numpy()

    def latent(self, rank):
        return self.eps.numpy()

    def uniform(self, features):
        return (self.tail[:, features] * 2**32).astype(np.uint32)

    def uniform_at(self, row, feature):
        return (self.tail[row, feature] * 2**32).astype(np.uint32)

    def delta(self, row, feature):
        return self.deltas[row, feature]

    def priority(self, row, feature):
        return -feature


def first_wins(monkeypatch):
    """Let the first of the siblings win in sae-lens, in place of a random one."""
    ramp = lambda rows, count, **_: torch.linspace(1, 0.5, count).expand(rows, -1).clone()  # noqa: E731
    monkeypatch.setattr(synthetic.hierarchy.modifier.torch, "rand", ramp)


@pytest.mark.parametrize(("hierarchy", "correlated"), [(True, True), (False, True), (True, False), (False, False)])
def test_equal_draws_give_equal_activations(tmp_path, monkeypatch, hierarchy, correlated):
    model = saved(tmp_path, hierarchy, correlated)
    theirs = synthetic.SyntheticModel.load_from_disk(tmp_path)
    made, draws = load(tmp_path), Recorded(theirs.activation_generator)
    fires = made.drawn(draws, ROWS)
    ours = np.zeros((ROWS, N), np.float32)
    ours[fires.row, fires.feature] = fires.value
    first_wins(monkeypatch)
    torch.manual_seed(0)
    hidden, features = theirs.sample_with_features(ROWS)
    assert (ours > 0).sum() > 5 * ROWS
    assert ours == pytest.approx(features.numpy(), abs=1e-6)
    activations = made.activations(fires, np.zeros(ROWS, np.uint64)).numpy()
    assert activations == pytest.approx(hidden.detach().numpy(), abs=1e-5)
    assert model.cfg.num_features == made.n


def test_a_saved_model_is_a_data_source(tmp_path):
    saved(tmp_path)
    data = {"use": "saelens_synthetic", "path": str(tmp_path), "samples": 500, "context": 50, "fit_samples": 300}
    made = load(tmp_path)

    class True_:  # noqa: N801
        hook_name, W_dec = "activations", torch.from_numpy(made.directions)

        def encode(self, x):
            return (x @ self.W_dec.T).relu()

        def decode(self, acts):
            return acts @ self.W_dec

    results = evaluated(data, {"sae": True_()}, ["truth_recovery"], controls=["oracle_full"])
    assert results.value("truth_recovery.mcc", "sae")["value"] == pytest.approx(1, abs=1e-5)
    assert results.value("truth_recovery.f1", "oracle_full")["value"] == 1


def _without(folder, tensor):
    from safetensors.torch import load_file, save_file

    path = folder / "synthetic_model.safetensors"
    save_file({name: x.clone() for name, x in load_file(path).items() if name != tensor}, path)


def _magnitudes(folder):
    path = folder / "synthetic_model_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mean_firing_magnitudes": {"generator_name": "gamma"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "synthetic_model_config.json").unlink(), "no file synthetic_model_config.json"),
        (lambda f: _without(f, "bias"), "no tensor 'bias'"),
        (lambda f: _without(f, "correlation_diag"), "'correlation_diag' has the shape no tensor, expected [60]"),
        (lambda f: (f / "synthetic_model.safetensors").write_bytes(b"no"), "synthetic_model.safetensors"),
        (lambda f: (f / "hierarchy.json").write_text('{"roots": [{"feature_index": 99}]}'), "feature 99 of 60 does not exist"),
        (lambda f: (f / "hierarchy.json").write_text("[1]"), "not a hierarchy of sae-lens"),
        (_magnitudes, "unknown magnitudes"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(tmp_path, change, message):
    saved(tmp_path)
    change(tmp_path)
    with pytest.raises(SaevalError) as caught:
        evaluated({"use": "saelens_synthetic", "path": str(tmp_path), "samples": 100}, ["synthetic/topk-4"], ["l0"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SaevalError, match=r"no folder .*nowhere; it is the folder that sae-lens'"):
        evaluated({"use": "saelens_synthetic", "path": str(tmp_path / "nowhere")}, ["synthetic/topk-4"], ["l0"])
