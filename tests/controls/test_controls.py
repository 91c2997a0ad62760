"""Controls: what each must do by its definition, and that none of it depends on how the data were cut up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from maps import predictable_rows, strong_model
from saeval import evaluate
from saeval.base.errors import Undefined
from saeval.interfaces.live_objects import LiveSAE
from saeval.results.leaderboard import from_results
from saeval.stats.evidence import Sample, Stamp
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import every, some
from saeval_controls.constant import Identity
from saeval_controls.fitted import alive_features, parent_l0
from saeval_controls.projection import PCA
from saeval_controls.shuffled import ShuffledDecoder, ShuffledFeatures, deranged
from saeval_controls.untrained import Random
from saeval_fidelity.features import L0
from saeval_fidelity.prediction import CrossEntropy, KLDivergence
from saeval_fidelity.reconstruction import Reconstruction
from saeval_reports import tables

ALL = [
    "pca",
    "resample",
    {"use": "shuffled_decoder", "seeds": 2},
    {"use": "shuffled_features", "seeds": 2},
]
DRAWN = [*ALL[:2], "random", "shuffled_decoder", "shuffled_features"]
EXACT = "donot_use_mm_for_euclid_dist"
HOOK = "blocks.1.hook_resid_pre"
PER_SAE = ["pca", "shuffled_decoder", "shuffled_features"]


def sample_of(rows, seed=0):
    """Rows as a fold's sample, none left out."""
    one = Sample.of(rows[None], torch.ones(1, len(rows), dtype=torch.bool), 8192, seed)
    return one.stamp(Stamp(np.zeros(1, int), np.zeros(1, int), 1))


def live(sae=None, **options):
    return LiveSAE(sae or TinySAE(**options))


