"""Labelled rows for tests: each belongs to one of two classes, which its tokens tell, and so do labels of tokens."""

from __future__ import annotations

import numpy as np

from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset


def tiny_labelled(rows: int = 24, context: int = 12, vocab: int = 50, seed: int = 0) -> TokenDataset:
    """Return rows with labels, each its own document.

    Task `half` of rows: `low` for token ids in the lower half of the vocabulary, `high` for the others. Task `even` of
    tokens: 1 for an even id. Every other pair of rows is marked for validation.
    """
    random = np.random.default_rng(seed)
    high = np.arange(rows) % 2 == 1
    tokens = random.integers(1, vocab // 2, (rows, context + 1)) + high[:, None] * (vocab // 2)
    documents = np.arange(rows, dtype=np.int32)
    annotations = Annotations(
        labels={"half": np.where(high, "high", "low")},
        validation=np.arange(rows) % 4 >= 2,
        tasks=["even"],
        covered=np.ones(rows, dtype=np.uint64),
        bits=(tokens % 2 == 0).astype(np.uint64),
    )
    owners = np.repeat(documents[:, None], context + 1, axis=1)
    return TokenDataset(tokens.astype(np.int32), owners, documents.astype(np.int64), (0,), annotations=annotations)
