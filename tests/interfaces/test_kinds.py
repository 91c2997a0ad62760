"""Each kind of metric as a class of 25 lines or fewer, with the truth that it must find."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from saeval import Curve, Ever, Mean, Metric, Moments, SaevalError, Scalar, fold
from saeval.interfaces.data import Batch
from saeval.interfaces.quantity import paired
from saeval.testing import (
    TinyModel,
    TinyPairs,
    TinySAE,
    evaluate,
    evaluate_tiny,
    register_rows,
    tiny_plugins,
    tiny_tokens,
)


def saes(count, hook_name="blocks.1.hook_resid_pre"):
    return {f"sae-{hook_name[7]}-{i}": TinySAE(hook_name, seed=i) for i in range(count)}


class DeadFeatures(Metric):
    """Streaming: share of features that stay at or below `floor`."""

    name, version = "dead_features", 1

    def __init__(self, floor: float = 0.0):
        self.floor = floor

    def observe(self, feature_acts, mask):
        return Ever.of(feature_acts > self.floor, mask)

    def conclude(self, total):
        return Scalar(1 - total.share, unit="share of features", better="lower")


def test_streaming():
    model = TinyModel()
    results = evaluate_tiny([{"dead_features": {"floor": 1e9}}], DeadFeatures, model=model)
    assert results.value("dead_features")["value"] == 1
    assert model.passes == {"clean": 0, "cut": 2, "resumed": 0}


class TopOneKept(Metric):
    """Splicing: how often the most likely token survives the SAE, over how often it survives the ablation."""

    name, version = "top_one_kept", 1

    def __init__(self, ablation: str = "zero"):
        self.ablation = ablation

    def observe(self, spliced_scores, ablated_scores, mask):
        scores = {"sae": spliced_scores, "ablated": ablated_scores}
        return {name: Mean.of(score.top1_agreement.double(), mask) for name, score in scores.items()}

    def conclude(self, total):
        return Scalar(total["sae"].value / total["ablated"].value, better="higher")


def test_splicing():
    model = TinyModel()
    results = evaluate_tiny(["top_one_kept"], TopOneKept, model=model, controls=["identity", "zero"])
    assert results.value("top_one_kept", "zero")["value"] == 1  # the ablation over itself
    assert results.value("top_one_kept", "identity")["value"] >= 1
    # Identity, zero and the SAE, each once: the ablation is the control's own row.
    assert model.passes == {"clean": 2 + 1, "cut": 0, "resumed": 2 * 3 + 1}  # and the proofs of the model and the hook


class Shrinkage(Metric):
    """Curve: KL against the factor by which the activations are scaled."""

    name, version = "shrinkage", 1

    def __init__(self, factors: tuple[float, ...] = (0.5, 0.9, 1.0)):
        self.factors = factors
        self.interventions = [f"times {factor}" for factor in factors]

    def substitutes(self, activations):
        return {f"times {factor}": activations * factor for factor in self.factors}

    def observe(self, substitute_scores, mask):
        return {name: Mean.of(scores.kl, mask) for name, scores in substitute_scores.items()}

    def conclude(self, total):
        return Curve(self.factors, [mean.value for mean in total.values()], "factor", "nats")


def test_curve():
    model = TinyModel()
    results = evaluate_tiny(["shrinkage"], Shrinkage, model=model, saes=saes(2), batch_size=8)
    half, most, all_of_it = results[0].values["shrinkage"]["y"]
    assert half > most > all_of_it == pytest.approx(0, abs=1e-9)
    # They depend on the hook, not on the SAE: three resumes a batch serve both SAEs.
    assert model.passes == {"clean": 3 + 1, "cut": 0, "resumed": 9 + 1}  # and the proofs of the model and the hook


def scaled(activations, *, factor):
    """A function of its own for one intervention: of the hook alone."""
    return activations * factor


def blended(activations, reconstruction, mask, *, share=0.5):
    """Another, of the SAE."""
    return torch.where(mask[..., None], share * reconstruction + (1 - share) * activations, activations)


class Blends(Metric):
    """KL of scaled activations, and of halfway to the SAE's."""

    name, version = "blends", 1

    def __init__(self, factors: tuple[float, ...] = (0.5, 0.9)):
        scalings = {f"times {factor}": partial(scaled, factor=factor) for factor in factors}
        self.interventions = {**scalings, "halfway": blended}

    def observe(self, substitute_scores, mask):
        return {name: Mean.of(scores.kl, mask) for name, scores in substitute_scores.items()}

    def conclude(self, total):
        return {name: Scalar(mean.value) for name, mean in total.items()}


