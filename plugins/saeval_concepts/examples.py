"""`feature_examples`: the windows of text in which chosen features fire most."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Batch, Evidence, fold, rebound, torch, whole_characters
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.tasks import OUTSIDE
from saeval_concepts.texts import Chosen

if TYPE_CHECKING:
    from torch import Tensor

BEFORE, AFTER = 16, 4
"""Number of tokens of a window before and after the one on which its feature fires most."""
_AROUND = 8
"""Tokens on both sides of a window that are decoded with it: a character or a word's space may begin there."""
_BEGIN = _AROUND + BEFORE
_WIDTH = _BEGIN + 1 + AFTER + _AROUND
_TOGETHER = 256
"""Features whose activations at all tokens of a batch are in memory together."""
_BITS = 12
"""Activations that agree in so many bits are equal in the order: the rest may depend on the size of a batch."""
LATENTS = 5
"""Number of features of a task that have examples."""
OF_TOKENS = 2
"""The label of a text whose tokens have labels, and not it."""


class Window(NamedTuple):
    """Consecutive tokens of a row, with the activations of one feature."""

    row: int
    """Index of the row in the stream."""
    document: int
    label: int
    """The row's label for this feature, such as 1 for the positive class."""
    tokens: list[tuple[str, float]]
    """The text of each token, and the feature's activation there: 0 where it is silent, and at excluded tokens."""
    activation: float
    """The largest activation, by magnitude."""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Evidence):
    """For each of n features, the rows in which it fires most, each with the window around its strongest token.

    A row has one window at most. The largest activations by magnitude come first; equal ones by document, then by row.
    """

    score: Float[np.ndarray, "n windows"]
    """The largest |activation| in each row; −inf marks no window."""
    rows: Int[np.ndarray, "n windows"]
    """Index of each window's row in the stream."""
    documents: Int[np.ndarray, "n windows"]
    labels: Int8[np.ndarray, "n windows"]
    tokens: Int[np.ndarray, "n windows width"]
    """Token ids, and some more on both sides; -1 beyond the row and in padding."""
    acts: Float[np.ndarray, "n windows width"]
    size: int
    """Largest number of windows of a feature."""

    @classmethod
    def of(
        cls, feature_acts: Float[Tensor, "batch seq d_sae"], included: Bool[Tensor, "batch seq"], batch: Batch,
        features: Int[np.ndarray, "n"], labels: Int8[np.ndarray, "batch n"], size: int,
    ) -> Self:  # fmt: skip
        """Return the windows of one batch, of included tokens alone; label -1 leaves a row out for a feature."""
        parts = [np.zeros((2, len(labels), 0))]
        inside = included.to(feature_acts.device)
        for start in range(0, len(features) if size else 0, _TOGETHER):
            index = torch.from_numpy(features[start : start + _TOGETHER]).to(feature_acts.device)
            sizes = torch.where(inside[..., None], feature_acts[..., index].abs(), 0.0)
            peaks = [sizes.amax(1).double(), sizes.argmax(1).double()]  # argmax is the first of equals
            parts.append(torch.stack(peaks).cpu().numpy())
        peak, where = np.concatenate(parts, axis=2).transpose(0, 2, 1)  # [n, batch]
        score = np.where((peak > 0) & (labels.T[: len(peak)] != OUTSIDE), peak, -np.inf)
        rows, documents = (np.broadcast_to(own, score.shape) for own in (batch.sequence_ids, batch.clusters))
        order = _order(score, documents, rows)[:, :size]
        score, at = (np.take_along_axis(values, order, 1) for values in (score, where))
        places = at.astype(np.int64)[..., None] + np.arange(_WIDTH) - _BEGIN
        row, place = (torch.from_numpy(a) for a in (order[..., None], places.clip(0, included.shape[1] - 1)))
        real = (batch.real.cpu()[row, place]).numpy() & (places >= 0) & (places < included.shape[1])
        device = feature_acts.device
        feature = torch.from_numpy(features[: len(score), None, None]).to(device)
        acts = feature_acts[row.to(device), place.to(device), feature] * inside[row.to(device), place.to(device)]
        return cls(
            score, np.take_along_axis(rows, order, 1), np.take_along_axis(documents, order, 1),
            np.take_along_axis(labels.T[: len(score)], order, 1),
            np.where(real, batch.tokens.cpu()[row, place].numpy(), -1).astype(np.int32),
            np.where(real, acts.float().cpu().numpy(), 0.0).astype(np.float32), size,
        )  # fmt: skip

    def __add__(self, other: Self) -> Self:
        columns = [f.name for f in dataclasses.fields(self) if f.name != "size"]
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)], 1) for name in columns}
        order = _order(joined["score"], joined["documents"], joined["rows"])[:, : self.size]
        kept: dict[str, Any] = {
            name: np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), 1)
            for name, values in joined.items()
        }
        return dataclasses.replace(self, **kept)

    def windows(self, number: int, token_text: Callable[[Sequence[int]], list[str]]) -> Iterator[Window]:
        """Yield the windows of the feature with this number among the n, the strongest first."""
        for place in np.flatnonzero(np.isfinite(self.score[number])):
            tokens, acts = self.tokens[number, place], self.acts[number, place]
            real = np.flatnonzero(tokens >= 0)
            texts = token_text(tokens[real].tolist())
            shown = (real >= _AROUND) & (real < _WIDTH - _AROUND)
            inside = [text for text, is_shown in zip(texts, shown, strict=True) if is_shown]
            yield Window(
                int(self.rows[number, place]), int(self.documents[number, place]), int(self.labels[number, place]),
                whole_characters(inside, acts[real[shown]].tolist()), float(acts[_BEGIN]),
            )  # fmt: skip


