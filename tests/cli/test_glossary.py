"""`saeval show NAME`: every name that a suite or a metric may use has its documentation."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from saeval import cli
from saeval.cli import glossary
from saeval.interfaces.documentation import DIRECTIONS, documented_values
from saeval.plan.leaves import LEAVES
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import some

REGISTRY = Registry(Plugins([]))
METRICS = [entry.name for entry in REGISTRY.metrics]
QUANTITIES = [*REGISTRY.quantities.names(), *LEAVES]
GIVEN = ("Batch", "Capture", "Encoding", "Fired", "Model", "Moments", "Resume", "Spread", "Substitute", "TokenScores")
STRUCTURES = glossary.structures(REGISTRY)
PLUGINS_PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def shown(capsys, *words):
    assert cli.main(["show", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_metrics_that_ship_are_looked_at():
    assert {"ce", "kl", "perturbation", "seed_stability", "reward_attribution", "saebench_variance"} <= set(METRICS)
    assert len(METRICS) >= 26


@pytest.mark.parametrize("name", METRICS)
def test_a_metrics_page_has_equation_unit_range_direction_and_source(name):
    page = glossary.document(name, REGISTRY)  # what `saeval show` prints
    values = documented_values(REGISTRY.metrics[name])
    assert values
    flat = " ".join(page.split())
    for value in some(values):
        assert value.equation
        assert value.unit
        assert re.search(r"≥|\.\.|as above", value.range), value
        assert value.better in DIRECTIONS
        for word in (value.names[0], value.equation, value.unit, value.range, value.better):
            assert word in flat
    assert re.search(r"\bSources?\b[^:]*:\s+\S", page), page


def test_a_value_has_a_page_that_begins_with_its_own_line(capsys):
    page = shown(capsys, "ce.delta_ce")
    assert page.startswith("value ce.delta_ce: ce_sae − ce_clean")
    for line in ("unit: nats", "range: −∞ .. ∞", "direction: lower is better", "metric ce@"):
        assert line in page


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ce.delta_cee", "metric 'ce' has no value 'delta_cee'; did you mean 'delta_ce'?"),
        ("ce.nonsense", "metric 'ce' has no value 'nonsense'; `saeval show ce` describes its values"),
        (
            "seed_stability.decoder_match",
            "metric 'seed_stability' has no value 'decoder_match'; did you mean 'decoder_",
        ),
        ("ce.nonsense vs random", "metric 'ce' has no value 'nonsense'; "),
    ],
)
def test_an_unknown_value_is_one_sentence(name, message, capsys):
    assert cli.main(["show", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_value_of_a_pattern_and_a_lead_have_pages(capsys):
    assert shown(capsys, "seed_stability.decoder_matched_floor").startswith(
        "value seed_stability.decoder_matched_floor: "
    )
    page = shown(capsys, "ce.delta_ce vs random")
    assert page.startswith("value ce.delta_ce vs random: the lead of a row over random")
    assert "null hypothesis: 0, by the paired t test" in page.split("value ce.delta_ce: ")[0]


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantitys_page_says_what_it_gives(name):
    page = glossary.document(name, REGISTRY)
    own = page[page.index(f"quantity {name} (") :].split("\n")
    assert len(own[2]) > 10
    if name not in LEAVES:
        assert re.search(r"^returns: \S", page, re.MULTILINE)
        assert re.search(r"^source: saeval\S*\.\S+", page, re.MULTILINE)


@pytest.mark.parametrize("name", ["substitute_scores", "substitute_reward", "substitute_final"])
def test_what_a_metrics_own_interventions_give_is_known(name, capsys):
    page = shown(capsys, name)
    assert f"`{name.replace('substitute', 'spliced')}`" in page
    assert "`interventions`" in page


def test_the_fields_of_token_scores_are_shown_with_what_gives_them(capsys):
    for name in ("token_scores", "TokenScores", "substitute_scores"):
        page = shown(capsys, name)
        for field in ("nll", "kl", "top1_agreement", "top1_correct"):
            assert re.search(rf"^  {field}: \w+\[Tensor", page, re.MULTILINE), (name, field)
    assert "returned by: " in shown(capsys, "TokenScores")


@pytest.mark.parametrize("name", GIVEN)
def test_every_member_of_what_metrics_are_given_is_documented(name):
    members = glossary.members(STRUCTURES[name])
    assert members
    assert not [member.name for member in members if not member.doc]


def test_a_name_of_two_things_shows_both(capsys):
    page = shown(capsys, "reconstruction")
    assert page.startswith("'reconstruction' is a metric and a quantity:\n\nmetric reconstruction@")
    assert "quantity reconstruction (saeval:core)" in page


def test_a_metric_and_a_suite_of_one_name_are_both_shown(capsys):
    page = shown(capsys, "perturbation")
    assert page.startswith("'perturbation' is a metric, a suite and a report format:\n\nmetric perturbation@")
    assert "\n\nsuite perturbation (saeval:suites)" in page


def test_a_suite_is_shown_as_it_stands_to_be_copied(capsys):
    page = shown(capsys, "stability")
    assert "`saeval run stability` runs it; copy " in page
    assert "\nsuite: stability\n" in page
    assert "\nmetrics:" in page


@pytest.mark.parametrize(("name", "metrics"), [("ratio", ["perturbation"]), ("recovered", ["ce", "sparsity_frontier"])])
def test_the_name_of_a_value_shows_it_for_every_metric_that_has_it(name, metrics, capsys):
    page = shown(capsys, name)
    for metric in some(metrics):
        assert f"value {metric}.{name}: " in page, page
    assert page.count("  unit: ") == page.count(f".{name}: ") >= len(metrics)
    assert f"`saeval show METRIC.{name}` says more" in page


def test_an_adapters_page_has_the_keys_of_an_entry(capsys):
    assert "keys of an entry" in shown(capsys, "huggingface")


def test_a_parameter_says_whose_it_is(capsys):
    page = shown(capsys, "ablation")
    assert "ce: 'mean'" in page
    assert "kl: 'mean'" in page


def test_a_formats_page_has_the_keys_of_an_entry(capsys):
    page = shown(capsys, "dictionary_learning")
    assert "\n  path: required. A trainer's folder, or a file." in page
    assert "\n  class: None. Replaces the config's" in page
    for entry in some(list(REGISTRY.loaders)):
        assert entry.thing.entry is not None, f"set 'entry' of the format {entry.name}"


def test_a_models_page_has_its_hooks(capsys):
    page = shown(capsys, "testbed")
    assert "\n  blocks.N.hook_resid_pre: 128\n" in page
    assert "\n  blocks.N.mlp.hook_post: 512\n" in page
    assert "\n  ln_final.hook_normalized: 128" in page


def test_a_near_miss_is_suggested(capsys):
    assert cli.main(["show", "substitute_score"]) == 2
    assert "did you mean 'substitute_scores'?" in capsys.readouterr().err


def recorded(results):
    """Every value of results that has a unit, with its metric."""
    for result in results:
        for name, record in result.values.items():
            if "better" in record:
                yield result.cell["metric"], name, record


def disagreements(results):
    found = []
    for metric, name, record in recorded(results):
        described = documented_values(REGISTRY.metrics[metric])
        one = next((v for v in described if any(fnmatch.fnmatchcase(name, p) for p in v.names)), None)
        direction = f"{record['better']} is better" if record["better"] else "no better direction"
        if one is None or one.unit != record["unit"].split(",")[0] or one.better != direction:
            found.append((metric, name, record["unit"], direction, one))
    return found


def test_documented_units_and_directions_are_those_of_the_results():
    metrics = [
        "l0", "density", "reconstruction", "ce", "kl", "downstream_reconstruction", "weights", "perturbation",
        {"perturbation_curve": {"cosines": [0.5]}}, "saelens_downstream", "saelens_variance", "saebench_variance",
        "saebench_features", "saebench_weights", "saebench_downstream", "dictionary_learning_evaluate",
    ]  # fmt: skip
    results = evaluate_tiny(metrics, saes={"a": TinySAE()})
    names = {metric for metric, *_ in recorded(results)}
    assert {"ce", "weights", "perturbation", "saelens_variance", "saebench_features"} <= names
    assert not disagreements(results)


def structures_table():
    """The structures as docs/plugins.md lists them."""
    lines = []
    for name in (name for name in GIVEN if name != "Model"):
        cls = STRUCTURES[name]
        lines += ["", f"**`{name}`**", "", "| member | type | what it is |", "|---|---|---|"]
        for member in glossary.members(cls):
            shape = member.shape.replace("|", "or")
            lines.append(f"| `{member.name}` | `{shape}` | {member.doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def test_the_documented_structures_are_those_there_are():
    """Made from the classes; `python tests/cli/test_glossary.py` prints it."""
    assert structures_table() in PLUGINS_PAGE.read_text(), (
        "docs/plugins.md is stale: put what `python tests/cli/test_glossary.py` prints into its section Structures"
    )


if __name__ == "__main__":
    print(structures_table())
