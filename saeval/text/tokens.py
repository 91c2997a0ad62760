"""Rows of tokens and their cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict

from saeval.base import cache
from saeval.base.errors import SaevalError, said
from saeval.interfaces.data import Batch, Dataset, Source, numbered, outside
from saeval.text.annotations import Annotations
from saeval.text.packing import PADDING, Packer, Split, TokenOptions, included_of, mask_of
from saeval.text.spelling import Spelling

if TYPE_CHECKING:
    import torch

_KIND = "tokens"
_ANNOTATIONS = frozenset({"labels", "token_labels", "validation"})
FORMAT = 2
"""Part of every cache key; raise it when the same options give other rows."""


class TokenDataset(Dataset):
    """Rows of context+1 tokens in a fixed order. The sequence id is the row's index, the cluster its document."""

    supplies = frozenset({"spelling"})
    tokenizer: Callable[[], Any] | None = None
    """Returns the tokenizer that spells the tokens; None if there is none."""

    def __init__(
        self,
        tokens: Int[np.ndarray, "n context+1"],
        documents: Int[np.ndarray, "n context+1"],
        clusters: Int[np.ndarray, "n"],
        excluded: Sequence[int] = (),
        cluster_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        sequence_ids: Int[np.ndarray, "n"] | None = None,
        annotations: Annotations | None = None,
    ) -> None:
        """`ValueError` if the shapes disagree.

        `documents` has the number of each token's document, -1 for padding. Inputs in `excluded`, token ids, are never
        in the mask. `facts` are recorded in the provenance. `sequence_ids`, by default the row's index, are the keys
        of random draws about a row. `annotations` are supplied as `labels`, `token_labels` and `validation`.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.shape != documents.shape or len(clusters) != len(tokens):
            shapes = f"tokens {tokens.shape}, documents {documents.shape}, clusters {clusters.shape}"
            raise ValueError(f"expected tokens and documents [n, context+1] and clusters [n], found {shapes}")
        self.tokens = tokens
        self.documents = documents
        self.excluded = tuple(sorted(set(excluded)))
        self.cluster_names = list(cluster_names)
        self.facts = dict(facts or {})
        self._clusters = clusters
        self.sequence_ids = sequence_ids
        self.annotations = annotations
        if annotations is not None:
            self.supplies = self.supplies | _ANNOTATIONS

    @classmethod
    def from_arrays(
        cls, tokens: Any, documents: Any, clusters: Any, excluded: Sequence[int] = (), sequence_ids: Any = None
    ) -> Self:
        """Return a data set from anything that numpy converts to integer arrays; arguments as of the class."""
        return cls(
            np.asarray(tokens, dtype=np.int32),
            np.asarray(documents, dtype=np.int32),
            np.asarray(clusters, dtype=np.int64),
            excluded,
            sequence_ids=None if sequence_ids is None else np.asarray(sequence_ids, dtype=np.int64),
        )

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1]) - 1

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return self._clusters

    @cached_property
    def _before(self) -> Int[np.ndarray, "n+1"]:
        """Number of tokens in the mask of all earlier rows, per row, and of all rows at the end."""
        parts = (slice(i, i + 4096) for i in range(0, len(self), 4096))
        counts = [mask_of(self.tokens[p], self.documents[p], self.excluded).sum(1) for p in parts]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))]) if counts else np.zeros(1, np.int64)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.tokens.shape, self.excluded)).encode())
        for array, kind in ((self.tokens, "<i4"), (self.documents, "<i4"), (self._clusters, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=kind).data)
        if self.sequence_ids is not None:
            digest.update(np.ascontiguousarray(self.sequence_ids, dtype="<i8").data)
        if self.annotations is not None:
            digest.update(self.annotations.fingerprint.encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch:
        import torch  # late: building and hashing rows needs numpy alone

        index = np.asarray(rows, dtype=np.int64)
        tokens, documents = np.asarray(self.tokens[index]), np.asarray(self.documents[index])
        on_device = torch.from_numpy(tokens.astype(np.int64)).to(device)
        annotated = self.annotations.supplied(index, device) if self.annotations is not None else {}
        return Batch(
            tokens=on_device[:, :-1],
            targets=on_device[:, 1:],
            mask=torch.from_numpy(mask_of(tokens, documents, self.excluded)).to(device),
            real=torch.from_numpy(documents[:, :-1] >= 0).to(device),
            sequence_ids=index if self.sequence_ids is None else self.sequence_ids[index],
            clusters=np.asarray(self._clusters[index]),
            included=torch.from_numpy(included_of(tokens, documents, self.excluded)).to(device),
            before=self._before[index],
            supplied={"spelling": self.spelling, **annotated},
        )

    def spelling(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a row, or its number without a tokenizer, which is loaded at first use."""
        return self._spelling(ids)

    @cached_property
    def _spelling(self) -> Callable[[Sequence[int]], list[str]]:
        try:
            return Spelling(self.tokenizer()) if self.tokenizer else numbered
        except SaevalError:  # rows of token ids need no tokenizer
            return numbered

    def beyond(self, vocabulary: int) -> tuple[int, int] | None:
        return outside(self.tokens, vocabulary)

    def padded(self, extra: int) -> Self:
        """Return the same rows with `extra` more columns of padding on the right."""
        width = ((0, 0), (0, extra))
        tokens, documents = np.pad(self.tokens, width), np.pad(self.documents, width, constant_values=PADDING)
        annotations = self.annotations and self.annotations.padded(extra)
        return type(self)(
            tokens, documents, self._clusters, self.excluded, self.cluster_names, self.facts, self.sequence_ids,
            annotations,
        )  # fmt: skip

    def describe(self) -> Mapping[str, Any]:
        facts = {"context": self.context, "excluded": list(self.excluded), "fingerprint": self.fingerprint}
        return {**super().describe(), **facts, **self.facts}

    def counts(self, rows: int) -> Mapping[str, int]:
        return {**super().counts(rows), "tokens": int(self._before[rows])}


