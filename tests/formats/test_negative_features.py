"""Features may be negative: they fire where they are not 0, and what is largest of them is so in magnitude."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints import activations, assert_same, assert_same_in_a_suite
from saelens_files import D_IN, HOOK, K, load, random_sae, saved
from saelens_files import activations as saelens_activations
from saelens_files import assert_same as assert_same_as_library
from saeval.base.errors import SaevalError
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny
from saeval.testing.claims import some
from saeval_formats.dense import DenseSAE
from saeval_formats.saelens_objects import LibrarySAE
from saeval_formats.sparsify import Sparsify
from sparsify_files import signed_formula, write

sae_lens = pytest.importorskip("sae_lens")


class Negated(TinySAE):
    """The same SAE with the signs of features and of decoder rows exchanged."""

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.W_dec = -self.W_dec

    def encode(self, x):
        return -super().encode(x)


def test_a_loaded_abstopk_fires_in_both_directions(tmp_path):
    sae = random_sae("abstopk")
    ours = load(saved(sae, tmp_path))
    assert isinstance(ours, DenseSAE)
    x = saelens_activations()
    acts = ours.encode(x).feature_acts
    assert (acts < 0).any()
    assert (acts > 0).any()
    assert ((acts != 0).sum(-1) == K).all()
    assert_same_as_library(ours, sae_lens.AbsTopKSAE.load_from_disk(tmp_path), x)
    with pytest.raises(SaevalError, match="'fold_W_dec_norm' is not for this SAE"):
        load(tmp_path, fold_W_dec_norm=True)


def test_a_live_abstopk_is_called_as_it_is():
    theirs = random_sae("abstopk")
    ours = LibrarySAE(theirs, HOOK)
    x = saelens_activations()
    assert ours.d_in == D_IN
    assert torch.equal(ours.encode(x).feature_acts, theirs.encode(x))


def test_an_abstopk_in_a_suite(tmp_path):
    config = sae_lens.AbsTopKSAEConfig(d_in=16, d_sae=32, k=5)
    config.metadata.hook_name = "blocks.1.hook_resid_pre"
    torch.manual_seed(0)
    sae = sae_lens.AbsTopKSAE(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    sae.save_model(tmp_path / "abs")
    results = evaluate_tiny(["l0", "density"], saes=[{"use": "saelens", "path": str(tmp_path / "abs"), "name": "abs"}])
    assert results.value("l0.l0", "abs")["value"] == 5
    assert results.value("l0.l0_p5", "abs")["value"] == 5
    assert results[0].cell["subjects"][0]["k"] == 5
    density = results.value("density.frac_above_10pct", "abs")
    assert density["value"] > 0.5


def test_sparsify_signed(tmp_path):
    folder = write(tmp_path / "layers.1", signed=True)
    assert_same(Sparsify(), {"path": str(folder)}, signed_formula(folder))
    acts = Sparsify().load({"path": str(folder)}).encode(activations()).feature_acts
    assert (acts < 0).any()
    info, plain = Sparsify().info({"path": str(folder)}), Sparsify().info({"path": str(write(tmp_path / "layers.2"))})
    assert info.architecture == "signed_topk"
    assert info.sha256 != plain.sha256


FEATURES = ["l0", "density", {"functional_stability": {"over": "g", "alive_firings": 1, "draws": 2}}]


def test_what_counts_features_does_not_mind_their_signs():
    plain = evaluate_tiny(FEATURES, saes={"a": TinySAE(), "b": TinySAE(seed=1)}, groups={"g": ["*"]})
    negative = evaluate_tiny(FEATURES, saes={"a": Negated(), "b": Negated(seed=1)}, groups={"g": ["*"]})
    assert [r.status for r in negative] == ["ok"] * len(plain)
    for one, other in some(zip(plain, negative, strict=True)):
        numbers = [{n: v.get("value") for n, v in r.values.items() if "kind" not in v} for r in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], nan_ok=True)


def test_attributions_and_contexts_are_those_of_the_positive_twin():
    metric = {
        "reward_attribution": {"steps": 2, "tolerance": 10.0, "top": 3, "groups": [1, 2], "random": 4, "contexts": 2}
    }

    def found(sae):
        (result,) = evaluate_tiny(
            [metric], rows=TinyPairs(24), model=TinyModel(kind="reward"), saes={"sae": sae}, batch_size=24
        )
        assert result.status == "ok", result.reason
        return result.values

    plain, negative = found(TinySAE()), found(Negated())
    scalars = [n for n, v in plain.items() if "kind" not in v and v["value"] is not None]
    assert len(scalars) > 10
    for name in some(scalars):
        assert negative[name]["value"] == pytest.approx(plain[name]["value"], rel=1e-4, abs=1e-6), name
    rows = [
        [dict(zip(v["contexts"]["columns"], row, strict=True)) for row in v["contexts"]["rows"]]
        for v in (plain, negative)
    ]
    assert len(rows[0]) > 3
    for one, other in some(zip(*rows, strict=True)):
        assert (one["feature"], one["pair"], one["tokens"]) == (other["feature"], other["pair"], other["tokens"])
        assert other["activation"] == pytest.approx(-one["activation"])
        assert one["activation"] > 0
        assert json.loads(other["activations"]) == pytest.approx([-a for a in json.loads(one["activations"])], abs=1e-3)


def test_a_suite_reads_a_signed_sparse_coder(tmp_path):
    folder = write(tmp_path / "h.1.mlp", signed=True)
    assert_same_in_a_suite(tmp_path, {"use": "sparsify", "path": str(folder)}, signed_formula(folder), "h.1.mlp")
