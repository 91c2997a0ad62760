"""The tokens on which chosen features fire most, in their context."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, Table, torch, whole_characters
from saeval_reward.per_pair import Largest

if TYPE_CHECKING:
    from torch import Tensor

BEFORE, AFTER = 16, 4
"""Number of tokens shown before and after the one on which a feature fires most."""
_WIDTH = BEFORE + AFTER + 1
_CHARACTERS = 32
"""Longest text of a token."""
_AROUND = 8
"""Tokens around the window that are decoded with it, since a character or a word's space may begin there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Contexts(Largest):
    """For each of n features, the sides of pairs with its activations of largest magnitude.

    `score` `[n, places]` is the largest |activation| in each side; −inf marks no context.
    """

    texts: np.ndarray
    """Text of the tokens, `[n, places, window]`."""
    acts: Float[np.ndarray, "n places window"]

    @classmethod
    def of(
        cls, feature_acts: Sequence[Float[Tensor, "batch seq n"]], mask: Sequence[Bool[Tensor, "batch seq"]],
        batch: Sequence[Batch], spelling: Sequence[Callable[[Sequence[int]], list[str]]], size: int,
    ) -> Self:  # fmt: skip
        """The `size` largest contexts of each feature in a batch of pairs."""
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
            at, tokens, real = int(where[j, order[j, place]]), batch[side].tokens[row], batch[side].real[row]
            window = [p for p in range(at - BEFORE, at + AFTER + 1) if 0 <= p < len(tokens) and real[p]]
            start, end = window[0], window[-1] + 1
            span = slice(start - (at - BEFORE), start - (at - BEFORE) + len(window))
            texts[j, place, span] = _decoded(spelling[side], tokens, real, start, end)
            fired = feature_acts[side][row, start:end, j] * mask[side][row, start:end]
            shown[j, place, span] = fired.double().cpu().numpy()
        return cls(best, order % rows, order // rows, size, texts, shown)

    def table(self, features: Sequence[int]) -> Table:
        """One row per context: its tokens and their activations as JSON lists."""
        lines = []
        for j, feature in enumerate(features):
            for place in np.flatnonzero(np.isfinite(self.score[j])):
                tokens = whole_characters(self.texts[j, place].tolist(), self.acts[j, place].tolist())
                side = ("chosen", "rejected")[self.side[j, place]]
                line = [feature, float(self.acts[j, place, BEFORE]), int(self.ids[j, place]), side]
                lines.append([*line, json.dumps([t for t, _ in tokens]), json.dumps([round(a, 4) for _, a in tokens])])
        return Table(["feature", "activation", "pair", "side", "tokens", "activations"], lines)


def _decoded(
    spelling: Callable[[Sequence[int]], list[str]], tokens: Int[Tensor, "seq"], real: Bool[Tensor, "seq"], start: int,
    end: int,
) -> list[str]:  # fmt: skip
    """The texts of the tokens from `start` to `end`, decoded together with their neighbours."""
    places = [p for p in range(max(0, start - _AROUND), min(len(tokens), end + _AROUND)) if bool(real[p])]
    texts = spelling(tokens[places].tolist())
    return [text for place, text in zip(places, texts, strict=True) if start <= place < end]
