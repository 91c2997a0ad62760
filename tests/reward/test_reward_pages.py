"""The pages a person reads: everything there, everything escaped, duplicates over layers once."""

from __future__ import annotations

import re

import pytest

from rewards import ONE_HOT, SMALL, Directions, Pairs, Readout, random_pairs, run
from saeval.testing import TinyModel, TinyPairs, TinySAE
from saeval.testing.claims import some
from saeval_reward.document import Grid, Heading, Paragraph, Passage, Picture, Warned, markdown, page
from saeval_reward.pages import duplicates, pages

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
    return results, pages(list(results))


def test_every_part_is_there(made):
    results, files = made
    assert not results.failed, results.failed[0].traceback
    text, plots = files["reward.html"], [name for name in files if name.endswith(".png")]
    for part in (
        "Margins",
        "Margin explained",
        "Top activating contexts",
        "Groups of",
        "Counterfactual audit",
        "Texts of highest reward",
        " effective). Parameters: ",
        "unreliable",
    ):
        assert part in text
        assert part in files["reward.md"]
    assert plots == ["reward-1-i-sae-i.png"]
    assert files[plots[0]].startswith(b"\x89PNG")
    assert f'src="{plots[0]}"' in text
    assert f"]({plots[0]})" in files["reward.md"]
    assert "no features" in text  # why the control has no attribution


def test_the_same_results_give_the_same_pages(made):
    assert pages(list(made[0])) == made[1]


def test_text_of_the_data_is_never_markup(made):
    _, files = made
    text = files["reward.html"]
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in text
        assert tag not in files["reward.md"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<mark title=" in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", files["reward.md"])  # an escaped bracket opens none
    assert links == ["reward-1-i-sae-i.png"]


def test_runs_without_reward_metrics_have_no_such_page():
    assert pages([]) == {}


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
    files = pages(list(results))
    assert "Reported at another layer, as near-duplicates:" in files["reward.html"]


def test_blocks_in_both_forms():
    blocks = [
        Heading("A & B"), Warned("mind | this"), Paragraph("1 < 2"), Picture("p.png", "plot"),
        Grid(["name", "x"], [["a|b", 0.123456], ["c", None]]), Passage("2.0, pair 1", [" if", " raise", " Error", "\n"], [0.0, 1.5, 0.5, 0.0]),
    ]  # fmt: skip
    text = markdown("T", blocks)
    assert r"| a\|b | 0.1235 |" in text
    assert "| c | – |" in text
    assert "if **raise Error**⏎" in text
    assert "> **Warning:** mind" in text
    html = page("T", blocks)
    assert "<h2>A &amp; B</h2>" in html
    assert "1 &lt; 2" in html
    assert '<td class="text">a|b</td><td>0.1235</td>' in html
    assert "<script" not in html


def test_markdown_shows_text_letter_by_letter():
    block = Paragraph("<a href='x'>*b*</a> | `c`")
    assert markdown("T", [block]) == "# T\n\n" + r"&lt;a href='x'>\*b\*&lt;/a> \| \`c\`" + "\n"
