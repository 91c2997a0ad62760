"""Windows of text around tokens on which chosen features fire, or do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from saeval.plugin import Batch, Evidence, fold, torch, whole_characters

if TYPE_CHECKING:
    from torch import Tensor

BEFORE, AFTER = 16, 4
"""Number of tokens of a window before and after the one that it is around."""
_AROUND = 8
"""Tokens on both sides of a window that are decoded with it: a character or a word's space may begin there."""
_TOGETHER = 256
"""Features whose activations at all tokens of a batch are in memory together."""
_BITS = 12
"""Activations that agree in so many bits are equal in the order: the rest may depend on the size of a batch."""
OUTSIDE = -1
"""The label of a row that is left out."""


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
    """The activation at the token that the window is around."""

    @property
    def text(self) -> str:
        """The text of the window."""
        return "".join(text for text, _ in self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows(Evidence):
    """For each of n features, the rows that come first in an order, each with the window around its first token.

    A row has one window at most. Of equals, those of earlier documents come first, then of earlier rows.
    """

    order: Float[np.ndarray, "n windows"]
    """The smallest number of a token of each row in the order; infinite for no window."""
    rows: Int[np.ndarray, "n windows"]
    """Index of each window's row in the stream."""
    documents: Int[np.ndarray, "n windows"]
    labels: Int8[np.ndarray, "n windows"]
    tokens: Int[np.ndarray, "n windows width"]
    """Token ids, and some more on both sides; -1 beyond the row and in padding."""
    acts: Float[np.ndarray, "n windows width"]
    size: int
    """Largest number of windows of a feature."""
    before: int = BEFORE
    """Number of tokens of a window before the one that it is around."""

    @classmethod
    def of(
        cls, order: Float[np.ndarray, "n batch seq"], acts: Float[np.ndarray, "n batch seq"], batch: Batch,
        labels: Int8[np.ndarray, "batch n"], size: int, before: int = BEFORE, after: int = AFTER,
    ) -> Self:  # fmt: skip
        """Return the windows of one batch: of each row around its first token with the smallest, finite `order`.

        `acts` are the activations of the n features, 0 at excluded tokens. Label -1 leaves a row out for a feature.
        """
        context = order.shape[2]
        at = order.argmin(2)  # the first of equals
        first = np.take_along_axis(order, at[..., None], 2)[..., 0]
        first = np.where(labels.T == OUTSIDE, np.inf, first)
        rows, documents = (np.broadcast_to(own, first.shape) for own in (batch.sequence_ids, batch.clusters))
        chosen = _sorted(first, documents, rows)[:, :size]
        first, at = (np.take_along_axis(values, chosen, 1) for values in (first, at))
        places = at.astype(np.int64)[..., None] + np.arange(-before - _AROUND, after + 1 + _AROUND)
        inside, row = places.clip(0, context - 1), chosen[..., None]
        real = batch.real.cpu().numpy()[row, inside] & (places >= 0) & (places < context)
        around = acts[np.arange(len(acts))[:, None, None], row, inside]
        return cls(
            first, np.take_along_axis(rows, chosen, 1), np.take_along_axis(documents, chosen, 1),
            np.take_along_axis(np.broadcast_to(labels.T, (len(first), labels.shape[0])), chosen, 1),
            np.where(real, batch.tokens.cpu().numpy()[row, inside], -1).astype(np.int32),
            np.where(real, around, 0.0).astype(np.float32), size, before,
        )  # fmt: skip

    @classmethod
    def none(cls, n: int, size: int) -> Self:
        """Return no windows of n features."""
        empty, width = np.zeros((n, 0)), BEFORE + 1 + AFTER + 2 * _AROUND
        return cls(
            empty, empty.astype(np.int64), empty.astype(np.int64), empty.astype(np.int8),
            np.zeros((n, 0, width), np.int32), np.zeros((n, 0, width), np.float32), size,
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the windows of the features of several parts, over the same rows."""
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in _COLUMNS}
        return cls(**columns, size=parts[0].size, before=parts[0].before)

    def __len__(self) -> int:
        return len(self.order)

    def __add__(self, other: Self) -> Self:
        joined = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)], 1) for f in _COLUMNS}
        chosen = _sorted(joined["order"], joined["documents"], joined["rows"])[:, : self.size]
        kept: dict[str, Any] = {
            name: np.take_along_axis(values, chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)), 1)
            for name, values in joined.items()
        }
        return dataclasses.replace(self, **kept)

    def windows(self, number: int, token_text: Callable[[Sequence[int]], list[str]]) -> Iterator[Window]:
        """Yield the windows of the feature with this number among the n, in their order."""
        for place in np.flatnonzero(np.isfinite(self.order[number])):
            tokens, acts = self.tokens[number, place], self.acts[number, place]
            real = np.flatnonzero(tokens >= 0)
            texts = token_text(tokens[real].tolist())
            shown = (real >= _AROUND) & (real < self.tokens.shape[2] - _AROUND)
            inside = [text for text, is_shown in zip(texts, shown, strict=True) if is_shown]
            yield Window(
                int(self.rows[number, place]), int(self.documents[number, place]), int(self.labels[number, place]),
                whole_characters(inside, acts[real[shown]].tolist()), float(acts[_AROUND + self.before]),
            )  # fmt: skip


_COLUMNS: list[Any] = [f for f in dataclasses.fields(Windows) if f.name not in ("size", "before")]


def _sorted(
    order: Float[np.ndarray, "n m"], documents: Int[np.ndarray, "n m"], rows: Int[np.ndarray, "n m"]
) -> Int[np.ndarray, "n m"]:
    return np.lexsort((rows, documents, order), axis=-1)


def strongest(acts: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the order in which the largest activations by magnitude come first; infinite where there is none."""
    mantissa, exponent = np.frexp(np.abs(acts).astype(np.float64))
    rounded = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return np.where(rounded > 0, -rounded, np.inf)


def silent_around(acts: Float[np.ndarray, "n batch seq"]) -> Bool[np.ndarray, "n batch seq"]:
    """True for each token whose window has no token on which the feature fires."""
    fires = np.pad(acts != 0, ((0, 0), (0, 0), (BEFORE, AFTER)))
    return np.asarray(~np.lib.stride_tricks.sliding_window_view(fires, BEFORE + 1 + AFTER, axis=2).any(3))


def acts_of(
    feature_acts: Float[Tensor, "batch seq d_sae"], included: Bool[Tensor, "batch seq"], features: Int[np.ndarray, "n"]
) -> Iterator[tuple[slice, Float[np.ndarray, "m batch seq"]]]:
    """Yield the activations of some features at a time, 0 at tokens that are not included, with their place among n."""
    inside = included.to(feature_acts.device)[..., None]
    for start in range(0, len(features), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        index = torch.from_numpy(np.ascontiguousarray(features[part])).to(feature_acts.device)
        acts = torch.where(inside, feature_acts[..., index], 0.0)
        yield part, acts.float().permute(2, 0, 1).cpu().numpy()


@fold
def feature_examples(
    feature_acts: Float[Tensor, "batch seq d_sae"],
    included: Bool[Tensor, "batch seq"],
    batch: Batch,
    example_features: Int[np.ndarray, "n"],
    example_labels: Int8[np.ndarray, "batch n"],
    examples: int,
) -> Windows:
    """Fold: for each of `example_features`, the `examples` rows in which it fires most, with a window of each.

    Who requests it rebinds `example_features` and `example_labels`: a label of each row for each feature, which the
    window keeps; -1 leaves the row out.
    """
    if not examples or not len(example_features):
        return Windows.none(len(example_features), examples)
    return Windows.joined([
        Windows.of(strongest(acts), acts, batch, example_labels[:, part], examples)
        for part, acts in acts_of(feature_acts, included, example_features)
    ])  # fmt: skip
