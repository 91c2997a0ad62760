"""Attributions of rewards that are known functions: what each feature must get, and what is left over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import EYE, POSITIVE, SMALL, Directions, Pairs, Readout, W, pairs, plugins, run, values
from saeval import Mean, Metric, Scalar
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, TinyPairs, TinySAE
from saeval.testing.claims import some
from saeval_reward.totals import in_fold_b


class PerPair(Metric):
    """Attributions of both sides, summed over all pairs: for tests to compare with brute force."""

    name, version, data = "per_pair", 1, "pair"

    def __init__(self, steps: int = 4, baseline: str = "zero"):
        self.steps, self.baseline = steps, baseline

    def observe(self, attribution, clean_reward, baseline_reward):
        found = {}
        for side, one, clean, begin in zip(("chosen", "rejected"), attribution, clean_reward, baseline_reward):
            found[side] = Mean.of(one.features[:, None])
            rest = {"error": one.error, "bias": one.bias, "baseline": one.baseline, "total": one.total}
            found |= {f"{side} {k}": Mean.of(v) for k, v in (rest | {"span": clean.double() - begin.double()}).items()}
        return found

    def conclude(self, total):
        values = {f"{s} {j}": Scalar(total[s][j].value) for s in ("chosen", "rejected") for j in range(len(total[s]))}
        return values | {k: Scalar(v.value) for k, v in total.items() if " " in k}


class Supplied:
    from saeval import hookimpl as _hookimpl

    @_hookimpl
    def saeval_metrics(self):
        return [PerPair]


def attributed(rows, function, sae, steps=4, baseline="zero", embed=POSITIVE, fit=None):
    model = Readout(function, embed=embed)
    results = run(
        [{"per_pair": {"steps": steps, "baseline": baseline}}],
        rows=rows,
        model=model,
        saes={"sae": sae},
        added=[Supplied()],
        fit=fit,
    )
    assert results[0].status == "ok", results[0].traceback
    return {name: record["value"] for name, record in results[0].values.items()}


def truth(rows, side, value):
    """Mean over pairs of the sum over t >= s of value(x_t)."""
    sums = []
    for chosen, rejected, first in rows.pairs:
        x = POSITIVE[torch.tensor((chosen, rejected)[side][first:])]
        sums.append(value(x).sum(0))
    return torch.stack(sums).mean(0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_linear_reward_gives_each_feature_its_activation_times_its_direction_for_any_k(steps):
    rows = pairs()
    decoder = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    sae = Directions(decoder)
    found = attributed(rows, lambda x: x @ W, sae, steps)
    for side, name in enumerate(("chosen", "rejected")):
        expected = truth(rows, side, lambda x: torch.relu(x @ decoder.T) * (decoder @ W))
        for j in range(4):
            assert found[f"{name} {j}"] == pytest.approx(float(expected[j]), abs=1e-12)
        assert found[f"{name} total"] == pytest.approx(found[f"{name} span"], abs=1e-12)


def test_a_quadratic_reward_is_exact_at_midpoints():
    """A left Riemann sum would be wrong by 1/K."""
    rows = pairs()
    q = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for steps in (1, 2, 5):
        found = attributed(rows, lambda x: (q * x * x).sum(-1), Directions(EYE), steps)
        expected = truth(rows, 0, lambda x: q * x * x)
        assert found["chosen 0"] == pytest.approx(float(expected[0]), rel=1e-12)
        assert found["chosen 1"] == 0


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_a_saturating_reward_has_no_gradient_at_the_input_and_is_integrated_within_3_over_2k(steps):
    """min(a, 1) at a = 3."""
    embed = torch.zeros(12, 4, dtype=torch.float64)
    embed[2:, 0] = 3.0
    rows = Pairs([([1, 2], [1, 1], 1)])
    found = attributed(rows, lambda x: x[..., 0].clamp(max=1), Directions(EYE), steps, embed=embed)
    assert found["chosen 0"] == pytest.approx(1, abs=3 / (2 * steps))
    at_input = attributed(rows, lambda x: x[..., 0].clamp(max=1), Directions(EYE), 0, embed=embed)
    assert at_input["chosen 0"] == 0


def test_error_bias_and_baseline_have_rows_of_their_own_and_all_sum_to_the_change():
    rows = pairs()
    bias = torch.tensor([0.3, -0.1, 0.2, 0.0], dtype=torch.float64)
    sae = Directions(EYE[:2], b_dec=bias)  # the other two dimensions are left to the error

    def means(rows):
        tokens = [t for chosen, rejected, first in rows.pairs for side in (chosen, rejected) for t in side[first:]]
        x = POSITIVE[torch.tensor(tokens)]
        return sae.encode(x).mean(0), (x - sae.decode(sae.encode(x))).mean(0), x.mean(0)

    fit = pairs(15, seed=5)
    acts, error_mean, x_mean = means(fit)
    for baseline in ("zero", "mean"):
        found = attributed(rows, lambda x: x @ W, sae, 3, baseline, fit=fit)
        kept = float(baseline == "mean")
        acts_kept, error_kept = kept * acts, kept * error_mean
        for side, name in enumerate(("chosen", "rejected")):
            lengths = torch.tensor([float(len(pair[side]) - pair[2]) for pair in rows.pairs]).double().mean()
            assert found[f"{name} bias"] == pytest.approx(float(lengths * (bias @ W) * (1 - kept)), abs=1e-10)
            for j in range(2):
                deviation = truth(rows, side, lambda x, j=j, mean=acts_kept: sae.encode(x)[:, j] - mean[j])
                assert found[f"{name} {j}"] == pytest.approx(float(deviation * W[j]), abs=1e-10)
            error = truth(rows, side, lambda x, mean=error_kept: (x - sae.decode(sae.encode(x)) - mean) @ W)
            assert found[f"{name} error"] == pytest.approx(float(error), abs=1e-10)
            rest = kept * lengths * ((x_mean - means(rows)[2]) @ W)  # the mean of the fit split is not the baseline
            assert found[f"{name} baseline"] == pytest.approx(float(rest), abs=1e-6)
            assert found[f"{name} total"] == pytest.approx(found[f"{name} span"], abs=1e-10)


def test_a_feature_that_is_always_on_and_constant_gets_nothing_from_the_mean():
    """It fires by 3 on each token and writes the direction of the reward; sides differ in length, so that it counts."""

    class Constant(Directions):
        def encode(self, x):
            return torch.cat([torch.relu(x - 1), torch.full_like(x[..., :1], 3.0)], -1)

    sae = Constant(torch.cat([EYE, W[None]]))
    rows = pairs()
    at_mean, at_zero = (attributed(rows, lambda x: x @ W, sae, 2, baseline) for baseline in ("mean", "zero"))
    assert at_mean["chosen 4"] == at_mean["rejected 4"] == 0
    assert abs(at_zero["chosen 4"]) > 1
    assert at_mean["chosen total"] == pytest.approx(at_mean["chosen span"], abs=1e-10)
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "baseline": "mean", "top": 5}}
    record = values(run([metric], rows=rows, model=Readout(lambda x: x @ W, embed=POSITIVE), saes={"sae": sae}))
    effects = {row[1]: row[4] for row in record.values["features"]["rows"]}
    assert effects[4] == pytest.approx(0, abs=1e-12)


def test_a_decoder_whose_scale_is_context_is_exact():
    """The decoder's contribution of one unit is that of the token: here scaled by the token's own norm."""

    class Scaled(Directions):
        def encode(self, x):
            norm = x.norm(dim=-1, keepdim=True)
            return torch.relu(x / norm @ self.W_enc), norm

        def decode(self, feature_acts, context):
            return feature_acts @ self.W_dec * context

    rows = pairs()
    found = attributed(rows, lambda x: x @ W, Scaled(EYE), 2)
    expected = truth(rows, 0, lambda x: x * W)
    for j in range(4):
        assert found[f"chosen {j}"] == pytest.approx(float(expected[j]), rel=1e-10)


@given(padding=st.integers(0, 4), batch_size=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_padding_and_batches_change_nothing(padding, batch_size):
    model, sae = TinyModel(kind="reward", dtype=torch.float64), TinySAE(dtype=torch.float64)
    base = TinyPairs(pairs=9)
    rows = [
        (
            base._tokens[0, i, : base._real[0, i].sum()].tolist(),
            base._tokens[1, i, : base._real[1, i].sum()].tolist(),
            int(base._divergence[i]),
        )
        for i in range(9)
    ]
    found = [
        run(
            ["per_pair"], rows=Pairs(rows, padding=p), model=model, saes={"sae": sae}, added=[Supplied()], batch_size=b
        )[0].values
        for p, b in ((0, 9), (padding, batch_size))
    ]
    assert {k: v["value"] for k, v in found[1].items()} == pytest.approx(
        {k: v["value"] for k, v in found[0].items()}, abs=1e-10
    )


def test_positions_before_the_divergence_and_padding_get_exactly_nothing():
    """A pair one of whose sides is a prefix of the other: only its last token is left."""

    class Where(Metric):
        name, version, data = "where", 1, "pair"

        def __init__(self, steps: int = 2, baseline: str = "zero"):
            pass

        def observe(self, path_gradient, mask):
            outside = [(g.abs().sum(-1) * ~m).sum(1) for g, m in zip(path_gradient, mask)]
            inside = [(g.abs().sum(-1) * m).sum(1) for g, m in zip(path_gradient, mask)]
            return {"outside": Mean.of(outside[0] + outside[1]), "chosen": Mean.of(inside[0])}

        def conclude(self, total):
            return {name: Scalar(mean.value) for name, mean in total.items()}

    class Adds:
        from saeval import hookimpl as _hookimpl

        @_hookimpl
        def saeval_metrics(self):
            return [Where]

    rows = Pairs([([3, 4, 5], [3, 4, 5, 6, 7], 2), ([3, 9], [3, 8, 2, 2], 1)], padding=3)
    model = TinyModel(kind="reward", vocab=12)
    (result,) = run(["where"], rows=rows, model=model, saes={"sae": TinySAE()}, added=[Adds()])
    assert result.values["outside"]["value"] == 0
    assert result.values["chosen"]["value"] > 0


def test_the_planted_direction_comes_first_and_its_true_effect_is_its_attribution():
    rows = pairs(60)
    results = run([SMALL], rows=rows, model=Readout(lambda x: x @ W, embed=POSITIVE), saes={"sae": Directions(EYE)})
    table = values(results).values["features"]
    lines = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    expected = [truth(rows, 0, lambda x: x * W)[j] - truth(rows, 1, lambda x: x * W)[j] for j in range(4)]
    on_b = {}
    inside = in_fold_b(np.arange(60))
    for j in range(4):
        per_pair = [
            sum(float(POSITIVE[t, j] * W[j]) for t in c[s:]) - sum(float(POSITIVE[t, j] * W[j]) for t in r[s:])
            for c, r, s in rows.pairs
        ]
        assert np.mean(per_pair) == pytest.approx(float(expected[j]))
        on_b[j] = np.array(per_pair)[inside].mean()
    assert len(lines) == 4
    for line in some(lines):  # a linear reward: what is attributed is what an ablation takes away
        assert line["attribution"] == pytest.approx(on_b[line["feature"]], abs=1e-10)
        assert line["true_effect"] == pytest.approx(on_b[line["feature"]], abs=1e-10)
    record = values(results).values
    assert record["completeness_gap"]["value"] == pytest.approx(0, abs=1e-12)
    assert record["sign_agreement"]["value"] == 1
    assert record["rank_correlation"]["value"] == pytest.approx(1)
    assert values(results).array("attribution") == pytest.approx([on_b[j] for j in range(4)], abs=1e-10)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_brute_force_ablation_is_the_oracle_on_a_small_sae(baseline):
    """Every feature's true effect by hand: zero or its mean in the feature vector, decoded, the error added back."""
    model = TinyModel(kind="reward", vocab=50, dtype=torch.float64)
    sae = TinySAE(d_sae=6, dtype=torch.float64)
    rows = TinyPairs(pairs=30)
    options = {**SMALL["reward_attribution"], "top": 6, "tolerance": 1.0, "steps": 16, "baseline": baseline}
    results = run([{"reward_attribution": options}], rows=rows, model=model, saes={"sae": sae})
    table = values(results).values["features"]
    whole = rows.batch(np.arange(30), "cpu").sides
    x = torch.cat([model.capture(side, [sae.hook_name], True).activations[sae.hook_name][side.mask] for side in whole])
    kept = sae.encode(x).mean(0) * float(baseline == "mean")
    batch = rows.batch(np.flatnonzero(in_fold_b(np.arange(30))), "cpu")

    def margin(change):
        found = []
        for side in batch.sides:
            captured = model.capture(side, [sae.hook_name], True)
            x = captured.activations[sae.hook_name]
            new = torch.where(side.mask[..., None], change(x), x)
            found.append(model.resume(side, captured, sae.hook_name, new))
        return found[0] - found[1]

    for row in some(table["rows"]):
        line = dict(zip(table["columns"], row, strict=True))

        def without(x, j=line["feature"]):
            acts = sae.encode(x)
            error = x - sae.decode(acts)
            acts = acts.clone()
            acts[..., j] = kept[j]
            return sae.decode(acts) + error

        expected = (margin(lambda x: x) - margin(without)).mean()
        assert line["true_effect"] == pytest.approx(float(expected), abs=1e-9)


