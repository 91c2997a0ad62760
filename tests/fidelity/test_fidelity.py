"""Fidelity metrics: the truths that any definition of them must satisfy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maps import Largest, Map, predictable_rows, strong_model, value
from saeval.interfaces.token_scores import score_tokens
from saeval.results.leaderboard import from_results
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import numbers, some

HOOK = "blocks.1.hook_resid_pre"
EVERY = [
    "l0", "density", "reconstruction", "downstream_reconstruction",
    "ce", {"ce": {"ablation": "resample", "as": "ce_resample"}}, {"ce": {"ablation": "zero", "as": "ce_zero"}},
    "kl", {"kl": {"ablation": "resample", "as": "kl_resample"}},
]  # fmt: skip


def evaluate(saes, metrics, dtype=torch.float32, **options):
    model = strong_model(dtype=dtype)
    return evaluate_tiny(metrics, model=model, rows=predictable_rows(strong_model()), saes=saes, **options)


def test_identity_recovers_everything():
    results = evaluate({"id": Map(lambda x: x)}, ["ce", "kl", "reconstruction"], controls=["identity"])
    for subject in ("id", "identity"):
        assert value(results, "ce.recovered", subject) == pytest.approx(1, abs=1e-6)
        assert value(results, "ce.delta_ce", subject) == pytest.approx(0, abs=1e-6)
        assert value(results, "kl.kl_sae", subject) == pytest.approx(0, abs=1e-9)
        assert value(results, "kl.kl_score", subject) == pytest.approx(1, abs=1e-6)
        assert value(results, "kl.top1_agreement", subject) == 1
        assert value(results, "reconstruction.explained_variance", subject) == 1


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_the_ablation_itself_recovers_exactly_nothing(ablation):
    results = evaluate(
        {"sae": TinySAE()}, [{"ce": {"ablation": ablation}}, {"kl": {"ablation": ablation}}], controls=[ablation]
    )
    assert value(results, "ce.recovered", ablation) == 0
    assert value(results, "kl.kl_score", ablation) == 0
    assert value(results, "ce.ce_ablated", ablation) == value(results, "ce.ce_sae", ablation)
    # And a substitute that happens to be the ablation scores the same as the control does.
    assert value(results, "ce.ce_ablated", "sae") == value(results, "ce.ce_sae", ablation)


def test_predicting_the_mean_explains_nothing():
    results = evaluate({"sae": TinySAE()}, ["reconstruction"], controls=["mean", "zero"])
    assert value(results, "reconstruction.explained_variance", "mean") == pytest.approx(0, abs=1e-6)
    assert value(results, "reconstruction.fvu", "mean") == pytest.approx(1, abs=1e-6)
    assert value(results, "reconstruction.explained_variance", "zero") < 0


def test_a_constant_offset_lowers_explained_variance_by_what_it_is():
    results = evaluate({"off": Map(lambda x: x + 0.5)}, ["reconstruction"], controls=["mean"])
    variance = value(results, "reconstruction.mse", "mean")
    offset = 16 * 0.25
    assert value(results, "reconstruction.mse", "off") == pytest.approx(offset, rel=1e-5)
    assert value(results, "reconstruction.mse_per_dim", "off") == pytest.approx(0.25, rel=1e-5)
    assert value(results, "reconstruction.explained_variance", "off") == pytest.approx(1 - offset / variance, rel=1e-5)


def test_shrinking_shows_in_norm_ratio_and_bias_and_not_in_cosine():
    results = evaluate({"half": Map(lambda x: 0.5 * x)}, ["reconstruction"])
    assert value(results, "reconstruction.cosine", "half") == pytest.approx(1, abs=1e-6)
    assert value(results, "reconstruction.norm_ratio", "half") == pytest.approx(0.5, abs=1e-6)
    assert value(results, "reconstruction.reconstruction_bias", "half") == pytest.approx(0.5, abs=1e-6)


def test_zero_norms_are_left_out_of_cosine_and_counted():
    results = evaluate({"none": Map(torch.zeros_like)}, ["reconstruction"])
    record = results.value("reconstruction.cosine", "none")
    assert record["value"] is None
    assert "zero" in record["reason"]
    excluded = results.value("reconstruction.without_direction", "none")
    assert excluded["value"] == excluded["n"] > 0


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 100))
def test_rescaled_and_permuted_features_change_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    base, other = TinySAE(dtype=torch.float64), TinySAE(dtype=torch.float64)
    order = torch.randperm(32, generator=generator)
    scale = torch.rand(32, generator=generator, dtype=torch.float64) + 0.5
    other.W_enc = (base.W_enc * scale)[:, order]
    other.b_enc = (base.b_enc * scale)[order]
    other.W_dec = (base.W_dec / scale[:, None])[order]
    results = evaluate({"base": base, "other": other}, EVERY, dtype=torch.float64)
    pairs = [r for r in results if r.subject == "base"]
    for result in some(pairs):
        twin = next(r for r in results if r.subject == "other" and r.metric == result.metric)
        for name, record in some(result.values.items()):
            for kind in ("value", "y"):
                if kind in record:
                    assert twin.values[name][kind] == pytest.approx(record[kind], abs=1e-9), (result.metric, name)


def test_batch_size_order_and_padding_change_no_mean():
    runs = [
        evaluate_tiny(EVERY, rows=rows, batch_size=size, controls=["mean"])
        for rows, size in [
            (tiny_tokens(), 1),
            (tiny_tokens(), 7),
            (tiny_tokens(), 32),
            (tiny_tokens(order_seed=3), 7),
            (tiny_tokens(extra_padding=9), 7),
        ]
    ]
    for other in some(runs[1:]):
        for name, (record, its) in numbers(runs[0], other):
            if not name.startswith("kl.kl_p"):
                assert its["value"] == pytest.approx(record["value"], abs=1e-6), name
                if record["stderr"]:
                    assert its["stderr"] == pytest.approx(record["stderr"], abs=1e-6)


def test_positions_outside_the_mask_change_nothing():
    rows = tiny_tokens()
    whole = torch.cat([rows.batch(range(len(rows)), "cpu").mask])

    class Vandal(TinySAE):
        """Right inside the mask, nonsense outside."""

        def encode(self, x):
            right = super().encode(x)  # of a row that shows its width, too
            return torch.where(whole[..., None], right, torch.full((), 1e3)) if len(x) == len(whole) else right

    honest = evaluate_tiny(EVERY, rows=rows, saes={"s": TinySAE()}, batch_size=24)
    vandal = evaluate_tiny(EVERY, rows=rows, saes={"s": Vandal()}, batch_size=24)
    assert not bool(whole.all())
    for a, b in some(zip(honest, vandal, strict=True)):
        assert a.values == b.values, a.metric


def test_l0_counts_what_fires_on_average_by_quantile_and_by_position():
    class Counting(TinySAE):
        """Fires as many features as the position says."""

        def encode(self, x):
            acts = torch.zeros(*x.shape[:2], 32)
            for position in range(x.shape[1]):
                acts[:, position, : position + 1] = -1.0  # negative activations are activations
            return acts

    rows = tiny_tokens()
    results = evaluate_tiny(["l0"], rows=rows, saes={"c": Counting()})
    mask = rows.batch(range(len(rows)), "cpu").mask.numpy()
    counts = np.broadcast_to(np.arange(1, 13), mask.shape)[mask]
    assert value(results, "l0.l0", "c") == pytest.approx(counts.mean())
    assert value(results, "l0.l0_p50", "c") == np.quantile(counts, 0.5, method="inverted_cdf")
    assert value(results, "l0.l0_p95", "c") == np.quantile(counts, 0.95, method="inverted_cdf")
    curve = results.value("l0.by_position", "c")
    assert curve["y"] == [x + 1 for x in curve["x"]]


def test_density_counts_features_and_states_its_tokens():
    class Known(TinySAE):
        def encode(self, x):
            acts = torch.zeros(*x.shape[:2], 32)
            acts[..., :4] = 1.0
            acts[:, 3, 4:6] = 1.0
            return acts

    rows = tiny_tokens()
    results = evaluate_tiny(["density"], rows=rows, saes={"k": Known()})
    mask = rows.batch(range(len(rows)), "cpu").mask
    share = float(mask[:, 3].sum() / mask.sum())
    dead = results.value("density.dead", "k")
    assert dead["value"] == 26
    assert dead["n"] == int(mask.sum())
    assert dead["stderr"] is None
    assert value(results, "density.frac_above_1pct", "k") == pytest.approx(6 / 32)
    assert value(results, "density.frac_above_10pct", "k") == pytest.approx((6 if share > 0.1 else 4) / 32)
    histogram = results.value("density.histogram", "k")
    assert sum(row[2] for row in histogram["rows"]) == 6


def test_densities_of_different_n_share_neither_key_nor_table():
    found = [evaluate_tiny(["density"], rows=tiny_tokens(rows=rows)) for rows in (24, 20)]
    (more,), (fewer,) = found
    assert more.values["dead"]["n"] > fewer.values["dead"]["n"]
    assert more.key != fewer.key
    assert len(from_results([more, fewer], "t", {})) == 2


def test_recovered_is_undefined_where_the_ablation_does_not_hurt():
    results = evaluate_tiny(["ce"])  # random tokens: the model predicts them no better than its ablation does
    record = results.value("ce.recovered")
    assert record["value"] is None
    assert "not clearly above 0" in record["reason"]
    assert results.value("ce.delta_ce")["value"] is not None


def test_components_recompute_every_ratio():
    results = evaluate({"sae": TinySAE()}, ["ce"])
    (result,) = results
    mean = {k: c["numerator"] / c["denominator"] for k, c in result.components.items()}
    recovered = (mean["ablated"] - mean["sae"]) / (mean["ablated"] - mean["clean"])
    assert result.values["recovered"]["value"] == pytest.approx(recovered)


class TwoSymbols(TinyModel):
    """Its final state is its logits: two symbols, set by hand."""

    def __init__(self):
        super().__init__(vocab=2, d_model=2)
        self.head_weight = torch.eye(2)


def scored(clean, new, targets=None):
    from saeval.interfaces.data import Batch

    clean, new = (torch.tensor(x, dtype=torch.float32)[None] for x in (clean, new))
    shape = clean.shape[:2]
    tokens = torch.zeros(shape, dtype=torch.long) if targets is None else torch.tensor(targets)[None]
    ones = torch.ones(shape, dtype=torch.bool)
    batch = Batch(tokens, tokens, ones, ones, np.zeros(1, int), np.zeros(1, int))
    return score_tokens(TwoSymbols(), batch, clean, [clean, new])


def test_kl_goes_from_clean_to_spliced():
    p, q = 0.8, 0.3
    _, new = scored([[math.log(p), math.log(1 - p)]], [[math.log(q), math.log(1 - q)]])
    forward = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    backward = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert float(new.kl[0, 0]) == pytest.approx(forward, rel=1e-5)
    assert abs(forward - backward) > 0.01


def test_extreme_logits_stay_finite():
    clean, new = scored([[1e4, -1e4], [-1e4, 1e4]], [[-1e4, 1e4], [-1e4, 1e4]])
    assert torch.isfinite(new.kl).all()
    assert torch.isfinite(new.nll).all()
    assert float(new.kl[0, 0]) == pytest.approx(2e4)
    assert float(new.kl[0, 1]) == 0
    assert torch.equal(clean.kl, torch.zeros_like(clean.kl))


def test_top1_is_about_the_next_token():
    clean, new = scored([[5.0, 0.0], [0.0, 5.0]], [[5.0, 0.0], [5.0, 0.0]], targets=[0, 1])
    assert clean.top1_correct.tolist() == [[True, True]]
    assert new.top1_correct.tolist() == [[True, False]]
    assert new.top1_agreement.tolist() == [[True, False]]


def test_the_chunked_head_gives_what_full_logits_give(monkeypatch):
    chunked = evaluate({"sae": TinySAE()}, ["ce", "kl"])
    monkeypatch.setattr("saeval.interfaces.token_scores.CHUNK_ELEMENTS", 3 * 50)
    small = evaluate({"sae": TinySAE()}, ["ce", "kl"])
    monkeypatch.setattr("saeval.registry.builtin_quantities.head_is_exact", lambda *_: False)
    full = evaluate({"sae": TinySAE()}, ["ce", "kl"])
    for _, (record, *others) in numbers(chunked, small, full):
        for other in some(others):
            assert other["value"] == pytest.approx(record["value"], abs=1e-5)
    assert full[0].provenance["chunked_head"] is False
    assert chunked[0].provenance["chunked_head"] is True


def wide_vocabulary_models():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50_000, n_positions=128, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return {"plain": TinyModel(vocab=50_000, d_model=8), "huggingface": GPT2LMHeadModel(config).eval()}


@pytest.mark.parametrize("kind", ["plain", "huggingface"])
def test_no_tensor_of_batch_by_seq_by_vocabulary_is_ever_alive(kind):
    """At 50,000 symbols the full logits of this batch would be 48 million elements."""
    rows = tiny_tokens(rows=8, context=120, vocab=50_000)
    with Largest() as seen:
        results = evaluate_tiny(
            ["ce", "kl"],
            model=wide_vocabulary_models()[kind],
            rows=rows,
            saes=[TinySAE(d_in=8)],
            controls=["zero", "identity"],
            batch_size=8,
        )
    assert not results.failed, results.failed[0].traceback
    assert results[0].provenance["chunked_head"] is True
    assert 10**6 < seen.elements <= 2**25
