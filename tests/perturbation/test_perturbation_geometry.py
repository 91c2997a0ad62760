"""Matched noise: exact cosine and norm, keyed by the token alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeval.base.errors import Undefined
from saeval.stats.evidence import Moments, Sample
from saeval.stats.randomness import hashed
from saeval.testing.claims import some
from saeval_perturbation import noise
from saeval_perturbation.geometry import at_cosine, cosines, matched, perpendicular, scaled_to, unit, verify

COSINES = (-1.0, -0.999, -0.5, 0.0, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_cosine(x, cosine, ratio, seed=1):
    return at_cosine(x, random(*x.shape, seed=seed), cosine, ratio)


@pytest.mark.parametrize("d", [2, 3, 64])
@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("ratio", [1e-3, 0.9, 1.0, 3.0])
def test_noise_has_exactly_the_cosine_and_norm_of_what_it_is_matched_to(d, cosine, ratio):
    x = 5 * random(40, d)
    x_hat = with_cosine(x, cosine, ratio)
    assert torch.allclose(cosines(x, x_hat), torch.full((40,), cosine, dtype=torch.float64), atol=1e-12)
    found = matched(x, x_hat, random(40, d, seed=2))
    assert torch.allclose(cosines(x, found), cosines(x, x_hat), atol=1e-12)
    assert torch.allclose(found.norm(dim=1), x_hat.norm(dim=1), rtol=1e-12)
    assert torch.allclose((found - x).norm(dim=1), (x_hat - x).norm(dim=1), rtol=1e-9, atol=1e-14)
    if abs(cosine) < 1 and d > 2:
        assert ((found - x_hat).norm(dim=1) > 0).all()


def test_differences_from_a_cosine_of_one_do_not_cancel():
    """At c = 1 − 5e-17 the cosine itself is 1 in float64; the error's size is met nevertheless."""
    x = 100 * random(40, 64)
    x_hat = x + 1e-8 * x.norm(dim=1, keepdim=True) * perpendicular(random(40, 64, seed=1), unit(x))[0]
    moved = matched(x, x_hat, random(40, 64, seed=2)) - x
    assert torch.allclose(moved.norm(dim=1), (x_hat - x).norm(dim=1), rtol=1e-6)
    assert float((moved * unit(x)).sum(1).abs().max()) < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.floats(-1, 1), st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.integers(0, 10**6))
def test_any_angle_norm_and_scale(d, cosine, ratio, scale, seed):
    x = scale * random(3, d, seed=seed)
    x_hat = with_cosine(x, cosine, ratio, seed + 1)
    found = matched(x, x_hat, random(3, d, seed=seed + 2))
    assert torch.allclose(cosines(x, found), cosines(x, x_hat), atol=1e-9)
    assert torch.allclose(found.norm(dim=1), x_hat.norm(dim=1), rtol=1e-9)
    verify(found, x, x_hat, torch.float64)


def test_what_lies_on_the_line_of_x_is_matched_by_itself_alone():
    x = random(20, 8)
    for x_hat in (torch.zeros_like(x), x, -2 * x, 0.5 * x):
        assert torch.equal(matched(x, x_hat, random(20, 8, seed=1)), x_hat)


def test_from_zero_noise_goes_anywhere_as_far_as_the_substitute():
    x, x_hat, g = torch.zeros(20, 8).double(), random(20, 8), random(20, 8, seed=1)
    assert torch.allclose(matched(x, x_hat, g), x_hat.norm(dim=1, keepdim=True) * unit(g))
    assert torch.equal(at_cosine(x, g, 0.5, 0.9), x)
    assert torch.equal(scaled_to(x, x_hat), x)


def test_directions_are_uniform_among_the_perpendicular_ones():
    u = unit(torch.ones(20000, 3).double())
    v, there = perpendicular(random(20000, 3), u)
    assert there.all()
    assert float((v * u).sum(1).abs().max()) < 1e-15
    # Uniform on a circle: E[v vᵀ] = (I − uuᵀ)/2.
    expected = (torch.eye(3).double() - torch.outer(u[0], u[0])) / 2
    assert torch.allclose(v.T @ v / 20000, expected, atol=0.02)
    assert not perpendicular(2 * u[:1], u[:1])[1]


def test_what_is_not_matched_is_refused():
    x, x_hat = random(4, 8), random(4, 8, seed=1)
    with pytest.raises(ValueError, match=r"moves a token by .* of 4 tokens"):
        verify(x + 1.01 * (x_hat - x), x, x_hat, torch.float32)
    verify(matched(x, x + 1e-4 * x_hat, x_hat), x, x + 1e-4 * x_hat, torch.bfloat16)  # rounding is no fault
    with pytest.raises(ValueError, match="matched noise"):
        verify(torch.full_like(x, torch.nan), x, x_hat, torch.float32)


SHAPE = (3, 10, 16)
X, X_HAT = random(*SHAPE).float(), random(*SHAPE, seed=1).float()
MASK = torch.ones(SHAPE[:2], dtype=torch.bool)
MASK[0, :4] = False
KEYS = hashed(np.arange(3)[:, None], np.arange(10)[None])
HOOK = "blocks.1.hook_resid_pre"
ROOT = noise.fit_covariance_root(Moments.of(X, MASK, covariance=True))
MANY = torch.ones(1, 500, dtype=torch.bool)
OTHERS = noise.fit_displacements(Sample.of(random(1, 500, 16, seed=5).float(), MANY, 400))


