"""Documents to rows: tokenised, cut, chosen by a keyed hash, cached. One mask for everything that follows."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field

from saeval.data import Batch, Dataset, Document, Source
from saeval.errors import SaevalError
from saeval.fingerprint import cache_dir

if TYPE_CHECKING:
    import torch

Split = Literal["evaluation", "fit"]

FORMAT = 1
"""Part of every cache key: raised when the same options would give other rows."""
FIT_SHARE = 0.2
PADDING = -1
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 4_000_000

TokenId = Annotated[int, Field(ge=0, strict=True)]


class TokenOptions(BaseModel):
    """How documents become rows, the same for every source of text or tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: Annotated[int, Field(ge=1)]
    """Input positions of a row, the BOS included; a row holds one token more."""
    sequences: Annotated[int, Field(ge=1)] | None = None
    """Rows to keep; None keeps all. A larger number keeps the same rows and adds others."""
    seed: int = 0
    bos: bool = True
    """Begin every row with the tokenizer's BOS."""
    exclude: list[Literal["bos", "eos", "pad"] | TokenId] = ["bos"]
    """Input tokens outside the mask."""
    packing: Literal["documents", "concat"] = "documents"
    bos_id: TokenId | None = None
    """Instead of the tokenizer's, or where there is no tokenizer; so is `eos_id`."""
    eos_id: TokenId | None = None


