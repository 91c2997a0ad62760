"""A metric of a group of SAEs: requests that belong to an SAE arrive as lists, in the order of the members."""

from saeval.plugin import Mean, Metric, Ratio, Scalar, hookimpl
from saeval.testing import TinySAE, evaluate_tiny


class SilentTogether(Metric):
    """How often two SAEs agree on whether a token has any active feature, and how alike their L0 is.

    Values:
        agreement: share of tokens on which both or neither of the SAEs is silent; share of tokens; 0 .. 1; higher is
            better.
        l0_ratio: Σ L0 of the first / Σ L0 of the second; ratio; ≥ 0; no better direction.
    """

    name, version, subject = "silent_together", 1, "group"
    headline = ("agreement", "l0_ratio")

    def observe(self, feature_acts, mask):  # a list of [batch, seq, d_sae]
        first, second = ((acts > 0).sum(-1) for acts in feature_acts)
        return {"same": Mean.of((first > 0) == (second > 0), mask), "l0": Ratio.of(first, second, mask)}

    def conclude(self, total):
        return {
            "agreement": Scalar(total["same"].value, unit="share of tokens", better="higher"),
            "l0_ratio": Scalar(total["l0"].value, unit="ratio"),
        }


@hookimpl
def saeval_metrics():
    return [SilentTogether]


def run(second=1):
    saes = {"one": TinySAE(seed=0), "two": TinySAE(seed=second)}
    entry = {"silent_together": {"over": "both", "controls": []}}
    return evaluate_tiny([entry], SilentTogether, saes=saes, groups={"both": ["one", "two"]})


def test_an_sae_agrees_with_itself():
    (result,) = run(second=0)
    assert result.values["agreement"]["value"] == result.values["l0_ratio"]["value"] == 1


if __name__ == "__main__":
    (result,) = run()
    for name, value in result.values.items():
        print(f"{name}: {value['value']:.3f} ± {value['stderr']:.3f}")