def test_no_features_are_a_no_op_bit_for_bit():
    from saeval.interfaces.live_objects import LiveSAE
    from saeval_reward.ablation import Ablations
    from saeval_reward.integration import no_reference

    sae = LiveSAE(TinySAE())
    x = torch.randn(2, 5, 16)
    sets = {"none": np.zeros(0, np.int64), "one": np.array([3])}
    keys = np.zeros((2, 5), np.uint64)
    made, decoded = (
        Ablations(sae, sae.encode(x), x, keys, sets, no_reference(), W_dec)
        for W_dec in (sae.weight("W_dec"), torch.zeros_like(sae.weight("W_dec")))  # the latter is not how it decodes
    )
    assert torch.allclose(made["one"], decoded["one"], atol=1e-6)
    assert torch.equal(made["none"], x)
    assert not torch.equal(made["one"], x)
    assert list(made) == ["none", "one"]


def test_swapping_the_sides_negates_everything():
    rows = pairs(50)
    swapped = Pairs([(r, c, s) for c, r, s in rows.pairs])
    model, sae = TinyModel(kind="reward", vocab=12, dtype=torch.float64), TinySAE(dtype=torch.float64)
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "tolerance": 1.0}}
    one, other = (values(run([metric], rows=r, model=model, saes={"sae": sae})) for r in (rows, swapped))
    assert other.array("attribution") == pytest.approx(-one.array("attribution"), abs=1e-12)
    assert other.values["margin"]["value"] == pytest.approx(-one.values["margin"]["value"])
    before, after = one.values["features"]["rows"], other.values["features"]["rows"]
    for a, b in some(zip(before, after, strict=True)):
        assert a[1] == b[1]
        assert (a[2], a[4]) == pytest.approx((-b[2], -b[4]), abs=1e-12)
    defined = [v.values["attributed_share_1"]["value"] is not None for v in (one, other)]
    assert sum(defined) <= 1


