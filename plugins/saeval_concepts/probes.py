"""Logistic regressions: fitted with a penalty that cross-validation chooses, and scored on other texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Estimate, PerRow, Undefined, hashed
from saeval_concepts.rows import NO_TYPE, held_out
from saeval_concepts.texts import cv_parts

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PENALTIES = np.logspace(-4, 2, 10)
"""Values of C, the inverse of the penalty's weight, of which cross-validation chooses one."""
LEAST_UNSEEN = 20
"""Fewest evaluated tokens of each class, of types that no fitted token has, for a number about them."""
Matrix = Any
"""`[texts, columns]`, dense or sparse."""


Columns = Callable[[int | None], Matrix]
"""The columns of the fit texts that were chosen without a part of the cross-validation, or from all texts for None."""


class Fitted(NamedTuple):
    """Scores of a probe on the test texts, the C that cross-validation chose, and what keyed refits give."""

    scores: Float[np.ndarray, "test"]
    """Logits; above 0 is a yes."""
    C: float
    refits: Sequence[Float[np.ndarray, "test"]] = ()


@dataclass(frozen=True)
class Trainer:
    """Fits probes of one task: which texts to fit, in which parts of the cross-validation, and how."""

    y: Bool[np.ndarray, "fit"]
    parts: Int[np.ndarray, "fit"]
    clusters: Int[np.ndarray, "fit"]
    folds: int
    penalty: str = "l2"
    refits: int = 0
    seed: int = 0

    def fit(self, fit: Columns, test: Matrix, standardise: bool = True) -> Fitted:
        """Return the scores on `test` of a probe of the columns `fit`.

        C is the one with the least log loss in the cross-validation, the smallest of equals. Not that of the largest
        AUC: classes that are easy to tell apart have the same one for every C, and with the smallest, every answer is
        that of the larger class. Without two classes inside and outside of any part, C is 1.
        """
        losses, usable = np.zeros(len(PENALTIES)), False
        for part in range(self.folds):
            inside, outside = self.parts == part, self.parts != part
            if len(set(self.y[inside])) < 2 or len(set(self.y[outside])) < 2:
                continue
            usable = True
            x = fit(part)
            scale = _scale(x[outside]) if standardise else None
            for number, C in enumerate(PENALTIES):
                model = logistic(_scaled(x[outside], scale), self.y[outside], C, self.penalty)
                margins = np.where(self.y[inside], 1, -1) * model.decision_function(_scaled(x[inside], scale))
                losses[number] += np.logaddexp(0, -margins).mean()
        best = float(PENALTIES[int(np.argmin(np.round(losses, 9)))]) if usable else 1.0
        x = fit(None)
        scale = _scale(x) if standardise else None
        columns, on_test = _scaled(x, scale), _scaled(test, scale)
        scores = logistic(columns, self.y, best, self.penalty).decision_function(on_test)
        again = []
        for number in range(self.refits):
            rows = self._resampled(number)
            if len(set(self.y[rows])) == 2:
                model = logistic(columns[rows], self.y[rows], best, self.penalty)
                again.append(model.decision_function(on_test))
        return Fitted(scores, best, again)

    def _resampled(self, number: int) -> Int[np.ndarray, "n"]:
        """Return the rows of as many documents as there are, drawn with replacement by a key."""
        documents = np.unique(self.clusters)
        keys = hashed(self.seed, "refit", number, np.arange(len(documents)))
        drawn = documents[(keys % np.uint64(len(documents))).astype(np.int64)]
        return np.concatenate([np.flatnonzero(self.clusters == document) for document in drawn])


