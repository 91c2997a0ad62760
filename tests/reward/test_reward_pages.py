"""The pages a person reads: everything there, everything escaped, duplicates over layers once."""

from __future__ import annotations

import re

import pytest

from rewards import ONE_HOT, SMALL, Directions, Pairs, Readout, random_pairs, run
from saeval.results.section_files import section_files
from saeval.testing import TinyModel, TinyPairs, TinySAE, check_chart
from saeval.testing.claims import every, some
from saeval_reward.pages import duplicates, sections

NASTY = [
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "*star*",
    "line\nbreak",
    "[x](javascript:alert(1))",
    "&amp;",
    "</td>",
]


def nasty(ids):
    return [NASTY[i % len(NASTY)] for i in ids]


@pytest.fixture(scope="module")
def made():
    rows = Pairs(random_pairs(), spelling=nasty, subset=["<b>one</b>", "two"] * 30)
    metrics = [
        "reward_margin", "margin_recovered", {"reward_groups": {"steps": 2, "baseline": "zero", "random": 20}},
        {"reward_attribution": {**SMALL["reward_attribution"], "random": 20}},
        {"counterfactual_audit": {"steps": 2, "baseline": "zero", "top": 4}},
    ]  # fmt: skip
    model = Readout(lambda x: x[..., 2] + 0.3 * x[..., 5], embed=ONE_HOT)
    results = run(metrics, rows=rows, model=model, saes={"<i>sae</i>": Directions(ONE_HOT)}, controls=["mean"])
    return results, sections(list(results))


def test_every_part_is_there(made):
    results, found = made
    assert not results.failed, results.failed[0].traceback
    assert [section.title.partition(" of ")[0] for section in found] == [
        "Reward report: evaluate", "Features", "Groups", "Counterfactual audit", "Texts",
    ]  # fmt: skip
    overview, features, *_ = found
    assert {table.name for table in overview.tables} == {"margins", "by", "recovered", "agreement", "explained"}
    assert [chart.name for chart in overview.charts] == ["margins", "recovered"]
    assert "no features" in " ".join(overview.summary)  # why the control has no attribution
    assert [chart.name for chart in features.charts] == ["ablated", "effects", "attributed"]
    for chart in some([*overview.charts, *features.charts]):
        check_chart(chart)
    assert features.passages
    assert " effective)." in features.summary[0]
    by = next(table for table in overview.tables if table.name == "by")
    assert "unreliable" in set(by.headers) & set(by.notes)


def test_bars_are_what_ablation_takes_and_attribution_is_apart(made):
    results, (_, features, *_) = made
    values = next(r for r in results if r.metric == "reward_attribution" and r.status == "ok").values
    ablated, _, attributed = features.charts
    top = [r for r in ablated.data if r["of"] == "top features"]
    assert [r["margin"] for r in top] == values["ablated"]["y"]
    assert [r["margin"] for r in attributed.data if r["of"] == "top features"] == values["cumulative"]["y"]
    assert every("chosen on fold A, shown on fold B" in chart.subtitle for chart in features.charts)


def test_features_with_flags_stand_behind_the_others(made):
    _, (_, features, *_) = made
    tables = {table.name: table for table in features.tables}
    flags = tables["features"].headers.index("flags")
    effects = [abs(row[tables["features"].headers.index("true_effect")] or 0) for row in tables["features"].rows]
    assert effects == sorted(effects, reverse=True)
    assert every(not row[flags] for row in tables["features"].rows)
    assert every(row[flags] for row in tables["flagged"].rows) if "flagged" in tables else True
    shown = [int(passage.heading.removeprefix("Feature ")) for passage in features.passages]
    assert shown[0] == tables["features"].rows[0][1]


def test_the_same_results_give_the_same_sections(made):
    assert sections(list(made[0])) == made[1]


def test_text_of_the_data_is_never_markup(made):
    _, found = made
    files = section_files("reward", found)
    text = files["reward.md"]
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in text
    assert "&lt;script>alert(1)&lt;/script>" in text
    assert "&lt;b>one&lt;/b>" in text
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)  # an escaped bracket opens none
    assert set(links) == {*(name for name in files if name.endswith(".png")), *(f"#section-{i}" for i in range(1, 6))}


def test_runs_without_reward_metrics_have_no_such_section():
    assert sections([]) == []


def test_near_duplicates_over_layers_are_reported_once():
    """The same SAE at two hooks: each feature stands under the layer where its effect is larger."""
    saes = {f"at {i}": TinySAE(f"blocks.{i}.hook_resid_pre") for i in (1, 2)}
    metric = {"reward_attribution": {**SMALL["reward_attribution"], "top": 32, "tolerance": 9.0}}
    results = run([metric], rows=TinyPairs(pairs=30), model=TinyModel(kind="reward"), saes=saes)
    found = duplicates(list(results))
    both = set.intersection(*({row[1] for row in r.values["features"]["rows"]} for r in results))
    assert both
    assert {feature for _, feature in found} >= both
    effect = [{row[1]: abs(row[4]) for row in r.values["features"]["rows"]} for r in results]
    for (index, feature), (name, twin) in some(found.items()):
        assert name == results[1 - index].subject
        if twin == feature:
            assert effect[index][feature] <= effect[1 - index][feature]
    found = sections(list(results))
    assert "Reported at another layer, as near-duplicates:" in " ".join(found[1].summary + found[2].summary)
