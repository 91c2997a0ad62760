"""The engine: forward passes counted, groups, pairs, gradients, interventions, failures, lifetimes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from saeval import Mean, Metric, Moments, SaevalError, Scalar, rebound
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens

ALL = ["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"]


def saes(count, hook_name="blocks.1.hook_resid_pre"):
    return {f"sae-{hook_name[7]}-{i}": TinySAE(hook_name, seed=i) for i in range(count)}


@pytest.mark.parametrize("count", [1, 3])
def test_one_clean_pass_and_one_resume_for_each_distinct_substitute(count):
    model, rows = TinyModel(), tiny_tokens(rows=20)
    results = evaluate_tiny(
        ALL, model=model, rows=rows, saes=saes(count), controls=["identity", "zero", "mean"], batch_size=4
    )
    assert {r.status for r in results} <= {"ok", "undefined"}
    # The zero and mean ablations are the controls of those names, so they are not run again.
    assert model.passes == {"clean": 5, "cut": 5, "resumed": 5 * (count + 3)}
    assert results.forward_passes == 5 + 5 + 5 * (count + 3)


def test_a_control_from_the_fit_split_adds_cut_passes_over_the_fit_rows_only():
    model = TinyModel()
    evaluate_tiny(ALL, model=model, rows=tiny_tokens(rows=20), controls=[{"use": "random", "seeds": 2}], batch_size=4)
    # 5 cut passes for the mean, 5 for the fit rows (here as many); 1 SAE, 2 random ones, 2 ablations.
    assert model.passes == {"clean": 5, "cut": 10, "resumed": 5 * 5}


def test_more_hooks_cost_no_further_clean_pass():
    model = TinyModel(layers=4)
    many = {**saes(2, "blocks.1.hook_resid_pre"), **saes(1, "blocks.3.hook_resid_pre")}
    evaluate_tiny(ALL, model=model, rows=tiny_tokens(rows=20), saes=many, batch_size=4)
    assert model.passes == {"clean": 5, "cut": 5, "resumed": 5 * (3 + 2 * 2)}
    # The cut pass stops at the deepest hook: block 3 runs in clean passes and resumes alone.
    assert model.blocks_run == [10, 10 + 5 * 4, 10 + 5 * 4, 5 + 5 * 7]


def test_without_scores_nothing_is_resumed_and_the_pass_is_cut():
    model = TinyModel()
    evaluate_tiny(["l0"], model=model, batch_size=8)
    assert model.passes == {"clean": 0, "cut": 3, "resumed": 0}
    assert model.blocks_run == [3, 0, 0]


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
        [{"firing_overlap": {"over": "g"}}], FiringOverlap, model=model, saes=members, groups={"g": ["a", "b"]}
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
    assert model.passes == {"clean": 4, "cut": 0, "resumed": 4 * (3 + 1)}
    pairs = TinyPairs()
    batch = pairs.batch(range(len(pairs)), "cpu")
    rewards = [model.capture(side, [], True).final for side in batch.sides]
    assert results.value("margin.clean", "sae-1-0")["value"] == pytest.approx(float((rewards[0] - rewards[1]).mean()))


def test_a_text_metric_on_pairs_is_refused():
    with pytest.raises(SaevalError, match="observes a stream of text"):
        evaluate_tiny(["l0"], model=TinyModel(kind="reward"), rows=TinyPairs())


def test_the_gradient_is_that_of_the_summed_log_likelihood():
    class Slope(Metric):
        name, version = "slope", 1

        def observe(self, gradient, activations, mask, model, batch, resume):
            step = 1e-4 * torch.ones_like(activations)

            def loglik(x):
                logp = model.unembed(resume(x)[mask]).log_softmax(-1)
                return logp.gather(-1, batch.targets[mask][:, None]).sum()

            numeric = (loglik(activations + step) - loglik(activations - step)) / 2
            return {"analytic": Mean.of((gradient * step).sum()[None]), "numeric": Mean.of(numeric[None])}

        def conclude(self, total):
            return {name: Scalar(mean.value) for name, mean in total.items()}

    sae = TinySAE(dtype=torch.float64)
    rows = tiny_tokens(rows=1)
    results = evaluate_tiny(["slope"], Slope, model=TinyModel(dtype=torch.float64), saes=[sae], rows=rows)
    values = results[0].values
    assert values["analytic"]["value"] == pytest.approx(values["numeric"]["value"], rel=1e-5)


class Nudge(Metric):
    """KL after moving the activations a little, at several strengths."""

    name, version = "nudge", 1

    def __init__(self, strengths: tuple[float, ...] = (0.0, 0.1, 1.0)):
        self.strengths = strengths
        self.interventions = [f"by-{s}" for s in strengths]

    def substitutes(self, activations):
        return {f"by-{s}": activations + s for s in self.strengths}

    def observe(self, substitute_scores, mask):
        return {name: Mean.of(scores.kl, mask) for name, scores in substitute_scores.items()}

    def conclude(self, total):
        return {name: Scalar(mean.value) for name, mean in total.items()}


def test_a_metric_may_name_substitutes_of_its_own():
    model = TinyModel()
    results = evaluate_tiny(["nudge"], Nudge, model=model, saes=saes(2), batch_size=8)
    values = results[0].values
    assert values["by-0.0"]["value"] == pytest.approx(0, abs=1e-9)
    assert 0 < values["by-0.1"]["value"] < values["by-1.0"]["value"]
    # They depend on the hook, not on the SAE: three resumes a batch serve both SAEs.
    assert model.passes == {"clean": 3, "cut": 0, "resumed": 9}


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


def feature_moments(feature_acts, mask) -> Moments:
    """Fold of the SAE."""
    return Moments.of(feature_acts, mask)


def test_folds_run_in_an_earlier_pass_once_for_their_roots():
    model = TinyModel()
    results = evaluate_tiny(
        ["two_pass"], TwoPass, model=model, saes=saes(2), quantities=[my_mean, feature_moments], batch_size=8
    )
    assert [r.status for r in results] == ["ok", "ok"], results[0].traceback
    assert model.passes == {"clean": 0, "cut": 3 + 3, "resumed": 0}


def test_a_fold_asked_for_by_conclude_alone_shares_the_metrics_own_pass():
    class Late(Metric):
        name, version = "late", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total, activation_moments):
            return Scalar(total.value, n=activation_moments.n)

    model = TinyModel()
    evaluate_tiny(["late"], Late, model=model, batch_size=8)
    assert model.passes == {"clean": 0, "cut": 3, "resumed": 0}


def clean_loss(clean_scores, mask) -> Mean:
    """Fold of the clean pass."""
    return Mean.of(clean_scores.nll, mask)


def test_a_fold_for_conclude_waits_for_the_pass_of_the_cells_where_others_need_an_earlier_one():
    class Relative(Metric):
        name, version = "relative", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total, clean_loss):
            return Scalar(total.value / clean_loss.value)

    model = TinyModel()
    results = evaluate_tiny(["relative", "ce"], Relative, model=model, quantities=[clean_loss], batch_size=8)
    assert [r.status for r in results] == ["ok", "ok"]
    assert model.passes == {"clean": 3, "cut": 3, "resumed": 6}


def test_a_crash_costs_its_own_cells_only():
    class Crash(Metric):
        name, version = "crash", 1

        def observe(self, feature_acts, mask):
            raise RuntimeError("planted")

        def conclude(self, total):
            return Scalar(0.0)

    class LateCrash(Metric):
        name, version = "late_crash", 1

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total):
            raise ZeroDivisionError("planted")

    results = evaluate_tiny(["crash", "l0", "late_crash", "ce"], Crash, LateCrash, batch_size=4)
    status = {r.metric: r.status for r in results}
    assert status == {"crash": "failed", "late_crash": "failed", "l0": "ok", "ce": "ok"}
    assert "planted" in results.failed[0].reason
    assert "RuntimeError" in results.failed[0].traceback
    assert "FAILED" in results.leaderboard()
    clean = evaluate_tiny(["l0", "ce"], batch_size=4)
    assert results.value("ce.delta_ce") == clean.value("ce.delta_ce")


def test_evidence_that_does_not_add_up_costs_its_own_cell():
    class Fickle(Metric):
        name, version = "fickle", 1

        def observe(self, mask, batch):
            return {f"from-{batch.sequence_ids[0]}": Mean.of(mask.double())}

        def conclude(self, total):
            return Scalar(0.0)

    class Plain(Metric):
        name, version = "plain", 1

        def observe(self, mask):
            return 3.0

        def conclude(self, total):
            return Scalar(total)

    results = evaluate_tiny(["fickle", "plain", "l0"], Fickle, Plain, batch_size=8)
    assert [r.status for r in results] == ["failed", "failed", "ok"]
    assert "names may not change" in results[0].reason
    assert "return an Evidence" in results[1].reason


def test_a_crashing_sae_spares_the_others_of_its_batch():
    class Broken(TinySAE):
        def decode(self, feature_acts):
            raise RuntimeError("planted")

    results = evaluate_tiny(["ce", "l0"], saes={"good": TinySAE(), "bad": Broken(seed=1)})
    status = {(r.subject, r.metric): r.status for r in results}
    assert status[("bad", "ce")] == "failed"
    assert status[("bad", "l0")] == status[("good", "ce")] == status[("good", "l0")] == "ok"


def test_nothing_outlives_its_last_consumer():
    alive = []

    class Watch(TinySAE):
        def encode(self, x):
            if x.shape[0] < 24:  # the preflight's few tokens
                return super().encode(x)
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1, "features of earlier SAEs are still held"
            acts = super().encode(x)
            alive.append(weakref.ref(acts))
            return acts

    many = {f"s{i}": Watch(seed=i) for i in range(4)}
    results = evaluate_tiny(ALL, saes=many, batch_size=24)
    assert not results.failed, results.failed[0].traceback
    assert len(alive) == 4


def test_an_unknown_request_is_refused_before_anything_runs_with_the_nearest_name():
    class Typo(Metric):
        name, version = "typo", 1

        def observe(self, feature_act, mask):
            return Mean.of(feature_act.sum(-1), mask)

        def conclude(self, total):
            return Scalar(total.value)

    model = TinyModel()
    with pytest.raises(SaevalError, match=r"unknown quantity 'feature_act'; did you mean 'feature_acts'\?"):
        evaluate_tiny(["typo"], Typo, model=model)
    assert sum(model.passes.values()) == 0


def test_conclude_may_not_ask_for_a_batch():
    class Greedy(Metric):
        name, version = "greedy", 1

        def conclude(self, feature_acts):
            return Scalar(0.0)

    with pytest.raises(SaevalError, match="belongs to a batch"):
        evaluate_tiny(["greedy"], Greedy)


def test_a_rebound_quantity_sees_another_substitute():
    @rebound(subject="against")
    def other_reconstruction(reconstruction):
        """The reconstruction of the control that `against` names."""
        return reconstruction

    class Distance(Metric):
        name, version = "distance", 1

        def __init__(self, against: str = "zero"):
            self.against = against

        def observe(self, reconstruction, other_reconstruction, mask):
            return Mean.of((reconstruction - other_reconstruction).norm(dim=-1), mask)

        def conclude(self, total):
            return Scalar(total.value)

    class Norm(Metric):
        name, version = "norm", 1

        def observe(self, reconstruction, mask):
            return Mean.of(reconstruction.norm(dim=-1), mask)

        def conclude(self, total):
            return Scalar(total.value)

    results = evaluate_tiny(["distance", "norm"], Distance, Norm, quantities=[other_reconstruction])
    assert results.value("distance")["value"] == results.value("norm")["value"]


def test_saes_that_do_not_fit_together_go_to_further_passes(monkeypatch):
    monkeypatch.setattr("saeval.engine.memory_budget", lambda device: 8 * 16 * 32 * 2)
    model = TinyModel()
    together = evaluate_tiny(["l0", "ce"], saes=saes(4), batch_size=24)
    apart = evaluate_tiny(["l0", "ce"], model=model, saes=saes(4), batch_size=24)
    assert model.passes["clean"] == 2
    for a, b in zip(together, apart, strict=True):
        assert a.values == b.values


def test_live_saes_that_differ_in_anything_are_told_apart():
    """A number, a function, a config: whatever changes what an object computes changes its key."""

    class Scaled(TinySAE):
        def __init__(self, scale=1.0, function=torch.relu):
            super().__init__()
            self.scale, self.function = scale, function

        def decode(self, acts):
            return self.scale * super().decode(self.function(acts))

    def shifted(by):
        return lambda acts: acts + by

    saes = {
        "one": Scaled(),
        "half": Scaled(0.5),
        "zeroed": Scaled(function=lambda acts: 0 * acts),
        "doubled": Scaled(function=lambda acts: 2 * acts),
        "near": Scaled(function=shifted(0.1)),
        "far": Scaled(function=shifted(5.0)),
    }
    results = evaluate_tiny(["reconstruction"], saes=saes)
    assert len({r.key for r in results}) == len(saes)
    assert len({r.values["mse"]["value"] for r in results}) == len(saes)
    again = evaluate_tiny(["reconstruction"], saes={"one": Scaled(), "half": Scaled(0.5)})
    assert [r.cell["subjects"][0]["key"] for r in again] == [r.cell["subjects"][0]["key"] for r in results[:2]]


def broken_sae(value):
    class Broken(TinySAE):
        """One number of its reconstruction is not finite."""

        def decode(self, acts):
            out = super().decode(acts)
            out[0, 1, 0] = value
            return out

    return Broken(seed=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_sae_that_gives_no_number_costs_its_own_cells(value):
    results = evaluate_tiny(ALL, saes={"good": TinySAE(), "bad": broken_sae(value)})
    alone = evaluate_tiny(ALL, saes={"good": TinySAE()})
    for result in (r for r in results if r.subject == "good"):
        (same,) = [r for r in alone if r.metric == result.metric]
        assert result.status == same.status
        assert result.values == same.values
    mse = results.value("reconstruction.mse", "bad")
    assert mse["value"] is None
    assert mse["reason"]


def test_evidence_that_cannot_be_stored_is_its_own_cells_failure():
    import dataclasses

    from saeval import Evidence

    @dataclasses.dataclass
    class Loose(Evidence):
        things: dict

    class Odd(Metric):
        name, version = "odd", 1

        def observe(self, mask):
            return Loose({"a": 1})

        def conclude(self, total):
            return Scalar(1.0)

    results = evaluate_tiny(["odd", "l0"], Odd, checkpoint_seconds=0.0, batch_size=4)
    assert [r.status for r in results] == ["failed", "ok"]
    assert "could not be stored" in results[0].reason


def test_a_fold_over_the_fit_split_may_be_asked_for_by_conclude_alone():
    from saeval import fit_split

    @fit_split
    def fit_moments(activations, mask) -> Moments:
        """Moments over the fit split."""
        return Moments.of(activations, mask)

    class Shift(Metric):
        name, version = "shift", 1

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total, fit_moments):
            return Scalar(total.value, n=fit_moments.n)

    results = evaluate_tiny(["shift"], Shift, quantities=[fit_moments])
    assert results[0].status == "ok", results[0].traceback
    assert results.value("shift")["n"] > 0


def test_a_failure_holds_on_to_no_batch():
    alive = []

    class Leaky(Metric):
        name, version = "leaky", 1

        def observe(self, activations):
            large = activations * 2
            alive.append(weakref.ref(large))
            raise RuntimeError("planted")

        def conclude(self, total):
            return Scalar(0.0)

    class Watch(Metric):
        name, version = "watch", 1

        def observe(self, mask, batch):
            gc.collect()
            if batch.sequence_ids[0] > 0:
                assert all(ref() is None for ref in alive)
            return Mean.of(mask.double())

        def conclude(self, total):
            return Scalar(total.value)

    results = evaluate_tiny(["leaky", "watch"], Leaky, Watch, batch_size=8)
    assert [r.status for r in results] == ["failed", "ok"], results[1].traceback
    assert "large = activations * 2" not in (results[1].traceback or "")
    assert "planted" in results[0].traceback


def test_data_that_supplies_activations_needs_no_model():
    """Ground truth: activations made from known features; nothing asks for a model, and what does is refused."""
    from saeval.data import Batch
    from saeval.testing import evaluate, register_rows, tiny_plugins

    class Planted(type(tiny_tokens())):
        supplies = frozenset({"activations", "true_features"})
        needs_model = False

        def batch(self, rows, device):
            found = super().batch(rows, device)
            generator = torch.Generator().manual_seed(0)
            features = (torch.rand(24, 12, 32, generator=generator) > 0.9).float()[torch.as_tensor(rows)]
            supplied = {"true_features": features, "activations": features @ TinySAE().W_dec}
            return Batch(**{**vars(found), "supplied": supplied})

    class Hits(Metric):
        name, version = "hits", 1

        def observe(self, feature_acts, true_features, mask):
            return Mean.of(((feature_acts > 0) == (true_features > 0)).double().mean(-1), mask)

        def conclude(self, total):
            return Scalar(total.value, better="higher")

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
