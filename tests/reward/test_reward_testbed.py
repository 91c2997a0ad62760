"""The testbed's reward model: its planted preference is found, completely and by name."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

import saeval
import saeval_testbed
from rewards import lines, plugins
from saeval_testbed.pairs import TestbedPreferences

FEW = {"top": 1, "groups": [1], "random": 0, "contexts": 0}


def evaluated(metrics, saes=("testbed-reward/topk",), **data):
    source = {"use": "testbed-preferences", "made": 250, "fit_share": 0.1, **data}
    return saeval.evaluate(model="testbed-reward", saes=list(saes), data=source, metrics=metrics, plugins=plugins())


def test_attributions_are_complete_to_one_in_ten_thousand():
    metric = {"reward_attribution": {"steps": 64, "tolerance": 1e-4, **FEW}}
    (result,) = evaluated([metric], pairs=6)
    assert result.status == "ok", result.reason
    assert 0 < result.values["relative_gap"]["value"] < 1e-4
    assert result.values["completeness_gap"]["value"] < 3e-4
    rows = {row[0]: row[1] for row in result.values["rows"]["rows"]}
    parts = sum(rows[name] for name in ("features", "error", "b_dec", "baseline"))
    assert rows["sum of rows"] == pytest.approx(parts, abs=1e-9)
    assert rows["sum of rows"] == pytest.approx(rows["m(x) − m(baseline)"], abs=1e-3)


def test_from_zero_the_layer_norms_leave_a_gap_that_is_said():
    (result,) = evaluated([{"reward_attribution": {"steps": 8, "baseline": "zero", **FEW}}], pairs=6)
    assert result.status == "undefined"
    assert "attributions are not complete" in result.reason


def test_the_fit_split_is_that_share_of_the_held_out_modules():
    """These modules are themselves chosen by a hash of their names."""
    source = TestbedPreferences(made=100, fit_share=0.2)
    pairs = source._pairs
    tokenizer = AutoTokenizer.from_pretrained(saeval_testbed.WEIGHTS / "reward")
    split = {name: source.dataset(name, lambda: tokenizer).n_clusters for name in ("evaluation", "fit")}
    assert sum(split.values()) == len({pair.cluster for pair in pairs})
    assert 0.1 < split["fit"] / sum(split.values()) < 0.3


def test_a_flipped_subset_shows_and_warns():
    (result,) = evaluated(["reward_margin"], saes=(), pairs=200, fit_share=0.0)
    by = {(line["column"], line["level"]): line for line in lines(result.values["by"])}
    assert by["flipped", "yes"]["margin"] < 0 < by["flipped", "no"]["margin"]
    assert by["flipped", "yes"]["accuracy"] < 0.3
    assert by["flipped", "yes"]["unreliable"].startswith("fewer than 20 effective documents (")
    assert by["flipped", "no"]["unreliable"] == ""
    assert by["subset", "planted"]["accuracy"] > 0.85
    assert any(note.startswith("subsets of 'flipped' disagree in sign") for note in result.notes)
    assert 0.3 < result.values["length_accuracy"]["value"] < 0.7


@pytest.mark.slow
def test_the_planted_preference_is_recovered():
    attribution = {"steps": 4, "top": 2, "groups": [5], "random": 4, "contexts": 2, "tolerance": 0.2}
    metrics = [{"planted_recovery": {"steps": 4}}, {"reward_attribution": attribution}, "margin_recovered"]
    results = evaluated(metrics, pairs=80)
    assert not results.failed, results.failed[0].traceback
    every = {(line["features"], line["k"]): line for line in lines(results.value("planted_recovery.recovery"))}
    recovery = {k: every["kept", k] for k in (1, 5, 20)}  # features that fire everywhere come first, and are flagged
    assert recovery[1]["precision"] == 1
    assert recovery[5]["random_p"] < 0.05
    assert recovery[5]["precision"] > recovery[5]["by_length"]
    assert every["all", 5]["random_p"] is None  # flagged features have no random groups
    found = next(r for r in results if r.metric == "reward_attribution").values
    assert found["ablated_5"]["value"] > 5 * abs(found["ablated_random_5"]["value"])
    assert found["ablated_share_5"]["value"] > 0.2
    assert found["ablated_kept_5"]["value"] > 5 * abs(found["ablated_random_5"]["value"])
    assert results.value("margin_recovered.recovered")["value"] == pytest.approx(1, abs=0.1)