def logistic(x: Matrix, y: Bool[np.ndarray, "n"], C: float, penalty: str) -> Any:
    """Return a logistic regression of scikit-learn, fitted with an `l1` or `l2` penalty."""
    from sklearn.linear_model import LogisticRegression  # late: slow to import

    if penalty == "l1":
        model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=0)
    else:
        model = LogisticRegression(C=C, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe of separable classes need not converge
        return model.fit(x, y)


def _scale(x: Matrix) -> tuple[Any, Any]:
    """Return mean and standard deviation of the columns; 1 for a constant column."""
    deviation = x.std(0)
    return x.mean(0), np.where(deviation > 0, deviation, 1.0)


def _scaled(x: Matrix, scale: tuple[Any, Any] | None) -> Matrix:
    return x if scale is None else (x - scale[0]) / scale[1]


def bag_of_tokens(tokens: Int[np.ndarray, "n seq"], vocabulary: Int[np.ndarray, "v"]) -> csr_array:
    """Return which tokens of the vocabulary each text has, 0 or 1."""
    from scipy import sparse  # late: it takes a quarter of a second, and few verbs fit probes

    row, position = np.nonzero(tokens >= 0)
    values = tokens[row, position]
    place = np.searchsorted(vocabulary, values)
    known = (place < len(vocabulary)) & (vocabulary[np.minimum(place, len(vocabulary) - 1)] == values)
    shape = (len(tokens), len(vocabulary))
    counted = sparse.csr_array((np.ones(int(known.sum())), (row[known], place[known])), shape=shape)
    counted.sum_duplicates()
    counted.data[:] = 1.0
    assert sparse.issparse(counted)
    return counted


def auc(scores: Float[np.ndarray, "n"], y: Bool[np.ndarray, "n"]) -> float:
    """Return the share of pairs of a positive and another text in which the positive scores higher; ties count half."""
    above = _wins(scores, y)[y]
    pairs = int(y.sum()) * int((~y).sum())
    return float(above.sum()) / pairs if pairs else float("nan")


def _wins(scores: Float[np.ndarray, "n"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """For each text the number of texts of the other class on the right side of it, ties half."""
    low, high = np.sort(scores[~y]), np.sort(scores[y])
    wins = np.empty(len(scores))
    wins[y] = (np.searchsorted(low, scores[y], "left") + np.searchsorted(low, scores[y], "right")) / 2
    below = (np.searchsorted(high, scores[~y], "left") + np.searchsorted(high, scores[~y], "right")) / 2
    wins[~y] = len(high) - below
    return wins


class Quality(NamedTuple):
    """How well scores tell a task's texts apart, with errors over documents."""

    auc: Estimate
    accuracy: Estimate
    balanced_accuracy: Estimate
    f1: Estimate
    unseen: Estimate | None = None
    """AUC on tokens of types that no fitted token has; None for texts, and for too few such tokens."""


def quality(
    scores: Float[np.ndarray, "n"], y: Bool[np.ndarray, "n"], clusters: Int[np.ndarray, "n"], n_clusters: int
) -> Quality:
    """Return AUC, accuracy, balanced accuracy and F1 of the positive class; each without each document."""
    said, size = scores > 0, max(n_clusters, 1)

    def sums(values: Any) -> Float[np.ndarray, "clusters+1"]:
        """For each document, the sum over the others; and over all."""
        values = np.asarray(values, dtype=np.float64)
        each = np.bincount(clusters, values, minlength=size)
        return np.append(values.sum() - each, values.sum())

    true_yes, true_no = sums(said & y), sums(~said & ~y)
    yes, no, said_yes = sums(y), sums(~y), sums(said)
    sizes = np.bincount(clusters, minlength=size).astype(np.float64)
    # A document's texts also score against each other; these pairs would be taken off twice.
    wins, within = _wins(scores, y), np.zeros(size)
    for document in np.intersect1d(clusters[y], clusters[~y]):
        own = clusters == document
        within[document] = _wins(scores[own], y[own])[y[own]].sum()
    won = sums(wins * y)
    won[:-1] -= np.bincount(clusters[~y], wins[~y], minlength=size) - within

    def estimate(top: Any, below: Any) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):
            *without, value = top / below
        return Estimate(float(value), np.where(sizes > 0, without, value), sizes, len(y))

    with np.errstate(invalid="ignore", divide="ignore"):
        balanced = (true_yes / yes + true_no / no) / 2
    return Quality(
        auc=estimate(won, yes * no),
        accuracy=estimate(true_yes + true_no, yes + no),
        balanced_accuracy=estimate(balanced, np.ones_like(balanced)),
        f1=estimate(2 * true_yes, said_yes + yes),
    )


@dataclass(frozen=True)
class Probes:
    """The probes of one task: fitted to its fit rows, judged on its evaluated ones."""

    trainer: Trainer
    answers: Bool[np.ndarray, "test"]
    clusters: Int[np.ndarray, "test"]
    n_clusters: int
    judging: Bool[np.ndarray, "test"]
    """Rows that count: all but tokens of the held-out types."""
    unseen: Bool[np.ndarray, "test"]
    """Tokens of types that no fitted token has."""

    @classmethod
    def of(
        cls, task: str, fit: PerRow, y: Int8[np.ndarray, "fit"], test: PerRow, answers: Int8[np.ndarray, "test"], *,
        folds: int, penalty: str, seed: int, refits: int = 0, held_out_types: float = 0.0,
    ) -> Self:  # fmt: skip
        """Return the probes of a task with labels of all rows of `fit` and `test`, -1 outside the task.

        `Undefined` if a class is missing in either.
        """
        types = test["types"][answers >= 0]
        judging = ~held_out(types, held_out_types, seed)
        judged = answers[answers >= 0][judging]
        for labels, where in ((y, "fit split has"), (judged, "evaluated texts have")):
            if not {0, 1} <= set(labels.tolist()):
                raise Undefined(f"the {where} one class only for task '{task}'; add texts, or change 'shares'")
        clusters = fit.clusters[y >= 0]
        trainer = Trainer(y[y >= 0] == 1, cv_parts(clusters, folds, seed), clusters, folds, penalty, refits, seed)
        unseen = (types != NO_TYPE) & ~np.isin(types, fit["types"][y >= 0])
        evaluated = answers[answers >= 0] == 1, test.clusters[answers >= 0], test.n_clusters
        return cls(trainer, *evaluated, judging, unseen)

    def judged(self, fit: Columns, test: Matrix, standardise: bool = True) -> tuple[Quality, float]:
        """Return the quality of a probe, and the standard deviation of its AUC over refits; 0 without any."""
        fitted = self.trainer.fit(fit, test, standardise)
        again = [self.quality(scores).auc.value for scores in fitted.refits]
        return self.quality(fitted.scores), float(np.std(again, ddof=1)) if len(again) > 1 else 0.0

    def quality(self, scores: Float[np.ndarray, "test"]) -> Quality:
        """Return the quality of scores of the evaluated rows."""
        measured = self._of(scores, self.judging)
        if (np.bincount(self.answers[self.unseen], minlength=2) < LEAST_UNSEEN).any():
            return measured
        return measured._replace(unseen=self._of(scores, self.unseen).auc)

    def _of(self, scores: Float[np.ndarray, "test"], rows: Bool[np.ndarray, "test"]) -> Quality:
        return quality(scores[rows], self.answers[rows], self.clusters[rows], self.n_clusters)
