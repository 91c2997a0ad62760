"""Dense probes of parent concepts, the main features that stand for them, and the features that may absorb them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Evidence, PerRow, fit_split, fold, torch
from saeval_concepts.probes import PENALTIES
from saeval_concepts.tasks import OUTSIDE, Task
from saeval_concepts.texts import cv_parts
from saeval_concepts.words import WordSums

if TYPE_CHECKING:
    from torch import Tensor

SILENT = 1e-8
"""A feature at or below this is silent, as SAEBench counts."""
MOST = 10
"""Most main features of a parent."""


class WordProbe(NamedTuple):
    """A linear probe of a parent concept: a word has it if x·w + b is above 0."""

    w: Float[np.ndarray, "d"]
    b: float
    f1: float
    """F1 on the validation words; 0 if there is none of the parent."""
    lacking: str = ""
    """Why the parent is left out; empty if it counts."""

    @property
    def direction(self) -> Float[np.ndarray, "d"]:
        """The unit vector along w."""
        return np.asarray(self.w / (np.linalg.norm(self.w) or 1.0))

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return x·w + b, float64."""
        scores: Tensor = x.double() @ torch.from_numpy(self.w).to(x.device) + self.b
        return scores


def word_probes(
    word_rows: PerRow, probe_tasks: tuple[Task, ...], folds: int, seed: int, least_f1: float
) -> tuple[WordProbe, ...]:
    """For each parent a balanced logistic regression on the fit split's words; C by cross-validation there.

    A parent without words in each part, or with an F1 below `least_f1` on the validation words, is left out.
    """
    rows, probes = word_rows, []
    nothing = np.zeros(rows["x"].shape[1])
    for number in range(len(probe_tasks)):
        y = rows["y"][:, number]
        fitted, held = (y != OUTSIDE) & ~rows["validation"], (y != OUTSIDE) & rows["validation"]
        if lacking := _lack(y[fitted], y[held], folds):
            probes.append(WordProbe(nothing, 0.0, 0.0, lacking))
            continue
        x, clusters = rows["x"][fitted].astype(np.float64), rows.clusters[fitted]
        w, b = _logistic(x, y[fitted] == 1, cv_parts(clusters, folds, seed), folds)
        quality = f1(rows["x"][held].astype(np.float64) @ w + b > 0, y[held] == 1)
        weak = f"its probe has an F1 of {quality:.2f} on validation words, below {least_f1:g}"
        probes.append(WordProbe(w, b, quality, weak if quality < least_f1 else ""))
    return tuple(probes)


def _logistic(
    x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n"], parts: Int[np.ndarray, "n"], folds: int
) -> tuple[Float[np.ndarray, "d"], float]:
    """Return w and b of a balanced logistic regression; C is that of the least log loss in the cross-validation.

    By log loss, since answers are taken at a threshold: the AUC of separable classes is 1 for every C. Balanced, as
    SAEBench's, since one word in 26 or fewer has a letter.
    """
    losses = np.zeros(len(PENALTIES))
    for part in range(folds):
        inside, outside = parts == part, parts != part
        if inside.any() and len(set(y[outside])) == 2:
            for number, (w, b) in enumerate(_path(x[outside], y[outside], PENALTIES)):
                loss = np.logaddexp(0, -np.where(y[inside], 1, -1) * (x[inside] @ w + b))
                losses[number] += sum(loss[y[inside] == side].mean() for side in set(y[inside].tolist()))
    best = int(np.argmin(losses))
    return _path(x, y, PENALTIES[best : best + 1])[0]


def _path(
    x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n"], penalties: Float[np.ndarray, "c"]
) -> list[tuple[Float[np.ndarray, "d"], float]]:
    """Return w and b for each C, fitted to standardised columns, each begun from the one before."""
    from sklearn.linear_model import LogisticRegression  # late: slow to import

    mean, deviation = x.mean(0), x.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    model = LogisticRegression(class_weight="balanced", max_iter=1000, warm_start=True)
    fitted = []
    for C in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a probe of separable classes need not converge
            model.set_params(C=C).fit((x - mean) / deviation, y)
        w = model.coef_[0] / deviation
        fitted.append((w, float(model.intercept_[0] - w @ mean)))
    return fitted


def _lack(y: Int8[np.ndarray, "n"], held: Int8[np.ndarray, "m"], folds: int) -> str:
    if min((y == 0).sum(), (y == 1).sum()) < folds:
        return f"fewer than {folds} words for fitting have it, or lack it"
    return "" if {0, 1} <= set(held.tolist()) else "no validation word has it, or none lacks it"


def f1(said: Bool[np.ndarray, "n"], y: Bool[np.ndarray, "n"]) -> float:
    """Return 2 · true positives / (said + true); 0 if there are none."""
    total = int(said.sum() + y.sum())
    return 2 * int((said & y).sum()) / total if total else 0.0


def main_candidates(word_sums: WordSums, word_probes: tuple[WordProbe, ...]) -> tuple[Int[np.ndarray, "k"], ...]:
    """For each parent the features with the largest positive differences of class means, at most 10; the best first."""
    chosen = []
    for differences, probe in zip(word_sums.differences, word_probes, strict=True):
        order = np.argsort(-differences, kind="stable")[:MOST]
        chosen.append(order[differences[order] > 0] if not probe.lacking else order[:0])
    return tuple(chosen)


