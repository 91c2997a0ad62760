"""Two copies of one SAE in a group are told of wherever their agreement is shown."""

from __future__ import annotations

import copy
import shutil

import pytest

from saeval import Metric, Scalar
from saeval.cli import main
from saeval.testing import TinySAE
from saeval.testing.fixtures import evaluate_tiny
from saeval_testbed import WEIGHTS

SUITE = """
suite: small
model: {{use: testbed}}
data: {{texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n", "for x in y:\\n  x()\\n"], context: 8}}
saes:
  - testbed/relu-5
  - testbed/relu-5-seed1
  - {{use: saelens, path: {path}, name: mine}}
groups: {{seeds: [{members}]}}
metrics:
  - seed_stability: {{over: seeds, draws: 0, modes: [signed], alive_firings: 0}}
"""
SENTENCE = "group 'seeds': 'mine' has the weights of 'testbed/relu-5', so an SAE is compared with itself"


class Widths(Metric):
    """A group's widths."""

    name, subject = "widths", "group"

    def conclude(self, subject_name: list[str]):
        return {"members": Scalar(len(subject_name))}


@pytest.fixture
def suite(tmp_path):
    """Function: the group's members -> a suite in which `mine` is a copy of the testbed's relu-5, in another folder."""
    shutil.copytree(WEIGHTS / "saes" / "relu-5", tmp_path / "copied")

    def written(members):
        file = tmp_path / "suite.yaml"
        file.write_text(SUITE.format(path=tmp_path / "copied", members=members), encoding="utf-8")
        return str(file)

    return written


def test_a_copy_in_a_group_is_told_by_check_run_and_the_results(suite, tmp_path, capsys):
    file, out = suite("testbed/relu-5, mine"), str(tmp_path / "out")
    assert main(["check", file, "--out", out]) == 0
    assert f"warning: {SENTENCE}" in capsys.readouterr().out
    assert main(["run", file, "--out", out]) == 0
    printed, told = capsys.readouterr()
    assert f"warning: {SENTENCE}" in told
    assert SENTENCE in printed
    assert main(["show", f"{out}/small", "seed_stability", "seeds"]) == 0
    assert SENTENCE in capsys.readouterr().out


def test_another_seed_and_a_copy_outside_the_group_are_no_copies_of_it(suite, capsys):
    assert main(["check", suite("testbed/relu-5, testbed/relu-5-seed1")]) == 0
    printed, told = capsys.readouterr()
    assert "suite small: no problems found" in printed
    assert "has the weights of" not in printed + told


@pytest.mark.parametrize(("changed", "said"), [(False, True), (True, False)])
def test_live_objects_are_compared_by_their_weights(changed, said):
    first = TinySAE()
    second = copy.deepcopy(first)
    if changed:
        second.W_dec[0, 0] += 1
    saes = {"a": (first, "blocks.0.hook_resid_pre"), "b": (second, "blocks.0.hook_resid_pre")}
    results = evaluate_tiny([{"widths": {"over": "both", "controls": []}}], Widths, saes=saes, groups={"both": ["*"]})
    (result,) = [cell for cell in results if cell.metric == "widths"]
    assert result.values["members"]["value"] == 2
    assert bool(result.notes) == said