def _order(
    score: Float[np.ndarray, "n m"], documents: Int[np.ndarray, "n m"], rows: Int[np.ndarray, "n m"]
) -> Int[np.ndarray, "n m"]:
    mantissa, exponent = np.frexp(score)
    rounded = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return np.lexsort((rows, documents, -rounded), axis=-1)


@fold
def feature_examples(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    example_features: Int[np.ndarray, "n"],
    example_labels: Int8[np.ndarray, "batch n"],
    examples: int,
) -> Examples:
    """Fold: for each of `example_features`, the `examples` rows in which it fires most, with a window of each.

    Who requests it rebinds `example_features` and `example_labels`: a label of each row for each feature, which the
    window keeps; -1 leaves the row out.
    """
    return Examples.of(feature_acts, included, batch, example_features, example_labels, examples)


def probed_features(chosen_features: tuple[Chosen, ...]) -> Int[np.ndarray, "n"]:
    """The first features of each task, the tasks in turn."""
    return np.concatenate([choice.whole[:LATENTS] for choice in chosen_features])


def probed_labels(
    task_labels: Int8[np.ndarray, "n tasks"],
    chosen_features: tuple[Chosen, ...],
    chosen_tokens: ChosenTokens | None,
    mask: Bool[Tensor, "batch seq"],
) -> Int8[np.ndarray, "batch n"]:
    """The label of each text in the task of each of `probed_features`; `OF_TOKENS` if its tokens are labelled."""
    sizes = [len(choice.whole[:LATENTS]) for choice in chosen_features]
    if chosen_tokens is not None:
        return np.full((len(mask), sum(sizes)), OF_TOKENS, dtype=np.int8)
    return np.repeat(task_labels, sizes, axis=1)


@rebound(example_features="probed_features", example_labels="probed_labels")
def probed_examples(feature_examples: Any) -> Any:  # a function annotated with evidence would be a fold
    """The windows in which the first features of each task fire most, among the texts of the task."""
    return feature_examples


EXAMPLE_COLUMNS = ("feature", "class", "activation", "row", "tokens", "activations")


def example_cells(feature: int, positive: str, window: Window) -> list[Any]:
    """Return the cells of a table for a window, by `EXAMPLE_COLUMNS`; tokens and activations as JSON lists."""
    label = {0: f"not {positive}", 1: positive}.get(window.label, "")
    texts = [text for text, _ in window.tokens]
    acts = [float(f"{act:.4g}") for _, act in window.tokens]
    lists = (json.dumps(texts, ensure_ascii=False, separators=(",", ":")), json.dumps(acts, separators=(",", ":")))
    return [feature, label, window.activation, window.row, *lists]
