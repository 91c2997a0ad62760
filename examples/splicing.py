"""A splicing metric: it sees the model's predictions with the SAE in place of the activations."""

from saeval.plugin import Mean, Metric, Scalar, hookimpl
from saeval.testing import evaluate_tiny


class Agreement(Metric):
    """Tokens whose most likely successor stays the same with the SAE spliced in.

    Values:
        agreement: share of tokens with the same most likely successor; share of tokens; 0 .. 1; higher is better.
        harm: mean rise of the negative log-likelihood; nats; −∞ .. ∞; lower is better.
    """

    name, version, headline = "agreement", 1, ("agreement", "harm")

    def observe(self, spliced_scores, clean_scores, mask):  # each a TokenScores, its fields [batch, seq]
        return {
            "agreement": Mean.of(spliced_scores.top1_agreement, mask),
            "harm": Mean.of(spliced_scores.nll - clean_scores.nll, mask),
        }

    def conclude(self, total):
        return {
            "agreement": Scalar(total["agreement"].value, unit="share of tokens", better="higher"),
            "harm": Scalar(total["harm"].value, unit="nats", better="lower"),
        }


@hookimpl
def saeval_metrics():
    return [Agreement]


def run():
    return evaluate_tiny(["agreement"], Agreement, controls=["identity", "zero"])


def test_a_perfect_substitute_changes_no_prediction():
    assert run().value("agreement.agreement", "identity")["value"] == 1


if __name__ == "__main__":
    print(run().leaderboard())
