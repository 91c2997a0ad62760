"""`explanation`: the words for sampled features, with the windows that they are from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from saeval.plugin import Metric, Scalar, Table, Value
from saeval_explanations.given import WordsPath
from saeval_explanations.means import mean_over_features
from saeval_explanations.sampling import SampledFeatures
from saeval_explanations.tokens import TokenModel
from saeval_explanations.words import Words


class Explanation(Metric):
    """What do features mean in words? The words, and the windows of text that they were made from.

    A keyed sample of features is drawn from all tenths by density. For each, the judge sees `shown` windows of the fit
    split, half of them those in which it fires most, the others around random tokens on which it fires, with the
    tokens marked on which it is large. Or the words are those of the file `path`: JSON Lines of `{"feature": 12,
    "explanation": "..."}`, or a list of objects with `index` and `description`, as feature browsers export them.

    `detection` and `fuzzing` test the words; with the same parameters the judge is asked for them once.

    Values:
        unexplained: share of the features for which there are no words; share; 0 .. 1; no better direction.
        length: mean number of words of an explanation; words; ≥ 0; no better direction.
        distinct: number of different explanations as a share of all; share; 0 .. 1; no better direction.
        features: density, tenth, words and list of tokens of each sampled feature, a table; share; 0 .. 1; no better
            direction.
        windows: the windows that were shown, a table; activation; −∞ .. ∞; no better direction.

    Claims:
        unexplained, length, distinct: what the judge answered; null: none; needs: 1 SAE; not: that the words are
            right: see `detection` and `fuzzing`.

    Source: Bills et al. (2023), "Language models can explain neurons in language models"; Paulo et al. (2024, arXiv
        2410.13928).
    """

    name = "explanation"
    headline = ("unexplained", "distinct")
    main = ()
    value_names = ("unexplained", "length", "distinct")

    def __init__(
        self,
        features: Annotated[int, Field(ge=1, le=10_000)] = 50,
        shown: Annotated[int, Field(ge=1, le=100)] = 10,
        list_length: Annotated[int, Field(ge=1, le=1000)] = 10,
        least_rows: Annotated[int, Field(ge=1)] = 10,
        seed: int = 0,
        path: WordsPath | None = None,
    ) -> None:
        self.features, self.shown, self.list_length, self.least_rows = features, shown, list_length, least_rows
        self.seed, self.path = seed, path

    def conclude(
        self,
        tested_words: Words,
        sampled_features: SampledFeatures,
        token_model: TokenModel,
        token_text: Callable[[Sequence[int]], list[str]],
    ) -> dict[str, Value]:
        said = [words for words in tested_words.words if words is not None]
        missing = 1 - len(said) / len(tested_words.words)
        values: dict[str, Value] = {
            "unexplained": Scalar(
                missing, unit="share", better=None, n=len(tested_words.words), proportion=True
            ),
            "length": mean_over_features(np.array([len(w.split()) for w in said], dtype=float), "words", None),
            "distinct": Scalar(len(set(said)) / len(said), unit="share", n=len(said), proportion=True)
            if said else Scalar.undefined("no feature has words", unit="share"),
        }  # fmt: skip
        lists = token_model.spelled(token_text)
        parts = (sampled_features.features, sampled_features.densities, sampled_features.deciles)
        rows = [list(row) for row in zip(*parts, tested_words.words, lists, strict=True)]
        values["features"] = Table(["feature", "density", "tenth", "words", "tokens"], rows)
        windows = [
            [int(feature), place, window.activation, window.row,
             _listed([text for text, _ in window.tokens]),
             _listed([float(f"{act:.4g}") for _, act in window.tokens])]
            for feature, shown in zip(sampled_features.features, tested_words.windows, strict=True)
            for place, window in enumerate(shown, start=1)
        ]  # fmt: skip
        columns = ["feature", "place", "activation", "row", "tokens", "activations"]
        return values | {"windows": Table(columns, windows)}


def _listed(values: Sequence[str | float]) -> str:
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"))
