"""Evidence: sums that do not depend on how the stream was cut, and that survive storage bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeval import Ever, Histogram, Mean, Moments, Ratio, Sample
from saeval.results.store import Store
from saeval.stats.evidence import Stamp
from saeval.testing.claims import every, some

ROWS, SEQ, D = 9, 5, 4


def stream(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, SEQ, D, generator=generator)
    mask = torch.rand(ROWS, SEQ, generator=generator) > 0.3
    return x, mask, np.random.default_rng(seed).integers(0, 3, ROWS)


MAKERS = {
    "mean": lambda x, m: Mean.of(x[..., 0], m),
    "means": lambda x, m: Mean.of(x, m),
    "ratio": lambda x, m: Ratio.of(x[..., 0], x[..., 1].abs(), m),
    "moments": lambda x, m: Moments.of(x, m, covariance=True),
    "histogram": lambda x, m: Histogram.of(x[..., 0], m, np.linspace(-2, 2, 9)),
    "ever": lambda x, m: Ever.of(x > 1, m),
    "sample": lambda x, m: Sample.of(x, m, size=6, seed=3),
}


def summed(make, x, mask, clusters, pieces):
    total = None
    for rows in pieces:
        part = make(x[rows], mask[rows]).stamp(Stamp(np.asarray(rows), clusters[rows], 3))
        total = part if total is None else total + part
    return total


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, ROWS), order=st.permutations(range(ROWS)))
def test_cutting_and_ordering_the_stream_changes_nothing(kind, seed, size, order):
    x, mask, clusters = stream(seed)
    whole = summed(MAKERS[kind], x, mask, clusters, [list(range(ROWS))])
    cut = summed(MAKERS[kind], x, mask, clusters, [list(order[i : i + size]) for i in range(0, ROWS, size)])
    for (name, a), b in some(zip(whole.state().items(), cut.state().values(), strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", MAKERS)
def test_storage_is_exact(kind, tmp_path):
    x, mask, clusters = stream(1)
    total = summed(MAKERS[kind], x, mask, clusters, [list(range(ROWS))])
    store = Store(tmp_path)
    store.write_checkpoint("k", {"next_batch": 3}, {"a": total, "b": {"inner": total}})
    facts, evidence = store.checkpoint("k")
    assert facts == {"next_batch": 3}
    for restored in (evidence["a"], evidence["b"]["inner"]):
        assert type(restored) is type(total)
        for a, b in some(zip(total.state().values(), restored.state().values(), strict=True)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_values_outside_the_mask_are_never_read():
    x, mask, _ = stream(2)
    poisoned = torch.where(mask[..., None], x, torch.tensor(float("nan")))
    for name, make in MAKERS.items():
        for a, b in some(zip(make(x, mask).state().values(), make(poisoned, mask).state().values(), strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_means_are_over_the_mask_in_float64():
    x = torch.full((4, 1000), 0.1, dtype=torch.float32)
    x[0, 0] = 1e8
    mask = torch.ones(4, 1000, dtype=torch.bool)
    expected = (1e8 + 3999 * float(np.float32(0.1))) / 4000
    assert Mean.of(x, mask).value.value == pytest.approx(expected, rel=1e-14)


def test_moments_give_mean_and_covariance():
    x, mask, _ = stream(3)
    found = Moments.of(x, mask, covariance=True)
    rows = x[mask].double().numpy()
    np.testing.assert_allclose(found.mean, rows.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-12)
    with pytest.raises(ValueError, match="covariance=True"):
        _ = Moments.of(x, mask).covariance


def test_histogram_quantiles_are_exact_for_integers():
    values = torch.tensor([[0, 1, 1, 2, 9]])
    found = Histogram.of(values, torch.ones_like(values, dtype=torch.bool), np.arange(11))
    assert [found.quantile(q) for q in (0.1, 0.5, 0.8, 1.0)] == [0, 1, 2, 9]


def test_a_sample_is_uniform_and_keyed_by_its_seed():
    x = torch.arange(400.0).reshape(20, 20, 1)
    mask = torch.ones(20, 20, dtype=torch.bool)
    stamp = Stamp(np.arange(20), np.zeros(20, int), 1)
    picks = [set(Sample.of(x, mask, 40, seed).stamp(stamp).rows[:, 0]) for seed in range(50)]
    assert every(len(p) == 40 for p in picks)
    assert len(set(map(frozenset, picks))) == 50
    counts = np.bincount(np.concatenate([list(p) for p in picks]).astype(int), minlength=400)
    assert counts.max() < 15  # each row is picked 5 times on average
    assert np.mean([np.mean(list(p)) for p in picks]) == pytest.approx(199.5, abs=12)


def test_rows_and_clusters_must_agree():
    x, mask, _ = stream(4)
    with pytest.raises(ValueError, match="9 rows for a batch of 2"):
        Mean.of(x[..., 0], mask).stamp(Stamp(np.arange(2), np.zeros(2, int), 1))
    with pytest.raises(ValueError, match="mask is"):
        Mean.of(x[..., 0], mask[:, :2])


def test_a_spread_knows_the_variance_by_cluster_before_the_mean_is_known():
    from saeval.stats.evidence import Spread

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, generator=generator) + 100
    mask = torch.rand(6, 5, generator=generator) > 0.3
    clusters = np.array([0, 0, 1, 2, 2, 2])
    parts = [
        Spread.of(x[rows], mask[rows]).stamp(Stamp(np.arange(6)[rows], clusters[rows], 3))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    total = parts[0] + parts[1]
    mean = x[mask].double().mean(0)
    assert total.mean == pytest.approx(mean.numpy(), rel=1e-12)
    for cluster in range(3):
        rows = torch.from_numpy(clusters == cluster)
        expected = (x[rows][mask[rows]].double() - mean).square().sum()
        assert total.around(total.mean)[cluster] == pytest.approx(float(expected), rel=1e-8)
    constant = Spread.of(torch.full((2, 4, 3), 7.1), torch.ones(2, 4, dtype=torch.bool))
    assert not constant.around(constant.mean).any()
