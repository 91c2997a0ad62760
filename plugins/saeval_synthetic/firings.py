"""`PairFirings`: how often true features and their latents fire, alone and together, with ranks for an AUC."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Estimate, Evidence, Stamp, torch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Fired
    from saeval_synthetic.ground_truth import TrueMatch
    from saeval_synthetic.world import TrueFeatures

_OCTAVE, _REACH = 4, 10
"""Bins per factor of two, and factors of two above and below 1, in which activations are counted."""
BINS = 2 * _OCTAVE * _REACH + 1
"""Bins of activations; the first is that of activations that are 0 or below."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairFirings(Evidence):
    """Counts of firing for each matched pair of a true feature and a latent."""

    together: Int[np.ndarray, "clusters k"]
    """Tokens on which both fire, per document and pair; pairs are in the order of their true features."""
    true: Int[np.ndarray, "clusters k"]
    """Tokens on which the true feature fires."""
    latent: Int[np.ndarray, "clusters k"]
    """Tokens on which the latent fires."""
    tokens: Int[np.ndarray, "clusters"]
    ranks: Int[np.ndarray, "k bins"]
    """Tokens by pair and bin of the latent's activation; those of bin 0 are not counted."""
    true_ranks: Int[np.ndarray, "k bins"]
    """The same for the tokens on which the true feature fires."""
    all_true: Int[np.ndarray, "n"]
    """Tokens on which each true feature fires, with a latent or without."""
    all_latents: Int[np.ndarray, "m"]
    """Tokens on which each latent fires."""

    @classmethod
    def of(
        cls, feature_acts: Float[Tensor, "batch seq m"], fired: Fired, true: TrueFeatures, match: TrueMatch,
        mask: Bool[Tensor, "batch seq"],
    ) -> Self:  # fmt: skip
        """Return the counts of one batch over the mask; `fired` lists the nonzero activations."""
        batch, seq, m = feature_acts.shape
        chosen = match.matched
        pair_of = np.full(len(match.latent), -1, np.int64)
        pair_of[chosen] = np.arange(len(chosen))
        pair_of_latent = np.full(m, -1, np.int64)
        pair_of_latent[match.latent[chosen]] = np.arange(len(chosen))
        acts, inside = feature_acts.detach().reshape(-1, m), mask.cpu().numpy().ravel()
        token, feature = true.token.cpu().numpy(), true.feature.cpu().numpy()
        token, feature = token[inside[token]], feature[inside[token]]
        all_true = np.bincount(feature, minlength=len(match.latent))
        active, latent = fired.token.cpu().numpy(), fired.feature.cpu().numpy()
        active, latent = active[inside[active]], latent[inside[active]]
        by_row = np.bincount(active // seq * m + latent, minlength=batch * m).reshape(batch, m)
        pairs = pair_of[feature]
        token, pairs = token[pairs >= 0], pairs[pairs >= 0]
        size = batch * len(chosen)
        values = _at(acts, token, match.latent[chosen][pairs])
        ours = pair_of_latent[latent]
        active, latent, ours = active[ours >= 0], latent[ours >= 0], ours[ours >= 0]
        place = token // seq * len(chosen) + pairs
        shape = (batch, len(chosen))
        return cls(
            np.bincount(place[values != 0], minlength=size).reshape(shape),
            np.bincount(place, minlength=size).reshape(shape),
            by_row[:, match.latent[chosen]],
            inside.reshape(batch, seq).sum(1),
            _counted(ours, _at(acts, active, latent), len(chosen)),
            _counted(pairs, values, len(chosen)),
            all_true,
            by_row.sum(0),
        )

    def stamp(self, stamp: Stamp) -> Self:
        def by_document(rows: np.ndarray) -> np.ndarray:
            total = np.zeros((stamp.n_clusters, *rows.shape[1:]), np.int64)
            for row, document in enumerate(stamp.clusters):
                total[document] += rows[row]
            return total

        names = ("together", "true", "latent", "tokens")
        return dataclasses.replace(self, **{name: by_document(getattr(self, name)) for name in names})

    def components(self) -> dict[str, Any]:
        return {"tokens": int(self.tokens.sum()), "pairs": int(self.true.shape[1])}

    @property
    def firing(self) -> Bool[np.ndarray, "k"]:
        """True for pairs whose true feature fires at all; nothing can be said of the others."""
        return np.asarray(self.true.sum(0) > 0)

    def estimate(self, function: Any) -> Estimate:
        """Return the estimate of a function of the counts `together`, `true`, `latent` and `tokens`, summed."""
        sums = [counts.sum(0) for counts in (self.together, self.true, self.latent, self.tokens)]
        parts = zip(self.together, self.true, self.latent, self.tokens, strict=True)
        without = [float(function(*(s - part for s, part in zip(sums, own, strict=True)))) for own in parts]
        return Estimate(
            float(function(*sums)), np.array(without), self.tokens.astype(np.float64), int(self.tokens.sum())
        )

    def auc(self) -> Float[np.ndarray, "k"]:
        """Return, per pair, the probability that the latent's activation is larger where the true feature fires.

        Activations within a quarter of a factor of two count as equal, and so do those of 0 and below. NaN if the true
        feature fires on no token or on all.
        """
        on, total, tokens = self.true_ranks.copy(), self.ranks.copy(), int(self.tokens.sum())
        on[:, 0] = self.true.sum(0) - on.sum(1)
        total[:, 0] = tokens - total.sum(1)
        off = total - on
        below = np.cumsum(off, 1) - off
        with np.errstate(invalid="ignore"):
            won = (on * (below + off / 2)).sum(1) / (on.sum(1) * off.sum(1))
        return np.asarray(won)


def known_mean(shares: Float[np.ndarray, "k"]) -> float:
    """Return the mean of the shares that exist, NaN if none does."""
    known = shares[np.isfinite(shares)]
    return float(known.mean()) if len(known) else float("nan")


def _binned(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        octave = np.floor(_OCTAVE * np.log2(np.maximum(values, 0), dtype=np.float64))
    place = np.clip(octave + _OCTAVE * _REACH, 0, BINS - 2) + 1
    return np.where(values > 0, place, 0).astype(np.int64)


def _counted(pairs: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    ranks = np.bincount(pairs * BINS + _binned(values), minlength=count * BINS).reshape(count, BINS)
    ranks[:, 0] = 0
    return ranks


def _at(acts: Tensor, token: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """Return the activations of these latents on these tokens."""
    index = torch.from_numpy(token * acts.shape[1] + latent).to(acts.device)
    values: np.ndarray = acts.reshape(-1)[index].float().cpu().numpy()
    return values
