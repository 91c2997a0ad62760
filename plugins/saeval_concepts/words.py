"""What `absorption` reads of each text: activations and features at its word, its labels, the place of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Evidence, PerRow, Undefined, fit_split, fold, quoted_value, suggestion, torch
from saeval_concepts.tasks import OUTSIDE

if TYPE_CHECKING:
    from torch import Tensor

NOWHERE = -1
"""The place of a word or an answer that a text does not have."""


def word_places(
    token_labels: Mapping[str, Int8[Tensor, "batch seq"]], included: Bool[Tensor, "batch seq"], at: str | None
) -> Int[np.ndarray, "batch"]:
    """Position of the last token with the label `at` in each row, of the last token without `at`; -1 if none."""
    inside = included
    if at is not None:
        if at not in token_labels:
            near = suggestion(at, list(token_labels))
            remedy = "use a source that labels tokens, such as 'spelling', or set 'at'"
            raise Undefined(f"the data have no label of tokens {quoted_value(at)}{near}; {remedy}")
        inside = included & (token_labels[at].to(included.device) == 1)
    places = torch.arange(inside.shape[1], device=inside.device)
    return torch.where(inside, places, places.new_tensor(NOWHERE)).amax(1).cpu().numpy()


def answer_places(
    token_labels: Mapping[str, Int8[Tensor, "batch seq"]], mask: Bool[Tensor, "batch seq"], answer: str
) -> Int[np.ndarray, "batch"]:
    """Position before the first token with the label `answer`, where the model predicts it; -1 if there is none."""
    if answer not in token_labels:
        return np.full(len(mask), NOWHERE)
    inside = (token_labels[answer].to(mask.device) == 1).int()
    before = torch.where(inside.any(1), inside.argmax(1) - 1, inside.new_tensor(NOWHERE))
    rows = torch.arange(len(mask), device=mask.device)
    return torch.where(mask[rows, before.clamp(min=0)], before, before.new_tensor(NOWHERE)).cpu().numpy()


def _at(x: Float[Tensor, "batch seq d"], places: Int[np.ndarray, "batch"]) -> Float[Tensor, "batch d"]:
    """Return the vectors at one position of each row; zeros where there is none."""
    where = torch.from_numpy(places).to(x.device)
    chosen = x[torch.arange(len(x), device=x.device), where.clamp(min=0)]
    return torch.where((where >= 0)[:, None], chosen, chosen.new_zeros(()))


def word_activations(
    activations: Float[Tensor, "batch seq d_in"], word_places: Int[np.ndarray, "batch"]
) -> Float[Tensor, "batch d_in"]:
    """Activations at the word of each row; zeros without one."""
    return _at(activations, word_places)


def word_acts(
    feature_acts: Float[Tensor, "batch seq d_sae"], word_places: Int[np.ndarray, "batch"]
) -> Float[Tensor, "batch d_sae"]:
    """Feature activations at the word of each row; zeros without one."""
    return _at(feature_acts, word_places)


def word_labels(
    task_labels: Int8[np.ndarray, "batch tasks"], word_places: Int[np.ndarray, "batch"]
) -> Int8[np.ndarray, "batch tasks"]:
    """1 for rows of a parent concept, 0 for the others of its task, -1 for rows outside it or without a word."""
    return np.where(word_places[:, None] == NOWHERE, OUTSIDE, task_labels).astype(np.int8)


@fold
@fit_split
def word_rows(
    word_activations: Float[Tensor, "batch d_in"],
    word_labels: Int8[np.ndarray, "batch tasks"],
    validation: Bool[np.ndarray, "batch"],
    answer_places: Int[np.ndarray, "batch"],
    targets: Int[Tensor, "batch seq"],
) -> PerRow:
    """Fold over the fit split: activations at each word, its labels, and the first token of its answer, -1 if none."""
    rows = np.flatnonzero((word_labels != OUTSIDE).any(1))
    tokens = targets.cpu().numpy()[np.arange(len(targets)), np.maximum(answer_places, 0)]
    answers = np.where(answer_places == NOWHERE, NOWHERE, tokens)
    x = word_activations.float().cpu()[torch.from_numpy(rows)]
    return PerRow.of(rows, x=x, y=word_labels[rows], validation=validation[rows], answer=answers[rows])


@dataclass(frozen=True, eq=False)
class WordSums(Evidence):
    """Sums of the features at words by task and class."""

    sums: Float[np.ndarray, "tasks 2 d_sae"]
    """Σ f over the rows of a class: 0 the others, 1 the parent's."""
    n: Int[np.ndarray, "tasks 2"]
    """Number of rows."""

    @property
    def differences(self) -> Float[np.ndarray, "tasks d_sae"]:
        """Mean of each feature over the parent's rows minus that over the others; 0 if a class has no row."""
        means = self.sums / np.maximum(self.n, 1)[..., None]
        both = np.all(self.n > 0, axis=1, keepdims=True)
        return np.asarray(np.where(both, means[:, 1] - means[:, 0], 0.0))


@fold
@fit_split
def word_sums(
    word_acts: Float[Tensor, "batch d_sae"],
    word_labels: Int8[np.ndarray, "batch tasks"],
    validation: Bool[np.ndarray, "batch"],
) -> WordSums:
    """Fold over the fit split without validation texts: sums of the features at words by task and class."""
    fitted = np.where(validation[:, None], OUTSIDE, word_labels)
    member = np.stack([fitted == 0, fitted == 1]).astype(np.float64).transpose(2, 0, 1)  # [tasks, 2, batch]
    f = word_acts.detach().double().cpu().numpy()
    return WordSums((member.reshape(-1, len(f)) @ f).reshape(*member.shape[:2], -1), member.sum(2).astype(np.int64))