def build_tokens(
    source: Source, options: TokenOptions, tokenizer: Callable[[], Any], tokenizer_identity: str | None, split: Split
) -> TokenDataset:
    """Return the rows of one split, from the cache if they are there; `tokenizer` is then not called.

    `tokenizer` returns a Hugging Face tokenizer; for a source of tokens it may raise `SaevalError`, and
    ids come from the options. Rows of a tokenizer without an identity are not cached. `SaevalError` if there are
    fewer rows than `options.sequences`, no rows, no BOS to begin rows with, or no documents for the split.
    """
    corpus = source.fingerprint()
    request = [FORMAT, source.name, corpus, options.model_dump(), tokenizer_identity, split]
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    facts = {"source": source.name, "corpus": corpus, "split": split, **options.model_dump(include={"packing", "seed"})}
    dataset = _cached(key, facts) if tokenizer_identity is not None else None
    if dataset is None:
        packed = Packer(source, options, tokenizer).pack(split)
        counted = {"left_out": packed.left_out, "not_doubled": packed.not_doubled}
        dataset = TokenDataset(
            packed.tokens, packed.documents, packed.clusters, packed.excluded, packed.cluster_names, facts | counted,
            annotations=packed.annotations,
        )  # fmt: skip
        if tokenizer_identity is not None:
            _store(key, dataset)
    dataset.tokenizer = tokenizer
    return dataset


class _About(BaseModel):
    """The description of cached rows, in a file of its own."""

    model_config = ConfigDict(strict=True)

    clusters: list[int]
    cluster_names: list[str]
    excluded: list[int]
    left_out: dict[str, int]
    not_doubled: dict[str, int]
    fingerprint: str
    annotated: bool = False


_COUNTED = ("left_out", "not_doubled")


def _cached(key: str, facts: Mapping[str, Any]) -> TokenDataset | None:
    """Return the rows stored under `key`, memory-mapped; None if absent or damaged."""
    folder, stored = cache.cache_dir(), cache.recall(_KIND, key, _About)
    if folder is None or stored is None:
        return None
    path = folder / _KIND / f"{key}.npy"
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        clusters = np.array(stored["clusters"], dtype=np.int64)
        facts = {**facts, **{name: stored[name] for name in _COUNTED}}
        annotations = None
        if stored.get("annotated"):
            path = folder / _KIND / f"{key}.npz"
            with np.load(path, allow_pickle=False) as arrays:
                annotations = Annotations.from_state(dict(arrays))
        names = stored["cluster_names"]
        dataset = TokenDataset(rows[0], rows[1], clusters, stored["excluded"], names, facts, annotations=annotations)
        if dataset.fingerprint == stored["fingerprint"]:
            return dataset
        why = "its content does not match its checksum"
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy raises any class for a damaged file
        why = f"it cannot be read ({said(error)[:100]})"
    cache.damaged(path, why)
    return None


def _store(key: str, dataset: TokenDataset) -> None:
    about = {
        "clusters": dataset.clusters.tolist(),
        "cluster_names": dataset.cluster_names,
        "excluded": list(dataset.excluded),
        **{name: dataset.facts[name] for name in _COUNTED},
        "fingerprint": dataset.fingerprint,
        "annotated": dataset.annotations is not None,
    }
    rows = np.stack([dataset.tokens, dataset.documents])
    # `keep` writes the description last: rows without one are ignored.
    files = {".npy": lambda file: np.save(file, rows, allow_pickle=False)}
    if dataset.annotations is not None:
        state: Any = dataset.annotations.state()
        files[".npz"] = lambda file: np.savez_compressed(file, **state)
    cache.keep(_KIND, key, about, files)
