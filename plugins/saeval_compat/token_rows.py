"""A data source for another harness's own rows of tokens, unchanged and in its order, so that batches are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from saeval.plugin import DataKind, Dataset, SaevalError, Source, TokenDataset, digest_of, expand_user, sha256_file


class TokenRows(Source):
    """Rows of token ids `[sequences, context]` from a `.npy` file, in the file's order.

    Unlike other sources, it adds no BOS, cuts no row, keeps no fit split and draws nothing by hash, so the model
    sees what another harness fed it, such as the stacked batches of `ActivationsStore.get_batch_tokens`.
    `exclude` lists ids of tokens outside the mask. Each row is a cluster. The token after a row is unknown, so
    the row's last token is outside the mask of saeval's own metrics.
    """

    name = "rows"
    kind: ClassVar[DataKind] = "activations"  # only the rows are given; the model computes their activations

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
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "several arrays"
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iu":
            raise SaevalError(f"{self.path}: expected token ids [sequences, context], found {found}")
        if rows.min() < 0 or rows.max() > np.iinfo(np.int32).max:
            raise SaevalError(f"{self.path}: expected token ids from 0, found {rows.min()} to {rows.max()}")
        numbers = np.arange(len(rows))
        documents = np.repeat(numbers[:, None], rows.shape[1], axis=1)
        tokens = np.pad(rows, ((0, 0), (0, 1)))
        owners = np.pad(documents, ((0, 0), (0, 1)), constant_values=-1)
        return TokenDataset.from_arrays(tokens, owners, numbers, excluded=self.exclude)
