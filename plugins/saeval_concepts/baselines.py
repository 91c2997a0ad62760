"""What probes of features are held against: probes of the activations, of neurons, of components, of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import PerRow
from saeval_concepts.probes import Matrix, Probes, Quality, bag_of_tokens
from saeval_concepts.tasks import Task

Qualities = Mapping[str, Sequence[Quality]]
"""By the name of a probe: its quality on each task."""


def activation_probes(
    fit_activation_rows: PerRow,
    test_activation_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    k: Sequence[int],
    folds: int,
    penalty: str,
    seed: int,
    held_out_types: float,
) -> Qualities:
    """Probes of all activations, of the k best neurons, and of the k largest principal components, for each task.

    Neurons are coordinates of the activations, chosen by the difference of class means in standard deviations.
    """
    fit, test = fit_activation_rows, test_activation_rows
    mean = fit["x"].mean(0, dtype=np.float64)
    directions = _components(fit["x"] - mean, max(k))
    made: dict[str, list[Quality]] = {}
    for number, task in enumerate(probe_tasks):
        y, answers = fit["y"][:, number], test["y"][:, number]
        options: dict[str, Any] = {"folds": folds, "penalty": penalty, "seed": seed, "held_out_types": held_out_types}
        probes = Probes.of(task.name, fit, y, test, answers, **options)
        x, tests = fit["x"][y >= 0].astype(np.float64), test["x"][answers >= 0].astype(np.float64)
        made.setdefault("activations", []).append(probes.judged(partial(_same, x), tests)[0])
        best = {
            part: _best_neurons(x, probes.trainer.y, probes.trainer.parts, part, max(k))
            for part in [None, *range(folds)]
        }
        scores, test_scores = (x - mean) @ directions.T, (tests - mean) @ directions.T
        for count in k:
            chosen = {part: neurons[:count] for part, neurons in best.items()}
            of_neurons = probes.judged(partial(_chosen, x, chosen), tests[:, chosen[None]])
            of_components = probes.judged(partial(_same, scores[:, :count]), test_scores[:, :count])
            made.setdefault(f"neurons@{count}", []).append(of_neurons[0])
            made.setdefault(f"components@{count}", []).append(of_components[0])
    return made


def _components(centred: Float[np.ndarray, "n d"], most: int) -> Float[np.ndarray, "k d"]:
    """Return the directions of largest variance, the largest first."""
    if len(centred) <= centred.shape[1]:
        return np.asarray(np.linalg.svd(centred, full_matrices=False)[2][:most])
    return np.asarray(np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :most].T)


def _same(x: Matrix, part: int | None) -> Matrix:
    return x


def _chosen(
    x: Float[np.ndarray, "n d"], columns: Mapping[int | None, Int[np.ndarray, "k"]], part: int | None
) -> Float[np.ndarray, "n k"]:
    return x[:, columns[part]]


def _best_neurons(
    x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n"], parts: Int[np.ndarray, "n"], part: int | None, most: int
) -> Int[np.ndarray, "most"]:
    rows = parts != part if part is not None else np.ones(len(x), dtype=bool)
    if len(set(y[rows].tolist())) < 2:  # such a part is left out of the cross-validation
        return np.arange(min(most, x.shape[1]))
    deviation = x[rows].std(0)
    difference = np.abs(x[rows & y].mean(0) - x[rows & ~y].mean(0)) / np.where(deviation > 0, deviation, np.inf)
    return np.argsort(-difference, kind="stable")[:most]


def token_probes(
    fit_token_rows: PerRow,
    test_token_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    folds: int,
    penalty: str,
    seed: int,
    held_out_types: float,
) -> Qualities:
    """A probe of which tokens a row has, or which one it is, and the answer of the larger class, for each task."""
    fit, test = fit_token_rows, test_token_rows
    made: dict[str, list[Quality]] = {"tokens": [], "majority": []}
    for number, task in enumerate(probe_tasks):
        y, answers = fit["y"][:, number], test["y"][:, number]
        options: dict[str, Any] = {"folds": folds, "penalty": penalty, "seed": seed, "held_out_types": held_out_types}
        probes = Probes.of(task.name, fit, y, test, answers, **options)
        own = fit["tokens"][y >= 0]
        vocabulary = np.unique(own[own >= 0])
        x, tests = bag_of_tokens(own, vocabulary), bag_of_tokens(test["tokens"][answers >= 0], vocabulary)
        made["tokens"].append(probes.judged(partial(_same, x), tests, standardise=False)[0])
        larger = 1.0 if probes.trainer.y.mean() > 0.5 else -1.0
        made["majority"].append(probes.quality(np.full(len(probes.answers), larger)))
    return made