def rows_like(n=500, d=16, seed=0):
    """Rows with unequal variances and a mean far from nought."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    spread = torch.linspace(3, 0.1, d, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * spread @ turn + 5


@pytest.mark.parametrize("k", [1, 4, 15])
def test_principal_components_explain_the_share_of_the_largest_variances(k):
    x = rows_like()
    made = PCA().build(live(), float(k), sample_of(x))
    x_hat = made.decode(None, x[None])[0]
    centred = x - x.mean(0)
    variances = torch.linalg.svdvals(centred).square()
    explained = 1 - (x - x_hat).square().sum() / centred.square().sum()
    assert float(explained) == pytest.approx(float(variances[:k].sum() / variances.sum()), abs=1e-6)


def test_principal_components_are_undefined_where_they_would_be_all_or_none():
    x = sample_of(rows_like())
    with pytest.raises(Undefined, match="16 components of 16 are all"):
        PCA().build(live(), 15.6, x)
    with pytest.raises(Undefined, match="no component"):
        PCA().build(live(), 0.2, x)


def test_principal_components_are_as_many_as_the_parents_features():
    x, sae = sample_of(rows_like().float() - 5), live()
    l0 = parent_l0(sae, x)
    rows = torch.from_numpy(x.rows)
    assert l0 == pytest.approx(float((sae.encode(rows[None]).feature_acts != 0).sum(-1).double().mean()))
    assert PCA().build(sae, l0, x).components.shape == (16, round(l0))


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_leaves_no_alive_feature_in_its_place_and_every_other(n):
    alive = np.zeros(60, dtype=bool)
    alive[np.random.default_rng(n).permutation(60)[:n]] = True
    permutation = deranged(alive, 0, 1)
    assert sorted(permutation) == list(range(60))
    assert np.array_equal(permutation != np.arange(60), alive)
    if n == 50:
        assert not np.array_equal(permutation, deranged(alive, 0, 2))


def test_fewer_than_two_alive_features_cannot_be_exchanged():
    with pytest.raises(Undefined, match="1 features fire"):
        deranged(np.arange(9) == 3, 0)


def test_shuffled_directions_are_the_parents_weights_with_rows_exchanged():
    x, sae = rows_like().float() - 5, live()
    sae._weights["b_enc"][:4] = sae.module.b_enc[:4] = -1e3  # four dead features
    alive = alive_features(sae, sample_of(x))
    assert not alive[:4].any()
    assert alive[4:].all()
    made = ShuffledDecoder().build(sae, alive, copy=3)
    encoding = made.encode(x[None])
    assert torch.equal(encoding.feature_acts, sae.encode(x[None]).feature_acts)
    weights = made.weights
    by_hand = encoding.feature_acts @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(made.decode(encoding, x[None]), by_hand, rtol=1e-5, atol=1e-5)
    same = (weights["W_dec"] == sae.weights["W_dec"]).all(1)
    assert same.tolist() == (~torch.from_numpy(alive)).tolist()
    assert torch.equal(weights["W_dec"].sort(0).values, sae.weights["W_dec"].sort(0).values)


def test_shuffled_features_are_those_of_another_token_drawn_by_its_key():
    x, sae = rows_like().float() - 5, live()
    made = ShuffledFeatures().build(sae, sample_of(x), HOOK, copy=0)
    keys = np.arange(3000, dtype=np.uint64).reshape(3, 1000) * 977
    shown = torch.zeros(3, 1000, 16)
    encoding = made.at(keys).encode(shown)
    candidates = sae.encode(x[None]).feature_acts[0]
    nearest = torch.cdist(encoding.feature_acts[0], candidates, compute_mode=EXACT).min(1)
    assert float(nearest.values.max()) < 1e-4
    assert len(set(nearest.indices.tolist())) > 300  # of 500: all over the reservoir
    # A token's draw is its own: in another row, another batch, the same.
    again = made.at(keys[2:, 500:]).encode(shown[2:, 500:])
    torch.testing.assert_close(again.feature_acts, encoding.feature_acts[2:, 500:])
    other = ShuffledFeatures().build(sae, sample_of(x), HOOK, copy=1).at(keys).encode(shown)
    elsewhere = ShuffledFeatures().build(sae, sample_of(x), "blocks.2.hook_resid_pre", copy=0).at(keys).encode(shown)
    for drawn in (other, elsewhere):
        same = (drawn.feature_acts == encoding.feature_acts).all(-1).double().mean()
        assert float(same) < 0.02  # 1 in 500 by chance
    with pytest.raises(ValueError, match="token_keys"):
        made.encode(shown)


def fit_and_evaluation():
    """Rows and a fit split of other documents."""
    return register_rows("split", tiny_tokens(rows=200, seed=1), tiny_tokens(rows=200, seed=2))


def run(metrics, controls, **options):
    return evaluate(
        model=TinyModel(), saes={"sae": TinySAE()}, data=fit_and_evaluation(), metrics=metrics, controls=controls,
        plugins=tiny_plugins(), allow=("*",), **options,
    )  # fmt: skip


def test_controls_keep_what_they_promise_of_the_parents_sparsity():
    results = run(["l0", "density"], ["shuffled_decoder", "shuffled_features", "pca"])
    mine = results.value("l0.l0", "sae")
    exchanged = results.value("l0.l0", "shuffled_decoder(sae)")
    assert exchanged["value"] == mine["value"]
    others = results.value("l0.l0", "shuffled_features(sae)")
    assert others["value"] == pytest.approx(mine["value"], rel=0.02)
    assert others["value"] != mine["value"]
    for quantile in ("l0_p5", "l0_p50", "l0_p95"):
        there = results.value(f"l0.{quantile}", "shuffled_features(sae)")["value"]
        assert abs(there - results.value(f"l0.{quantile}", "sae")["value"]) <= 1
    dense = next(r for r in results if r.subject == "pca(sae)" and r.metric == "l0")
    assert (dense.status, dense.reason) == ("undefined", "pca has no features")


def test_wrong_places_explain_less_than_right_ones():
    results = run(["reconstruction"], ALL)
    explained = {r.subject: r.values["explained_variance"]["value"] for r in results}
    assert every(value < explained["sae"] for name, value in explained.items() if name not in ("sae", "pca(sae)"))
    # x of another token has the mean and the variance of x, and nothing in common with it.
    assert explained["resample"] == pytest.approx(-1, abs=0.05)
    assert explained["pca(sae)"] > 0


@pytest.mark.parametrize("control", PER_SAE)
def test_a_parent_without_features_has_no_such_control(control):
    parent, x = Identity().build(), sample_of(rows_like())
    builds = {
        "pca": lambda: PCA().build(parent, 3.0, x),
        "shuffled_decoder": lambda: ShuffledDecoder().build(parent, np.ones(32, bool), copy=0),
        "shuffled_features": lambda: ShuffledFeatures().build(parent, x, HOOK, copy=0),
    }
    for refused in (builds[control], lambda: alive_features(parent, x), lambda: parent_l0(parent, x)):
        with pytest.raises(Undefined, match="no features"):
            refused()


def test_every_control_can_be_set_against_paired_and_positive_where_the_sae_is_better():
    named = ["identity", "zero", "mean", "resample", "pca", "random", "shuffled_decoder", "shuffled_features"]
    found = run(["reconstruction", "ce", "l0"], ["identity", "zero", "mean", *DRAWN])
    wanted = {name: ["reconstruction.explained_variance", "ce.delta_ce"] for name in named}
    (board,) = from_results(found, "t", {"against": {**wanted, "zero": [*wanted["zero"], "reconstruction.cosine"]}})
    sae = next(row for row in board.rows if row.kind == "sae")
    controls = {row.control: row for row in board.rows if row.kind == "control"}
    assert sorted(controls) == sorted(named)
    for name, row in some(controls.items()):
        for column, sign in (("reconstruction.explained_variance", 1), ("ce.delta_ce", -1)):
            ahead, own, other = sae.entries[f"{column} vs {name}"], sae.entries[column], row.entries[column]
            assert ahead.value == pytest.approx(sign * (own.value - other.value), abs=1e-12)
            paired = (own.estimate - other.estimate).stderr
            assert ahead.stderr == pytest.approx((paired**2 + other.spread * (row.copies + 1)) ** 0.5)  # one draw more
            assert ahead.detectable > 2.8 * ahead.stderr  # the t quantiles of few documents
            assert (other.spread > 0) == (row.copies > 1)
            assert row.entries[f"{column} vs {name}"].status == "for SAEs only"
    assert controls["random"].copies == controls["shuffled_decoder"].copies == 5
    assert sae.entries["reconstruction.explained_variance vs identity"].value < 0
    assert sae.entries["reconstruction.explained_variance vs resample"].value > 0
    # Nothing that has no features has an L0, and what a control lacks has no difference.
    for name in ("identity", "zero", "mean", "resample", "pca"):
        assert controls[name].entries["l0.l0"].status == "undefined"
    lacking = sae.entries["reconstruction.cosine vs zero"]
    assert (lacking.value, lacking.status) == (None, "undefined")
    assert "every token's reconstruction or activation is zero" in lacking.reason


def test_the_table_says_which_saes_are_surely_ahead():
    found = run(["reconstruction"], ["identity", "zero", "resample"])
    layout = {"rank_by": "reconstruction.mse", "against": ["zero", "resample", "identity"]}
    boards = from_results(found, "t", layout)
    text = tables.markdown(boards)
    assert "reconstruction.mse vs resample: 1 of 1 is better than the control resample: sae (5% level" in text
    assert "reconstruction.mse vs identity: 1 of 1 is worse than the control identity: sae (5% level" in text
    record = json.loads(tables.as_json(boards))[0]
    lead = record["reconstruction.mse vs zero"], record["reconstruction.mse vs zero.detectable"]
    assert lead[1] > 2.8 * record["reconstruction.mse vs zero.stderr"]
    # Said once more, of the other control: the sentence and the numbers agree.
    assert (lead[0] > lead[1]) == ("reconstruction.mse vs zero: 1 of 1 is better" in text)


def test_untrained_saes_have_their_parents_sparsity_tied_weights_and_the_best_scale():
    x, sae = rows_like().float(), live()
    sample = sample_of(x)
    made = [Random().build(sae, 3.4, sample, sample, copy) for copy in (0, 0, 1)]
    acts = made[0].encode(x[None]).feature_acts
    assert ((acts != 0).sum(-1) <= 3).all()
    assert float((acts != 0).sum(-1).double().mean()) > 2.9
    weights = made[0].weights
    assert weights["W_dec"].shape == (32, 16)
    torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(32))
    torch.testing.assert_close(weights["W_enc"], made[0].scale * weights["W_dec"].T)
    torch.testing.assert_close(weights["b_dec"], x.mean(0), rtol=1e-5, atol=1e-5)

    def error(scale):
        made[0].scale = scale
        return float((x - made[0].decode(made[0].encode(x[None]), x)[0]).double().square().sum())

    best = made[0].scale
    assert error(best) < min(error(0.99 * best), error(1.01 * best))
    assert torch.equal(made[0].W_dec, made[1].W_dec)
    assert not torch.equal(made[0].W_dec, made[2].W_dec)
    assert Random().copies >= 5


def test_a_transcoder_has_no_untrained_counterpart_of_tied_weights():
    x = rows_like().float()
    with pytest.raises(Undefined, match="reads other activations than it writes"):
        Random().build(live(), 3.0, sample_of(x + 1), sample_of(x), copy=0)


def test_resample_ablation_recovers_nothing_for_the_control_of_that_name():
    metrics = [{"ce": {"ablation": "resample"}}, {"kl": {"ablation": "resample"}}]
    model = TinyModel()
    rows = predictable_rows(strong_model())
    results = evaluate_tiny(
        metrics, model=model, rows=rows, saes={"sae": TinySAE()}, controls=["resample"], batch_size=24
    )
    assert results.value("ce.recovered", "resample")["value"] == 0
    assert results.value("kl.kl_score", "resample")["value"] == 0
    assert results.value("ce.ce_ablated", "sae")["value"] == results.value("ce.ce_sae", "resample")["value"]
    assert results.value("ce.recovered", "sae")["value"] is not None
    assert model.passes == {"clean": 1 + 1 + 1, "cut": 0, "resumed": 2 + 1}  # the ablation is the control, run once


def test_resample_draws_from_the_fit_split_alone():
    data = fit_and_evaluation()
    seen = []

    class Watching(TinySAE):
        def encode(self, x):
            seen.append(x)
            return super().encode(x)

    evaluate(
        model=TinyModel(), saes={"sae": Watching()}, data=data, metrics=["l0"], controls=["shuffled_features"],
        plugins=tiny_plugins(), allow=("*",), batch_size=200,
    )  # fmt: skip
    fit = tiny_tokens(rows=200, seed=2).batch(range(200), "cpu")
    allowed = TinyModel().capture(fit, [HOOK], False).activations[HOOK][fit.mask]
    drawn = seen[-1].flatten(0, 1)  # the control's own encoding comes last
    assert float(torch.cdist(drawn, allowed, compute_mode=EXACT).min(1).values.max()) < 1e-3


@pytest.mark.parametrize("control", [ShuffledDecoder, ShuffledFeatures])
def test_draws_are_counted_and_at_least_one(control):
    assert control(seeds=3).copies == 3
    with pytest.raises(ValueError, match="at least 1"):
        control(seeds=0)


@pytest.mark.parametrize("metric", [L0, Reconstruction])
def test_controls_do_not_depend_on_how_the_rows_were_cut_up(metric):
    check_metric(metric, controls=ALL, by_position=["by_position"])


@pytest.mark.parametrize("metric", [CrossEntropy, KLDivergence])
def test_resample_ablation_does_not_depend_on_how_the_rows_were_cut_up(metric):
    check_metric(metric, {"ablation": "resample"}, controls=["resample"])
