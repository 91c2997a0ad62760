"""The metric `perturbation`: planted truths, passes counted, keyed noise, resumed runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from perturbations import Perturbation, PerturbationCurve, Planted, Readout, run, values
from saeval.interfaces.substitute import Control, Substitute
from saeval.results.verdicts import verdicts_on
from saeval.stats.estimate import Estimate
from saeval.stats.randomness import hashed, normal
from saeval.testing import TinyModel, TinySAE, check_metric, tiny_tokens
from saeval.testing.claims import some
from saeval_perturbation.geometry import matched
from saeval_perturbation.scored import NOT_TYPICAL, TAIL_EFFECT, noise_null
from saeval_perturbation.tails import ByKL

NULLS = ("", "_cosine_matched_covariance", "_shuffled_error", "_epsilon")


class Noisy(Substitute):
    """A matched draw of another seed in place of the parent's reconstruction."""

    def __init__(self, parent, seed, keys=None):
        self.parent, self.seed, self.keys = parent, seed, keys

    def at(self, token_keys):
        return Noisy(self.parent, self.seed, token_keys)

    def decode(self, encoding, activations):
        x_hat = self.parent.decode(self.parent.encode(activations), activations)
        g = normal(hashed(self.seed, self.keys), activations.shape[-1]).reshape(-1, activations.shape[-1])
        rows = (t.reshape(-1, t.shape[-1]).double() for t in (activations, x_hat))
        return matched(*rows, g).reshape(activations.shape).to(activations.dtype)


class PlantedNoise(Control):
    """An SAE whose error is a matched draw."""

    name, per = "planted_noise", "sae"

    def __init__(self, seed: int = 99):
        self.seed = seed

    def build(self, sae):
        return Noisy(sae, self.seed)


ROWS = tiny_tokens(rows=300, documents=100)


@pytest.fixture(scope="module")
def noisy():
    results = run(
        [{"perturbation": {"draws": 4, "positions": 2}}],
        rows=ROWS,
        control_classes=[PlantedNoise],
        controls=["planted_noise"],
    )
    (result,) = [r for r in results if r.subject.startswith("planted_noise")]
    return result


def test_a_planted_sae_whose_error_is_noise_has_ratio_one_and_a_uniform_percentile(noisy):
    for name in ("ratio", "alone_here_ratio", "alone_later_ratio"):
        low, high = noisy.values[name]["ci95"]
        assert low <= 1 <= high, name
        assert 0 < noisy.values[name]["stderr"] < 0.03, name
    for name in ("percentile", "alone_here_percentile", "alone_later_percentile"):
        record = noisy.values[name]
        assert abs(record["value"] - 0.5) < 3 * record["stderr"] < 0.06, name
    rows = noisy.values["percentiles"]["rows"]
    assert [level for level, _ in rows] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    counts = torch.tensor([float(count) for _, count in rows])
    assert counts.sum() == noisy.values["percentile"]["n"] > 2000
    share = counts / counts.sum()
    assert torch.allclose(share, torch.full((5,), 0.2), atol=4 * (0.16 / float(counts.sum())) ** 0.5)
    # An epsilon ball, which matches neither angle nor norm, calls the same noise better or worse than noise.
    low, high = noisy.values["ratio_epsilon"]["ci95"]
    assert not low <= 1 <= high


def test_a_planted_sae_whose_error_is_noise_is_not_told_from_it_but_from_an_epsilon_ball(noisy):
    made = replace(noisy, cell={**noisy.cell, "subjects": [{"name": "noise", "hook_name": "h", "kind": "sae"}]})
    claims = {verdict.column.value: verdict.claimed for verdict in verdicts_on([made])}
    assert claims["difference"] is False
    assert claims["difference_epsilon"] is True


def estimate(value, error):
    """A value with this standard error over 50 documents of one size."""
    deviations = np.resize([1.0, -1.0], 50)
    without = value + deviations * error * (50 / 49 / (deviations**2).sum()) ** 0.5
    return Estimate(value, without, np.ones(50), 50)


