"""The peers' own functions beside ours, where they are installed. They need old versions of much, so mostly not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compat_runs import BATCH, CONTEXT, EXCLUDED, HOOK, ROWS, Store, arrays, numbers, ours
from saeval.testing.claims import some


@pytest.fixture
def saebench():
    return pytest.importorskip("sae_bench.evals.core.main", reason="SAEBench is not installed")


@pytest.fixture
def dictionary_learning():
    return pytest.importorskip("dictionary_learning.evaluation", reason="dictionary_learning is not installed")


class Wrapped(torch.nn.Module):
    """An SAE with the configuration of the sae-lens that SAEBench was written for."""

    def __init__(self, new):
        super().__init__()
        self.W_enc, self.W_dec, self.b_enc = new.W_enc, new.W_dec, new.b_enc
        self.device, self.encode, self.decode = new.device, new.encode, new.decode
        self.cfg = SimpleNamespace(
            hook_name=HOOK, hook_layer=1, hook_head_index=None, d_sae=new.cfg.d_sae, architecture_str="standard"
        )


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("excluded", EXCLUDED.values(), ids=EXCLUDED)
def test_every_field_of_saebench(saebench, model, sae, tokens, excluded, flag):
    batches = -(-ROWS // BATCH)
    config = saebench.CoreEvalConfig(
        batch_size_prompts=BATCH, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches,
        compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True, exclude_special_tokens_from_reconstruction=flag,
    )  # fmt: skip
    theirs, features = saebench.run_evals(
        Wrapped(sae), Store(tokens[:, :CONTEXT]), model, config, ignore_tokens=set(excluded)
    )
    theirs["misc"] = saebench.calculate_misc_metrics(features)
    metrics = [
        {"saebench_downstream": {"exclude_special_tokens_from_reconstruction": flag}},
        {"saebench_variance": {"batch_size": BATCH}}, "saebench_features", "saebench_weights",
    ]  # fmt: skip
    results = ours(model, sae, tokens, metrics, excluded, boundary=5)
    found, lists = numbers(results), arrays(results)
    expected = {k: v for section, part in theirs.items() if section != "token_stats" for k, v in part.items()}
    assert set(found) == set(expected)
    for name, value in some(expected.items()):
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert set(lists) == set(features)
    for name, value in some(features.items()):
        assert lists[name] == pytest.approx(np.array(value), rel=1e-4, abs=1e-6, nan_ok=True), name


def test_every_field_of_dictionary_learning_but_the_losses(dictionary_learning, model, sae, tokens):
    class Dictionary:
        dict_size, activation_dim = sae.cfg.d_sae, sae.cfg.d_in

        def __call__(self, x, output_features):
            features = sae.encode(x)
            return sae.decode(features), features

    with torch.no_grad():
        x = model.run_with_cache(tokens[:, :CONTEXT], names_filter=[HOOK])[1][HOOK]
    batches = [rows.flatten(0, 1) for rows in x.split(BATCH)]
    expected = dictionary_learning.evaluate(Dictionary(), iter(batches), n_batches=len(batches))
    found = numbers(ours(model, sae, tokens, [{"dictionary_learning_evaluate": {"batch_size": BATCH}}], boundary=5))
    assert set(found) - set(expected) == {"loss_original", "loss_reconstructed", "loss_zero", "frac_recovered"}
    for name, value in some(expected.items()):
        assert found[name] == pytest.approx(value, rel=1e-4), name
