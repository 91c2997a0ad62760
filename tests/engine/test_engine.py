"""The engine: forward passes counted, groups, pairs, gradients, interventions, failures, lifetimes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from saeval import Mean, Metric, SaevalError, Scalar, rebound
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some

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
    # The preflight proves the model causal by a clean pass and the hook by a resume. Its other clean pass serves the first batch of the pass for the mean.
    assert model.passes == {"clean": 5 + 2, "cut": 5 - 1, "resumed": 5 * (count + 3) + 1}
    assert results.forward_passes == 5 + 5 + 5 * (count + 3) + 2


def test_a_control_from_the_fit_split_adds_cut_passes_over_the_fit_rows_only():
    model = TinyModel()
    evaluate_tiny(ALL, model=model, rows=tiny_tokens(rows=20), controls=[{"use": "random", "seeds": 2}], batch_size=4)
    # 5 cut passes for the mean, 5 for the fit rows (here as many), the first of them the preflight's clean one;
    # 1 SAE, 2 random ones, 2 ablations, and the two proofs.
    assert model.passes == {"clean": 5 + 2, "cut": 10 - 1, "resumed": 5 * 5 + 1}


def test_more_hooks_cost_no_further_clean_pass():
    model = TinyModel(layers=4)
    many = {**saes(2, "blocks.1.hook_resid_pre"), **saes(1, "blocks.3.hook_resid_pre")}
    evaluate_tiny(ALL, model=model, rows=tiny_tokens(rows=20), saes=many, batch_size=4)
    assert model.passes == {"clean": 5 + 2, "cut": 5 - 1, "resumed": 5 * (3 + 2 * 2) + 2}
    # The cut passes stop at the deepest hook: block 3 runs in clean passes and resumes alone.
    assert model.blocks_run == [11, 11 + 5 * 4 + 1, 11 + 5 * 4 + 1, 5 + 2 + 5 * 7 + 2]


def test_without_scores_nothing_is_resumed_and_the_pass_is_cut():
    model = TinyModel()
    evaluate_tiny(["l0"], model=model, batch_size=8)
    assert model.passes == {"clean": 0, "cut": 3, "resumed": 0}
    assert model.blocks_run == [3, 0, 0]


def test_a_text_metric_on_pairs_is_refused():
    with pytest.raises(SaevalError, match="needs a stream of text, which data 'in-memory' is not"):
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

    with pytest.raises(SaevalError, match="is per-batch; request it in observe"):
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
    monkeypatch.setattr("saeval.engine.loop.memory_budget", lambda device: 8 * 16 * 32 * 2)
    model = TinyModel()
    together = evaluate_tiny(["l0", "ce"], saes=saes(4), batch_size=24)
    apart = evaluate_tiny(["l0", "ce"], model=model, saes=saes(4), batch_size=24)
    assert model.passes == {"clean": 1 + 2 + 1, "cut": 0, "resumed": 4 + 2 * 1 + 1}
    for a, b in some(zip(together, apart, strict=True)):
        assert a.values == b.values


def test_live_saes_that_differ_in_anything_are_told_apart():
    """Whatever objects of one class compute: each has its own key."""

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