def test_interventions_that_are_functions_of_their_own_are_shared_where_they_are_equal():
    model = TinyModel()
    entries = [{"blends": {"factors": [0.5]}}, {"blends": {"factors": [0.5, 0.9], "as": "more"}}, "shrinkage"]
    results = evaluate_tiny(entries, Blends, Shrinkage, model=model, saes=saes(2), batch_size=8)
    # Of the hook: 0.5 and 0.9, whatever SAE and metric; of each SAE: halfway. Shrinkage makes its own three.
    assert model.passes == {"clean": 3 + 1, "cut": 0, "resumed": 3 * (2 + 2 + 3) + 1}  # and the proofs
    found = {(r.metric, r.subject): {name: v.get("value") for name, v in r.values.items()} for r in results}
    for name in ("sae-1-0", "sae-1-1"):
        assert found["blends", name].items() <= found["more", name].items()
        curve = next(r for r in results if r.metric == "shrinkage").values["shrinkage"]["y"]
        assert [found["more", name][f"times {factor}"] for factor in (0.5, 0.9)] == curve[:2]
    assert found["more", "sae-1-0"]["halfway"] != found["more", "sae-1-1"]["halfway"]
    assert found["more", "sae-1-0"]["times 0.5"] == found["more", "sae-1-1"]["times 0.5"]


def test_many_substitutes_are_scored_in_parts_that_bound_memory(monkeypatch):
    """Final hidden states wait for their one scoring call; no more than `GATHERED` of them."""
    from saeval.engine import evaluator
    from saeval.registry import builtin_quantities

    calls = []
    real = builtin_quantities.score_tokens

    def counted(model, batch, clean, finals, **options):
        calls.append(len(finals))
        return real(model, batch, clean, finals, **options)

    monkeypatch.setattr(builtin_quantities, "score_tokens", counted)
    factors = [1 + i / 100 for i in range(40)]
    first = evaluate_tiny([{"shrinkage": {"factors": factors}}], Shrinkage)[0].values
    assert max(calls) <= evaluator.GATHERED + 1
    monkeypatch.setattr(evaluator, "GATHERED", 1000)
    calls.clear()
    assert evaluate_tiny([{"shrinkage": {"factors": factors}}], Shrinkage)[0].values == first
    assert set(calls) == {40}


class DecoderNorm(Metric):
    """Mean norm of the decoder's rows."""

    name, version = "decoder_norm", 1

    def conclude(self, W_dec):
        return Scalar(float(W_dec.norm(dim=1).mean()), unit="norm")


def test_a_weights_only_metric_runs_no_forward_pass():
    model = TinyModel()
    results = evaluate_tiny(["decoder_norm"], DecoderNorm, model=model)
    assert results.value("decoder_norm.decoder_norm")["value"] == pytest.approx(1, abs=1e-6)
    assert sum(model.passes.values()) == 0


class FiringOverlap(Metric):
    """Tokens on which both SAEs fire at least one feature above a floor, at hooks of their own."""

    name, version, subject = "firing_overlap", 1, "group"

    def observe(self, feature_acts, activations, mask, hook_name):
        assert len(feature_acts) == len(activations) == len(hook_name) == 2
        both = (feature_acts[0].amax(-1) > 1) & (feature_acts[1].amax(-1) > 1)
        return {
            "both": Mean.of(both.double(), mask),
            "gap": Mean.of((activations[0] - activations[1]).norm(dim=-1), mask),
        }

    def conclude(self, total, W_dec):
        assert isinstance(W_dec, list)
        return {"both": Scalar(total["both"].value), "gap": Scalar(total["gap"].value)}


