"""The metric `concentration` and the quantity that it requests."""

from saeval.plugin import Mean, Metric, Scalar


def largest_share(feature_acts):
    """Share of a token's summed feature activations in its largest one, `[batch, seq]`; 0 if none fires."""
    total = feature_acts.sum(-1)
    return feature_acts.amax(-1) / total.clamp(min=1e-12)


class Concentration(Metric):
    """How much of a token's activation is in one feature.

    Values:
        largest: mean of max f / Σ f over tokens of the mask; share of activation; 0 .. 1; no better direction.

    Claims:
        largest: one SAE is more concentrated than another; null: the difference is 0; needs: 20 documents; not: its
            features are better.

    Source: the definition of the share.
    """

    name, version, headline = "concentration", 1, ("largest",)
    value_names = ("largest",)

    def observe(self, largest_share, mask):
        return Mean.of(largest_share, mask)

    def conclude(self, total):
        return {"largest": Scalar(total.value, unit="share of activation")}
