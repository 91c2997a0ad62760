"""Groups of features, counterfactual edits, and what rankings are set against."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewards import ONE_HOT, SMALL, Directions, Pairs, Readout, lines, random_pairs, run, values
from saeval.testing import TinyModel, TinyPairs, TinySAE
from saeval.testing.claims import every, none, some
from saeval_reward.ranking import duplicate_of, matched


def test_a_group_matters_where_its_members_do_not():
    """Three features write one direction; the reward needs no more than a third of it."""
    embed = ONE_HOT.clone()
    embed[2] = 3 * ONE_HOT[2]
    decoder = torch.cat([ONE_HOT[2:3].expand(3, 12), ONE_HOT[3:10]])
    encoder = decoder.T.clone()
    encoder[:, :3] /= 3
    sae = Directions(decoder, encoder)
    model = Readout(lambda x: x[..., 2].clamp(max=1) + 0.01 * x[..., 5], embed=embed)
    metric = {"reward_groups": {"steps": 30, "baseline": "zero", "relevant": 4, "largest": 2, "random": 40}}
    found = values(run([metric], rows=Pairs(random_pairs()), model=model, saes={"sae": sae}), metric="reward_groups")
    (group,) = lines(found.values["groups"])
    assert group["features"] == "0, 1, 2"
    assert group["cosine"] == pytest.approx(1)
    assert group["random_cosine"] < 0.5
    assert group["true_effect"] == pytest.approx(1, abs=1e-9)
    assert group["strongest_effect"] == pytest.approx(0, abs=1e-9)
    assert group["attribution"] == pytest.approx(1, abs=0.05)
    assert found.values["n_groups"]["value"] == 1
    assert found.values["first_ablated_share"]["value"] == pytest.approx(1, abs=0.05)


def test_features_that_point_apart_make_no_group():
    model = Readout(lambda x: x[..., 2], embed=ONE_HOT)
    metric = {"reward_groups": {"steps": 2, "baseline": "zero", "relevant": 5}}
    rows = Pairs(random_pairs())
    record = values(
        run([metric], rows=rows, model=model, saes={"sae": Directions(ONE_HOT)}), metric="reward_groups"
    ).values
    assert record["n_groups"]["value"] == 0
    assert "no two of the 5 most relevant features point the same way" in record["first_ablated_share"]["reason"]
    assert record["groups"]["rows"] == []


def test_an_edit_that_shortens_takes_the_final_punctuation_with_it():
    """Token 11 ends every original; the edit cuts the tail off, and now and then puts token 10 in."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(60):
        prefix, tail = random.integers(3, 6, 2).tolist(), random.integers(3, 6, 3).tolist()
        edit = [*prefix, 6, *([10] if i % 3 == 0 else [])]
        rows.append(([*prefix, *tail, 11], edit, 2))
    model = Readout(lambda x: 2 * x[..., 11] + 0.5 * x[..., 10] - 0.1 * x[..., 3], embed=ONE_HOT)
    metric = {"counterfactual_audit": {"steps": 2, "baseline": "zero", "top": 4, "frequent": 1.0}}
    found = values(
        run([metric], rows=Pairs(rows), model=model, saes={"sae": Directions(ONE_HOT)}), metric="counterfactual_audit"
    )
    by = {line["feature"]: line for line in lines(found.values["features"])}
    assert (by[11]["removed"], by[11]["added"]) == (1, 0)
    assert (by[10]["removed"], by[10]["added"]) == (0, pytest.approx(1 / 3))
    truth = [
        model.function(ONE_HOT[torch.tensor(e)]).sum() - model.function(ONE_HOT[torch.tensor(o)]).sum()
        for o, e, _ in rows
    ]
    assert found.values["reward_change"]["value"] == pytest.approx(float(torch.stack(truth).mean()))
    assert by[11]["attribution"] == pytest.approx(2)  # chosen − rejected, as in every other table
    assert by[10]["change_added"] == pytest.approx(float(torch.stack(truth)[::3].mean()))
    assert by[10]["change_removed"] is None
    first = lines(found.values["examples"])[0]
    assert abs(first["reward_change"]) == pytest.approx(max(abs(float(t)) for t in truth))
    assert "11" in first["removed"].split(", ")
    turned = {"counterfactual_audit": {**metric["counterfactual_audit"], "original": "rejected"}}
    other = values(
        run([turned], rows=Pairs([(e, o, s) for o, e, s in rows]), model=model, saes={"sae": Directions(ONE_HOT)}),
        metric="counterfactual_audit",
    )
    for line, turned_line in some(zip(lines(found.values["features"]), lines(other.values["features"]), strict=True)):
        assert turned_line == {**line, "attribution": -line["attribution"]}


