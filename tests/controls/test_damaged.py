"""SAEs with a known damage: what the share means, and that a larger one has all of a smaller one's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from saeval import evaluate
from saeval.interfaces.live_objects import LiveSAE
from saeval.testing import TinySAE
from saeval.testing.claims import every
from saeval_controls.damaged import DroppedFeatures, NoisyReconstruction
from saeval_controls.shuffled import ShuffledDecoder

SHARES = (0.1, 0.3, 0.6, 1.0)


def live(**options):
    return LiveSAE(TinySAE(**options))


def rows(sae, count=50):
    return torch.randn(1, count, sae.d_in, generator=torch.Generator().manual_seed(0))


def test_dropped_features_are_a_share_of_the_alive_ones_and_nested():
    sae = live()
    alive = np.ones(sae.d_sae, bool)
    acts = sae.encode(rows(sae)).feature_acts
    kept = []
    for share in SHARES:
        damaged = DroppedFeatures(share).build(sae, alive, 0)
        own = damaged.encode(rows(sae)).feature_acts
        silent = (damaged.weights["W_dec"] == 0).all(1)
        assert int(silent.sum()) == round(share * sae.d_sae)
        assert torch.equal(own, acts * ~silent)
        kept.append(~silent)
    assert every(bool((more | ~fewer).all()) for more, fewer in itertools.pairwise(kept))


def test_a_share_of_the_decoder_moves_so_many_directions():
    sae = live()
    alive = np.ones(sae.d_sae, bool)
    for share in SHARES:
        directions = ShuffledDecoder(share=share).build(sae, alive, 0).directions
        assert (directions != np.arange(sae.d_sae)).sum() == max(round(share * sae.d_sae), 2)


def test_noise_has_its_share_of_the_norm_in_one_direction_for_every_share():
    sae = live()
    x = rows(sae)
    keys = np.arange(50, dtype=np.uint64)[None]
    noises = []
    for share in SHARES:
        damaged = NoisyReconstruction(share).build(sae, "hook", 0).at(keys)
        noise = damaged.decode(damaged.encode(x), x) - sae.decode(sae.encode(x), x)
        torch.testing.assert_close(noise.norm(dim=-1), share * x.norm(dim=-1), rtol=1e-4, atol=1e-5)
        noises.append(noise / share)
    assert every(torch.allclose(noise, noises[0], atol=1e-4) for noise in noises)
    assert (
        NoisyReconstruction(0.5)
        .build(sae, "hook", 1)
        .at(keys)
        .decode(sae.encode(x), x)
        .ne(NoisyReconstruction(0.5).build(sae, "hook", 0).at(keys).decode(sae.encode(x), x))
        .all()
    )


def test_a_metric_runs_on_the_saes_that_it_names(capsys):
    def subjects(of):
        found = evaluate(
            model="testbed", saes=["testbed/relu-3", "testbed/topk-8"], controls=["zero"], preflight="off",
            data={"use": "python-stdlib", "context": 16, "sequences": 2},
            metrics=["reconstruction", {"l0": {"of": of}}],
        )  # fmt: skip
        return [r.cell["subjects"][0]["name"] for r in found if r.metric == "l0"]

    assert subjects(["testbed/relu*"]) == ["testbed/relu-3"]
    assert subjects(["zero", "testbed/topk-8"]) == ["testbed/topk-8", "zero"]
    with pytest.raises(Exception, match="'of' of metric 'l0': nothing is named 'testbed/relu-9'; did you mean"):
        subjects(["testbed/relu-9"])