def test_a_group_gets_lists_in_member_order_its_members_at_different_hooks():
    members = {"a": TinySAE("blocks.1.hook_resid_pre"), "b": TinySAE("blocks.2.hook_resid_pre", seed=1)}
    model = TinyModel()
    results = evaluate_tiny(
        [{"firing_overlap": {"over": "g", "controls": []}}],
        FiringOverlap,
        model=model,
        saes=members,
        groups={"g": ["a", "b"]},
    )
    (result,) = results
    assert result.status == "ok", result.traceback
    assert [s["name"] for s in result.cell["subjects"]] == ["a", "b"]
    assert result.values["gap"]["value"] > 0
    assert model.passes["clean"] == 0
    assert model.passes["cut"] == 2


class Margin(Metric):
    """Reward margin, and how much of it the SAE keeps."""

    name, version, data = "margin", 1, "pair"

    def observe(self, clean_reward, spliced_reward, divergence, gradient, feature_acts, mask):
        chosen, rejected = clean_reward
        assert divergence.shape == chosen.shape
        assert gradient[0].shape[:2] == feature_acts[0].shape[:2] == mask[0].shape
        first_order = (gradient[0].norm(dim=-1) * mask[0]).sum(-1)
        return {
            "clean": Mean.of(chosen - rejected),
            "spliced": Mean.of(spliced_reward[0] - spliced_reward[1]),
            "sensitivity": Mean.of(first_order),
        }

    def conclude(self, total):
        return {name: Scalar(mean.value) for name, mean in total.items()}


def test_pairs_come_as_chosen_and_rejected_and_one_gradient_serves_every_sae():
    model = TinyModel(kind="reward")
    results = evaluate_tiny(["margin"], Margin, model=model, rows=TinyPairs(), saes=saes(3), batch_size=5)
    assert [r.status for r in results] == ["ok"] * 3, results[0].traceback
    # Two batches, two sides: a clean pass, three SAEs spliced and one gradient each.
    assert model.passes == {"clean": 4 + 1, "cut": 0, "resumed": 4 * (3 + 1) + 1}  # and the proofs, on one side
    pairs = TinyPairs()
    batch = pairs.batch(range(len(pairs)), "cpu")
    rewards = [model.capture(side, [], True).final for side in batch.sides]
    assert results.value("margin.clean", "sae-1-0")["value"] == pytest.approx(float((rewards[0] - rewards[1]).mean()))


class TwoPass(Metric):
    """Mean distance from the mean, asking for a fold of its own through a quantity."""

    name, version = "two_pass", 1

    def observe(self, activations, mask, my_mean, feature_moments):
        assert feature_moments.sum.shape == (32,)
        return Mean.of((activations - my_mean).norm(dim=-1), mask)

    def conclude(self, total, activation_moments):
        return Scalar(total.value, n=activation_moments.n)


def my_mean(activation_moments: Moments) -> torch.Tensor:
    """The mean again."""
    return torch.from_numpy(activation_moments.mean).float()


@fold
def feature_moments(feature_acts, mask):
    """Fold of the SAE."""
    return Moments.of(feature_acts, mask)


def test_folds_run_in_an_earlier_pass_once_for_their_roots():
    model = TinyModel()
    results = evaluate_tiny(
        ["two_pass"], TwoPass, model=model, saes=saes(2), quantities=[my_mean, feature_moments], batch_size=8
    )
    assert [r.status for r in results] == ["ok", "ok"], results[0].traceback
    assert model.passes == {"clean": 0, "cut": 3 + 3, "resumed": 0}


class Hits(Metric):
    """Ground truth: the data source knows which features are on."""

    name, version = "hits", 1

    def observe(self, feature_acts, true_features, mask):
        return Mean.of(((feature_acts > 0) == (true_features > 0)).double().mean(-1), mask)

    def conclude(self, total):
        return Scalar(total.value, better="higher")


class Planted(type(tiny_tokens())):
    """Activations made from known features."""

    supplies = frozenset({"activations", "true_features"})
    needs_model = False

    def batch(self, rows, device):
        found = super().batch(rows, device)
        generator = torch.Generator().manual_seed(0)
        features = (torch.rand(24, 12, 32, generator=generator) > 0.9).float()[torch.as_tensor(rows)]
        supplied = {"true_features": features, "activations": features @ TinySAE().W_dec}
        return Batch(**{**vars(found), "supplied": supplied})


