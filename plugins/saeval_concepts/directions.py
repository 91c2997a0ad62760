"""Linear probes of pooled activations, as directions: fitted on balanced texts, with validation texts that decide C."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8
from scipy.sparse import csr_array

from saeval.plugin import Estimate, PerRow, Undefined, hashed
from saeval_concepts.probes import PENALTIES, auc, logistic
from saeval_concepts.tasks import Task
from saeval_concepts.texts import document_keys

Labelled = tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n"]]
"""Pooled activations of texts, and their answers."""
_ROUNDING = 1e-9
"""Differences below this share of the numbers are rounding."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A linear probe w · x + c; above 0 is a yes."""

    w: Float[np.ndarray, "d"]
    c: float
    C: float
    """The inverse of the penalty's weight, which the validation texts chose."""

    @classmethod
    def fitted(cls, fit: Labelled, validation: Labelled, penalty: str) -> Direction:
        """Return the probe with the largest AUC on the texts for validation, of equals that with the smallest C."""
        x, y = fit
        mean, deviation = x.mean(0), x.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        scaled, best, most = (x - mean) / deviation, None, -1.0
        for C in PENALTIES:
            model = logistic(scaled, y, float(C), penalty)
            w = model.coef_[0] / deviation
            probe = cls(w, float(model.intercept_[0] - w @ mean), float(C))
            reached = round(auc(probe.logits(validation[0]), validation[1]), 9)
            if reached > most:
                best, most = probe, reached
        assert best is not None
        return best

    def logits(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """Return the margin of each text."""
        return np.asarray(x @ self.w + self.c)


def balanced(
    groups: Int8[np.ndarray, "n"], count: int, clusters: Int[np.ndarray, "n"], seed: int, task: str, split: str
) -> Int[np.ndarray, "rows"]:
    """Return rows with as many texts of each group 0 .. count - 1 as the smallest has, ascending.

    A hash of (seed, task, document) chooses them, so that they are the same for every SAE. `Undefined` if a group has
    no text; `task` and `split` say where.
    """
    sizes = np.bincount(groups[groups >= 0], minlength=count)
    if not sizes.any():
        raise Undefined(f"the {split} no text of task '{task}'; add texts, or change 'shares'")
    if not sizes.all():
        few = "one class only" if count == 2 else "no texts with one of the four pairs of answers"
        raise Undefined(f"the {split} {few} for task '{task}'; add texts, or change 'shares'")
    keys = document_keys(clusters, seed, "balanced", task)
    chosen = []
    for group in range(count):
        rows = np.flatnonzero(groups == group)
        chosen.append(rows[np.argsort(keys[rows], kind="stable")][: sizes.min()])
    return np.sort(np.concatenate(chosen))


FIT, VALIDATION, TEST = "fit split has", "texts for validation have", "evaluated texts have"
"""How messages name the texts."""


def task_directions(
    fit_activation_rows: PerRow, validation_activation_rows: PerRow, probe_tasks: tuple[Task, ...], penalty: str,
    seed: int,
) -> tuple[Direction, ...]:  # fmt: skip
    """A linear probe of the pooled activations for each task, fitted once for all SAEs of a hook."""
    probes = []
    for number, task in enumerate(probe_tasks):
        chosen = []
        for rows, split in ((fit_activation_rows, FIT), (validation_activation_rows, VALIDATION)):
            y = rows["y"][:, number]
            index = balanced(y, 2, rows.clusters, seed, task.name, split)
            chosen.append((rows["x"][index].astype(np.float64), y[index] == 1))
        fit, validation = chosen
        probes.append(Direction.fitted(fit, validation, penalty))
    return tuple(probes)


class LeftOut:
    """Means of texts without each document, as arrays `[documents + 1, ...]` whose last entry leaves none out."""

    def __init__(self, clusters: Int[np.ndarray, "n"], n_clusters: int) -> None:
        self.n_clusters = n_clusters
        self.member = csr_array(
            (np.ones(len(clusters)), (clusters, np.arange(len(clusters)))), (n_clusters, len(clusters))
        )
        self.sizes = np.bincount(clusters, minlength=n_clusters).astype(np.float64)

    def means(self, values: Float[np.ndarray, "n *k"], where: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "c *k"]:
        """Return the means over the texts in `where`; NaN without any."""
        flat = np.where(where[:, None], values.reshape(len(values), -1), 0.0)
        sums, counts = self.member @ flat, self.member @ where.astype(np.float64)
        left = np.concatenate([sums.sum(0) - sums, sums.sum(0)[None]])
        n = np.append(counts.sum() - counts, counts.sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            means = left / n[:, None]
        return np.asarray(means.reshape(-1, *values.shape[1:]))

    def margin(self, logits: Float[np.ndarray, "n *k"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "c *k"]:
        """Return E[logit | yes] − E[logit | no]."""
        return np.asarray(self.means(logits, y) - self.means(logits, ~y))

    def accuracy(self, logits: Float[np.ndarray, "n *k"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "c *k"]:
        """Return the share of right answers."""
        right = (logits > 0) == y.reshape(-1, *[1] * (logits.ndim - 1))
        return self.means(right.astype(np.float64), np.ones(len(y), dtype=bool))

    def correlation(self, logits: Float[np.ndarray, "n *k"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "c *k"]:
        """Return the correlation of the logits with the answers, 0 for constant logits.

        It is the margin in standard deviations of the logits, halved if there are as many yes as no.
        """
        every = np.ones(len(y), dtype=bool)
        centred = logits - logits.mean(0)
        variance = self.means(centred**2, every) - self.means(centred, every) ** 2
        share = self.means(y.astype(np.float64), every).reshape(-1, *[1] * (logits.ndim - 1))
        rounding = _ROUNDING * np.abs(logits).max(initial=1e-30)
        deviation = np.sqrt(np.maximum(variance, 0.0))
        some = deviation > rounding
        margin = self.margin(centred, y) * np.sqrt(share * (1 - share))
        return np.asarray(np.where(some, margin / np.where(some, deviation, 1.0), 0.0))


def estimate(values: Float[np.ndarray, "c"], sizes: Float[np.ndarray, "documents"]) -> Estimate:
    """Return the estimate of a number that is given without each document and, last, without leaving any out."""
    *without, value = values
    return Estimate(float(value), np.where(sizes > 0, without, value), sizes, int(sizes.sum()))


def stands_out(difference: Estimate, scale: float = 1.0) -> bool:
    """Return True if a difference of numbers of this size is above two standard errors and above rounding."""
    error = difference.stderr
    return error is not None and bool(difference.value > max(2 * error, _ROUNDING * scale))


def drawn(alive: Int[np.ndarray, "n"], *keys: int | str) -> Int[np.ndarray, "n"]:
    """Return features in an order drawn by hash."""
    return alive[np.argsort(hashed(*keys, alive), kind="stable")]
