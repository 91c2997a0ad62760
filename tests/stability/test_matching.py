"""The matching of features: exact, certified, and the same at any block size."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from saeval.base.errors import SaevalError
from saeval_stability import certify, match, match_sparse
from saeval_stability.similarity import Cosines, Vectors

CERTIFIED = 1e-6


def unit(x):
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def cosines(A, B, mode="signed"):
    found = unit(A) @ unit(B).T
    return np.abs(found) if mode == "abs" else found


def dense_best(similarity):
    return similarity[linear_sum_assignment(-similarity)].sum()


def check(found, similarity, best=None):
    """One-to-one, all of the smaller side, as good as the dense solver says, proven, the prices feasible."""
    n, m = similarity.shape
    rows = np.flatnonzero(found.indices >= 0)
    columns = found.indices[rows]
    assert len(rows) == len(np.unique(columns)) == min(n, m)
    np.testing.assert_allclose(found.cosines[rows], similarity[rows, columns], atol=1e-12)
    assert np.isnan(found.cosines[found.indices < 0]).all()
    assert found.total == pytest.approx(dense_best(similarity) if best is None else best, abs=1e-9 * min(n, m))
    proof = found.certificate
    assert -1e-12 <= proof.gap <= CERTIFIED
    assert (similarity - proof.u[:, None] - proof.v).max() <= 1e-7
    for side, count in ((proof.v, m), (proof.u, n)):
        if count == max(n, m) > min(n, m):
            assert side.min() >= 0
    assert found.over_smaller <= (found.a_to_b if n <= m else found.b_to_a).mean + 1e-12
    np.testing.assert_allclose(found.a_to_b.cosines, similarity.max(1), atol=1e-6)
    np.testing.assert_allclose(found.b_to_a.cosines, similarity.max(0), atol=1e-6)


def planted(rng, n, m, d, share=0.4):
    """A share of the rows of A again in B, in another order and with noise; the rest random."""
    A, B = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    count = int(share * min(n, m))
    where = rng.permutation(m)[:count]
    B[where] = A[:count] + 0.5 * rng.standard_normal((count, d))
    return A, B, where


def dictionaries(kind, n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if kind == "planted":
        return planted(rng, n, m, d)[:2]
    if kind == "shared mean":  # a few rows are near everything: all bid for the same
        mean = rng.standard_normal(d)
        return tuple(rng.standard_normal((k, d)) + 1.5 * rng.random((k, 1)) * mean for k in (n, m))
    if kind == "clusters":  # every row of a cluster wants the ones in its middle
        centres = rng.standard_normal((10, d))
        return tuple(centres[rng.integers(10, size=k)] + 0.3 * rng.standard_normal((k, d)) for k in (n, m))
    if kind == "duplicated":  # far more equal rows than candidates are kept
        base = rng.standard_normal((max(n // 100, 1), d))
        return tuple(base[rng.integers(len(base), size=k)] for k in (n, m))
    if kind == "near duplicates":  # closer together than bfloat16 can tell
        base = rng.standard_normal((max(n // 20, 1), d))
        return tuple(base[rng.integers(len(base), size=k)] + 1e-3 * rng.standard_normal((k, d)) for k in (n, m))
    if kind == "identical":
        return np.ones((n, d)), np.ones((m, d))
    if kind == "tied":  # few distinct cosines, zero rows among them
        return tuple(rng.integers(-1, 2, size=(k, 4)).astype(float) for k in (n, m))
    if kind == "zero":
        return np.zeros((n, d)), rng.standard_normal((m, d))
    raise AssertionError(kind)


KINDS = ["random", "planted", "shared mean", "clusters", "duplicated", "near duplicates", "identical", "tied", "zero"]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def coarse(request, monkeypatch):
    """What the first pass is computed in, whatever this machine is fast at."""
    monkeypatch.setattr("saeval_stability.similarity.fastest", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("mode", ["signed", "abs"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_good_as_a_dense_solver(kind, mode, coarse):
    for n, m in ((600, 600), (600, 750), (750, 600)):
        A, B = dictionaries(kind, n, m, 24)
        check(match(A, B, mode), cosines(A, B, mode))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_as_good_as_a_dense_solver_of_2000(kind):
    A, B = dictionaries(kind, 2000, 2000, 64)
    check(match(A, B), cosines(A, B))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["random", "near duplicates", "duplicated"]
)  # the dense solver takes others far longer
def test_as_good_as_a_dense_solver_of_5000(kind):
    A, B = dictionaries(kind, 5000, 5200, 64)
    found = match(A, B)
    check(found, cosines(A, B))
    assert certify(A, B, found) == pytest.approx(found.certificate.gap, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [3, 64, 1000, 4096])
def test_the_bounds_hold(d, dtype):
    """No exact cosine is above what the computed one is said to stand for, and they are not far above it."""
    rng = np.random.default_rng(d)
    A = rng.standard_normal((70, d))
    B = np.concatenate([A + rng.uniform(0, 2, (70, 1)) * rng.standard_normal((70, d)), -A, A**9])
    for absolute in (False, True):
        both = Cosines(Vectors(A, "A"), Vectors(B, "B"), absolute)
        most = both.at_most(both.block(slice(None), None, dtype)).numpy()
        exact = cosines(A, B, "abs" if absolute else "signed")
        assert (exact <= most).all()
        assert (most - exact).max() < {torch.float64: 1e-11, torch.float32: 1e-3, torch.bfloat16: 3e-2}[dtype]


@pytest.mark.parametrize("tight", [1, 10, 60, 100])
def test_a_coarse_pass_that_settles_little_is_followed_by_a_finer_one(tight, coarse):
    """Rows of a cluster that are closer together than bfloat16 can tell, in percent: the best matches are the same."""
    rng = np.random.default_rng(8)
    A, B = rng.standard_normal((2000, 64)), rng.standard_normal((2100, 64))
    centre = rng.standard_normal(64)
    for rows in (A, B):
        where = rng.permutation(len(rows))[: tight * len(rows) // 100]
        rows[where] = centre + 0.03 * rng.standard_normal((len(where), 64))
    found, exact = match(A, B), cosines(A, B)
    np.testing.assert_allclose(found.a_to_b.cosines, exact.max(1), atol=2e-7)
    np.testing.assert_allclose(found.b_to_a.cosines, exact.max(0), atol=2e-7)
    assert found.certificate.gap <= CERTIFIED


@pytest.mark.parametrize(("size", "apart"), [(2, 1), (3, 1), (12, 83), (40, 37)])
def test_rows_that_a_coarse_pass_cannot_tell_apart(size, apart, coarse):
    """A hundred equal columns but for noise, and a few rows like them, next to each other or far apart."""
    rng = np.random.default_rng(9)
    A, B = rng.standard_normal((2000, 64)), rng.standard_normal((2100, 64))
    A[700 + apart * np.arange(size) - 2000] = B[0] + 0.03 * rng.standard_normal((size, 64))
    B[:100] = B[0] + 0.03 * rng.standard_normal((100, 64))
    for found, exact in ((match(A, B), cosines(A, B)), (match(B, A), cosines(B, A))):
        np.testing.assert_allclose(found.a_to_b.cosines, exact.max(1), atol=2e-7)
        np.testing.assert_allclose(found.b_to_a.cosines, exact.max(0), atol=2e-7)


small = st.integers(1, 8)
entries = st.integers(-2, 2)


@st.composite
def tiny(draw):
    d = draw(st.integers(1, 3))
    n, m = draw(small), draw(small)
    return tuple(
        np.array(draw(st.lists(st.lists(entries, min_size=d, max_size=d), min_size=k, max_size=k))) for k in (n, m)
    )


def brute_force(similarity):
    if similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    m = similarity.shape[1]
    best = np.full(1 << m, -np.inf)  # over the sets of columns that the rows so far have taken
    best[0] = 0.0
    for row in similarity:
        after = np.full(1 << m, -np.inf)
        for taken, j in itertools.product(range(1 << m), range(m)):
            if not taken >> j & 1:
                after[taken | 1 << j] = max(after[taken | 1 << j], best[taken] + row[j])
        best = after
    return best.max()


@settings(deadline=None, max_examples=60)
@given(tiny(), st.sampled_from(["signed", "abs"]), st.integers(1, 10))
def test_equals_brute_force(both, mode, block):
    A, B = both
    similarity = cosines(A, B, mode)
    check(match(A, B, mode, block=block), similarity, brute_force(similarity))


@settings(deadline=None, max_examples=60)
@given(tiny(), st.data())
def test_listed_pairs_equal_brute_force(both, data):
    n, m = len(both[0]), len(both[1])
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, m - 1)), unique=True))
    values = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(pairs), max_size=len(pairs)))
    default = data.draw(st.sampled_from([0.0, 1.0, -2.0]))
    similarity = np.full((n, m), default)
    for (i, j), value in zip(pairs, values):
        similarity[i, j] = value
    rows, cols = [i for i, _ in pairs], [j for _, j in pairs]
    found = match_sparse(rows, cols, values, (n, m), default, block=data.draw(st.integers(1, 10)))
    check(found, similarity, brute_force(similarity))


@pytest.mark.parametrize("kind", ["planted", "shared mean", "duplicated", "tied"])
def test_block_size_changes_nothing(kind, coarse):
    A, B = dictionaries(kind, 300, 340, 16)
    whole = match(A, B)
    for block in (1, 7, 64, 299, 300, 5000):
        found = match(A, B, block=block)
        assert found.total == pytest.approx(whole.total, abs=1e-9)
        assert found.certificate.gap <= CERTIFIED
        assert found.a_to_b.mean == pytest.approx(whole.a_to_b.mean, abs=1e-7)
        assert found.b_to_a.mean == pytest.approx(whole.b_to_a.mean, abs=1e-7)


def test_the_same_twice():
    A, B = dictionaries("duplicated", 500, 600, 16)
    one, two = match(A, B), match(A, B)
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.certificate.v, two.certificate.v)


@pytest.mark.parametrize("block", [None, 1, 17, 1000])
def test_a_permuted_rescaled_copy_is_recovered(block, coarse):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((400, 32)).astype(np.float32)
    order = rng.permutation(400)
    B = (A * 2.0 ** rng.integers(-20, 20, size=(400, 1)))[order]
    found = match(A, B, block=block)
    np.testing.assert_array_equal(order[found.indices], np.arange(400))
    assert found.over_smaller == pytest.approx(1.0, abs=1e-12)
    assert found.a_to_b.mean == found.b_to_a.mean == pytest.approx(1.0, abs=1e-12)
    assert found.a_to_b.collision_rate == 0.0


def test_a_sign_flipped_copy():
    rng = np.random.default_rng(4)
    A = rng.standard_normal((300, 32))
    order = rng.permutation(300)
    signed, either = match(A, -A[order]), match(A, -A[order], "abs")
    assert signed.over_smaller < 0.8
    assert either.over_smaller == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_array_equal(order[either.indices], np.arange(300))


def test_a_mean_of_best_matches_is_not_a_matching():
    found = match([[1.0], [1.0]], [[1.0], [-1.0]])
    assert (found.a_to_b.mean, found.b_to_a.mean, found.over_smaller) == (1.0, 0.0, 0.0)
    four = match([[1.0, 0.1], [1.0, -0.1], [0.9, 0.0], [1.0, 0.2]], [[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [-1.0, -1]])
    assert four.a_to_b.collision_rate == 0.75


def test_unequal_sizes_and_negative_cosines():
    """Every row of the smaller side is matched; the sums over the smaller and the larger side differ."""
    found = match([[1.0, 0.0]], [[-1.0, 0.0], [-1.0, -1.0], [-1.0, 0.1]])
    assert found.indices.tolist() == [1]
    assert found.over_smaller == pytest.approx(-(0.5**0.5))
    assert found.over_larger == pytest.approx(-(0.5**0.5) / 3)
    back = match([[-1.0, 0.0], [-1.0, -1.0], [-1.0, 0.1]], [[1.0, 0.0]])
    assert back.indices.tolist() == [-1, 0, -1]
    assert back.over_smaller == found.over_smaller


def test_planted_sharing_is_found():
    rng = np.random.default_rng(5)
    A, B, where = planted(rng, 1000, 1200, 256)
    found = match(A, B)
    np.testing.assert_array_equal(found.indices[: len(where)], where)
    assert (found.cosines > 0.7).mean() == pytest.approx(0.4, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_order_scale_and_sides_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    A, B = dictionaries("planted", 60, 70, 8, seed)
    base = match(A, B)
    i, j = rng.permutation(60), rng.permutation(70)
    moved = match(A[i] * rng.uniform(0.1, 10, (60, 1)), B[j] * rng.uniform(1e-200, 1e200, (70, 1)))
    np.testing.assert_array_equal(j[moved.indices], base.indices[i])
    other = match(B, A)
    assert other.total == pytest.approx(base.total, abs=1e-10)
    assert (other.a_to_b.mean, other.b_to_a.mean) == pytest.approx((base.b_to_a.mean, base.a_to_b.mean), abs=1e-12)


def test_a_corrupted_matching_is_not_certified():
    for n, m in ((200, 200), (200, 230), (230, 200)):
        A, B = dictionaries("random", n, m, 16)
        found = match(A, B)
        assert certify(A, B, found) <= CERTIFIED
        partners = found.indices.copy()
        a, b = np.flatnonzero(partners >= 0)[:2]
        partners[[a, b]] = partners[[b, a]]
        assert certify(A, B, replace(found, indices=partners)) > CERTIFIED
        proof = found.certificate
        cheaper = replace(proof, u=proof.u * 0.5, v=proof.v * 0.5)  # prices that prove less
        assert certify(A, B, replace(found, certificate=cheaper)) > CERTIFIED
        partners[a] = partners[b]
        with pytest.raises(SaevalError, match="not a matching"):
            certify(A, B, replace(found, indices=partners))
    with pytest.raises(SaevalError, match="not a certificate"):
        certify(A, B, replace(found, certificate=replace(proof, u=proof.u - 1.0)))


def test_float32_products_of_less_precision_are_not_used():
    """A caller's setting for speed must not reach the bounds."""
    A, B = (torch.as_tensor(x, dtype=torch.float32) for x in dictionaries("planted", 500, 500, 64))
    plain = match(A, B)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = match(A, B)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(found.indices, plain.indices)
    assert found.certificate.candidates == plain.certificate.candidates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_types_of_input(dtype):
    A = torch.tensor([[1, 0], [3, 4], [0, 0]], dtype=dtype)
    found = match(A, A.float().numpy())
    assert found.over_smaller == pytest.approx(2 / 3)
    assert A.tolist() == [[1, 0], [3, 4], [0, 0]]


