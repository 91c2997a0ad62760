"""`WorldRows`: rows of samples of a world, generated when a batch asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from saeval.plugin import Batch, Dataset, digest_of, hashed, torch
from saeval_synthetic.world import TrueFeatures, World

FIT = 2**40
"""Index in the stream of the first row of the fit split, far behind those of the evaluated rows."""


class WorldRows(Dataset):
    """`samples` samples of a world in rows of `context`, each row in one of `documents` documents.

    Samples are independent, so documents are blocks of equal size, which give the standard errors. A sample follows
    from (row, position) alone. The last row may be shorter than the others, with padding.
    """

    supplies = frozenset({"activations", "true_features"})
    supplies_once = frozenset({"truth"})
    needs_model = False

    def __init__(
        self, world: Callable[[], World], width: int, identity: str, samples: int, context: int = 256,
        documents: int = 64, first: int = 0,
    ) -> None:  # fmt: skip
        self._make, self.width, self.identity = world, width, identity
        self.samples, self.first = samples, first
        self._context, self._rows = min(context, samples), -(-samples // context)
        self._documents = min(documents, self._rows)

    @cached_property
    def world(self) -> World:
        """The world, made when it is first needed: a plan needs only its width."""
        return self._make()

    def once(self, name: str) -> World:
        if name != "truth":
            raise KeyError(name)
        return self.world

    @property
    def context(self) -> int:
        return self._context

    @property
    def fingerprint(self) -> str:
        return digest_of([self.identity, self.samples, self._context, self._documents, self.first])

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return np.arange(self._rows) * self._documents // self._rows

    def __len__(self) -> int:
        return self._rows

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch:
        index = np.asarray(rows, dtype=np.int64)
        number = index[:, None] * self._context + np.arange(self._context)
        real = number < self.samples
        sequence_ids = self.first + index
        keys = hashed(sequence_ids[:, None], np.arange(self._context)[None]).ravel()
        fires = self.world.features(keys)
        x = self.world.activations(fires, keys)
        shape = (len(index), self._context, self.world.n)
        token = torch.from_numpy(fires.row).to(device)
        features = TrueFeatures(
            token, torch.from_numpy(fires.feature).to(device), torch.from_numpy(fires.value).to(device), shape
        )
        tokens, mask = torch.from_numpy(number).to(device), torch.from_numpy(real).to(device)
        supplied = {"activations": x.view(*shape[:2], -1).to(device), "true_features": features}
        return Batch(tokens, tokens, mask, mask, sequence_ids, self.clusters[index], supplied, before=number[:, 0])

    def counts(self, rows: int) -> Mapping[str, int]:
        return {**super().counts(rows), "tokens": min(rows * self._context, self.samples)}

    def describe(self) -> Mapping[str, Any]:
        return {**self.counts(len(self)), "dimensions": self.width}