def test_equal_sides_have_no_margin_and_no_shares():
    rows = Pairs([([3, i % 9 + 2, 5], [3, i % 9 + 2, 5], 2) for i in range(30)])
    model, sae = TinyModel(kind="reward", vocab=12), TinySAE()
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "tolerance": 1.0}}
    record = values(run([metric], rows=rows, model=model, saes={"sae": sae})).values
    assert record["margin"]["value"] == 0
    assert record["attributed_share_1"]["value"] is None
    assert record["attributed_share_1"]["reason"] == "the mean margin is 0 ± 0, less than two standard errors above 0"
    assert record["attributed_1"]["value"] == record["ablated_1"]["value"] == 0
    assert "cannot be told from chance" in record["warnings"]["notes"][0]


def test_two_hooks_in_one_run_are_two_runs():
    model = TinyModel(kind="reward", dtype=torch.float64)
    saes = {f"at {i}": TinySAE(f"blocks.{i}.hook_resid_pre", seed=i, dtype=torch.float64) for i in (1, 2)}
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "tolerance": 1.0, "baseline": "mean"}}
    together = run([metric], rows=TinyPairs(pairs=20), model=model, saes=saes)
    for name, sae in some(saes.items()):
        alone = run([metric], rows=TinyPairs(pairs=20), model=model, saes={name: sae})
        assert values(together, name).values == values(alone, name).values
        assert np.array_equal(values(together, name).array("attribution"), values(alone, name).array("attribution"))


