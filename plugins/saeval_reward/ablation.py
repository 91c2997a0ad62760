"""Ablation of features to their values at the baseline, with the SAE's error kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt64

from saeval.plugin import Batch, Encoding, Resume, Substitute, Undefined, finite, torch
from saeval_reward.integration import Reference
from saeval_reward.totals import in_fold_b

if TYPE_CHECKING:
    from torch import Tensor


class Ablations:
    """x − Σ_{j∈J} (f_j − f̄_j) D_j for named sets J of features, computed on access so that only one is in memory.

    f̄ is the reference of the baseline, so that the effect is of what the attribution is of: 0 for `zero`.
    """

    def __init__(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        members: Mapping[str, Int[np.ndarray, "k"]],
        reference: Reference,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> None:
        if encoding is None:
            raise Undefined(f"{sae.name} has no features")
        self._sae, self._encoding = sae.at(token_keys), encoding
        self._activations, self._members = activations, members
        self._here = activations.to(sae.device or activations.device)
        self._at_baseline = reference.features.to(encoding.feature_acts).expand(encoding.feature_acts.shape[-1])
        acts = encoding.feature_acts
        self._empty = self._decode(torch.zeros_like(acts))
        self._rows = W_dec.to(acts)
        decoded = self._decode(acts)
        rounding = 1e-5 * float(decoded.abs().max())
        self._plain = torch.allclose(acts @ self._rows, decoded - self._empty, rtol=1e-5, atol=rounding)
        """True if D_j is row j of W_dec on every token; else each set is decoded, which takes all rows."""

    def _decode(self, feature_acts: Float[Tensor, "batch seq d_sae"]) -> Float[Tensor, "batch seq d"]:
        return self._sae.decode(self._encoding._replace(feature_acts=feature_acts), self._here)

    def __getitem__(self, name: str) -> Float[Tensor, "batch seq d"]:
        acts = self._encoding.feature_acts
        index = torch.from_numpy(self._members[name]).to(acts.device)
        deviations = acts[..., index] - self._at_baseline[index]
        if self._plain:
            written = deviations @ self._rows[index]
        else:
            selected = torch.zeros_like(acts)
            selected[..., index] = deviations
            written = self._decode(selected) - self._empty
        return self._activations - written.to(self._activations)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)


@finite("reward with features ablated")
def spliced_reward_on_b(
    resume: Resume,
    reward_of: Callable[..., Tensor],
    spliced_activations: Float[Tensor, "batch seq d"],
    batch: Batch,
) -> Float[Tensor, "batch"]:
    """Reward with the substitute spliced in for pairs of fold B, and 0 for the others, which are not run."""
    rows = np.flatnonzero(in_fold_b(batch.clusters)).tolist()
    rewards = spliced_activations.new_zeros(len(spliced_activations))
    if rows:
        after = reward_of(resume.part(rows)(spliced_activations[rows]), rows)
        rewards = rewards.to(after).index_copy(0, torch.tensor(rows, device=after.device), after)
    return rewards