def test_ground_truth_needs_no_model_and_what_does_is_refused():
    base = tiny_tokens()
    rows = Planted(base.tokens, base.documents, base.clusters, base.excluded)
    common = {"data": register_rows("planted", rows), "saes": [TinySAE()], "plugins": tiny_plugins(Hits)}
    results = evaluate(
        **common, metrics=["hits", "reconstruction", "l0"], controls=["mean", {"use": "random", "seeds": 1}]
    )
    assert not results.failed, results.failed[0].traceback
    assert results.value("hits", "tinysae")["value"] > 0.8
    assert results.value("reconstruction.explained_variance", "mean")["value"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(SaevalError, match="needs a model"):
        evaluate(**common, metrics=["ce"])


class Erased(Metric):
    """Pairs and interventions together: the reward margin with the hook scaled down after the sides part."""

    name, version, data = "erased", 1, "pair"
    interventions = ("kept", "gone")

    def substitutes(self, activations, divergence):
        after = torch.arange(activations.shape[1]) >= divergence[:, None]
        return {"kept": activations, "gone": activations.masked_fill(after[..., None], 0)}

    def observe(self, substitute_reward, clean_reward, reward_gap):
        chosen, rejected = substitute_reward
        margins = {name: Mean.of(chosen[name] - rejected[name]) for name in self.interventions}
        return {**margins, "clean": Mean.of(clean_reward[0] - clean_reward[1]), "gap": Mean.of(reward_gap)}

    def conclude(self, total):
        return {name: Scalar(mean.value) for name, mean in total.items()}


@paired
def reward_gap(clean_reward):
    """Chosen minus rejected: a quantity that sees both sides."""
    return clean_reward[0] - clean_reward[1]


@fold
@paired
def gap_total(clean_reward):
    """Fold over pairs that sees both sides at once."""
    return Mean.of(clean_reward[0] - clean_reward[1])


def test_interventions_on_pairs_and_quantities_that_see_both_sides():
    model = TinyModel(kind="reward")
    results = evaluate_tiny(
        ["erased"], Erased, model=model, rows=TinyPairs(), saes=saes(2), quantities=[reward_gap], batch_size=5
    )
    values = {name: record["value"] for name, record in results[0].values.items()}
    assert values["kept"] == pytest.approx(values["clean"], rel=1e-5)
    assert values["gap"] == pytest.approx(values["clean"], rel=1e-12)
    assert values["gone"] != pytest.approx(values["clean"], rel=1e-2)
    assert model.passes == {
        "clean": 4 + 1,
        "cut": 0,
        "resumed": 4 * 2 + 1,
    }  # two batches of two sides, whatever the SAEs


def test_a_fold_may_see_both_sides():
    class Late(Metric):
        name, version, data = "late", 1, "pair"

        def observe(self, clean_reward):
            return Mean.of(clean_reward[0] - clean_reward[1])

        def conclude(self, total, gap_total):
            return {"own": Scalar(total.value), "fold": Scalar(gap_total.value)}

    values = evaluate_tiny(["late"], Late, model=TinyModel(kind="reward"), rows=TinyPairs(), quantities=[gap_total])[
        0
    ].values
    assert values["fold"]["value"] == values["own"]["value"] != 0


def test_a_quantity_about_pairs_is_refused_on_text():
    class Gap(Metric):
        name = "gap"

        def observe(self, reward_gap):
            return Mean.of(reward_gap)

        def conclude(self, total):
            return Scalar(total.value)

    with pytest.raises(SaevalError, match="'reward_gap' needs preference pairs, and this data has none"):
        evaluate_tiny(["gap"], Gap, quantities=[reward_gap])


@pytest.mark.parametrize(
    "kind", [DeadFeatures, TopOneKept, Shrinkage, Blends, DecoderNorm, FiringOverlap, Margin, Hits, TwoPass, Erased]
)
def test_each_kind_is_25_lines_or_fewer(kind):
    assert len(inspect.getsource(kind).splitlines()) <= 25
