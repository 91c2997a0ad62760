"""sae-probes 0.4's logistic regressions: the choice of C, and the scores (sae_probes/utils_training.py)."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

PENALTIES = np.logspace(5, -5, 10)
"""Values of C, from the largest; of equals the first is taken."""
LEAST = 3
"""Up to this number of texts, C is 1."""
Split = tuple[Any, Any]
"""Rows to fit, and rows to evaluate."""


class Scores(NamedTuple):
    """What sae-probes prints of one regression, under its names."""

    test_f1: float
    """F1 of both classes, weighted by their numbers of texts."""
    test_acc: float
    test_auc: float
    val_auc: float
    """Largest mean AUC over folds, without which C is not chosen: then the AUC of the texts that were fitted."""


def splits(y: Int[np.ndarray, "n"], seed: int) -> list[Split]:
    """Return the folds: all pairs up to 12 texts, 6 folds below 128, else the last 20%, at most 100, as the only one.

    Folds with one class only are left out, except for the last.
    """
    from sklearn.model_selection import LeavePOut, StratifiedKFold  # late: slow to import

    n = len(y)
    if n >= 128:
        size = n - min(int(0.2 * n), 100)
        return [(np.arange(size), np.arange(size, n))]
    cv = LeavePOut(2) if n <= 12 else StratifiedKFold(n_splits=6, shuffle=True, random_state=seed)
    return [(fit, held) for fit, held in cv.split(np.zeros((n, 1)), y) if len(np.unique(y[held])) == 2]


def best_regression(
    x: Float[np.ndarray, "n k"],
    y: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m k"],
    answers: Int[np.ndarray, "m"],
    penalty: str,
    seed: int,
) -> Scores:
    """Return the scores of the regression with the best C on the test texts.

    Columns are not scaled, and fitted in float64, since scikit-learn does not know the dtype of sae-probes' tensors.
    Texts are fitted in an order that follows from the seed.
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score  # late: slow to import

    x, test = x.astype(np.float64), test.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folds with one class and fits that do not converge, as there
        C, reached = 1.0, None
        if len(x) > LEAST:
            folds = splits(y, seed)
            means = [float(np.mean([_fold(x, y, *fold, float(C), penalty, seed) for fold in folds])) for C in PENALTIES]
            C, reached = float(PENALTIES[np.argmax(means)]), max(means)
        order = np.random.RandomState(seed).permutation(len(x))
        model = _model(C, penalty, seed).fit(x[order], y[order])
        said, share = model.predict(test), model.predict_proba(test)[:, 1]
        if reached is None:
            reached = float(roc_auc_score(y[order], model.predict_proba(x[order])[:, 1]))
        f1 = float(f1_score(answers, said, average="weighted"))
        return Scores(f1, float(accuracy_score(answers, said)), float(roc_auc_score(answers, share)), reached)


def _fold(x: Any, y: Any, fit: Any, held: Any, C: float, penalty: str, seed: int) -> float:
    from sklearn.metrics import roc_auc_score  # late: slow to import

    if len(np.unique(y[fit])) < 2:
        return 0.5
    return float(roc_auc_score(y[held], _model(C, penalty, seed).fit(x[fit], y[fit]).predict_proba(x[held])[:, 1]))


def _model(C: float, penalty: str, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression  # late: slow to import

    if penalty == "l1":
        return LogisticRegression(C=C, l1_ratio=1.0, solver="saga", random_state=seed, max_iter=1000)
    return LogisticRegression(C=C, random_state=seed, max_iter=1000)