def test_k_steps_cost_k_resumes_a_side_whatever_the_number_of_saes_there():
    """Two batches of two sides: the clean pass, K steps, one pass from the baseline; and the proof of the hook."""
    batches = 2 * 2
    for count in (1, 3):
        model = TinyModel(kind="reward")
        saes = {f"sae-{i}": TinySAE(seed=i) for i in range(count)}
        run([{"per_pair": {"steps": 5}}], rows=TinyPairs(), model=model, saes=saes, added=[Supplied()], batch_size=5)
        assert model.passes == {"clean": batches + 1, "cut": 0, "resumed": batches * (5 + 1) + 1}


def test_check_counts_the_steps_beforehand(tmp_path):
    from saeval.api import prepare
    from saeval.base.run_options import RunOptions
    from saeval.cli.plan_text import plan_in_words
    from saeval.results.store import Store

    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodel: {use: testbed-reward}\ndata: {use: testbed-preferences, made: 60, pairs: 30, fit_share: 0.1}\n"
        "saes: [testbed-reward/topk]\nmetrics: [{reward_groups: {steps: 7, largest: 2}}]\n"
    )
    told = plan_in_words(prepare(tmp_path / "s.yaml", Registry(plugins()), RunOptions()), Store(tmp_path / "out"))
    sides = 2 * 2  # two batches of two sides: the steps and the baseline, then two groups and their strongest
    assert (
        f"attribution_totals over the planned tokens: {sides} clean passes at blocks.2.hook_resid_pre, {sides * 8}"
        in told
    )
    assert f"1 cell: {sides} clean passes at blocks.2.hook_resid_pre, {sides * 4} resumed passes" in told


