"""Keyed randomness: what is drawn depends on its key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from saeval.stats.randomness import hashed, normal


def keys(rows, positions=8, seed=0):
    return hashed(seed, np.asarray(rows)[:, None], np.arange(positions)[None])


def test_a_draw_depends_on_its_key_alone():
    whole = normal(keys(range(16)), 5)
    assert torch.equal(normal(keys([11, 3]), 5), whole[[11, 3]])
    assert torch.equal(normal(keys(range(16), 4), 5), whole[:, :4])
    assert torch.equal(normal(keys(range(16)), 4)[..., :2], whole[..., :2])


@pytest.mark.parametrize("d", [1, 7, 64])
def test_draws_are_independent_standard_normals(d):
    drawn = normal(keys(range(2000)), d).reshape(-1, d).numpy()
    assert drawn.shape == (16000, d)
    assert kstest(drawn.ravel(), "norm").pvalue > 1e-4
    correlation = np.corrcoef(np.concatenate([drawn, np.roll(drawn, 1, axis=0)], axis=1).T)
    assert np.abs(correlation - np.eye(2 * d)).max() < 5 / np.sqrt(16000)
    assert len(np.unique(drawn)) == drawn.size


def test_seeds_and_positions_differ():
    assert not torch.equal(normal(keys([1]), 3), normal(keys([1], seed=1), 3))
    assert len({tuple(row) for row in normal(keys([1, 2]), 3).reshape(-1, 3).tolist()}) == 16