def drawn(function, rows=slice(None), hook=HOOK, draw=0, seed=0, **further):
    return function(X[rows], X_HAT[rows], MASK[rows], KEYS[rows], hook, draw=draw, seed=seed, **further)[MASK[rows]]


VARIANTS = {
    "isotropic": lambda **key: drawn(noise.cosine_matched, **key),
    "covariance": lambda **key: drawn(noise.cosine_matched_covariance, fit_covariance_root=ROOT, **key),
    "shuffled": lambda **key: drawn(noise.shuffled_error, fit_displacements=OTHERS, **key),
    "epsilon": lambda **key: drawn(noise.epsilon, **key),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_draw_is_keyed_by_token_hook_seed_and_draw_and_not_by_row(variant):
    one = VARIANTS[variant]
    first = one()
    assert torch.equal(one(rows=[2, 0, 1]), torch.cat([first[16:], first[:16]]))
    for other in ({"draw": 1}, {"seed": 1}, {"hook": "blocks.2.hook_resid_pre"}):
        assert ((one(**other) - first).norm(dim=1) > 1e-3).float().mean() > 0.9, other


def test_variants_differ_and_match_alike():
    found = {name: one().double() for name, one in VARIANTS.items()}
    x, x_hat = X[MASK].double(), X_HAT[MASK].double()
    for name, new in some(found.items()):
        assert torch.allclose((new - x).norm(dim=1), (x_hat - x).norm(dim=1), rtol=1e-5), name
        assert torch.allclose(new.norm(dim=1), x_hat.norm(dim=1), rtol=1e-5) == (name != "epsilon")
        for other, its in some(found.items()):
            assert name == other or float((new - its).norm(dim=1).min()) > 1e-3
    # One direction of noise serves both where the covariance is white: they are keyed by their names.
    white = drawn(noise.cosine_matched_covariance, fit_covariance_root=torch.eye(16).double())
    assert float((white.double() - found["isotropic"]).norm(dim=1).min()) > 1e-3


def test_covariance_noise_has_the_covariance_of_the_fit_split():
    """x = 0, so nothing is taken out: Σ of the directions is that of the activations."""
    scales = torch.tensor([5.0, 1.0, 0.2, 0.0])
    rows = (random(1, 5000, 4) * scales + 3).float()  # the mean is not noise
    everything = torch.ones(1, 5000, dtype=torch.bool)
    root = noise.fit_covariance_root(Moments.of(rows, everything, covariance=True))
    keys = hashed(np.zeros((1, 1), dtype=int), np.arange(5000)[None])
    x, x_hat = torch.zeros(1, 5000, 4), torch.ones(1, 5000, 4)
    new = noise.cosine_matched_covariance(x, x_hat, everything, keys, HOOK, root, draw=0, seed=0)[0]
    assert torch.allclose(new.norm(dim=1), torch.full((5000,), 2.0), atol=1e-5)
    g = random(20000, 4, seed=3) * scales
    expected = (2 * g / g.norm(dim=1, keepdim=True)).square().mean(0)
    assert torch.allclose(new.double().square().mean(0), expected, atol=0.05)
    assert float(new[:, 3].abs().max()) < 1e-3


def test_where_another_tokens_error_has_no_direction_noise_is_isotropic():
    nothing = torch.zeros(1, 16)
    new = drawn(noise.shuffled_error, fit_displacements=nothing).double()
    assert torch.allclose((new - X[MASK].double()).norm(dim=1), (X_HAT - X)[MASK].double().norm(dim=1), rtol=1e-5)


def test_without_a_fit_split_and_in_one_dimension_there_is_no_noise():
    empty = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(Undefined, match="fit split has no token"):
        noise.fit_covariance_root(Moments.of(X[:1, :3], empty, covariance=True))
    with pytest.raises(Undefined, match="leave out 'shuffled_error'"):
        noise.fit_displacements(Sample.of(X[:1, :3], empty, 5))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_positions_are_chosen_by_hash_inside_the_mask(count):
    place = noise.chosen(KEYS, MASK, 0, count)
    assert (place[~MASK] == -1).all()
    for row in range(3):
        found = sorted(p for p in place[row].tolist() if p >= 0)
        assert found == list(range(min(count, int(MASK[row].sum()))))
    # The first ones stay where more are chosen, and neither rows nor padding move them.
    assert torch.equal(noise.chosen(KEYS, MASK, 0, 1) == 0, place == 0)
    assert torch.equal(noise.chosen(KEYS[[2, 1]], MASK[[2, 1]], 0, count), place[[2, 1]])
    padded = noise.chosen(KEYS, MASK & (torch.arange(10) < 9), 0, count)
    assert torch.equal(noise.chosen(KEYS[:, :9], MASK[:, :9], 0, count), padded[:, :9])
    assert not torch.equal(noise.chosen(KEYS, MASK, 1, 1), noise.chosen(KEYS, MASK, 0, 1))
