"""What stability says of the testbed's SAEs: three seeds of one recipe, and objectives at matched loss."""

from __future__ import annotations

import pytest

import saeval

SEEDS = [f"testbed/relu-5{end}" for end in ("", "-seed1", "-seed2")]
OBJECTIVES = [f"testbed/{name}" for name in ("local", "e2e", "e2e-seed1")]


@pytest.fixture(scope="module")
def found():
    few = {"draws": 1, "alive_firings": 5, "controls": []}
    results = saeval.evaluate(
        model="testbed", data={"use": "python-stdlib", "context": 128, "sequences": 48}, saes=[*SEEDS, *OBJECTIVES],
        groups={"seeds": SEEDS, "objectives": OBJECTIVES},
        metrics=[{m: {"over": g, "as": f"{m}_{g}", **few}} for m in ("seed_stability", "functional_stability")
                 for g in ("seeds", "objectives")],
    )  # fmt: skip
    assert not results.failed, results.failed[0].traceback
    return {r.metric: r for r in results}


def pairs(result, view, column="matched"):
    record = result.values["pairs"]
    at = record["columns"].index(column)
    return {
        tuple(name.removeprefix("testbed/") for name in row[:2]): row[at] for row in record["rows"] if row[2] == view
    }


def test_seeds_of_one_recipe_agree_far_beyond_chance(found):
    values = found["seed_stability_seeds"].values
    for space, low in (("decoder", 0.75), ("encoder", 0.7)):
        assert values[f"{space}_matched"]["value"] > low > values[f"{space}_matched_floor"]["value"] + 0.1
    assert 0.3 < values["shared"]["value"] < 0.7
    assert max(pairs(found["seed_stability_seeds"], "decoder", "gap").values()) < 1e-6
    functional = found["functional_stability_seeds"].values
    assert functional["pearson_matched"]["value"] > 0.4 > functional["pearson_matched_floor"]["value"] + 0.2


def test_seeds_of_end_to_end_saes_agree_in_function_alone(found):
    result = found["seed_stability_objectives"]
    for space in ("decoder", "encoder"):
        other = pairs(result, space)["e2e", "e2e-seed1"]
        floor = max(
            row[i] for row in result.values["floors"]["rows"] for i in (4, 6)
            if row[:3] == ["testbed/e2e", "testbed/e2e-seed1", f"{space}_matched"]
        )  # fmt: skip
        assert other == pytest.approx(floor, abs=0.02)
        assert pairs(result, space)["local", "e2e"] > 0.85  # they began at the same weights
    functional = found["functional_stability_objectives"]
    assert pairs(functional, "pearson")["e2e", "e2e-seed1"] > 0.2
    assert functional.values["pearson_matched_floor"]["value"] < 0.1
