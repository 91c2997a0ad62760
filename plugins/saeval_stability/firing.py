"""Activity of features on the first tokens of a stream: firing counts, and the activations themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, Evidence, Fired, Undefined, fold

if TYPE_CHECKING:
    from scipy.sparse import csc_array
    from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Firings(Evidence):
    """The number of tokens, of `n`, on which each feature is not 0."""

    counts: Int[np.ndarray, "d_sae"]
    n: int

    def components(self) -> dict[str, Any]:
        return {"n": self.n}


@dataclasses.dataclass(frozen=True, eq=False)
class Activity(Evidence):
    """The activations that are not 0, token by token, in about 8 bytes each.

    Sums over pairs of features would be larger (up to d_sae² numbers for every pair of SAEs), and no chance floor
    could be computed from them.
    """

    parts: tuple[Mapping[str, np.ndarray], ...]
    """Per batch: `documents`, `sequences`, `positions` and `fired` (number of features), each `[tokens]`, and
    `features` and `values`, each `[sum of fired]`."""
    d_sae: int

    def __add__(self, other: Self) -> Self:
        return type(self)(self.parts + other.parts, self.d_sae)  # concatenated only once, in the end

    def state(self) -> dict[str, np.ndarray]:
        return {**self._joined(), "d_sae": np.asarray(self.d_sae)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        part = {name: array for name, array in state.items() if name != "d_sae"}
        return cls((part,), int(state["d_sae"]))

    def components(self) -> dict[str, Any]:
        return {"n": sum(len(part["fired"]) for part in self.parts)}

    def _joined(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}

    def matrix(self) -> tuple[csc_array, Int[np.ndarray, "tokens"]]:
        """Activations `[tokens, d_sae]`, float64, and the document of each token.

        Tokens are sorted by document, sequence and position, so that batching cannot change the order.
        """
        from scipy.sparse import csc_array, csr_array  # late: listings do not need it

        part = self._joined()
        starts = np.concatenate([[0], np.cumsum(part["fired"])])
        shape = (len(part["fired"]), self.d_sae)
        rows = csr_array((part["values"].astype(np.float64), part["features"], starts), shape=shape)
        order = np.lexsort((part["positions"], part["sequences"], part["documents"]))
        return csc_array(rows[order]), part["documents"][order]


def without_features(name: str, firings: int, tokens: int) -> Undefined:
    """The reason why a group has no values: none of the features of its member `name` is alive."""
    lower = " or a lower 'alive_firings'" if firings > 1 else ""
    return Undefined(f"no feature of '{name}' fires on {firings} of {tokens} tokens; try more tokens{lower}")


@fold
def firings(
    fired: Fired, mask: Bool[Tensor, "batch seq"], token_ranks: Int[Tensor, "batch seq"], alive_tokens: int
) -> Firings:
    """Fold: the number of the first `alive_tokens` tokens on which each feature is not 0."""
    taken = mask & (token_ranks < alive_tokens)
    return Firings(fired.per_feature(taken).cpu().numpy(), int(taken.sum()))


@fold
def activity(
    batch: Batch,
    feature_acts: Float[Tensor, "batch seq d_sae"],
    fired: Fired,
    mask: Bool[Tensor, "batch seq"],
    token_ranks: Int[Tensor, "batch seq"],
    alive_tokens: int,
) -> Activity:
    """Fold: the activations that are not 0 on the first `alive_tokens` tokens."""
    taken = mask & (token_ranks < alive_tokens)
    row, position = (index.cpu().numpy() for index in taken.nonzero(as_tuple=True))
    inside = taken.to(fired.token.device).flatten()[fired.token]
    token, feature = fired.token[inside], fired.feature[inside]
    values = feature_acts.detach().flatten(0, 1)[token, feature]
    part = {
        "documents": batch.clusters[row],
        "sequences": batch.sequence_ids[row],
        "positions": position,
        "fired": fired.per_token().to(taken.device)[taken].cpu().numpy(),
        "features": feature.int().cpu().numpy(),
        "values": values.float().cpu().numpy(),
    }
    return Activity((part,), int(feature_acts.shape[-1]))
