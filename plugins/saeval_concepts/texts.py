"""What probes read of each row, a text or a token: activations, features and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Batch, Evidence, PerRow, fit_split, fold, hashed, is_tensor, torch
from saeval_concepts.rows import ChosenTokens, of_rows, types_of
from saeval_concepts.tasks import OUTSIDE, Task

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 8192
"""Features whose values are summed together in float64."""


def pooled(
    x: Float[Tensor, "batch seq d"], included: Bool[Tensor, "batch seq"], pooling: str
) -> Float[Tensor, "batch d"]:
    """Return the mean, the maximum or the last of each row's vectors at the included tokens; zeros if it has none."""
    inside = included.to(x.device)
    if pooling == "mean":
        return torch.where(inside[..., None], x, x.new_zeros(())).sum(1) / inside.sum(1).clamp(min=1)[:, None]
    if pooling == "max":
        largest = torch.where(inside[..., None], x, x.new_full((), -torch.inf)).amax(1)
        return torch.where(inside.any(1)[:, None], largest, largest.new_zeros(()))
    places = torch.arange(x.shape[1], device=x.device)
    last = torch.where(inside, places, places.new_tensor(-1)).amax(1)
    chosen = x[torch.arange(len(x), device=x.device), last.clamp(min=0)]
    return torch.where((last >= 0)[:, None], chosen, chosen.new_zeros(()))


def read(
    x: Float[Tensor, "batch seq d"], included: Bool[Tensor, "batch seq"], pooling: str, chosen: ChosenTokens | None
) -> Float[Tensor, "n d"]:
    """Return the vectors of the rows of probes: pooled over each text, or those at the chosen tokens."""
    if chosen is None:
        return pooled(x, included, pooling)
    rows, positions = (torch.from_numpy(places).to(x.device) for places in (chosen.rows, chosen.positions))
    return x[rows, positions]


def pooled_acts(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    pooling: str,
    chosen_tokens: ChosenTokens | None = None,
) -> Float[Tensor, "n d_sae"]:
    """Feature activations of each row: a text's `mean`, `max` or `last` token, or those of a chosen `token`."""
    return read(feature_acts, included, pooling, chosen_tokens)


def pooled_activations(
    activations: Float[Tensor, "batch seq d_in"],
    included: Bool[Tensor, "batch seq"],
    pooling: str,
    chosen_tokens: ChosenTokens | None = None,
) -> Float[Tensor, "n d_in"]:
    """Activations of each row: a text's `mean`, `max` or `last` token, or those of a chosen `token`."""
    return read(activations, included, pooling, chosen_tokens)


def document_keys(clusters: Int[np.ndarray, "n"], seed: int, *words: str) -> np.ndarray[Any, Any]:
    """Return a hash of each document, for draws that keep a document together."""
    keys: list[Any] = [seed, *words]
    return hashed(*keys, clusters)


