"""The warning that few positions decide a mean."""

from __future__ import annotations

import numpy as np
import torch

from saeval import Mean
from saeval_perturbation.scored import rare_positions


def means(kl):
    kl = torch.as_tensor(kl)[:, None]
    mean, squares = Mean.of(kl), Mean.of(kl.square())
    names = ("sae", "cosine_matched")
    return {f"here_{name}": mean for name in names} | {f"here_{name}_squared": squares for name in names}


def test_few_positions_of_large_kl_are_warned_of():
    kl = np.full(512, 0.004)
    assert rare_positions(means(kl), "here") is None
    kl[:2] = 0.6
    assert "rests on 14 effective positions of 512" in rare_positions(means(kl), "here")
    assert rare_positions(means(np.full(99, 0.004)), "here") is not None
    assert rare_positions(means(np.zeros(512)), "here") is None
