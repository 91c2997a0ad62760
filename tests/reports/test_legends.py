"""What stands below a table is true of that table."""

from __future__ import annotations

from saeval import Estimate, Mean, Metric, Scalar, evaluate
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny


class Difference(Metric):
    """A group's value whose error is over documents."""

    name, version, subject = "difference", 1, "group"

    def observe(self, reconstruction, mask):
        return Mean.of((reconstruction[0] - reconstruction[1]).norm(dim=-1), mask)

    def conclude(self, total):
        assert isinstance(total.value, Estimate)
        return Scalar(total.value)


SAES = {f"sae-{i}": TinySAE(seed=i) for i in range(4)}
for seed, sae in enumerate(SAES.values()):
    sae.seed = seed
BY_MEMBER = {"seed_stability": {"over": "g", "draws": 2, "alive_firings": 1}}


def text(*metrics):
    return evaluate_tiny(list(metrics), Difference, saes=SAES, groups={"g": ["*"]}).leaderboard()


def test_the_error_of_a_group_is_over_what_it_is_over():
    mine = {"difference": {"over": "g"}}
    assert "± is one standard error, clustered by document;" in text(mine)
    assert "clustered by document, of groups over the seeds of their SAEs;" in text(BY_MEMBER)
    assert "clustered by document, of seed_stability over the seeds of the group's SAEs;" in text(mine, BY_MEMBER)


def test_a_table_without_hooks_names_none(tmp_path):
    told = evaluate_tiny(["reward_margin"], rows=TinyPairs(), model=TinyModel(kind="reward"), saes=[]).leaderboard()
    assert "All at" not in told
    assert "model tiny, data" in told
    path = tmp_path / "r.jsonl"
    path.write_text("".join(f'{{"c": {i}.5, "r": {i % 3}}}\n' for i in range(9)))
    recorded = {"use": "preferences", "path": str(path), "chosen_reward": "c", "rejected_reward": "r"}
    told = evaluate(saes=[], data=recorded, metrics=["reward_margin"]).leaderboard()
    assert "\n\nno model, data preferences" in told
    assert "model no model" not in told