def test_many_tokens_are_integrated_part_by_part_with_the_same_result(monkeypatch):
    """What is kept for the backward pass does not grow with the batch."""
    model, rows, sae = TinyModel(kind="reward", dtype=torch.float64), TinyPairs(), TinySAE(dtype=torch.float64)
    metric = {"per_pair": {"steps": 3}}
    whole = run([metric], rows=rows, model=model, saes={"sae": sae}, added=[Supplied()])[0].values
    assert model.passes["resumed"] == 2 * (3 + 1) + 1
    monkeypatch.setattr("saeval_reward.integration.TOKENS", 20)
    parts = run([metric], rows=rows, model=model, saes={"sae": sae}, added=[Supplied()])[0].values
    assert model.passes["resumed"] == 2 * (3 + 1) + 1 + 2 * (4 * 3 + 1) + 1  # 10 rows of 8 positions: 80 tokens
    for name, record in some(whole.items()):
        assert parts[name]["value"] == pytest.approx(record["value"], abs=1e-12)


def test_the_whole_metric_adds_a_pass_for_its_ablations():
    model = TinyModel(kind="reward")
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "random": 2, "tolerance": 9.0}}
    results = run([metric], rows=TinyPairs(pairs=20), model=model, saes={"sae": TinySAE()}, batch_size=10)
    values(results)
    # single features and others, top and kept of each size, random of each size
    sides, ablations = 2 * 2, 2 * 4 + 2 * 2 + 2 * 2
    assert model.passes == {"clean": 2 * sides + 1, "cut": 0, "resumed": sides * (4 + 1 + ablations) + 1}
    assert results.forward_passes == sides * (2 + 4 + 1 + ablations) + 2


