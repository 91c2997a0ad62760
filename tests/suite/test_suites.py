"""The suites that ship: every name in them is known, and without a network they say so in a sentence."""

from __future__ import annotations

import pytest
import torch

from apollo_files import SHAPES
from checkpoints import random_tensors
from saeval import cli
from saeval.base.errors import Problem
from saeval.base.parameters import validated
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import load
from saeval.testing.claims import every, some
from saeval_formats.apollo import Apollo

REGISTRY = Registry(Plugins())
SUITES = REGISTRY.suites.names()
TEXTS = {name: REGISTRY.suites[name].path.read_text() for name in SUITES}
HUB = [name for name, text in TEXTS.items() if "model:" in text and "model: {use: testbed" not in text]


@pytest.mark.parametrize("name", SUITES)
def test_every_name_in_a_suite_is_known(name):
    registered = REGISTRY.suites[name]
    assert registered.description
    suite = load(registered.path)
    assert suite.name == name
    problems: list[Problem] = []
    for entry in suite.metrics(problems):
        validated(REGISTRY.metrics[entry.name], entry.params, entry.name)
    assert not problems
    aliases = {entry.alias for entry in suite.metrics(problems)}
    board = suite.body.leaderboard
    assert {column.split(".")[0] for column in [*board.columns, board.rank_by or ""]} <= {*aliases, ""}
    for sae in some([*suite.body.saes, *suite.body.hooks]):
        assert isinstance(sae, str) or sae["use"] in REGISTRY.loaders or sae["use"] in REGISTRY.controls
    for control in suite.body.controls:  # may be empty: several suites have none
        assert (control if isinstance(control, str) else control["use"]) in REGISTRY.controls


@pytest.mark.parametrize("name", HUB)
def test_without_a_network_a_suite_says_what_it_lacks(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["check", name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert every(line.startswith(str(REGISTRY.suites[name].path)) for line in lines)
    assert any(":4:" in line or ":3:" in line for line in lines)  # the model
    assert any("saes" not in line and "cannot be downloaded" in line for line in lines)


def test_the_published_trio_is_found_where_the_hub_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--apollo-research--e2e-saes-gpt2"
    folder = repo / "snapshots" / ("1" * 40)
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("1" * 40)
    for kind in ("local", "e2e", "downstream"):
        for layer in (2, 6, 10):
            state = {k.replace("encoder.0.", "encoder."): t for k, t in random_tensors(SHAPES).items()}
            torch.save(state, folder / f"{kind}_similar_ce_layer_{layer}.pt")
            torch.save(state, folder / f"{kind}_similar_l0_layer_{layer}.pt")
    for entry in some(load(REGISTRY.suites["apollo-e2e"].path).body.saes):
        reference = {key: value for key, value in entry.items() if key not in ("use", "name")}
        found = Apollo().expand(reference)
        assert list(found) == ["2", "6", "10"]
        assert [Apollo().info(one).hook_name for one in found.values()] == [
            f"blocks.{layer}.hook_resid_pre" for layer in (2, 6, 10)
        ]
