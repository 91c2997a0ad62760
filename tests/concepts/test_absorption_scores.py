"""SAEBench's absorption scores: by hand, where its two fractions differ, and beside its own calculator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import saebench_absorption
from saeval.testing.claims import some
from saeval_concepts.absorption_scores import word_scores


def scored(acts, cosines, x_on_p, mains=(0,)):
    """Full, fraction and fraction of version 0.3 of one word."""
    given = (torch.tensor([acts]), torch.tensor(cosines), torch.tensor([x_on_p]))
    found = word_scores(*(tensor.double() for tensor in given), mains)
    return bool(found.full), float(found.fraction), float(found.fraction_v03)


@pytest.mark.parametrize(
    ("acts", "cosines", "x_on_p", "expected"),
    [
        # a main of projection 4, an absorber of 4, and -3 of others, of x·p = 10
        ([4, 4, 3], [1, 1, -1], 10, (False, 4 / 8, 1 / 5)),
        # the main is silent, and one feature carries 5 of 10
        ([0, 10, 0], [1, 0.5, 0.1], 10, (True, 1, 1)),
        # the same, but 3.9 of 10
        ([0, 7.8, 0], [1, 0.5, 0.1], 10, (False, 0, 1)),
        # a cosine below 0.1 is enough for full absorption alone, one below 0.025 for neither
        ([0, 100, 0], [1, 0.05, 0], 10, (True, 0, 1)),
        ([0, 1000, 0], [1, 0.02, 0], 10, (False, 0, 1)),
        # the mains carry everything
        ([10, 8, 0], [1, 1, 0], 10, (False, 0, 0)),
        # x·p is negative
        ([0, 10, 0], [1, 0.5, 0], -1, (False, 0, 0)),
        # the mains speak against the parent
        ([2, 10, 0], [-1, 0.5, 0], 10, (False, 1, 1)),
        # four absorbers of 2: the three largest count, and they may not exceed what the main leaves
        ([4, 2, 2, 2, 2], [1, 1, 1, 1, 1], 9, (False, 5 / 9, 8 / 12)),
    ],
)  # fmt: skip
def test_words_by_hand(acts, cosines, x_on_p, expected):
    assert scored(acts, cosines, x_on_p) == pytest.approx(expected)


def test_two_definitions_of_the_fraction_differ_by_two_and_a_half():
    _, fraction, v03 = scored([4, 4, 3], [1, 1, -1], 10)
    assert fraction / v03 == pytest.approx(2.5)


def package_scores(module, acts, decoder, x, p, mains):
    """The results of SAEBench's calculator for injected activations and features, one word each."""
    words = [f"word{number}" for number in range(len(x))]
    place = iter(range(len(x)))

    class Injected:
        device, W_dec = "cpu", decoder

        def encode(self, found: Tensor) -> Tensor:
            return acts[next(place)][None]

    batches = iter(x)

    def run_with_cache(prompts, names_filter):
        return None, {names_filter[0]: next(batches)[None, None].repeat(1, 8, 1)}

    model = SimpleNamespace(run_with_cache=run_with_cache, to_tokens=lambda text: [[0]])
    calculator = module.FeatureAbsorptionCalculator(
        model=model, icl_word_list=["one", "two", "three"], max_icl_examples=2, word_token_pos=-6, batch_size=1
    )
    results = calculator.calculate_absorption(Injected(), words, p, mains, layer=1, show_progress=False)
    return [(word.is_full_absorption, word.absorption_fraction) for word in results.word_results]


@pytest.mark.parametrize("seed", range(4))
def test_the_package_gives_the_same(monkeypatch, seed):
    module = saebench_absorption.calculator_module(monkeypatch)
    draw = torch.Generator().manual_seed(seed)
    n, d, d_sae, mains = 200, 8, 24, [3, 7][: 1 + seed % 2]
    decoder = torch.randn(d_sae, d, generator=draw) * (1 + seed % 3)
    acts = torch.relu(torch.randn(n, d_sae, generator=draw) - 0.8)
    acts[::2][:, mains] = 0
    x = acts @ decoder + 0.3 * torch.randn(n, d, generator=draw)
    p = decoder[3] / decoder[3].norm() + decoder[5] / decoder[5].norm()
    theirs = package_scores(module, acts, decoder, x, p, mains)
    cosines = torch.nn.functional.cosine_similarity(p, decoder, dim=-1)
    ours = word_scores(acts, cosines, x @ (p / p.norm()), mains)
    full, fraction = (np.array(column) for column in zip(*some(theirs), strict=True))
    assert ours.full.numpy().tolist() == full.tolist()
    assert ours.fraction.numpy() == pytest.approx(fraction, abs=1e-5)
    assert 0 < full.mean() < 1
    assert ((fraction > 0) & (fraction < 1)).any()
