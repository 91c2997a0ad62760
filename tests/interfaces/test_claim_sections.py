"""The section `Claims:` of every shipped metric, and docs/claims.md, which `python` with this file writes from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saeval import Metric, cli
from saeval.base.names import names_matching_any
from saeval.interfaces.documentation import documented_claims, documented_values
from saeval.interfaces.metric import names_of_values
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing.claims import some

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
MARK = "<!-- claims -->\n"
STALE = "docs/claims.md is stale: run `python tests/interfaces/test_claim_sections.py`"
REGISTRY = Registry(Plugins([]))
METRICS = sorted(entry.name for entry in REGISTRY.metrics)


def names_of(metric):
    """The names of a metric's scalars at its default parameters, and all names and patterns of its documentation."""
    described = [name for value in documented_values(metric) for name in value.names]
    return list(names_of_values(metric) or ()), described


@pytest.mark.parametrize("name", METRICS)
def test_every_scalar_has_a_claim_of_four_parts(name):
    scalars, described = names_of(REGISTRY.metrics[name])
    patterns = [pattern for claim in documented_claims(REGISTRY.metrics[name]) for pattern in claim.names]
    unclaimed = sorted(set(scalars) - set(names_matching_any(patterns, scalars)))
    assert not unclaimed, f"{name}: the section Claims: of its docstring lacks {unclaimed}"
    unknown = [pattern for pattern in patterns if not names_matching_any([pattern], [*scalars, *described])]
    assert not unknown, f"{name}: Claims: has {unknown}, which are no values"


def test_all_metrics_but_those_of_arrays_declare_their_scalars():
    without = [name for name in METRICS if not names_of(REGISTRY.metrics[name])[0]]
    assert without == ["saelens_features", "saelens_weights"]


def section(name):
    """The rows of a metric on the page."""
    lines = [f"## `{name}`\n\n", "| value | may be claimed | null hypothesis | needs at least | may not be claimed |\n"]
    lines.append("|---|---|---|---|---|\n")
    for claim in documented_claims(REGISTRY.metrics[name]):
        values = ", ".join(f"`{value}`" for value in claim.names) if claim.names != ("*",) else "all values"
        cells = [
            re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in (values, claim.may, claim.null, claim.needs, claim.never)
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def sections():
    return "\n".join(section(name) for name in METRICS if documented_claims(REGISTRY.metrics[name]))


def test_the_page_has_every_claim():
    assert PAGE.read_text().split(MARK)[1] == sections(), STALE


def test_show_prints_the_claims_of_a_metric_and_of_a_value(capsys):
    assert cli.main(["show", "ce"]) == 0
    assert "Claims:" in capsys.readouterr().out
    assert cli.main(["show", "ce.delta_ce"]) == 0
    head = capsys.readouterr().out.split("metric ce@")[0]
    for line in some(("may be claimed: ", "null hypothesis: ", "needs at least: ", "may not be claimed: ")):
        assert line in head


MALFORMED = {
    "no null": "    norm: large; needs: 1 SAE; not: good.",
    "another order": "    norm: large; needs: 1 SAE; null: 0; not: good.",
    "indented by two": "  norm: large; null: 0; needs: 1 SAE; not: good.",
    "an empty part": "    norm: ; null: 0; needs: 1 SAE; not: good.",
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_claim_is_named(line):
    made = type("Made", (Metric,), {"name": "made", "__doc__": f"One.\n\nClaims:\n{line}\n"})
    with pytest.raises(ValueError, match=r"metric 'made': .*norm: "):
        documented_claims(made)


if __name__ == "__main__":  # write the tables into the page
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}{sections()}{MARK}{after}")
