"""Sums of attributions over pairs, by fold and block of documents, so that memory does not grow with the pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, Estimate, Evidence, Ratio, Stamp, Undefined, fold, hashed, paired, torch
from saeval_reward.integration import Attribution

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 64
"""Most blocks of documents; standard errors are over blocks, which needs less memory than documents."""
PARTS = ("features", "error", "bias", "baseline", "total", "span", "|gap|", "|span|")
"""Parts of a pair: chosen − rejected for the rows, their sum and m(x) − m(b); then means of |·| over both sides."""
_FOLD, _SIGN = 1, 2
"""Keys of the draws."""


def in_fold_b(clusters: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Mask of the documents in fold B, used for evaluation; fold A is used for choosing features.

    A document is in one fold with all its pairs.
    """
    return np.asarray(hashed(_FOLD, clusters) & np.uint64(1), dtype=bool)


def blocks_of(n_clusters: int) -> int:
    """Number of blocks for `n_clusters` documents."""
    return min(max(n_clusters, 1), BLOCKS)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributions(Evidence):
    """Sums over pairs of A_j = Σ_t a_{t,j}(chosen) − Σ_t a_{t,j}(rejected), and firing counts of features.

    Before the engine stamps it, `sums`, `pairs` and `parts` have one row per pair.
    """

    sums: Float[np.ndarray, "folds blocks d_sae"]
    pairs: Int[np.ndarray, "folds blocks"]
    parts: Float[np.ndarray, "folds blocks parts"]
    """Sums of the parts in `PARTS`."""
    swapped: Float[np.ndarray, "d_sae"]
    """Sums over fold A with the labels of a random half of the pairs swapped: a null for the ranking."""
    fires: Int[np.ndarray, "d_sae"]
    """Number of tokens in the masks, of `tokens`, on which each feature fires."""
    prompt_fires: Int[np.ndarray, "d_sae"]
    """The same for real tokens before the sides differ, of `prompt_tokens`; these cannot distinguish the sides."""
    magnitude: Float[np.ndarray, "d_sae"]
    """Σ |f_j| over the masks."""
    squares: Float[np.ndarray, "d_in"]
    """Σ x² per dimension over the masks."""
    tokens: int
    prompt_tokens: int

    def stamp(self, stamp: Stamp) -> Self:
        fold = in_fold_b(stamp.clusters).astype(np.int64)
        blocks = blocks_of(stamp.n_clusters)
        place = fold * blocks + stamp.clusters % blocks

        def scattered(rows: np.ndarray) -> np.ndarray:
            total = np.zeros((2 * blocks, *rows.shape[1:]), dtype=rows.dtype)
            np.add.at(total, place, rows)
            return total.reshape(2, blocks, *rows.shape[1:])

        sign = 1 - 2 * (hashed(_SIGN, stamp.sequence_ids) & np.uint64(1)).astype(np.float64)
        return dataclasses.replace(
            self,
            sums=scattered(self.sums),
            pairs=scattered(self.pairs),
            parts=scattered(self.parts),
            swapped=(sign * (fold == 0)) @ self.sums,
        )

    @property
    def on_a(self) -> Float[np.ndarray, "d_sae"]:
        """Mean A_j over fold A; `Undefined` if one of the folds has no pair."""
        if not self.pairs.sum(1).all():
            count = int(self.pairs.sum())
            raise Undefined(f"the documents of all {count} pairs are in one fold; use pairs from more documents")
        return np.asarray(self.sums[0].sum(0) / self.pairs[0].sum())

    def on_b(self, members: Int[np.ndarray, "k"]) -> Estimate:
        """Mean over fold B of Σ_{j∈J} A_j."""
        top = self.sums[1][:, members].sum(1)
        return Ratio(top, self.pairs[1].astype(np.float64), self.pairs[1]).value

    def part(self, name: str, folds: str = "B") -> Estimate:
        """Mean over the pairs of fold B, or of both folds if these are "AB", of the part `name`, one of `PARTS`."""
        chosen = slice(None) if folds == "AB" else slice(1, 2)
        pairs, parts = self.pairs[chosen].sum(0), self.parts[chosen].sum(0)
        return Ratio(parts[:, PARTS.index(name)], pairs.astype(np.float64), pairs).value

    @property
    def mean(self) -> Float[np.ndarray, "d_sae"]:
        """Mean A_j over fold B."""
        return np.asarray(self.sums[1].sum(0) / max(int(self.pairs[1].sum()), 1))

    @property
    def density(self) -> Float[np.ndarray, "d_sae"]:
        """Share of the masks' tokens on which each feature fires."""
        return np.asarray(self.fires / max(self.tokens, 1))

    @property
    def prompt_density(self) -> Float[np.ndarray, "d_sae"]:
        """The same for tokens before the sides differ."""
        return np.asarray(self.prompt_fires / max(self.prompt_tokens, 1))


@fold
@paired
def attribution_totals(
    attribution: Sequence[Attribution],
    feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
    activations: Sequence[Float[Tensor, "batch seq d_in"]],
    mask: Sequence[Bool[Tensor, "batch seq"]],
    batch: Sequence[Batch],
    clean_reward: Sequence[Float[Tensor, "batch"]],
    baseline_reward: Sequence[Float[Tensor, "batch"]],
) -> Attributions:
    """Fold over pairs: attributions of all features, and the statistics that rankings need."""
    chosen, rejected = attribution
    fires = [acts != 0 for acts in feature_acts]
    prompts = [side.real & ~inside for side, inside in zip(batch, mask, strict=True)]

    def counted(where: Sequence[Tensor]) -> np.ndarray:
        counts = [fired[inside].sum(0) for fired, inside in zip(fires, where, strict=True)]
        return np.asarray((counts[0] + counts[1]).cpu().numpy(), dtype=np.int64)

    def summed(values: Sequence[Tensor]) -> np.ndarray:
        sums = [value[inside].sum(0, dtype=torch.float64) for value, inside in zip(values, mask, strict=True)]
        return np.asarray((sums[0] + sums[1]).cpu().numpy())

    return Attributions(
        sums=(chosen.features - rejected.features).double().cpu().numpy(),
        pairs=np.ones(len(chosen.features), dtype=np.int64),
        parts=_parts(
            attribution, [c.double() - b.double() for c, b in zip(clean_reward, baseline_reward, strict=True)]
        ),
        swapped=np.zeros(chosen.features.shape[-1]),
        fires=counted(mask),
        prompt_fires=counted(prompts),
        magnitude=summed([acts.abs() for acts in feature_acts]),
        squares=summed([x.double().square() for x in activations]),
        tokens=int(sum(int(inside.sum()) for inside in mask)),
        prompt_tokens=int(sum(int(inside.sum()) for inside in prompts)),
    )


def _parts(
    attribution: Sequence[Attribution], spans: Sequence[Float[Tensor, "batch"]]
) -> Float[np.ndarray, "batch parts"]:
    rows = [
        torch.stack([a.features.sum(-1), a.error, a.bias, a.baseline, a.total, span.to(a.total)], -1)
        for a, span in zip(attribution, spans, strict=True)
    ]
    gaps = [(row[:, 5] - row[:, 4]).abs() for row in rows]
    ends = [row[:, 5].abs() for row in rows]
    means = torch.stack([(gaps[0] + gaps[1]) / 2, (ends[0] + ends[1]) / 2], -1)
    return np.asarray(torch.cat([rows[0] - rows[1], means], -1).double().cpu().numpy())
