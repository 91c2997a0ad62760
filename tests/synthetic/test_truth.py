"""Truth metrics on dictionaries whose values are worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from given import Given, evaluated, rows_of, values_of, world
from saeval.testing.claims import every
from saeval_synthetic.directions import directions

I16 = np.eye(16)
BY_FIRING = ("precision", "recall", "f1", "auc", "recall_all", "f1_all")
ONE = ("mcc", "cosine", "share_above", "uniqueness", "saelens_mcc", *BY_FIRING)


def test_the_oracle_has_the_best_value_of_every_truth_metric():
    data = {"use": "synthetic", "samples": 6000, "fit_samples": 2000}
    metrics = ["truth_recovery", {"truth_absorption": {"least": 5}}, "truth_hedging"]
    saes = {"sae": Given(np.eye(128))}
    results = evaluated(data, saes, metrics, controls=["oracle_full", "oracle_dictionary"])
    full, found = (
        {
            name: record["value"]
            for r in results
            if r.subject == oracle
            for name, record in r.values.items()
            if "value" in record
        }
        for oracle in ("oracle_full", "oracle_dictionary")
    )
    best = {**dict.fromkeys([*ONE, "recall_with_child", "recall_alone", "own_share"], 1), "absorption": 0, "split": 0}
    assert {name: full[name] for name in best} == pytest.approx(best, abs=1e-6)
    assert full["hedging"] == pytest.approx(0, abs=1e-6)
    assert every(found[name] == pytest.approx(full[name], abs=1e-6) for name in ("mcc", "share_above", "hedging"))
    assert 0.98 < found["f1"] < 1
    assert found["f1_floor"] < 0.05


def test_planted_features_are_the_share_above():
    made = world(d=20)
    spare = np.eye(20)[16:]
    values = values_of(made, Given(np.concatenate([np.eye(16, 20)[:12], spare])), "truth_recovery")
    assert values["share_above"] == pytest.approx(12 / 16)
    assert values["mcc"] == pytest.approx(12 / 16)
    assert values["cosine"] == pytest.approx(12 / 16)
    assert values["dead"] == pytest.approx(4 / 16)
    assert values["f1_all"] == pytest.approx(12 / 16)


def test_missed_features_and_spare_latents_count():
    half = values_of(world(), Given(I16[:8]), "truth_recovery")
    assert {
        name: half[name]
        for name in ("mcc", "cosine", "saelens_mcc", "share_above", "f1", "recall", "f1_all", "recall_all")
    } == (
        pytest.approx(
            {
                "mcc": 0.5,
                "cosine": 1,
                "saelens_mcc": 1,
                "share_above": 0.5,
                "f1": 1,
                "recall": 1,
                "f1_all": 0.5,
                "recall_all": 0.5,
            }
        )
    )
    opposed = values_of(world(), Given(-I16), "truth_recovery")
    assert (opposed["mcc"], opposed["saelens_mcc"]) == pytest.approx(
        (0, 1), abs=1e-6
    )  # signed: any other direction is nearer


def test_a_duplicated_dictionary():
    values = values_of(world(), Given(np.concatenate([I16, I16])), "truth_recovery")
    expected = {
        "mcc": 0.5,
        "cosine": 1,
        "share_above": 1,
        "uniqueness": 0.5,
        "split": 1,
        "dead": 0,
        "f1": 1,
        "f1_all": 1,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_split_features():
    made, angle = world(d=32), math.radians(30)
    truth, apart = np.eye(16, 32) * math.cos(angle), np.eye(32)[16:] * math.sin(angle)
    values = values_of(made, Given(np.concatenate([truth + apart, truth - apart])), "truth_recovery")
    expected = {"mcc": math.cos(angle) / 2, "cosine": math.cos(angle), "share_above": 0, "uniqueness": 0.5, "split": 1}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values_of(made, Given(truth + apart), "truth_recovery")["split"] == 0


@pytest.mark.parametrize(("degrees", "share"), [(20, 1), (30, 0)])
def test_a_rotated_dictionary(degrees, share):
    angle = math.radians(degrees)
    turned = np.kron(np.eye(8), [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    values = values_of(world(), Given(turned), "truth_recovery")
    expected = {"mcc": math.cos(angle), "cosine": math.cos(angle), "share_above": share, "uniqueness": 1, "split": 0}
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_merged_features():
    made, merged = world(), np.kron(np.eye(8), [[1, 1]]) / math.sqrt(2)
    values = values_of(made, Given(merged), "truth_recovery", samples=20_000)
    expected = {"mcc": math.sqrt(0.5) / 2, "cosine": math.sqrt(0.5), "share_above": 0, "uniqueness": 1, "recall": 1}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    # It fires with either of two features of probability 0.2.
    precision = 0.2 / (1 - 0.8**2)
    assert values["precision"] == pytest.approx(precision, abs=0.02)
    assert values["f1"] == pytest.approx(2 * precision / (1 + precision), abs=0.02)
    assert values["recall_all"] == pytest.approx(0.5)
    # Of two tokens with and without the feature: 1 with the latent against 0 or 1, or √2 of both features.
    assert values["auc"] == pytest.approx(1 - 0.2 * 0.8 / 2, abs=0.02)


def test_dead_latents_count_as_misses():
    values = values_of(world(), Given(I16, dead=range(4)), "truth_recovery")
    expected = {
        **dict.fromkeys(("precision", "recall", "f1", "f1_all"), 0.75),
        "dead": 0.25,
        "auc": (12 + 4 / 2) / 16,
        "mcc": 1,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_features_that_never_fire_say_nothing_about_firing():
    probability = np.full(16, 0.3)
    probability[8:] = 0
    values = values_of(world(probability=probability), Given(I16, dead=range(8, 16)), "truth_recovery")
    assert {name: values[name] for name in (*BY_FIRING, "dead")} == pytest.approx(
        {**dict.fromkeys(BY_FIRING, 1), "dead": 0.5}
    )


def test_floors_are_the_closed_forms():
    made = world(probability=np.linspace(0.1, 0.5, 16))
    turned = np.roll(I16, 3, 0)  # each latent fires with another feature than its match
    sae = Given(I16, W_enc=turned.T)
    values = values_of(made, sae, "truth_recovery")
    rows = rows_of(made)[0]
    fires = (
        torch.cat([rows.batch([i], "cpu").supplied["true_features"].dense()[0] for i in range(len(rows))])[:4000] > 0
    )
    p = fires.double().mean(0).numpy()
    q = p[np.argmax(turned, 1)]
    assert values["precision_floor"] == pytest.approx(p.mean())
    assert values["recall_floor"] == pytest.approx(q.mean())
    assert values["f1_floor"] == pytest.approx((2 * p * q / (p + q)).mean())
    # Independent of its feature, so that the value is its floor within five standard errors of 4,000 tokens.
    assert abs(values["f1"] - values["f1_floor"]) < 5 * 0.5 / math.sqrt(4000)


def test_the_floor_of_cosines_in_two_dimensions():
    """A random direction is within 45° of one of ± two axes: its largest cosine is (4/π) sin(π/4) on average."""
    made = world(n=4, d=2, directions=[[1, 0], [-1, 0], [0, 1], [0, -1]])
    values = values_of(made, Given([[1.0, 0.0]]), {"truth_recovery": {"draws": 400}}, samples=200)
    mean = 4 / math.pi * math.sin(math.pi / 4)
    spread = math.sqrt(0.5 + 1 / math.pi - mean**2)
    assert abs(values["cosine_floor"] - mean) < 5 * spread / math.sqrt(400)
    assert values["mcc_floor"] == pytest.approx(values["cosine_floor"] / 4)


def test_the_compat_value_is_that_of_sae_lens():
    evals = pytest.importorskip("sae_lens.synthetic.evals")
    made = world(n=30, d=10, directions=directions(30, 10, None, 0))
    decoder = directions(20, 10, None, 1)
    values = values_of(made, Given(decoder), "truth_recovery", samples=200)
    theirs = evals.mean_correlation_coefficient(torch.from_numpy(decoder), torch.from_numpy(made.directions))
    assert values["saelens_mcc"] == pytest.approx(theirs, abs=1e-5)


def test_the_table_goes_by_frequency():
    made = world(n=20, d=20, probability=np.linspace(0.6, 0.05, 20))
    (result,) = evaluated(made, {"sae": Given(np.eye(20)[:10])}, ["truth_recovery"])
    table = result.values["deciles"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [row["matched"] for row in rows] == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert [row["f1"] for row in rows] == [1, 1, 1, 1, 1, None, None, None, None, None]
    assert every(a["least_frequency"] >= b["most_frequency"] for a, b in itertools.pairwise(rows))


PARENTS = np.array([-1, -1, 0, 0, 1, 1, *[-1] * 10])


def test_latents_that_are_silent_beside_a_child_absorb():
    made = world(probability=0.4, parent=PARENTS)
    metric = {"truth_absorption": {"least": 10}}
    knowing = values_of(made, Given(I16), metric)
    assert knowing == pytest.approx({"absorption": 0, "recall_with_child": 1, "recall_alone": 1, "parents": 2})
    absorbing = values_of(made, Given(I16, silent={0: [2, 3], 1: [4, 5]}), metric)
    assert absorbing == pytest.approx({"absorption": 1, "recall_with_child": 0, "recall_alone": 1, "parents": 2})
    # One of two children, which fire independently with 0.4: of the tokens with a child, 0.4 / 0.64 have this one.
    partly = values_of(made, Given(I16, silent={0: [2], 1: [4]}), metric, samples=20_000)
    assert partly["absorption"] == pytest.approx(0.4 / 0.64, abs=0.03)
    dead = values_of(made, Given(I16, dead=[0, 1]), metric)
    assert dead == pytest.approx({"absorption": 0, "recall_with_child": 0, "recall_alone": 0, "parents": 2})


def test_absorption_needs_a_hierarchy_and_enough_tokens():
    (result,) = evaluated(world(), {"sae": Given(I16)}, ["truth_absorption"])
    assert "the world has no hierarchy" in result.reason
    (result,) = evaluated(world(parent=PARENTS), {"sae": Given(I16)}, [{"truth_absorption": {"least": 5000}}])
    assert "no parent with a latent fires 5000 times" in result.reason


@pytest.mark.parametrize("degrees", [0, 20, 40])
def test_hedging_is_the_tangent_of_the_angle_to_the_related_feature(degrees):
    angle = math.radians(degrees)
    factor = np.repeat(np.eye(8), 2, 0) * math.sqrt(0.6)
    turned = np.kron(np.eye(8), [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    values = values_of(world(factor=factor), Given(turned), "truth_hedging")
    share = math.cos(angle) / (math.cos(angle) + math.sin(angle))
    assert (values["hedging"], values["own_share"]) == pytest.approx((math.tan(angle), share), abs=1e-6)
    assert values["features"] == 16


def test_a_true_direction_hedges_nothing_though_directions_overlap():
    made = world(n=40, d=10, directions=directions(40, 10, None, 0), parent=[-1] * 8 + [j // 4 for j in range(32)])
    values = values_of(made, Given(made.directions), "truth_hedging")
    assert (values["hedging"], values["own_share"]) == pytest.approx((0, 1), abs=1e-5)
    # Parents have four children, and children one parent.
    assert values["features"] == 40
    assert values["hedging_floor"] > 0.3


def test_hedging_needs_related_features():
    (result,) = evaluated(world(), {"sae": Given(I16)}, ["truth_hedging"])
    assert "no true feature with a latent has a related feature" in result.reason


def test_projections_are_those_of_the_formula():
    made, decoder = world(d=20), directions(30, 20, None, 2)
    sae = Given(3 * decoder)
    sae.b_dec = torch.linspace(-1, 1, 20)
    metric = {"decoder_projection": {"sampled": 4000, "share": 0.25}}
    (result,) = evaluated(made, {"sae": sae}, [metric])
    rows = rows_of(made)[0]
    x = torch.cat([rows.batch([i], "cpu").supplied["activations"][0] for i in range(len(rows))])[:4000]
    projections = np.sort(((x - sae.b_dec).numpy() @ decoder.T).ravel())[::-1]
    assert result.values["projection"]["value"] == pytest.approx(projections[round(0.25 * 30) * 4000 - 1], abs=1e-5)
    assert 0 < result.values["projection"]["stderr"] < 0.1
    cosines = np.abs(decoder @ decoder.T)[np.triu_indices(30, 1)]
    assert result.values["pairwise_cosine"]["value"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_the_floor_of_pairwise_cosines():
    planar = values_of(world(n=2, d=2), Given(np.eye(2)), "decoder_projection")
    assert (planar["pairwise_cosine"], planar["pairwise_cosine_floor"]) == pytest.approx((0, 2 / math.pi), abs=1e-6)
    random = values_of(world(d=20), Given(directions(400, 20, None, 0)), "decoder_projection")
    assert random["pairwise_cosine"] == pytest.approx(random["pairwise_cosine_floor"], rel=0.01)
