"""A peer's own rows of tokens: as they are, in its order, so that its batches are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from saeval.plugin import DataKind, Dataset, SaevalError, Source, TokenDataset, digest_of, expand_user, sha256_file


class TokenRows(Source):
    """TokenRows of token ids `[sequences, context]` of a `.npy` file, in the file's order.

    Nothing is put before a row, cut, left for a fit split or drawn by a hash, as other sources do: what a
    harness fed its model, such as the batches of `ActivationsStore.get_batch_tokens` one below the other, is fed
    again. `exclude` are ids of tokens outside the mask. A row is a cluster; the token after it is unknown, so
    its last is outside the mask of saeval's own metrics.
    """

    name = "rows"
    kind: ClassVar[DataKind] = "activations"  # the rows come ready-made; their activations are the model's

    def __init__(self, path: str, exclude: Sequence[int] = ()) -> None:
        self.path = expand_user(path)
        self.exclude = tuple(exclude)
        if not self.path.is_file():
            raise SaevalError(f"data 'rows': no such file: {path}; check 'path'")

    def fingerprint(self) -> str:
        return digest_of([sha256_file(self.path), list(self.exclude)])

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> Dataset:
        if split == "fit":
            raise SaevalError("data 'rows' has no fit split: all its rows are evaluated")
        try:
            rows = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SaevalError(f"{self.path}: expected an array in a .npy file ({error})") from None
        found = f"found {rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "found several arrays"
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iu":
            raise SaevalError(f"{self.path}: expected token ids [sequences, context], {found}")
        if rows.min() < 0 or rows.max() > np.iinfo(np.int32).max:
            raise SaevalError(f"{self.path}: expected token ids from 0, found {rows.min()} to {rows.max()}")
        numbers = np.arange(len(rows))
        documents = np.repeat(numbers[:, None], rows.shape[1], axis=1)
        tokens = np.pad(rows, ((0, 0), (0, 1)))
        owners = np.pad(documents, ((0, 0), (0, 1)), constant_values=-1)
        return TokenDataset.from_arrays(tokens, owners, numbers, excluded=self.exclude)
