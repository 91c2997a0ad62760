"""Null hypotheses of the reward metrics: who may be drawn, p values, and claims when labels are random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rewards import ONE_HOT, Directions, Pairs, Readout, random_pairs, run, values
from saeval import Mean, Undefined
from saeval.stats.evidence import Stamp
from saeval.testing.claims import every, some
from saeval_reward.explained import Explained, rank_correlation, sign_agreement
from saeval_reward.nulls import above_p, permuted_p, rank_p
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import Ranking, feature_ranking
from saeval_reward.totals import Attributions, in_fold_b

NONE = np.zeros(0, dtype=np.int64)


def totals_of(attributions, stamp, fires=None, tokens=100):
    """Sums of `attributions` [pairs, features], as the fold makes them."""
    count, d_sae = attributions.shape
    return Attributions(
        sums=attributions, pairs=np.ones(count, np.int64), parts=np.zeros((count, 8)), swapped=np.zeros(d_sae),
        fires=np.full(d_sae, 5) if fires is None else fires, prompt_fires=np.zeros(d_sae, np.int64),
        magnitude=np.linspace(1, 2, d_sae), squares=np.ones(4), tokens=tokens, prompt_tokens=tokens,
    ).stamp(stamp)  # fmt: skip


def explained_of(attributions, effects, names, documents, members, keep=slice(None)):
    ids = np.arange(len(documents))[keep]
    stamp = Stamp(ids, documents[keep], int(documents.max()) + 1)
    in_b = torch.from_numpy(in_fold_b(stamp.clusters))[:, None]
    made = Mean.of(torch.from_numpy(effects[keep])[:, None], in_b).stamp(stamp)
    rewards = {side: np.full(len(ids), reward) for side, reward in (("chosen", 1.0), ("rejected", 0.0))}
    d_sae = attributions.shape[1]
    ranking = Ranking(
        np.arange(d_sae), np.arange(d_sae), np.arange(d_sae), *np.zeros((2, d_sae), bool), members, {1: 0}
    )
    index = {name: i for i, name in enumerate(names)}
    return Explained(totals_of(attributions[keep], stamp), ranking, PerPair.of(**rewards).stamp(stamp), index, made)


@pytest.mark.parametrize("count", [9, 70])
def test_the_rank_correlation_has_the_jackknife_of_a_recomputation_without_each_document(count, monkeypatch):
    """70 documents are 64 blocks."""
    monkeypatch.setattr("saeval_reward.nulls.PERMUTATIONS", 9)  # for speed
    random = np.random.default_rng(count)
    documents = np.repeat(np.arange(count), 3)
    truth = random.normal(size=8)
    effects = truth + 4 * random.normal(size=(len(documents), 8))
    attributions = truth + 4 * random.normal(size=(len(documents), 8))
    names = [f"feature {i}" for i in range(8)]
    members = {name: np.array([i]) for i, name in enumerate(names)}

    def agreement(keep=slice(None)):
        return explained_of(attributions, effects, names, documents, members, keep).agreement(8, 0)

    whole = agreement()
    blocks = [b for b in range(min(count, 64)) if in_fold_b(documents)[documents % 64 == b].any()]
    without = np.array([agreement(documents % 64 != b)["rank_correlation"].value for b in blocks])
    error = np.sqrt((len(blocks) - 1) / len(blocks) * np.square(without - without.mean()).sum())
    assert whole["rank_correlation"].stderr == pytest.approx(error, rel=1e-9)
    assert error > 0
    for name in ("sign_agreement", "rank_correlation"):
        low, high = whole[name].ci95
        assert low < whole[name].value < high


def agreement_in_signs(seed, attributed=(1.0, 2.0, 3.0, 0.0, 0.0)):
    """Agreement of 5 features' signs over 80 documents; effects are 1 and a feature attributed 0 has either sign."""
    random = np.random.default_rng(seed)
    documents, names = np.arange(80), [f"feature {i}" for i in range(5)]
    attributions = np.array(attributed) + random.normal(size=(80, 5))
    members = {name: np.array([i]) for i, name in enumerate(names)}
    effects = 1 + 0.1 * random.normal(size=(80, 5))
    return explained_of(attributions, effects, names, documents, members).agreement(5, 0)["sign_agreement"]


def test_the_error_of_a_share_of_signs_is_its_spread_over_samples(monkeypatch):
    """Leaving out one document seldom changes a sign, so a jackknife would give 0 in most samples."""
    monkeypatch.setattr("saeval_reward.nulls.PERMUTATIONS", 9)  # for speed
    monkeypatch.setattr("saeval_reward.nulls.BOOTSTRAPS", 199)
    samples = [agreement_in_signs(seed) for seed in range(40)]
    spread = np.std([sample.value for sample in samples])
    assert np.mean([sample.stderr for sample in samples]) == pytest.approx(spread, rel=0.35)
    assert every(0 <= s.ci95[0] < s.value <= s.ci95[1] <= 1 for s in samples)


def test_a_document_is_in_one_fold_with_all_its_pairs():
    documents = np.repeat(np.arange(20), 3)
    totals = totals_of(np.ones((60, 4)), Stamp(np.arange(60), documents, 20))
    assert sorted(totals.pairs.min(0).tolist() + totals.pairs.max(0).tolist()) == [0] * 20 + [3] * 20
    with pytest.raises(Undefined, match="the documents of all 3 pairs are in one fold; use pairs from more documents"):
        _ = totals_of(np.ones((3, 4)), Stamp(np.arange(3), documents[:3], 20)).on_a


