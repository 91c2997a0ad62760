"""The planted world: what is true is claimed, in words, in nearly all runs."""

from __future__ import annotations

import os

import pytest

from saeval.testing.claims import some
from tally import Tally
from worlds import (
    ATTRIBUTION,
    Directions,
    Noise,
    Scaled,
    Signs,
    at_signs,
    beside_control,
    connected,
    preferences,
    seeds,
)

LEAST, RUNS = 0.8, 5


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """Nothing has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def outcomes(made):
    """The claims of verdicts, by column and row."""
    return {(verdict.column.name, verdict.name): verdict.outcome for verdict in made if verdict.claimed}


def assert_claimed(runs, claims, least=LEAST):
    """Each of `claims`, an outcome by column and row, is made in at least this share of the runs."""
    for place, words in some(claims.items()):
        share = sum(made.get(place, "").startswith(words) for made in runs) / len(runs)
        assert share >= least, (place, words, [made.get(place) for made in runs])


@pytest.mark.slow
def test_errors_worse_and_milder_than_noise_are_claimed_compared_and_ranked():
    tally, runs = Tally(), []
    for run in range(RUNS):
        results = at_signs(run, Signs(quiet=True), {"worse": Noise(run, along=0), "milder": Noise(run, along=7)})
        runs.append(outcomes(tally.verdicts(results, {})))
        tally.comparison("sure", results, "worse", "milder")
        tally.ranks("ranked", results, "ce.delta_ce")
    noise = "isotropic noise of the same cosine and norm"
    assert_claimed(runs, {
        ("perturbation.difference", "worse"): f"more harmful than {noise}",
        ("perturbation.difference", "milder"): f"less harmful than {noise}",
    })  # fmt: skip
    assert min(tally.shares().values()) >= LEAST, tally.shares()


@pytest.mark.slow
def test_near_copies_are_more_alike_and_seeds_apart_less_alike():
    tally = Tally()
    alike = [outcomes(tally.verdicts(seeds(run, base=run), {})) for run in range(RUNS)]
    apart = [outcomes(tally.verdicts(seeds(run, apart=True), {})) for run in range(RUNS)]
    twin, chance = "untrained SAEs", "random features of the same mean and covariance"
    for name in ("seed_stability.decoder_matched", "seed_stability.encoder_matched",
                 "functional_stability.pearson_matched", "functional_stability.jaccard_matched"):  # fmt: skip
        assert_claimed(alike, {(f"{name} vs random", "seeds (4)"): f"more alike than {twin}"})
    for space in ("decoder", "encoder"):
        assert_claimed(apart, {(f"seed_stability.{space}_matched vs random", "seeds (4)"): f"less alike than {twin}"})
        assert_claimed(alike, {(f"floors.{space}_matched_excess", "seeds (4)"): f"more alike than {chance}"})
        assert_claimed(apart, {(f"floors.{space}_matched_excess", "seeds (4)"): f"less alike than {chance}"})


@pytest.mark.slow
def test_connections_that_all_ways_show_are_claimed():
    runs = [
        outcomes(Tally().verdicts(connected(run, Directions(1000 * run, 0, 24), plain=True), {})) for run in range(RUNS)
    ]
    row = "pair (2)"
    for map_ in ("linear", "relu"):
        assert_claimed(runs, {(f"feature_connections.fvu_{map_}_4", row): "better predicted than by the mean"})
    for way in ("direct", "block", "data"):
        assert_claimed(runs, {(f"feature_connections.precision_{way}", row): "more precise than edges of other",
                              (f"feature_connections.rank_correlation_{way}", row): "ordered more alike than"})  # fmt: skip


@pytest.mark.slow
def test_saes_better_and_worse_than_untrained_ones_are():
    columns = ["kl.kl_sae", "reconstruction.explained_variance"]
    saes = {"good": Scaled(0.98), "bad": Scaled(-1.0)}
    runs = [
        outcomes(Tally().verdicts(beside_control(run, saes), {}, {"against": {"random": columns}}))
        for run in range(RUNS)
    ]
    for column in some(columns):
        assert_claimed(runs, {(f"{column} vs random", "good"): "better than the control random",
                              (f"{column} vs random", "bad"): "worse than the control random"})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("boost", "side"), [(4.0, "chosen"), (-4.0, "rejected")])
def test_a_planted_preference_is_claimed_and_attributed(boost, side):
    runs = [outcomes(Tally().verdicts(preferences(run, flip=False, boost=boost), {})) for run in range(RUNS)]
    more = {"chosen": "more", "rejected": "less"}[side]
    assert_claimed(runs, {
        ("reward_margin.margin", "tiny"): f"more in favour of the {side} sides than no preference",
        ("reward_margin.accuracy", "tiny"): f"{more} accurate on these pairs than chance",
        ("planted_recovery.precision_kept_5", "sae"): "richer in planted features than random groups of 5 features",
        ("reward_attribution.rank_correlation", "sae"): "closer in its attributions to the order of true effects",
    })  # fmt: skip
    if side == "chosen":
        assert_claimed(runs, {
            ("reward_attribution.ablated_excess_kept_1", "sae"): "more important to the margin through its top unflagged",
        })  # fmt: skip


@pytest.mark.slow
def test_agreement_of_attributions_with_the_signs_of_effects_is_claimed():
    """Signs need more features than other claims: those of 40, half of which lower the reward."""
    metrics = [{"reward_attribution": {**ATTRIBUTION, "steps": 1, "top": 20}}]
    runs = [outcomes(Tally().verdicts(preferences(run, flip=False, metrics=metrics), {})) for run in range(RUNS)]
    signs = "closer in its attributions to the signs of true effects"
    assert_claimed(runs, {("reward_attribution.sign_agreement", "sae"): signs})