def test_an_integration_that_is_not_complete_is_undefined_with_the_remedy():
    def steep(x):
        return torch.tanh(1e3 * x.sum(-1))

    results = run([SMALL], rows=pairs(30), model=Readout(steep, embed=POSITIVE), saes={"sae": Directions(EYE)})
    assert results[0].status == "undefined"
    assert "attributions are not complete: they miss" in results[0].reason
    assert "use more 'steps' than 4, or 'baseline: mean'" in results[0].reason
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "baseline": "mean"}}
    (at_mean,) = run([metric], rows=pairs(30), model=Readout(steep), saes={"sae": Directions(EYE)})
    assert at_mean.status == "undefined"
    assert at_mean.reason.endswith("use more 'steps' than 4")  # nothing that is already so is advised


def test_a_substitute_without_features_is_undefined():
    results = run(
        [SMALL],
        rows=pairs(20),
        model=Readout(lambda x: x @ W, embed=POSITIVE),
        saes={"sae": Directions(EYE)},
        controls=["mean"],
    )
    (found,) = [r for r in results if r.subject == "mean"]
    assert found.status == "undefined"
    assert "no features" in found.reason


def test_the_raw_basis_is_an_sae_of_coordinates():
    rows = pairs(40)
    results = run(
        [SMALL],
        rows=rows,
        model=Readout(lambda x: x @ W, embed=POSITIVE),
        saes={"sae": Directions(EYE)},
        controls=["residual_basis"],
    )
    raw, own = values(results, "residual_basis"), values(results)
    assert raw.array("attribution") == pytest.approx(own.array("attribution"), abs=1e-6)  # f = x where x > 0


def test_a_causal_models_reward_is_the_likelihood_of_what_differs():
    """Completeness holds for it, too, and the margin is that of the log-likelihoods."""
    model = TinyModel(kind="causal", dtype=torch.float64)
    rows = TinyPairs(pairs=20)
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "baseline": "mean", "steps": 64, "tolerance": 1e-3}}
    record = values(
        run([metric, "reward_margin"], rows=rows, model=model, saes={"sae": TinySAE(dtype=torch.float64)})
    ).values
    assert record["relative_gap"]["value"] < 1e-3
    batch = rows.batch(np.flatnonzero(in_fold_b(np.arange(20))), "cpu")
    sums = []
    for side in batch.sides:
        logp = model.logits(side).log_softmax(-1).gather(-1, side.targets[..., None])[..., 0]
        sums.append((logp * side.mask).sum(1))
    assert record["margin"]["value"] == pytest.approx(float((sums[0] - sums[1]).mean()), rel=1e-9)


def test_one_pair_is_too_few_for_two_folds():
    results = run(
        [SMALL],
        rows=Pairs([([3, 4], [3, 5], 1)]),
        model=Readout(lambda x: x @ W, embed=POSITIVE),
        saes={"sae": Directions(EYE)},
    )
    assert results[0].status == "undefined"
    assert results[0].reason == "the documents of all 1 pairs are in one fold; use pairs from more documents"


def test_the_plugin_is_found_with_all_that_it_supplies():
    registry = Registry(plugins())
    for name in ("reward_margin", "reward_attribution", "margin_recovered", "counterfactual_audit", "reward_groups"):
        assert name in registry.metrics
    assert "residual_basis" in registry.controls
    assert "reward" in registry.reports