def cv_parts(clusters: Int[np.ndarray, "n"], folds: int, seed: int) -> Int[np.ndarray, "n"]:
    """Return the part of the cross-validation, 0 .. folds - 1, of each row's document."""
    return (document_keys(clusters, seed, "probe folds") % np.uint64(folds)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ClassSums(Evidence):
    """Sums of pooled features by task, part of the cross-validation and class."""

    sums: Float[np.ndarray, "tasks folds 2 d"]
    """Σ z over the texts of a class: 0 the others, 1 the positive one."""
    active: Int[np.ndarray, "tasks folds d"]
    """Number of texts with z ≠ 0."""
    n: Int[np.ndarray, "tasks folds 2"]
    """Number of texts."""


@fold
@fit_split
def class_sums(
    pooled_acts: Float[Tensor, "n d_sae"],
    fit_labels: Int8[np.ndarray, "n tasks"],
    batch: Batch,
    folds: int,
    seed: int,
    chosen_tokens: ChosenTokens | None = None,
) -> ClassSums:
    """Fold over the fit split: sums of each feature by task, part of the cross-validation and class."""
    parts = cv_parts(of_rows(batch.clusters, chosen_tokens), folds, seed)
    tasks, width = fit_labels.shape[1], pooled_acts.shape[1]
    member = np.zeros((tasks, folds, 2, len(parts)))
    for label in (0, 1):
        row, task = np.nonzero(fit_labels == label)
        member[task, parts[row], label, row] = 1
    sums, active = np.zeros((tasks, folds, 2, width)), np.zeros((tasks, folds, width), dtype=np.int64)
    either = member.sum(2).reshape(-1, len(parts))
    for first in range(0, width, _CHUNK):
        z = pooled_acts[:, first : first + _CHUNK].detach().double().cpu().numpy()
        here = slice(first, first + z.shape[1])
        sums[..., here] = (member.reshape(-1, len(z)) @ z).reshape(tasks, folds, 2, -1)
        active[..., here] = (either @ (z != 0)).reshape(tasks, folds, -1)
    return ClassSums(sums, active, member.sum(3).astype(np.int64))


@dataclass(frozen=True)
class Chosen:
    """The features of one task whose values are kept of each text, and which of them each probe reads."""

    columns: Int[np.ndarray, "columns"]
    """Features, ascending."""
    whole: Int[np.ndarray, "k"]
    """The best features by all fit texts, the best first; numbers of features, as below."""
    parts: tuple[Int[np.ndarray, "k"], ...]
    """The best without the texts of each part of the cross-validation."""
    random: Int[np.ndarray, "k"]
    """Random features that are active on a fit text of the task."""
    scores: Float[np.ndarray, "k"]
    """The scores of `whole`."""
    rises: Bool[np.ndarray, "k"]
    """True for those of `whole` whose mean is larger in the positive class."""

    def places(self, features: Int[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
        """Return the columns that hold these features."""
        return np.searchsorted(self.columns, features)


def chosen_features(
    class_sums: ClassSums, probe_tasks: tuple[Task, ...], k: Sequence[int], scale: str, seed: int
) -> tuple[Chosen, ...]:
    """For each task, the features with the largest differences of class means on the fit split, and random ones.

    With `scale: mean_active`, a difference is divided by the feature's mean where it is active, plus 1e-6.
    """
    most, chosen = max(k), []
    for number, task in enumerate(probe_tasks):
        of_task = class_sums.sums[number], class_sums.active[number], class_sums.n[number]
        every = np.arange(len(of_task[0]))
        best = _scores(*of_task, every, scale)
        whole = _largest(best, most)
        parts = tuple(_largest(_scores(*of_task, every[every != part], scale), most) for part in every)
        alive = np.flatnonzero(of_task[1].sum(0))
        random = alive[np.argsort(hashed(seed, "random features", task.name, alive), kind="stable")][:most]
        columns = np.unique(np.concatenate([whole, random, *parts]))
        others, positive = of_task[0].sum(0)[:, whole] / np.maximum(of_task[2].sum(0), 1)[:, None]
        chosen.append(Chosen(columns, whole, parts, random, best[whole], positive > others))
    return tuple(chosen)


def _scores(
    sums: Float[np.ndarray, "folds 2 d"], active: Int[np.ndarray, "folds d"], n: Int[np.ndarray, "folds 2"],
    parts: Int[np.ndarray, "p"], scale: str,
) -> Float[np.ndarray, "d"]:  # fmt: skip
    """Return the absolute difference of class means over some parts, by `scale`; 0 if a class has no text there."""
    total, count = sums[parts].sum(0), n[parts].sum(0)
    if not count.all():
        return np.zeros(sums.shape[-1])
    means = total / count[:, None]
    difference = np.abs(means[1] - means[0])
    if scale == "none":
        return np.asarray(difference)
    fired = active[parts].sum(0)
    return np.asarray(difference / (total.sum(0) / np.maximum(fired, 1) + 1e-6))


def _largest(scores: Float[np.ndarray, "d"], count: int) -> Int[np.ndarray, "count"]:
    """Return the numbers of the largest scores, the largest first; equal scores in the order of their numbers."""
    return np.argsort(-scores, kind="stable")[:count]


def of_tasks(
    values: Float[Tensor, "n d"],
    labels: Int8[np.ndarray, "n tasks"],
    features: Sequence[Chosen],
    tasks: Sequence[Task],
    chosen: ChosenTokens | None,
) -> dict[str, Evidence]:
    """Return for each task its rows with the values of its features, and the token type of each row."""
    tables: dict[str, Evidence] = {}
    types = types_of(chosen, len(labels))
    for number, (task, choice) in enumerate(zip(tasks, features, strict=True)):
        rows = np.flatnonzero(labels[:, number] != OUTSIDE)
        columns = torch.from_numpy(choice.columns).to(values.device)
        x = values[torch.from_numpy(rows).to(values.device)][:, columns].float()
        texts = rows if chosen is None else chosen.rows[rows]
        tables[task.name] = PerRow.of(texts, y=labels[rows, number], x=x, types=types[rows])
    return tables


@fold
@fit_split
def fit_features_of_tasks(
    pooled_acts: Float[Tensor, "n d_sae"],
    fit_labels: Int8[np.ndarray, "n tasks"],
    chosen_features: tuple[Chosen, ...],
    probe_tasks: tuple[Task, ...],
    chosen_tokens: ChosenTokens | None = None,
) -> dict[str, Evidence]:
    """Fold over the fit split: for each task, its rows with the values of its chosen features."""
    return of_tasks(pooled_acts, fit_labels, chosen_features, probe_tasks, chosen_tokens)


@fold
@fit_split
def fit_activation_rows(
    pooled_activations: Float[Tensor, "n d_in"],
    fit_labels: Int8[np.ndarray, "n tasks"],
    chosen_tokens: ChosenTokens | None = None,
) -> PerRow:
    """Fold over the fit split: each row's labels and activations."""
    return _with_types(fit_labels, chosen_tokens, x=pooled_activations.float())


@fold
def test_activation_rows(
    pooled_activations: Float[Tensor, "n d_in"],
    task_labels: Int8[np.ndarray, "n tasks"],
    chosen_tokens: ChosenTokens | None,
) -> PerRow:
    """Fold: each evaluated row's labels and activations."""
    return _with_types(task_labels, chosen_tokens, x=pooled_activations.float())


@fold
@fit_split
def validation_activation_rows(
    pooled_activations: Float[Tensor, "n d_in"],
    validation_labels: Int8[np.ndarray, "n tasks"],
    chosen_tokens: ChosenTokens | None = None,
) -> PerRow:
    """Fold over the fit split: labels and activations of each row for validation."""
    return _with_types(validation_labels, chosen_tokens, x=pooled_activations.float())


@fold
@fit_split
def fit_token_rows(
    tokens: Int[Tensor, "batch seq"],
    included: Bool[Tensor, "batch seq"],
    fit_labels: Int8[np.ndarray, "n tasks"],
    chosen_tokens: ChosenTokens | None = None,
) -> PerRow:
    """Fold over the fit split: each row's labels and tokens, -1 where none is included."""
    return _with_types(fit_labels, chosen_tokens, tokens=_tokens(tokens, included, chosen_tokens))


@fold
def test_token_rows(
    tokens: Int[Tensor, "batch seq"],
    included: Bool[Tensor, "batch seq"],
    task_labels: Int8[np.ndarray, "n tasks"],
    chosen_tokens: ChosenTokens | None,
) -> PerRow:
    """Fold: each evaluated row's labels and tokens, -1 where none is included."""
    return _with_types(task_labels, chosen_tokens, tokens=_tokens(tokens, included, chosen_tokens))


def _tokens(tokens: Int[Tensor, "batch seq"], included: Bool[Tensor, "batch seq"], chosen: ChosenTokens | None) -> Any:
    return tokens.masked_fill(~included, -1) if chosen is None else chosen.types[:, None]


def _with_types(labels: Int8[np.ndarray, "n tasks"], chosen: ChosenTokens | None, **columns: Any) -> PerRow:
    return all_rows(labels, chosen, types=types_of(chosen, len(labels)), **columns)


def all_rows(labels: Int8[np.ndarray, "n tasks"], chosen: ChosenTokens | None = None, /, **columns: Any) -> PerRow:
    """Return the rows of any task with their labels and other columns, tensors or arrays."""
    rows = np.flatnonzero((labels != OUTSIDE).any(1))
    index = torch.from_numpy(rows)
    picked = {name: column.cpu()[index] if is_tensor(column) else column[rows] for name, column in columns.items()}
    return PerRow.of(rows if chosen is None else chosen.rows[rows], y=labels[rows], **picked)
