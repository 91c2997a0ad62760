"""Where chosen features fire most, with the text around."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, Evidence, Stamp, Table, torch

if TYPE_CHECKING:
    from torch import Tensor

BEFORE, AFTER = 16, 4
"""Tokens shown on each side of the one where a feature fires most."""
_WIDTH = BEFORE + AFTER + 1
_CHARACTERS = 32
"""Of a token's text."""
_AROUND = 8
"""Tokens before and after the window that are spelled with it: a character, or a word's space, may begin there."""
_FIELDS = ("score", "ids", "side", "texts", "acts")


@dataclasses.dataclass(frozen=True, eq=False)
class Contexts(Evidence):
    """For each of n features the sides of pairs with its activations of largest magnitude; −inf is an empty place."""

    score: Float[np.ndarray, "n places"]
    """|activation|."""
    ids: Int[np.ndarray, "n places"]
    side: Int[np.ndarray, "n places"]
    texts: np.ndarray
    """`[n, places, window]`, text."""
    acts: Float[np.ndarray, "n places window"]
    size: int

    @classmethod
    def of(
        cls, feature_acts: Sequence[Float[Tensor, "batch seq n"]], mask: Sequence[Bool[Tensor, "batch seq"]],
        batch: Sequence[Batch], spelling: Sequence[Callable[[Sequence[int]], list[str]]], size: int,
    ) -> Self:  # fmt: skip
        """Activations of the n features on both sides; `size` contexts are kept of each."""
        peaks = []
        for acts, inside in zip(feature_acts, mask, strict=True):
            low = torch.tensor(-float("inf"), dtype=acts.dtype, device=acts.device)
            peaks.append(torch.where(inside[..., None] & (acts != 0), acts.abs(), low).max(1))
        scores = torch.stack([peak.values for peak in peaks]).flatten(0, 1).T.double().cpu().numpy()
        where = torch.stack([peak.indices for peak in peaks]).flatten(0, 1).T.cpu().numpy()
        rows = mask[0].shape[0]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
        count, places = order.shape
        texts = np.full((count, places, _WIDTH), "", dtype=f"<U{_CHARACTERS}")
        shown = np.zeros((count, places, _WIDTH))
        best = np.take_along_axis(scores, order, 1)
        for j, place in np.argwhere(np.isfinite(best)).tolist():
            side, row = divmod(int(order[j, place]), rows)
            at, one = int(where[j, order[j, place]]), batch[side]
            kept = [p for p in range(at - BEFORE, at + AFTER + 1) if 0 <= p < one.tokens.shape[1] and one.real[row, p]]
            first = kept[0] - (at - BEFORE)
            span = slice(first, first + len(kept))
            texts[j, place, span] = _spelled(spelling[side], one.tokens[row], one.real[row], kept[0], kept[-1] + 1)
            fired = feature_acts[side][row, kept[0] : kept[-1] + 1, j] * mask[side][row, kept[0] : kept[-1] + 1]
            shown[j, place, span] = fired.double().cpu().numpy()
        return cls(best, order % rows, order // rows, texts, shown, size)

    def stamp(self, stamp: Stamp) -> Self:
        return dataclasses.replace(self, ids=stamp.sequence_ids[self.ids])._largest()

    def __add__(self, other: Self) -> Self:
        joined: dict[str, Any] = {f: np.concatenate([getattr(self, f), getattr(other, f)], axis=1) for f in _FIELDS}
        return dataclasses.replace(self, **joined)._largest()

    def _largest(self) -> Self:
        order = np.lexsort((self.side, self.ids, -self.score), axis=1)[:, : self.size]
        kept: dict[str, Any] = {}
        for name in _FIELDS:
            values = getattr(self, name)
            index = order.reshape(*order.shape, *([1] * (values.ndim - 2)))
            kept[name] = np.take_along_axis(values, index, 1)
        return dataclasses.replace(self, **kept)

    def table(self, features: Sequence[int]) -> Table:
        """A line a context: its tokens and their activations as JSON lists."""
        lines = []
        for j, feature in enumerate(features):
            for place in np.flatnonzero(np.isfinite(self.score[j])):
                kept = _whole_characters(self.texts[j, place].tolist(), self.acts[j, place].tolist())
                side = ("chosen", "rejected")[self.side[j, place]]
                line = [feature, float(self.acts[j, place, BEFORE]), int(self.ids[j, place]), side]
                lines.append([*line, json.dumps([t for t, _ in kept]), json.dumps([round(a, 4) for _, a in kept])])
        return Table(["feature", "activation", "pair", "side", "tokens", "activations"], lines)


def _spelled(
    spelling: Callable[[Sequence[int]], list[str]], tokens: Int[Tensor, "seq"], real: Bool[Tensor, "seq"], start: int,
    end: int,
) -> list[str]:  # fmt: skip
    """The texts of the tokens from `start` to `end`, as they are in their row."""
    places = [p for p in range(max(0, start - _AROUND), min(len(tokens), end + _AROUND)) if bool(real[p])]
    texts = spelling(tokens[places].tolist())
    return [text for place, text in zip(places, texts, strict=True) if start <= place < end]


def _whole_characters(texts: Sequence[str], acts: Sequence[float]) -> list[tuple[str, float]]:
    """Texts with their activations; of a character of several tokens the one of largest magnitude."""
    kept: list[tuple[str, float]] = []
    waiting = 0.0
    for text, act in zip(texts, acts, strict=True):
        if text:
            kept.append((text, max(act, waiting, key=abs)))
            waiting = 0.0
        elif kept:
            kept[-1] = kept[-1][0], max(kept[-1][1], act, key=abs)
        else:  # a character that began before the window
            waiting = max(waiting, act, key=abs)
    return kept
