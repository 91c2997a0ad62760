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
    ) -> None:
        if encoding is None:
            raise Undefined(f"{sae.name} has no features")
        self._sae, self._encoding = sae.at(token_keys), encoding
        self._activations, self._members = activations, members
        self._here = activations.to(sae.device or activations.device)
        self._at_baseline = reference.features.to(encoding.feature_acts).expand(encoding.feature_acts.shape[-1])
        self._empty = self._decoded(np.zeros(0, dtype=np.int64))

    def _decoded(self, members: Int[np.ndarray, "k"]) -> Tensor:
        acts = self._encoding.feature_acts
        selected = torch.zeros_like(acts)
        index = torch.from_numpy(members).to(acts.device)
        selected[..., index] = acts[..., index] - self._at_baseline[index]
        return self._sae.decode(self._encoding._replace(feature_acts=selected), self._here)

    def __getitem__(self, name: str) -> Float[Tensor, "batch seq d"]:
        written = self._decoded(self._members[name]) - self._empty
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
    rows = np.flatnonzero(in_fold_b(batch.sequence_ids)).tolist()
    rewards = spliced_activations.new_zeros(len(spliced_activations))
    if rows:
        after = reward_of(resume.part(rows)(spliced_activations[rows]), rows)
        rewards = rewards.to(after).index_copy(0, torch.tensor(rows, device=after.device), after)
    return rewards
