"""`Removal`: features that are set to 0, with the SAE's error kept, and what this does to the logits of probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int, Int8
from pydantic import Field

from saeval.plugin import Metric, PerRow, Table, torch
from saeval_concepts.directions import drawn
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.tasks import Task
from saeval_concepts.texts import all_rows
from saeval_concepts.written import GroupSums
from saeval_controls.shuffled import deranged

if TYPE_CHECKING:
    from torch import Tensor

CONTROLS = ("shuffled", "random")
SHOWN = 10
"""Number of features of a ranking in the table `latents`."""
Counts = tuple[Annotated[int, Field(ge=1, le=4096)], ...]
Draws = Annotated[int, Field(ge=1, le=100)]


@dataclass(frozen=True, eq=False)
class Removal:
    """The features of one ranking, the first first, and how much logit each unit of them carries."""

    features: Int[np.ndarray, "m"]
    weights: Float[np.ndarray, "m probes"]

    def changes(
        self, pooled_written_acts: Float[Tensor, "batch d_sae"], n: Sequence[int]
    ) -> Float[np.ndarray, "batch n probes"]:
        """Return what leaves the logits with the first N features, for each N."""
        index = torch.from_numpy(self.features).to(pooled_written_acts.device)
        z = pooled_written_acts[:, index].double().cpu().numpy()
        return np.stack([z[:, :count] @ self.weights[:count] for count in n], axis=1)


@dataclass(frozen=True)
class Removals:
    """The removal of the features of one ranking, and its controls."""

    features: Removal
    scores: Float[np.ndarray, "m"]
    """Effect of each feature, by which it is ranked."""
    controls: Mapping[str, Sequence[Removal]]
    """By name, one for each draw."""


def removals_of(
    effects: Float[np.ndarray, "d_sae"],
    most: int,
    products: Float[np.ndarray, "d_sae probes"],
    norms: Float[np.ndarray, "d_sae"],
    sums: GroupSums,
    draws: int,
    seed: int,
    name: str,
) -> Removals:
    """Return the removal of the `most` features with the largest effects above 0.

    `shuffled` exchanges the decoder rows of all alive features. `random` removes other alive features, each scaled to
    write as much, on average over the fit texts, as the one in whose place it stands.
    """
    order = np.argsort(-effects, kind="stable")[:most]
    best = order[effects[order] > 0]
    alive = np.flatnonzero(sums.alive)
    shuffled, random = [], []
    for draw in range(draws):
        others = deranged(sums.alive, seed, draw)[best]
        shuffled.append(Removal(best, products[others]))
        candidates = drawn(np.setdiff1d(alive, best), seed, "random latents", name, draw)[: len(best)]
        replaced = best[: len(candidates)]
        factors = sums.sizes[replaced] * norms[replaced] / np.maximum(sums.sizes * norms, 1e-30)[candidates]
        random.append(Removal(candidates, products[candidates] * factors[:, None]))
    return Removals(Removal(best, products[best]), effects[best], {"shuffled": shuffled, "random": random})


def latents(tasks: Sequence[Task], removals: Sequence[Removals]) -> Table:
    """Return the first features of each class with their effects."""
    rows = [
        [task.name, rank, int(feature), float(score)]
        for task, own in zip(tasks, removals, strict=True)
        for rank, (feature, score) in enumerate(zip(own.features.features, own.scores, strict=True), start=1)
        if rank <= SHOWN
    ]
    return Table(["class", "rank", "feature", "effect"], rows)


class RemovalMetric(Metric):
    """Base class of metrics that remove the first N features of rankings and read fixed linear probes again."""

    least_tasks: ClassVar[int] = 2
    """Fewest tasks that it compares."""
    most_tasks: ClassVar[int | None] = None

    def __init__(
        self, tasks: tuple[str, ...], n: Sequence[int], pooling: str, penalty: str, draws: int, seed: int
    ) -> None:
        if not n or not tasks:
            raise ValueError(f"metric '{self.name}': 'n' and 'tasks' need at least one entry each")
        self.tasks, self.n = tasks, tuple(sorted(set(n)))
        self.pooling, self.penalty, self.draws, self.seed = pooling, penalty, draws, seed

    @property
    def middle(self) -> int:
        """The N of the headline."""
        return self.n[len(self.n) // 2]

    def changes(
        self,
        z: Float[Tensor, "n d_sae"],
        labels: Int8[np.ndarray, "n tasks"],
        rankings: Sequence[Removals],
        joined: Callable[[Sequence[Float[np.ndarray, "n counts probes"]]], Float[np.ndarray, "n counts columns"]],
        chosen: ChosenTokens | None = None,
    ) -> PerRow:
        """Return what leaves each logit of each row, `[n, rankings, N, probes]`; `joined` makes one of all draws."""
        columns = {"features": [removals.features.changes(z, self.n) for removals in rankings]}
        for name in CONTROLS:
            columns[name] = [
                joined([removal.changes(z, self.n) for removal in removals.controls[name]]) for removals in rankings
            ]
        return all_rows(labels, chosen, **{name: np.stack(parts, axis=1) for name, parts in columns.items()})
