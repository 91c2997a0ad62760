"""Worlds against their definitions. Each tolerance is five standard errors of the number of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from given import PLAIN, evaluated, firing, world
from saeval.plugin import SaevalError, digest_of, hashed
from saeval.testing.claims import every
from saeval_synthetic import kernels
from saeval_synthetic.directions import coherence, directions, least_coherence
from saeval_synthetic.settings import PRESETS
from saeval_synthetic.source import Synthetic

SMALL = {"dimensions": 32, "features": 40, "least_probability": 0.02, "most_probability": 0.4}


def near(share, expected, samples):
    """True where a share of samples is within five standard errors of a probability."""
    expected = np.asarray(expected)
    return np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / samples) + 1e-12


def test_features_fire_as_often_as_zipfs_law_says():
    values, source = firing({**SMALL, "dense_features": 2, "dense_probability": 0.9, "zipf_exponent": 0.5})
    stated = source.settings.stated_probability()
    assert near((values > 0).mean(0), stated, len(values)).all()
    assert stated[0] == pytest.approx(0.4)
    assert stated[-3] == pytest.approx(0.02, abs=2e-3)
    assert stated[[-1, -2]] == pytest.approx(0.9)
    ranks = np.arange(1, 41) ** -0.5
    rescaled = 0.02 + 0.38 * (ranks - ranks[-1]) / (ranks[0] - ranks[-1])
    assert stated[:38] == pytest.approx(rescaled[:38])


def test_the_largest_preset_is_that_of_the_benchmark():
    settings = PRESETS["synthsaebench"]
    stated = settings.stated_probability()
    shape = (settings.dimensions, settings.features, settings.roots, settings.branching, settings.depth)
    assert (*shape, settings.correlation_rank) == (768, 16_384, 128, 4, 3, 25)
    assert stated.sum() == pytest.approx(59.1, abs=0.1)
    assert (stated.max(), stated.min()) == pytest.approx((0.4, 5e-4))
    assert settings.in_trees == 128 * (1 + 4 + 16 + 64)


@pytest.mark.slow
def test_about_34_features_of_the_largest_preset_fire_on_a_sample():
    rows = Synthetic(preset="synthsaebench", samples=1000, context=250, dimensions=8).dataset("evaluation")
    count = sum(len(rows.batch([i], "cpu").supplied["true_features"].token) for i in range(len(rows)))
    assert 33 < count / 1000 < 37  # sae-lens' own sampler of these settings gave 34.8 over 2,000 samples


def test_members_of_a_group_are_correlated_as_planted():
    values, source = firing({**SMALL, "groups": 3, "group_size": 2, "group_correlation": 0.6, "zipf_exponent": 0.2})
    stated, both = source.settings.stated_probability(), (values > 0).astype(float)
    correlation = [[1, 0.6], [0.6, 1]]
    together = [
        multivariate_normal([0, 0], correlation).cdf(norm.ppf(stated[[first, first + 1]])) for first in (0, 2, 4)
    ]
    assert near((both[:, [0, 2, 4]] * both[:, [1, 3, 5]]).mean(0), together, len(values)).all()
    assert near((both[:, 0] * both[:, 2]).mean(), stated[0] * stated[2], len(values))
    assert near(both.mean(0), stated, len(values)).all()


def test_factors_of_low_rank_correlate_all_features():
    settings = {**SMALL, "correlation_rank": 3, "correlation_scale": 0.4, "zipf_exponent": 0.2}
    values, source = firing(settings)
    made, stated = source.world(), source.settings.stated_probability()
    correlations = made.correlation(0)
    partner = int(np.argmax(correlations))
    assert correlations[partner] > 0.3
    matrix = [[1, correlations[partner]], [correlations[partner], 1]]
    together = multivariate_normal([0, 0], matrix).cdf(norm.ppf(stated[[0, partner]]))
    assert near(((values[:, 0] > 0) & (values[:, partner] > 0)).mean(), together, len(values))
    assert near((values > 0).mean(0), stated, len(values)).all()


TREES = {**SMALL, "roots": 3, "branching": 2, "depth": 2, "least_probability": 0.05}


def test_children_fire_only_with_their_parents_and_as_often_as_stated():
    values, source = firing({**TREES, "exclusive": 0.0, "compensate": True})
    tree, fires = source.world().tree, values > 0
    children = np.flatnonzero(tree.parent >= 0)
    assert len(children) == 3 * (2 + 4)
    assert not (fires[:, children] & ~fires[:, tree.parent[children]]).any()
    assert near(fires.mean(0), source.settings.stated_probability(), len(values)).all()


def test_without_compensation_probabilities_multiply_along_the_tree():
    values, source = firing({**TREES, "exclusive": 0.0, "compensate": False})
    tree, stated = source.world().tree, source.settings.stated_probability()
    expected = [np.prod(stated[[j, *tree.ancestors(j)]]) for j in range(40)]
    assert near((values > 0).mean(0), expected, len(values)).all()


def test_exclusive_siblings_share_out_their_parents_samples():
    values, source = firing({**TREES, "depth": 1, "branching": 3, "exclusive": 1.0, "compensate": False})
    made, fires = source.world(), values > 0
    siblings = np.stack([np.flatnonzero(made.tree.parent == root) for root in range(3)])
    assert (fires[:, siblings].sum(2) <= 1).all()
    p = made.probability[siblings]
    others = np.stack([np.roll(p, shift, 1) for shift in (1, 2)])
    # A sibling that would fire wins against none, one or two others, each as likely to win as itself.
    wins = (1 - others[0]) * (1 - others[1]) + others[0] * others[1] / 3
    wins += (others[0] * (1 - others[1]) + others[1] * (1 - others[0])) / 2
    expected = made.probability[:3, None] * p * wins
    assert near(fires[:, siblings].mean(0), expected, len(values)).all()


def test_activations_have_their_mean_spread_and_scale_by_the_parent():
    plain = {**SMALL, "magnitude_first": 3.0, "magnitude_last": 1.0, "magnitude_spread": 0.2}
    values, _ = firing(plain)
    first, last = (values[:, j][values[:, j] > 0] for j in (0, 39))
    assert abs(first.mean() - 3) <= 5 * 0.2 / np.sqrt(len(first))
    assert abs(last.mean() - 1) <= 5 * 0.2 / np.sqrt(len(last))
    assert abs(first.std() - 0.2) <= 5 * 0.2 / np.sqrt(2 * len(first))
    scaled, source = firing({**plain, **TREES, "exclusive": 0.0, "scale_children": True, "magnitude_spread": 0.0})
    tree, mean = source.world().tree, source.world().mean
    child = int(np.flatnonzero(tree.parent == 0)[0])
    assert scaled[:, child][scaled[:, child] > 0] == pytest.approx(mean[child])
    doubled, source = firing({**plain, **TREES, "exclusive": 0.0, "scale_children": True})
    on = doubled[:, child] > 0
    assert np.corrcoef(doubled[on, child], doubled[on, 0])[0, 1] > 0.5


@pytest.mark.parametrize(
    ("n", "d", "chosen"),
    [(60, 20, 0.3), (60, 20, None), (60, 20, "least"), (15, 20, 0.0), (15, 20, 0.1), (40, 40, 0.5)],
)
def test_directions_have_the_chosen_coherence(n, d, chosen):
    wanted = least_coherence(n, d) if chosen == "least" else chosen
    made = directions(n, d, wanted, seed=1)
    assert np.linalg.norm(made, axis=1) == pytest.approx(1, abs=1e-6)
    if wanted is None:
        assert coherence(made) == pytest.approx(1 / np.sqrt(d), rel=0.1)
    else:
        assert coherence(made) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    cosines = made.astype(np.float64) @ made.T
    assert coherence(made) == pytest.approx(np.sqrt(np.square(cosines - np.eye(n)).sum() / (n * (n - 1))), abs=1e-6)


def test_activations_are_the_sum_of_directions_bias_and_noise():
    rows = Synthetic(**{**SMALL, **PLAIN, "bias": 2.0, "noise": 0.1}, samples=4000, context=500).dataset("evaluation")
    supplied, made = rows.batch(range(8), "cpu").supplied, rows.world
    assert np.linalg.norm(made.bias) == pytest.approx(2)
    rest = supplied["activations"] - supplied["true_features"].dense() @ torch.from_numpy(made.directions)
    noise = (rest - torch.from_numpy(made.bias)).numpy()
    assert abs(noise.mean()) <= 5 * 0.1 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.1) <= 5 * 0.1 / np.sqrt(2 * noise.size)


def test_uniform_numbers_are_uniform_and_unrelated():
    numbers = kernels.uniform(hashed(np.arange(400)), np.arange(500)) / 2.0**32
    assert abs(numbers.mean() - 0.5) <= 5 / np.sqrt(12 * numbers.size)
    counts = np.histogram(numbers, 50, (0, 1))[0]
    assert np.square(counts - 4000).sum() / 4000 < 49 + 5 * np.sqrt(98)
    assert np.abs(np.corrcoef(numbers)[np.triu_indices(400, 1)]).max() < 6.5 / np.sqrt(500)
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(numbers.size)
    pairs = kernels.uniform_at(hashed(np.arange(400)), np.arange(400))
    assert (pairs / 2.0**32 == numbers[np.arange(400), np.arange(400)]).all()


def test_any_batch_size_gives_the_same_samples():
    rows = Synthetic(samples=700, context=100, seed=3).dataset("evaluation")
    whole = rows.batch(range(7), "cpu").supplied
    order = [5, 1, 6, 0, 3, 2, 4]
    singly = [rows.batch([i], "cpu").supplied for i in order]
    assert torch.equal(torch.cat([part["activations"] for part in singly]), whole["activations"][order])
    assert torch.equal(
        torch.cat([part["true_features"].dense() for part in singly]), whole["true_features"].dense()[order]
    )


def test_any_batch_size_gives_the_same_results():
    data = {"use": "synthetic", "samples": 1000, "context": 64, "fit_samples": 500, "documents": 8}
    sae = {"use": "frozen_decoder", "of": "synthetic/topk-4", "seeds": 1}
    metrics = ["truth_recovery", "truth_absorption", "decoder_projection"]
    results = [evaluated(data, [sae], metrics, controls=["oracle_dictionary"], batch_size=size) for size in (16, 5)]
    first, second = ([result.values for result in results_] for results_ in results)
    assert first == second
    assert len(first) == 6


def test_splits_and_seeds_have_no_sample_in_common():
    source, other = Synthetic(samples=300, fit_samples=300), Synthetic(samples=300, seed=1)
    evaluation, fit = source.dataset("evaluation"), source.dataset("fit")
    samples = [
        r.batch([0], "cpu").supplied["true_features"].dense()[0] for r in (evaluation, fit, other.dataset("evaluation"))
    ]
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    assert evaluation.fingerprint != fit.fingerprint


def test_the_last_row_ends_with_the_samples_and_documents_are_blocks_of_rows():
    rows = Synthetic(samples=1050, context=100, documents=4).dataset("evaluation")
    assert (len(rows), rows.n_clusters) == (11, 4)
    assert int(rows.batch([10], "cpu").mask.sum()) == 50
    assert rows.counts(11)["tokens"] == 1050
    assert np.bincount(rows.clusters).tolist() == [3, 3, 3, 2]


def test_presets_are_pinned():
    fingerprints = {name: settings.fingerprint[:12] for name, settings in PRESETS.items()}
    assert fingerprints == {"small": "7c993f145cc8", "medium": "20d2e095785f", "synthsaebench": "9a8981818526"}

    def fires(preset):
        true = (
            Synthetic(preset=preset, samples=64, context=64)
            .dataset("evaluation")
            .batch([0], "cpu")
            .supplied["true_features"]
        )
        return digest_of([true.token.tolist(), true.feature.tolist(), true.value.mul(1000).round().int().tolist()])[:12]

    assert {name: fires(name) for name in ("small", "medium")} == {"small": "e75b11b269b6", "medium": "891ddf551485"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 100}, "'features: 100' is too few: 208 in the hierarchy, 32 in groups, 0 dense; choose 240 or more"),
        ({"coherence": 0.01}, "'coherence: 0.01' is out of reach: 512 directions in 128 dimensions have one from 0.07662 to 1"),
        ({"least_probability": 0.5}, "'least_probability: 0.5' and 'most_probability: 0.2': the first must be smaller"),
        ({"preset": "huge"}, "'preset' of data 'synthetic'"),
        ({"zipf_exponent": -1}, "'zipf_exponent' of data 'synthetic'"),
        ({"zipf": 1}, "unknown parameter 'zipf' of data 'synthetic'"),
    ],
)  # fmt: skip
def test_a_wrong_number_is_one_sentence(settings, message):
    with pytest.raises(SaevalError) as caught:
        evaluated({"use": "synthetic", **settings}, ["synthetic/topk-4"], ["l0"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_sae_of_another_width_is_refused():
    with pytest.raises(SaevalError) as caught:
        evaluated({"use": "synthetic", "preset": "medium", "samples": 300}, ["synthetic/topk-4"], ["l0"])
    message = (
        "synthetic/topk-4: the SAE takes 128 inputs, but the data's activations are 256 wide; check the SAE or the data"
    )
    assert message in str(caught.value)


def test_what_needs_a_ground_truth_or_a_model_is_refused_without_it():
    text = {"use": "texts", "texts": ["one two three four"] * 30, "context": 8}
    with pytest.raises(SaevalError) as caught:
        evaluated(
            text, ["testbed/topk-16"], ["truth_recovery", "l0"], controls=["oracle_full"], model={"use": "testbed"}
        )
    fault = "needs a ground truth, and data 'texts' have none; use data such as {use: synthetic}"
    assert every(
        f"{what} {fault}" in str(caught.value) for what in ("metric 'truth_recovery'", "control 'oracle_full'")
    )
    with pytest.raises(SaevalError, match="needs a model"):
        evaluated({"use": "synthetic", "samples": 300}, ["synthetic/topk-4"], ["ce"])


def test_a_world_without_features_on_a_sample_has_no_activation_but_the_bias():
    made = world(probability=0.0)
    keys = hashed(np.arange(5))
    fires = made.features(keys)
    assert (len(fires.feature), len(fires.starts)) == (0, 6)
    assert not made.activations(fires, keys).any()