def test_no_feature_at_the_top_or_with_a_flag_is_drawn_for_any_size():
    random = np.random.default_rng(0)
    attributions = random.normal(size=(40, 60)) + np.linspace(2, 0, 60)
    fires = np.full(60, 5)
    fires[[0, 1, 2, 3, 50]] = 90  # flagged, so that the first without flags are others
    totals = totals_of(attributions, Stamp(np.arange(40), np.arange(40), 40), fires)
    ranking = feature_ranking(totals, torch.eye(60, 4), top=3, groups=(1, 5, 8), random=20)
    top = {*ranking.order[:8].tolist(), *ranking.kept[:8].tolist()}
    assert len(top) > 8
    for k, r in some(itertools.product((1, 5, 8), range(20))):
        drawn = ranking.members[f"random {k}.{r}"].tolist()
        assert len(set(drawn)) == k
        assert not (top | {50}) & set(drawn)
    assert ranking.unmatched == {1: 0, 5: 0, 8: 0}
    others = [int(ranking.members[f"other {i}"][0]) for i in range(3)]
    assert len(set(others)) == 3
    assert not top & set(others)
    assert len({int(ranking.members[f"random 1.{r}"][0]) for r in range(20)}) == 20


def test_features_without_equals_in_density_are_counted():
    fires = np.full(60, 2)
    fires[[0, 3]] = 9  # below a tenth of the tokens, but denser than all others
    totals = totals_of(np.ones((40, 60)) * np.linspace(2, 0, 60), Stamp(np.arange(40), np.arange(40), 40), fires)
    ranking = feature_ranking(totals, torch.eye(60, 4), top=3, groups=(1, 3, 5), random=20)
    assert ranking.unmatched == {1: 1, 3: 1, 5: 2}


def test_a_rank_among_draws_is_exact():
    """Whichever of six features is on top, the other five are its draws: each rank comes once."""
    numbers = np.array([0.3, -1.0, 2.0, 0.0, 5.0, 0.7])
    p = [rank_p(numbers[i], np.delete(numbers, i)) for i in range(6)]
    assert sorted(p) == pytest.approx([(r + 1) / 6 for r in range(6)])
    assert rank_p(1.0, np.array([1.0, 1.0, 0.0])) == 3 / 4  # ties count against the claim


def test_a_rank_among_draws_is_uniform_under_the_null():
    draws = np.random.default_rng(0).normal(size=(4000, 20))
    p = np.array([rank_p(row[0], row[1:]) for row in draws])
    assert np.bincount(np.rint(p * 20).astype(int), minlength=21)[1:] == pytest.approx(200, abs=60)


def test_agreement_by_chance_is_that_of_attributions_assigned_at_random():
    """If all signs are equal they agree whatever the assignment; the order of three is right in one of six."""
    assert permuted_p(sign_agreement, np.arange(1.0, 9), np.arange(9.0, 17)) == 1
    assert permuted_p(rank_correlation, np.arange(3.0), np.arange(3.0)) == pytest.approx(1 / 6, abs=0.02)
    assert permuted_p(rank_correlation, np.arange(12.0), np.arange(12.0)) == pytest.approx(1e-4)


def claimed(random, labels, relevant=5.0):
    """Whether the top feature's excess is significant: its effects per pair are large, those of the draws small."""
    names = ["top 1", "kept 1", *(f"random 1.{r}" for r in range(20))]
    members = {name: np.array([i]) for i, name in enumerate(names)} | {"swapped 1": NONE}
    effects = (1 + random.normal(size=(120, len(names)))) * np.array([relevant, relevant, *[1] * 20])
    effects *= labels(120)[:, None]
    documents = np.repeat(np.arange(40), 3)
    made = explained_of(np.zeros((120, len(names))), effects, names, documents, members).group(1, 20)
    return made["ablated_excess_kept_1"].null.p < 0.05


def test_random_labels_make_no_feature_decisive_and_true_ones_do():
    """The top feature moves the reward more than others do, in whichever direction the labels point."""
    random = np.random.default_rng(0)
    flipped = [claimed(random, lambda n: random.choice([-1.0, 1.0], n)) for _ in range(200)]
    assert np.mean(flipped) <= 0.07
    assert every(claimed(random, np.ones) for _ in range(10))
    alike = [claimed(random, np.ones, relevant=1.0) for _ in range(200)]
    assert np.mean(alike) <= 0.07


def test_a_test_above_a_null_is_one_sided():
    ids = np.arange(50)
    x = Mean.of(torch.linspace(0.4, 0.8, 50)).stamp(Stamp(ids, ids, 50)).value
    assert above_p(x, 0.5) < 1e-6
    assert above_p(x, 0.7) > 1 - 1e-6
    assert above_p(x, 0.6) == pytest.approx(0.5, abs=1e-3)
    alone = Mean.of(torch.ones(3)).stamp(Stamp(np.arange(3), np.zeros(3, np.int64), 1)).value
    assert above_p(alone) == 1


def test_values_declare_their_nulls():
    model = Readout(lambda x: x[..., 2] + 0.1 * x[..., 5] - 0.2 * x[..., 6] + 0.3 * x[..., 7], embed=ONE_HOT)
    options = {"steps": 2, "baseline": "zero", "top": 3, "groups": [1], "random": 5, "frequent": 1.0}
    metrics = [{"reward_attribution": options}, "reward_margin"]
    results = run(metrics, rows=Pairs(random_pairs(100)), model=model, saes={"sae": Directions(ONE_HOT)})
    record = values(results).values
    for name, null in some({"ablated_excess_kept_1": "random groups", "sign_agreement": "chance"}.items()):
        assert record[name]["null"]["name"] == null
        assert 0 < record[name]["p"] <= 1
    (margin,) = [r.values for r in results if r.metric == "reward_margin"]
    assert (margin["margin"]["null"]["value"], margin["accuracy"]["null"]["value"]) == (0, 0.5)
    assert margin["accuracy"].get("p") is None  # by the t test
