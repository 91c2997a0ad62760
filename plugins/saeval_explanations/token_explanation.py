"""`token_explanation`: does a list of tokens tell where a feature fires? No judge is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saeval.plugin import Metric, PerRow, Scalar, Subject, Table, Value
from saeval_explanations.means import by_density, errors_note, mean_over_features
from saeval_explanations.sampling import SampledFeatures, in_decile
from saeval_explanations.tokens import SeenTokens, TokenModel, auc

_ENOUGH = 0.9
"""AUC from which on a list of tokens explains a feature."""


class TokenExplanation(Metric):
    """How well tokens alone predict where a feature fires: a feature that a list of tokens explains needs no words.

    Features are sampled from all densities. On the fit split, three models are fitted to where each fires: the list of
    at most `list_length` tokens that tells best; the rate at which it fires on each token; and that rate given the
    token before, too, drawn towards the former where a pair was rarely seen. On the evaluated rows, which are of other
    documents, each gives a score to every token.

    Errors are over features: those of an SAE are not those of another.

    Values:
        auc_list: share of pairs of a token on which the feature fires and one on which it does not that its list of
            tokens orders rightly, ties half; the mean over features; share; 0 .. 1; no better direction.
        precision: share of the evaluated tokens in its list on which the feature fires, the mean over features: for a
            rare feature, the AUC is large as soon as the list has its tokens; share; 0 .. 1; no better direction.
        auc_tokens, auc_pairs: the same AUC of the rates by token, and by pair of tokens; share; 0 .. 1; no better
            direction.
        auc_shuffled: the same of the list of another feature of the same tenth by density; share; 0 .. 1; no better
            direction.
        lead_shuffled: auc_list minus auc_shuffled, by feature; AUC; −1 .. 1; no better direction.
        gain_pairs: auc_pairs minus auc_tokens, by feature: what the token before adds; AUC; −1 .. 1; no better
            direction.
        listed: share of the features with an auc_list of 0.9 or more; share; 0 .. 1; no better direction.
        by_density: auc_list by tenth of density, the rarest first, a curve; share; 0 .. 1; no better direction.
        features: density, tenth, AUCs and list of each sampled feature, a table; share; 0 .. 1; no better direction.

    Claims:
        auc_list, auc_tokens, auc_pairs, precision, listed: how far the feature is one of tokens; null: auc_shuffled;
            needs: 20 features; 1 SAE; not: that the feature means no more than these tokens, or that a feature of
            tokens is bad.
        lead_shuffled: the list is this feature's own; null: 0; needs: 20 features; 1 SAE; not: a comparison of SAEs.
        gain_pairs: the feature depends on the token before; null: 0; needs: 20 features; 1 SAE; not: how far back it
            reads.
        auc_shuffled: what the list of another feature as frequent tells; null: 0.5; needs: 20 features; 1 SAE; not: a
            floor for features that fire on related tokens.

    Source: the token baseline of SAE evaluations in the sense of Bills et al. (2023), "Language models can explain
        neurons in language models", without a judge; Youden (1950) for the choice of tokens.
    """

    name = "token_explanation"
    headline = ("auc_list", "precision", "auc_pairs", "lead_shuffled")
    value_names = (
        "auc_list",
        "precision",
        "auc_tokens",
        "auc_pairs",
        "auc_shuffled",
        "lead_shuffled",
        "gain_pairs",
        "listed",
    )

    def __init__(
        self,
        features: Annotated[int, Field(ge=1, le=10_000)] = 100,
        list_length: Annotated[int, Field(ge=1, le=1000)] = 10,
        least_rows: Annotated[int, Field(ge=1)] = 5,
        seed: int = 0,
    ) -> None:
        self.features, self.list_length, self.least_rows, self.seed = features, list_length, least_rows, seed

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        return 3000.0 * tokens * self.features  # sorting, mostly

    def conclude(
        self,
        evaluated_firing_tokens: PerRow,
        sampled_features: SampledFeatures,
        token_model: TokenModel,
        token_text: Callable[[Sequence[int]], list[str]],
    ) -> dict[str, Value]:
        n = len(sampled_features)
        tokens, other = SeenTokens.of(evaluated_firing_tokens, n), in_decile(sampled_features, self.seed)
        scores, precision = np.full((4, n), np.nan), np.full(n, np.nan)
        for feature in range(n):
            fires = tokens.fires[:, feature]
            found = (
                token_model.in_list(feature, tokens), token_model.by_token(feature, tokens),
                token_model.by_pair(feature, tokens), token_model.in_list(int(other[feature]), tokens),
            )  # fmt: skip
            scores[:, feature] = [auc(score, fires) for score in found]
            if (listed := found[0] > 0).any():
                precision[feature] = fires[listed].mean()
        if n < 2:
            scores[3] = np.nan  # there is no other feature
        of_list, of_tokens, of_pairs, shuffled = scores
        values: dict[str, Value] = {
            "auc_list": mean_over_features(of_list, "share", None),
            "precision": mean_over_features(precision, "share", None, "no evaluated token is in a list"),
            "auc_tokens": mean_over_features(of_tokens, "share", None),
            "auc_pairs": mean_over_features(of_pairs, "share", None),
            "auc_shuffled": mean_over_features(shuffled, "share", None),
            "lead_shuffled": mean_over_features(of_list - shuffled, "AUC", None),
            "gain_pairs": mean_over_features(of_pairs - of_tokens, "AUC", None),
            "listed": _share(of_list),
            "by_density": by_density(of_list, sampled_features, None),
        }
        lists = token_model.spelled(token_text)
        columns = [
            "feature",
            "density",
            "tenth",
            "auc list",
            "auc tokens",
            "auc pairs",
            "auc shuffled",
            "precision",
            "tokens",
        ]
        parts = (sampled_features.features, sampled_features.densities, sampled_features.deciles)
        rows = [list(row) for row in zip(*parts, *scores, precision, lists, strict=True)]
        return values | {"features": Table(columns, rows), "about": errors_note(self.name, of_list)}


def _share(aucs: Float[np.ndarray, "n"]) -> Scalar:
    known = aucs[np.isfinite(aucs)]
    if not len(known):
        return Scalar.undefined("no sampled feature has a score", unit="share")
    share = mean_over_features((known >= _ENOUGH).astype(np.float64), "share", None)
    return Scalar(share.value, unit="share", n=len(known), stderr=share.stderr, ci95=share.ci95, proportion=True)
