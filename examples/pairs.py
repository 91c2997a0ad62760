"""A metric of preference pairs: requests that belong to a batch arrive as [chosen, rejected]."""

from saeval.plugin import Mean, Metric, Scalar, hookimpl
from saeval.testing import TinyModel, TinyPairs, evaluate_tiny


class SamePreference(Metric):
    """Pairs on which the reward model prefers the same text with the SAE spliced in.

    Values:
        same: share of pairs whose margin keeps its sign; share of pairs; 0 .. 1; higher is better.
    """

    name, version, data = "same_preference", 1, "pair"

    def observe(self, clean_reward, spliced_reward):  # each a list of two tensors [batch]
        before, after = (reward[0] - reward[1] for reward in (clean_reward, spliced_reward))
        return Mean.of(before.sign() == after.sign())

    def conclude(self, total):
        return {"same": Scalar(total.value, unit="share of pairs", better="higher", proportion=True)}


@hookimpl
def saeval_metrics():
    return [SamePreference]


def run():
    options = {"model": TinyModel(kind="reward"), "rows": TinyPairs(pairs=24), "controls": ["identity"]}
    return evaluate_tiny(["same_preference"], SamePreference, **options)


def test_a_perfect_substitute_keeps_every_preference():
    assert run().value("same_preference.same", "identity")["value"] == 1


if __name__ == "__main__":
    print(run().leaderboard())