@pytest.mark.parametrize(
    ("difference", "percentile", "typical"),
    [
        (0.1, 0.54, False),  # 4 draws: more harmful than a draw at 55% of the tokens
        (0.1, 0.50, False),
        (0.1, 0.30, False),
        (0.1, 0.56, True),  # at 57.5%
        (-0.1, 0.47, False),
        (-0.1, 0.44, True),
    ],
)
def test_a_mean_difference_may_be_negligible_at_a_typical_token(difference, percentile, typical):
    sae, noise, share = estimate(1 + difference, 0.01), estimate(1, 0.0), estimate(percentile, 0.002)
    for rest, qualifier in ((1 + 0.6 * difference, NOT_TYPICAL), (1 + 0.4 * difference, TAIL_EFFECT)):
        null = noise_null("noise", sae, noise, share, draws=4, rest=rest)
        assert null.qualifier == (None if typical else qualifier)
    unsure = noise_null("noise", sae, noise, estimate(percentile, 0.1), draws=4, rest=1 + difference)
    assert unsure.qualifier == NOT_TYPICAL


@pytest.mark.parametrize(("factor", "rare", "share", "ratio"), [(1.2, 1, 0.26, 1.2), (1, 5, 0.9, 1.0)])
def test_the_ratio_without_the_largest_kl_tells_a_uniform_factor_from_a_few_tokens(factor, rare, share, ratio):
    """Log-normal KL of which the SAE's is `factor` times as large, or `rare` times at one token in 50."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6, 100, 2000, generator=generator, dtype=torch.float64)
    sae, drawn = (normal[0] + 0.3 * normal[1]).exp() * factor, (normal[0] + 0.3 * normal[2:]).exp()
    largest = sae > sae.quantile(0.98, dim=1, keepdim=True)
    sae[largest] *= rare
    mask = torch.ones(100, 2000, dtype=torch.bool)
    halves = [ByKL.of(sae[rows], drawn[:, rows], mask[rows]) for rows in (slice(50), slice(50, None))]
    in_tail, others = (halves[0] + halves[1]).without(0.05)
    assert in_tail == pytest.approx(share, abs=0.12)
    assert others == pytest.approx(ratio, abs=0.03)
    mean = (sae + drawn.sum(0)).flatten() / 5
    rest = mean < mean.quantile(0.95)
    exact = sae.flatten()[rest].sum() / drawn.mean(0).flatten()[rest].sum()
    assert others == pytest.approx(float(exact), rel=1e-3)


def test_an_error_that_the_rest_of_the_model_ignores_has_ratio_zero():
    found = run(
        [{"perturbation": {"positions": 2}}], model=Readout(), saes=[TinySAE("blocks.0.hook_resid_pre")],
        control_classes=[Planted], controls=[{"use": "planted", "dimension": 15}],
    )  # fmt: skip
    mine = values(found, "perturbation", "planted")
    assert mine["kl_cosine_matched"] > 1e-4
    for name in ("ratio", "ratio_cosine_matched_covariance", "ratio_epsilon", "alone_here_ratio", "alone_later_ratio"):
        assert mine[name] == pytest.approx(0, abs=1e-9), name
    assert mine["percentile"] == pytest.approx(0.5 / 5)  # below every draw


def test_an_error_along_the_most_sensitive_direction_has_a_ratio_far_above_one():
    found = run(
        ["perturbation"], model=Readout(loud=20), saes=[TinySAE("blocks.0.hook_resid_pre")],
        control_classes=[Planted], controls=[{"use": "planted", "dimension": 0, "size": 0.01}],
    )  # fmt: skip
    mine = values(found, "perturbation", "planted")
    assert mine["ratio"] > 5
    assert mine["percentile"] > 0.85
    # Every token's error is the same, so that of another token is as bad.
    assert mine["ratio_shuffled_error"] == pytest.approx(1, abs=0.1)


def test_small_errors_cost_half_of_delta_h_delta_where_logits_are_linear():
    model, rows = Readout(), tiny_tokens(rows=60, documents=40)
    size = 1e-3
    found = run(
        ["perturbation"], model=model, rows=rows, saes=[TinySAE("blocks.0.hook_resid_pre")],
        control_classes=[Planted], controls=[{"use": "planted", "dimension": 3, "size": size}],
    )  # fmt: skip
    batch = rows.batch(range(len(rows)), "cpu")
    p = (model.embed[batch.tokens[batch.mask]] @ model.head_weight).softmax(-1)
    w = model.head_weight  # H = W (diag p − ppᵀ) Wᵀ
    hessian = torch.einsum("av,tv,bv->tab", w, p, w) - torch.einsum("ta,tb->tab", p @ w.T, p @ w.T)
    mine = values(found, "perturbation", "planted")
    assert mine["kl_sae"] == pytest.approx(0.5 * size**2 * float(hessian[:, 3, 3].mean()), rel=1e-3)
    # In an isotropic direction it costs the mean over directions: epsilon's g/‖g‖ has covariance I/d.
    isotropic = 0.5 * size**2 * float(hessian.diagonal(dim1=1, dim2=2).mean())
    assert mine["kl_epsilon"] == pytest.approx(isotropic, rel=0.1)


def saes(count, hook_name="blocks.1.hook_resid_pre"):
    return {f"sae-{hook_name[7]}-{i}": TinySAE(hook_name, seed=i) for i in range(count)}


def test_the_rows_sae_zero_and_mean_are_those_of_kl_and_ce_and_nothing_is_resumed_twice():
    rows, fidelity = tiny_tokens(rows=20), ["kl", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}]
    plain, model = TinyModel(), TinyModel()
    before = run(fidelity, model=plain, rows=rows, saes=saes(2), controls=["zero"], batch_size=4)
    entry = {"perturbation": {"draws": 3, "positions": 2}}
    found = run([*fidelity, entry], model=model, rows=rows, saes=saes(2), controls=["zero"], batch_size=4)
    own = 2 + 4 * 3 + 2 * (1 + 3)
    assert model.passes["clean"] == plain.passes["clean"] == 5 + 2  # the preflight's, one of which serves a fold
    assert model.passes["resumed"] - plain.passes["resumed"] == 5 * 3 * own  # two SAEs and the control
    assert model.passes["cut"] - plain.passes["cut"] == 5  # the fit split
    for name in ("sae-1-0", "sae-1-1", "zero"):
        mine, kl = values(found, "perturbation", name), values(before, "kl", name)
        assert mine["kl_sae"] == kl["kl_sae"]
        assert mine["kl_mean"] == kl["kl_ablated"]
        assert mine["kl_zero"] == values(before, "kl", "zero")["kl_sae"]
        assert mine["delta_ce_sae"] == pytest.approx(values(before, "ce", name)["delta_ce"], abs=1e-12)
    only = TinyModel()
    run([{"perturbation": {"draws": 1, "nulls": []}}], model=only, rows=rows, saes=saes(2), batch_size=4)
    assert only.passes == {"clean": 5 + 2, "cut": 5 - 1, "resumed": 5 * (2 + 2 * (1 + 1 + 2)) + 1}  # no fit split


@pytest.mark.parametrize("control", ["identity", "zero", "mean", "resample", "shuffled_features", "pca"])
def test_controls_have_it_too(control):
    found = run(["perturbation", "perturbation_curve"], controls=[{"use": control}], rows=tiny_tokens())
    name = control if control not in ("shuffled_features", "pca") else f"{control}(tinysae)"
    mine, curve = values(found, "perturbation", name), values(found, "perturbation_curve", name)
    assert curve["kl_sae"] == mine["kl_sae"]
    if control == "identity":
        assert mine["kl_sae"] == mine["kl_cosine_matched"] == 0
        (result,) = [r for r in found if (r.metric, r.subject) == ("perturbation", name)]
        assert result.values["ratio"]["reason"] == "x̂ = x on every token: there is no error to match"
        assert mine["percentile"] is None
        assert curve["ratio"] is None
    elif control == "zero":  # nothing else is at 0
        assert mine["ratio"] == mine["ratio_shuffled_error"] == 1
        assert mine["percentile"] == 0.5
    else:
        assert 0 < mine["ratio"] < 5


def test_a_hook_of_width_one_is_undefined_with_a_reason():
    sae = TinySAE("blocks.1.hook_resid_pre", d_in=1, d_sae=2)
    (result,) = run(["perturbation"], model=TinyModel(d_model=1), saes=[sae])
    assert result.status == "undefined"
    assert "has width 1" in result.reason


def numbers(results):
    return {
        (r.metric, r.subject, name): record.get("value", record.get("y", record.get("rows")))
        for r in results
        for name, record in r.values.items()
    }


BOTH = [{"perturbation": {"draws": 2, "positions": 2}}, {"perturbation_curve": {"draws": 2, "positions": 2}}]


def test_batch_sizes_1_and_16_give_the_same_numbers():
    one, many = (numbers(run(BOTH, rows=tiny_tokens(), batch_size=size, saes=saes(2))) for size in (1, 16))
    assert one.keys() == many.keys()
    for key, value in some(one.items()):
        if isinstance(value, list):
            flat = [x for row in value for x in (row if isinstance(row, list) else [row])]
            others = [x for row in many[key] for x in (row if isinstance(row, list) else [row])]
            assert flat == pytest.approx(others, abs=1e-6), key
        else:
            assert value == pytest.approx(many[key], abs=1e-6), key


@pytest.mark.parametrize("metric", [Perturbation, PerturbationCurve])
def test_numbers_depend_on_neither_batches_nor_order_nor_padding(metric):
    from perturbations import QUANTITIES

    check_metric(metric, {"draws": 2, "positions": 1}, controls=["mean"], quantities=QUANTITIES)


class Interrupted(TinyModel):
    """Stops the run at one of its passes."""

    stop = -1

    def resumed(self, *arguments, **named):
        if self.passes["resumed"] == self.stop:
            self.stop = -1
            raise KeyboardInterrupt
        return super().resumed(*arguments, **named)


def test_a_resumed_run_is_bit_identical(tmp_path):
    whole = run(BOTH, rows=tiny_tokens(), saes=saes(2), batch_size=4)
    model = Interrupted()
    model.stop = 200
    with pytest.raises(KeyboardInterrupt):
        run(BOTH, model=model, rows=tiny_tokens(), saes=saes(2), batch_size=4, out=tmp_path, key="these")
    done = model.passes["clean"] - 2  # of the preflight's two one served the first batch of the fit split
    assert 0 < done < 6
    again = run(BOTH, model=model, rows=tiny_tokens(), saes=saes(2), batch_size=4, out=tmp_path, key="these")
    assert model.passes["clean"] == 3 + done + 6 - (done - 1)  # the batch that was broken off is done again
    assert numbers(again) == numbers(whole)


def test_other_seeds_and_draws_give_other_noise_and_the_same_sae():
    metrics = [
        {"perturbation": {"as": "a", "draws": 1}},
        {"perturbation": {"as": "b", "draws": 1, "seed": 1}},
        {"perturbation": {"as": "c", "draws": 2}},
    ]
    found = run(metrics, rows=tiny_tokens())
    a, b, c = (values(found, alias, "tinysae") for alias in "abc")
    assert a["kl_sae"] == b["kl_sae"] == c["kl_sae"]
    for name in ("kl_cosine_matched", "kl_cosine_matched_covariance", "kl_shuffled_error", "kl_epsilon"):
        assert len({a[name], b[name], c[name]}) == 3, name