class TokenDataset(Dataset):
    """Rows of context+1 tokens in a fixed order. Row number = sequence id; the source document = cluster."""

    def __init__(
        self,
        tokens: Int[np.ndarray, "n context+1"],
        documents: Int[np.ndarray, "n context+1"],
        clusters: Int[np.ndarray, "n"],
        excluded: Sequence[int] = (),
        cluster_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`documents` numbers the document of each token, -1 for padding. `ValueError` where shapes disagree."""
        if tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.shape != documents.shape or len(clusters) != len(tokens):
            shapes = f"tokens {tokens.shape}, documents {documents.shape}, clusters {clusters.shape}"
            raise ValueError(f"expected tokens and documents [n, context+1] and clusters [n], found {shapes}")
        self.tokens = tokens
        self.documents = documents
        self.excluded = tuple(sorted(set(excluded)))
        self.cluster_names = list(cluster_names)
        self.facts = dict(facts or {})
        self._clusters = clusters

    @classmethod
    def from_arrays(cls, tokens: Any, documents: Any, clusters: Any, excluded: Sequence[int] = ()) -> Self:
        """From anything numpy can read as integer arrays."""
        return cls(
            np.asarray(tokens, dtype=np.int32),
            np.asarray(documents, dtype=np.int32),
            np.asarray(clusters, dtype=np.int64),
            excluded,
        )

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1]) - 1

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return self._clusters

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.tokens.shape, self.excluded)).encode())
        for array, kind in ((self.tokens, "<i4"), (self.documents, "<i4"), (self._clusters, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=kind).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch:
        import torch  # late: building and hashing rows needs numpy alone

        index = np.asarray(rows, dtype=np.int64)
        tokens, documents = np.asarray(self.tokens[index]), np.asarray(self.documents[index])
        on_device = torch.from_numpy(tokens.astype(np.int64)).to(device)
        return Batch(
            tokens=on_device[:, :-1],
            targets=on_device[:, 1:],
            mask=torch.from_numpy(_mask(tokens, documents, self.excluded)).to(device),
            real=torch.from_numpy(documents[:, :-1] >= 0).to(device),
            sequence_ids=index,
            clusters=np.asarray(self._clusters[index]),
        )

    def padded(self, extra: int) -> Self:
        """The same rows with `extra` more columns of padding on the right."""
        width = ((0, 0), (0, extra))
        tokens, documents = np.pad(self.tokens, width), np.pad(self.documents, width, constant_values=PADDING)
        return type(self)(tokens, documents, self._clusters, self.excluded, self.cluster_names, self.facts)

    def describe(self) -> Mapping[str, Any]:
        scored = sum(
            int(_mask(self.tokens[i : i + 4096], self.documents[i : i + 4096], self.excluded).sum())
            for i in range(0, len(self), 4096)
        )
        counts = {"context": self.context, "tokens": scored, "excluded": list(self.excluded)}
        return {**super().describe(), **counts, "fingerprint": self.fingerprint, **self.facts}


def build_tokens(
    source: Source, options: TokenOptions, tokenizer: Callable[[], Any], tokenizer_identity: str, split: Split
) -> TokenDataset:
    """The rows of one split, from the cache where they were built before: then `tokenizer` is not called.

    `tokenizer` returns a Hugging Face tokenizer; for a source of tokens it may raise `SaevalError`, and
    ids come from the options. `SaevalError` where there are fewer rows than `options.sequences`, no rows,
    no BOS to begin rows with, or no documents for the split.
    """
    corpus = source.fingerprint()
    request = [FORMAT, source.name, corpus, options.model_dump(), tokenizer_identity, split]
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    facts = {"source": source.name, "corpus": corpus, "split": split, **options.model_dump(include={"packing", "seed"})}
    stem = cache_dir() / "tokens" / key
    dataset = _cached(stem, facts)
    if dataset is None:
        dataset = _Rows(source, options, tokenizer).dataset(split, facts)
        _store(stem, dataset)
    return dataset


@dataclass(frozen=True)
class _Row:
    tokens: Int[np.ndarray, "context+1"]
    documents: Int[np.ndarray, "context+1"]
    name: str
    order: bytes


class _Rows:
    """All rows of one source, made as its documents stream by."""

    def __init__(self, source: Source, options: TokenOptions, tokenizer: Callable[[], Any]) -> None:
        self.source = source
        self.options = options
        self.tokenizer: Any = None
        missing = "the tokenizer has none"
        try:
            self.tokenizer = tokenizer()
        except SaevalError as error:
            if source.kind != "tokens":
                raise
            missing = f"there is no tokenizer ({error})"
        self.bos_id = self._special("bos")
        self.eos_id = self._special("eos")
        self.bos = [self.bos_id] if options.bos and self.bos_id is not None else []
        if options.bos and self.bos_id is None:
            raise SaevalError(f"data: 'bos: true' needs a BOS token, but {missing}; give 'bos_id' or say 'bos: false'")
        if options.packing == "concat" and self.eos_id is None and self.bos_id is None:
            raise SaevalError(f"data: 'packing: concat' needs an EOS or BOS token, but {missing}; give 'eos_id'")
        named = [self._special(word) if isinstance(word, str) else word for word in options.exclude]
        self.excluded = sorted({token for token in named if token is not None})
        self.names: list[str] = []

    def _special(self, word: str) -> int | None:
        given: int | None = getattr(self.options, f"{word}_id", None)
        return given if given is not None else getattr(self.tokenizer, f"{word}_token_id", None)

    def dataset(self, split: Split, facts: Mapping[str, Any]) -> TokenDataset:
        """The rows whose keyed hash is smallest, in the order of that hash."""
        tokenised = self._tokenised(_documents(self.source, split))
        rows = self._of_documents(tokenised) if self.options.packing == "documents" else self._of_stream(tokenised)
        wanted = self.options.sequences
        kept = sorted(rows, key=_order) if wanted is None else heapq.nsmallest(wanted, rows, key=_order)
        if len(kept) < (wanted or 1):
            asked = f"'sequences: {wanted}' were asked for" if wanted else "at least one is needed"
            raise SaevalError(
                f"data '{self.source.name}': {asked}, but its {split} documents give {len(kept)} sequences "
                f"of context {self.options.context}; ask for fewer, shorten 'context' or add documents"
            )
        number = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in kept))}
        clusters = np.array([number[row.name] for row in kept], dtype=np.int64)
        tokens, documents = np.stack([row.tokens for row in kept]), np.stack([row.documents for row in kept])
        return TokenDataset(tokens, documents, clusters, self.excluded, list(number), facts)

    def _tokenised(self, documents: Iterator[Document]) -> Iterator[tuple[int, np.ndarray]]:
        """Number and tokens of each document that has any; the number indexes `self.names`."""
        for batch in _batches(documents):
            texts = [d.text for d in batch if d.tokens is None]
            # verbose=False: a document is longer than the model's context, and is cut below.
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
            ids = iter(encoded)
            for document in batch:
                tokens = np.asarray(next(ids) if document.tokens is None else document.tokens, dtype=np.int32)
                if len(tokens):
                    self.names.append(document.name)
                    yield len(self.names) - 1, tokens

    def _of_documents(self, tokenised: Iterator[tuple[int, np.ndarray]]) -> Iterator[_Row]:
        chunks: Counter[str] = Counter()  # documents of one name number their chunks on, so every row has its own key
        for number, tokens in tokenised:
            name = self.names[number]
            for chunk in _cut(tokens, self.options.context, bool(self.bos)):
                row = self._row(chunk, np.full(len(chunk), number, dtype=np.int32), name, chunks[name])
                chunks[name] += 1
                if row is not None:
                    yield row

    def _of_stream(self, tokenised: Iterator[tuple[int, np.ndarray]]) -> Iterator[_Row]:
        context = self.options.context
        width = context if self.bos else context + 1
        separator = np.array([self.bos_id if self.eos_id is None else self.eos_id], dtype=np.int32)
        tokens = documents = np.empty(0, dtype=np.int32)
        index, last = 0, None
        for number, added in tokenised:
            if last is not None:  # the separator ends the document before it
                tokens, documents = np.append(tokens, separator), np.append(documents, np.int32(last))
            tokens = np.concatenate([tokens, added])
            documents = np.concatenate([documents, np.full(len(added), number, dtype=np.int32)])
            last, start = number, 0
            while start + width <= len(tokens):
                owned = documents[start : start + width]
                owners = Counter(self.names[document] for document in owned.tolist())
                row = self._row(tokens[start : start + width], owned, owners.most_common(1)[0][0], index)
                index += 1
                start += context
                if row is not None:
                    yield row
            tokens, documents = tokens[start:], documents[start:]

    def _row(self, tokens: np.ndarray, documents: np.ndarray, name: str, index: int) -> _Row | None:
        """BOS before, padding after; None where nothing of it is in the mask."""
        after = self.options.context + 1 - len(self.bos) - len(tokens)
        tokens = np.concatenate([np.array(self.bos, dtype=np.int32), np.pad(tokens, (0, after))])
        owner = documents[: len(self.bos)]
        documents = np.concatenate([owner, np.pad(documents, (0, after), constant_values=PADDING)])
        if not _mask(tokens[None], documents[None], self.excluded).any():
            return None
        return _Row(tokens, documents, name, hashlib.sha256(f"{self.options.seed}\0{name}\0{index}".encode()).digest())


def _order(row: _Row) -> bytes:
    return row.order


def _mask(tokens: np.ndarray, documents: np.ndarray, excluded: Sequence[int]) -> Bool[np.ndarray, "n context"]:
    """Input is a real token, not excluded, and its target is a token of the same document."""
    same = (documents[:, :-1] >= 0) & (documents[:, :-1] == documents[:, 1:])
    return np.asarray(same & ~np.isin(tokens[:, :-1], excluded))


def _cut(tokens: np.ndarray, context: int, bos: bool) -> Iterator[np.ndarray]:
    """Pieces in which every token is a target once: after a BOS they abut, without one they share a token."""
    for start in range(0, len(tokens) if bos else len(tokens) - 1, context):
        yield tokens[start : start + context + (0 if bos else 1)]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text or "")
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _documents(source: Source, split: Split) -> Iterator[Document]:
    """The split's documents; those of a source that does not split itself are cut by a hash of their names."""
    if source.splits_itself:
        return source.documents(split)
    first_fit = _fit_name(source, split)
    return (
        d
        for d in source.documents(split)
        if (split == "fit") == (_share(d.name) < FIT_SHARE if first_fit is None else d.name == first_fit)
    )


def _fit_name(source: Source, split: Split) -> str | None:
    """None where the hash puts documents on both sides; else the one name that is the fit split by itself."""
    shares: dict[str, float] = {}
    sides: set[bool] = set()
    for document in source.documents(split):
        share = shares.setdefault(document.name, _share(document.name))
        sides.add(share < FIT_SHARE)
        if len(sides) == 2:
            return None
    if len(shares) > 1:
        return min(shares, key=lambda name: (shares[name], name))
    if split == "fit":
        raise SaevalError(
            f"data '{source.name}': a fit split needs at least 2 documents, found {len(shares)}; "
            "give more documents or split the text with 'separator'"
        )
    return ""  # no document is named so: evaluation gets the only one


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _cached(stem: Path, facts: Mapping[str, Any]) -> TokenDataset | None:
    """The rows stored under `stem`, memory-mapped; None where absent, or where their hash is not the stored one."""
    try:
        stored = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        rows = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        clusters = np.array(stored["clusters"], dtype=np.int64)
        dataset = TokenDataset(rows[0], rows[1], clusters, stored["excluded"], stored["cluster_names"], facts)
        return dataset if dataset.fingerprint == stored["fingerprint"] else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, AttributeError):
        return None


def _store(stem: Path, dataset: TokenDataset) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "clusters": dataset.clusters.tolist(),
        "cluster_names": dataset.cluster_names,
        "excluded": list(dataset.excluded),
        "fingerprint": dataset.fingerprint,
    }
    # The description last: it is what makes the rows valid.
    for suffix in (".npy", ".json"):
        handle, temporary = tempfile.mkstemp(dir=stem.parent, prefix=".", suffix=suffix)
        try:
            with os.fdopen(handle, "wb") as file:
                if suffix == ".npy":
                    np.save(file, np.stack([dataset.tokens, dataset.documents]), allow_pickle=False)
                else:
                    file.write(json.dumps(about).encode())
            os.replace(temporary, stem.with_suffix(suffix))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