@pytest.mark.parametrize(
    ("A", "B", "mode", "message"),
    [
        ([[1.0, np.nan]], [[1.0, 1.0]], "signed", "A has a value that is not finite, in row 0"),
        ([[1.0, 1.0]], [[1.0, 1.0], [np.inf, 0.0]], "signed", "B has a value that is not finite, in row 1"),
        ([[1.0, 1.0]], [[1.0]], "signed", r"rows of the same length, found \[1, 2\] and \[1, 1\]"),
        ([1.0, 1.0], [[1.0]], "signed", r"A must have the shape \[n, d\]"),
        (np.zeros((0, 3)), np.ones((2, 3)), "signed", r"A must have the shape \[n, d\]"),
        ([["a"]], [[1.0]], "signed", "A must be a tensor or an array of numbers"),
        ([[1j]], [[1.0]], "signed", "A must hold real numbers"),
        ([[1.0]], [[1.0]], "absolute", "mode must be 'signed' or 'abs'"),
    ],
)
def test_what_is_refused(A, B, mode, message):
    with pytest.raises(SaevalError, match=message) as error:
        match(A, B, mode)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "cols", "values", "shape", "default", "message"),
    [
        ([0], [0], [np.nan], (1, 1), 0.0, "values must be finite"),
        ([0], [0], [1.0], (1, 1), np.inf, "default must be finite"),
        ([0], [3], [1.0], (1, 3), 0.0, r"cols must lie in 0\.\.2, found 3\.\.3"),
        ([0, 0], [1, 1], [1.0, 2.0], (2, 2), 0.0, r"pair \(0, 1\) is listed twice"),
        ([0, 1], [1], [1.0], (2, 2), 0.0, "lists of equal length"),
        ([0.5], [1], [1.0], (2, 2), 0.0, "rows must hold whole numbers"),
        ([0], [1], [1.0], (2, 0), 0.0, "shape must be"),
        ([0], [1], [1.0], (2, 2), ([1.0], [1.0]), "pair of vectors of lengths 2 and 2"),
    ],
)
def test_what_is_refused_of_a_list(rows, cols, values, shape, default, message):
    with pytest.raises(SaevalError, match=message):
        match_sparse(rows, cols, values, shape, default)