def parent_projections(
    W_dec: Float[Tensor, "d_sae d_out"], word_probes: tuple[WordProbe, ...]
) -> Float[Tensor, "parents d_sae"]:
    """⟨p, d_j⟩ of the unit direction p of each parent's probe and each decoder row, float32."""
    directions = torch.from_numpy(np.stack([probe.direction for probe in word_probes]))
    projections: Tensor = directions.to(W_dec.device, torch.float32) @ W_dec.float().T
    return projections


def decoder_norms(W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "d_sae"]:
    """‖d_j‖ of each decoder row, float32."""
    norms: Tensor = W_dec.float().norm(dim=1)
    return norms


@fold
@fit_split
def candidate_rows(
    word_acts: Float[Tensor, "batch d_sae"],
    word_activations: Float[Tensor, "batch d_in"],
    word_labels: Int8[np.ndarray, "batch tasks"],
    validation: Bool[np.ndarray, "batch"],
    parent_projections: Float[Tensor, "parents d_sae"],
    word_probes: tuple[WordProbe, ...],
    main_candidates: tuple[Int[np.ndarray, "k"], ...],
    probe_tasks: tuple[Task, ...],
) -> dict[str, Evidence]:
    """Fold over the fit split: for each parent, the candidates' activations at each word, and what projects most.

    `top` has the features with the largest positive f_j ⟨p, d_j⟩, one more than there can be main features; -1 for
    none, and for words that lack the parent.
    """
    tables: dict[str, Evidence] = {}
    for number, (task, probe) in enumerate(zip(probe_tasks, word_probes, strict=True)):
        y = word_labels[:, number]
        rows = np.flatnonzero(y != OUTSIDE) if not probe.lacking else np.zeros(0, np.int64)
        index = torch.from_numpy(rows).to(word_acts.device)
        columns = torch.from_numpy(main_candidates[number]).to(word_acts.device)
        acts = word_acts[index]
        size = min(MOST + 1, acts.shape[1])
        top = np.full((len(rows), size), -1, dtype=np.int64)
        if (has := y[rows] == 1).any():
            projections = acts[torch.from_numpy(has).to(acts.device)].float() * parent_projections[number].to(acts)
            values, features = projections.topk(size, dim=1)
            top[has] = torch.where(values > 0, features, -1).cpu().numpy()
        scores = probe.scores(word_activations[index.to(word_activations.device)])
        tables[task.name] = PerRow.of(
            rows, y=y[rows], validation=validation[rows], z=acts[:, columns].float(), top=top, score=scores
        )
    return tables


class Mains(NamedTuple):
    """The main features of a parent, and the features that project most onto its probe where these are silent."""

    features: Int[np.ndarray, "k"]
    f1: float
    """F1 on validation words of a probe of these features."""
    absorbers: Mapping[int, int]
    """Number of fit words on which a feature projects most, of those that the probe gets right with silent mains."""


def main_features(
    candidate_rows: dict[str, PerRow],
    main_candidates: tuple[Int[np.ndarray, "k"], ...],
    probe_tasks: tuple[Task, ...],
    word_probes: tuple[WordProbe, ...],
    jump: float,
) -> tuple[Mains, ...]:
    """The main features of each parent: the best candidate, and the next while each adds `jump` to the best F1.

    F1 is that of a balanced logistic regression of the first k candidates, on the validation words.
    """
    chosen = []
    for task, candidates, probe in zip(probe_tasks, main_candidates, word_probes, strict=True):
        if probe.lacking or not len(candidates):
            chosen.append(Mains(candidates[:0], 0.0, {}))
            continue
        rows = candidate_rows[task.name]
        z, y, held = rows["z"].astype(np.float64), rows["y"] == 1, rows["validation"]
        count, best = 1, _sparse_f1(z[:, :1], y, held)
        for k in range(2, len(candidates) + 1):
            quality = _sparse_f1(z[:, :k], y, held)
            if quality <= best + jump:
                break
            count, best = k, quality
        features = candidates[:count]
        silent = y & (rows["score"] > 0) & (np.abs(z[:, :count]) < SILENT).all(1)
        chosen.append(Mains(features, best, _absorbers(rows["top"][silent], features)))
    return tuple(chosen)


def _sparse_f1(z: Float[np.ndarray, "n k"], y: Bool[np.ndarray, "n"], held: Bool[np.ndarray, "n"]) -> float:
    from sklearn.linear_model import LogisticRegression  # late: slow to import

    deviation = z[~held].std(0)
    z = z / np.where(deviation > 0, deviation, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe of separable classes need not converge
        model = LogisticRegression(class_weight="balanced", max_iter=500).fit(z[~held], y[~held])
    return f1(model.decision_function(z[held]) > 0, y[held])


def _absorbers(top: Int[np.ndarray, "n t"], mains: Sequence[int] | Int[np.ndarray, "k"]) -> dict[int, int]:
    """Return how often each feature is the first of a row that is no main feature."""
    allowed = (top >= 0) & ~np.isin(top, mains)
    rows = np.flatnonzero(allowed.any(1))
    return dict(Counter(top[rows, allowed[rows].argmax(1)].tolist()))