def test_random_groups_are_matched_and_distinct_and_only_of_free_features():
    traits = np.stack([np.arange(100.0), np.zeros(100)], 1)
    free = np.arange(100) % 2 == 0
    group = np.array([10, 41, 90])
    drawn = matched(group, free, traits, 20, 0)
    assert drawn.shape == (20, 3)
    assert free[drawn].all()
    assert (np.abs(drawn - group) <= 44).all()  # among the nearest of every second
    assert every(len(set(draw)) == 3 for draw in drawn.tolist())
    assert np.array_equal(matched(group[:1], free, traits, 20, 0), drawn[:, :1])
    single = matched(np.array([41]), free, traits, 20, 1)[:, 0]
    assert sorted(single.tolist()) == list(range(22, 62, 2))  # each of the 20 nearest once
    assert len(matched(np.arange(3), np.arange(5) > 2, traits[:5], 4, 0)) == 0  # two are too few for three
    assert sorted(matched(np.array([0]), np.arange(5) > 2, traits[:5], 4, 0)[:, 0].tolist()) == [3, 4]


def test_near_duplicates_point_to_the_first():
    rows = np.array([[1.0, 0], [0, 1], [0.99, 0.05], [-1, 0], [0, 2]])
    assert duplicate_of(rows) == [None, None, 0, None, 1]


def test_features_that_fire_everywhere_are_flagged_and_ranked_without():
    """Token 3 stands in every prompt: its feature is active where nothing has been decided."""
    rows = Pairs([([3, 3, *c[2:]], [3, 3, *r[2:]], 2) for c, r, _ in random_pairs()])
    model = Readout(lambda x: x[..., 2] + 5 * x[..., 3], embed=ONE_HOT)
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "frequent": 0.3}}
    record = values(run([metric], rows=rows, model=model, saes={"sae": Directions(ONE_HOT)})).values
    flags = {line["feature"]: line["flags"] for line in lines(record["features"])}
    assert flags[3] == "high-frequency"
    assert flags[2] == ""
    assert {line["feature"]: line["prompt_density"] for line in lines(record["features"])}[3] == 1
    assert record["ablated_kept_1"]["value"] == pytest.approx(1)


def test_outlier_dimensions_are_flagged():
    embed = ONE_HOT.clone()
    embed[:, 7] = 50.0
    model = Readout(lambda x: x[..., 2] + 0.001 * x[..., 7], embed=embed)
    rows = Pairs([(c, r[:-1], s) for c, r, s in random_pairs()])
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "top": 12}}
    record = values(run([metric], rows=rows, model=model, saes={"sae": Directions(ONE_HOT)})).values
    flags = {line["feature"]: line["flags"] for line in lines(record["features"])}
    assert flags.pop(7) == "outlier"
    assert none(flags.values())


def test_the_planted_feature_explains_the_margin_and_random_groups_and_swapped_labels_do_not():
    model = Readout(lambda x: x[..., 2] + 0.1 * x[..., 5], embed=ONE_HOT)
    metric = {
        "reward_attribution": {"steps": 2, "baseline": "zero", "top": 3, "groups": [1], "random": 20, "frequent": 1.0}
    }
    record = values(run([metric], rows=Pairs(random_pairs(100)), model=model, saes={"sae": Directions(ONE_HOT)})).values
    assert lines(record["features"])[0]["feature"] == 2
    assert record["ablated_share_1"]["value"] == pytest.approx(1, abs=0.05)
    assert record["attributed_share_1"]["value"] == pytest.approx(1, abs=0.05)
    assert abs(record["ablated_random_1"]["value"]) < 0.05
    assert record["ablated_random_max_1"]["value"] < 0.1
    assert record["ablated_random_max_1"]["n"] == 8 - 3  # of the features that fire, all but the first of the ranking
    assert record["ablated_excess_kept_1"]["value"] == pytest.approx(1, abs=0.05)
    assert record["ablated_excess_kept_1"]["p"] == pytest.approx(1 / 6)  # no more than the rank among five
    assert record["attributed_share_1"]["stderr"] is not None
    assert record["length_explained"]["value"] == 0


def test_contexts_hold_the_largest_activations_with_their_tokens():
    import json

    model = Readout(lambda x: x[..., 2], embed=ONE_HOT)
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "top": 1, "groups": [1]}}
    rows = Pairs(random_pairs(), spelling=lambda ids: [f"w{i}" for i in ids])
    first = values(run([metric], rows=rows, model=model, saes={"sae": Directions(ONE_HOT)}, batch_size=7)).values[
        "contexts"
    ]
    again = values(run([metric], rows=rows, model=model, saes={"sae": Directions(ONE_HOT)}, batch_size=60)).values[
        "contexts"
    ]
    assert first == again
    assert len(first["rows"]) == 2
    for line in some(lines(first)):
        assert (line["feature"], line["activation"], line["side"]) == (2, 1.0, "chosen")
        tokens, activations = json.loads(line["tokens"]), json.loads(line["activations"])
        assert tokens == [f"w{i}" for i in rows.pairs[line["pair"]][0]]
        assert activations == [float(t == "w2") for t in tokens]


def test_attributions_do_not_depend_on_batches():
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "tolerance": 9.0, "random": 3}}
    model, sae = TinyModel(kind="reward", dtype=torch.float64), TinySAE(dtype=torch.float64)
    one, other = (
        values(run([metric], rows=TinyPairs(pairs=24), model=model, saes={"sae": sae}, batch_size=size))
        for size in (5, 24)
    )
    assert other.array("attribution") == pytest.approx(one.array("attribution"), abs=1e-12)
    for name, record in some(one.values.items()):
        if "kind" not in record:
            assert other.values[name]["value"] == pytest.approx(record["value"], abs=1e-9), name
