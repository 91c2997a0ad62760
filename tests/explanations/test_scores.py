"""Words for planted features, tested by a judge that knows them: scores, controls, costs."""

from __future__ import annotations

import pytest

from planted_features import EACH, RULES, Oracle, Planted, Rules, texts
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every

MANY = {"features": 12, "least_rows": 5, "windows": 16, "shown": 6, "per_prompt": 5}


def judged(*metrics, judge="oracle", **options):
    Oracle.asked = []
    results = evaluate_tiny(
        list(metrics), model=Planted(), saes=[Rules()], rows=texts(1), fit=texts(2), judge=judge,
        judge_classes=[Oracle], **options,
    )  # fmt: skip
    return {result.metric: result for result in results}


def by_kind(result, column):
    table = result.values["features"]
    place, feature = table["columns"].index(column), table["columns"].index("feature")
    found = {"token": [], "pair": [], "noise": []}
    for row in table["rows"]:
        found[RULES[row[feature]].split()[0]].append(row[place])
    return found


@pytest.fixture(scope="module")
def both():
    return judged(
        {"detection": MANY},
        {"fuzzing": MANY},
        {"explanation": {k: MANY[k] for k in ("features", "least_rows", "shown")}},
    )


@pytest.mark.parametrize("metric", ["detection", "fuzzing"])
def test_right_words_tell_where_features_fire(both, metric):
    scores = by_kind(both[metric], "auc own")
    assert every(score == 1 for score in scores["token"] + scores["pair"])
    assert every(score == 0.5 for score in scores["noise"])
    assert len(scores["token"]) == len(scores["pair"]) == len(scores["noise"]) == EACH
