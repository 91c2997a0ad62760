"""Trained SAEs are ahead of what nobody trained, by more than the run could detect: the suite `controls` on a few."""

from __future__ import annotations

import pytest
import yaml

import saeval
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing.claims import some

SAES = ["testbed/relu-3", "testbed/topk-16", "testbed/mlp_out-2", "testbed/e2e"]
UNTRAINED = ["random", "shuffled_decoder", "shuffled_features"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    suite = yaml.safe_load(Registry(Plugins()).suites["controls"].path.read_text())
    suite["saes"] = SAES
    suite["data"] |= {"context": 64, "sequences": 32}
    found = saeval.run(suite, out=tmp_path_factory.mktemp("out"))
    assert not found.failed, found.failed[0].traceback
    return found


@pytest.mark.slow
def test_every_trained_sae_is_surely_ahead_of_random_and_shuffled_ones(results):
    (board,) = results.boards()
    assert board.data["documents"] >= 20
    trained = [row for row in board.rows if row.kind == "sae"]
    assert sorted(row.name for row in trained) == sorted(SAES)
    for row in some(trained):
        for control in UNTRAINED:
            ahead = row.entries[f"ce.delta_ce vs {control}"]
            assert ahead.stderr > 0
            assert ahead.value > ahead.detectable > 2.8 * ahead.stderr, (row.name, control)
    text = results.leaderboard()
    for control in UNTRAINED:
        assert f"ce.delta_ce vs {control}: 4 of 4 are better than the control {control}: " in text


@pytest.mark.slow
def test_controls_keep_their_parents_l0_on_a_trained_model(results):
    for name in SAES:
        mine = results.value("l0.l0", name)["value"]
        assert results.value("l0.l0", f"shuffled_decoder({name})")["value"] == mine
        assert results.value("l0.l0", f"shuffled_features({name})")["value"] == pytest.approx(mine, rel=0.1)
        assert results.value("l0.l0", f"random({name})")["value"] == pytest.approx(mine, rel=0.1, abs=0.6)
    for control in ("identity", "zero", "mean", "resample", "pca(testbed/topk-16)"):
        (l0,) = [r for r in results if (r.subject, r.metric) == (control, "l0")][:1]
        assert l0.status == "undefined"


@pytest.mark.slow
def test_ablations_and_principal_components_are_what_they_say_on_a_trained_model(results):
    hook = "testbed/topk-16"
    variance = results.value("reconstruction.explained_variance", f"pca({hook})")["value"]
    assert 0 < variance < 1
    boards = results.boards()[0]
    resampled = [r for r in boards.rows if r.control == "resample"]
    assert len(resampled) == 2  # one a hook
    for row in some(resampled):
        assert row.entries["reconstruction.explained_variance"].value == pytest.approx(-1, abs=0.2)
        assert row.entries["ce.recovered"].value < 0  # other tokens' activations mislead more than the mean tells