@pytest.mark.parametrize("default", [0.0, -0.5, 0.3, "rank one"])
def test_listed_pairs_equal_a_dense_solver(default):
    """Defaults below and above what is listed; most rows may have to take one."""
    rng = np.random.default_rng(6)
    for n, m, count in ((500, 500, 4000), (400, 520, 300), (520, 400, 20000), (300, 300, 0)):
        keys = rng.choice(n * m, count, replace=False)
        values = rng.uniform(-1, 1, count).round(2)  # with ties
        factors = (-rng.random(n), rng.random(m))
        similarity = np.outer(*factors) if default == "rank one" else np.full((n, m), default)
        similarity.flat[keys] = values
        given = factors if default == "rank one" else default
        found = match_sparse(keys // m, keys % m, values, (n, m), given)
        check(found, similarity)


def test_functional_matching_by_correlation():
    """Co-activation sums of sparse activations, with the correlation of never together as the default."""
    rng = np.random.default_rng(7)
    tokens, n = 3000, 200
    f = rng.random((tokens, n)) * (rng.random((tokens, n)) < 0.02)
    order = rng.permutation(n)
    g = (f * rng.uniform(0.5, 2.0, n))[:, order]
    dense = np.corrcoef(f.T, g.T)[:n, n:]
    both = f.T @ g
    rows, cols = np.nonzero(both)
    (mf, sf), (mg, sg) = ((x.mean(0), x.std(0)) for x in (f, g))
    values = (both[rows, cols] / tokens - mf[rows] * mg[cols]) / (sf[rows] * sg[cols])
    found = match_sparse(rows, cols, values, (n, n), (-mf / sf, mg / sg))
    check(found, dense)
    np.testing.assert_array_equal(order[found.indices], np.arange(n))
