"""Interface of data sets: rows of context+1 tokens, one mask, documents as clusters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int

from saeval.base.text_files import Passage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DataKind = Literal["text", "tokens", "pair", "activations"]


@dataclass
class Batch:
    """Rows of one stream, on the model's device.

    A position is in `mask` if its input is a real token and not excluded, and its target is a real
    token of the same document. Interventions, ablations and averages all use this mask. `real` is
    the attention mask.
    """

    tokens: Int[Tensor, "batch seq"]
    """Input token ids; arbitrary where `real` is False."""
    targets: Int[Tensor, "batch seq"]
    """The token after each input."""
    mask: Bool[Tensor, "batch seq"]
    """Positions that are replaced, ablated and averaged."""
    real: Bool[Tensor, "batch seq"]
    """Inputs that are tokens, not padding."""
    sequence_ids: Int[np.ndarray, "batch"]
    """Index of each row in the stream, independent of the batch size."""
    clusters: Int[np.ndarray, "batch"]
    """Document of each row, 0 .. n_clusters - 1: the unit of the standard errors."""
    supplied: Mapping[str, Any] = field(default_factory=dict)
    """Quantities that come with the data, by the names in `Dataset.supplies`; they are not computed."""
    included: Bool[Tensor, "batch seq"] | None = None
    """Inputs that are real and not excluded, whatever their targets; None: the same as `mask`."""
    before: Int[np.ndarray, "batch"] | None = None
    """Number of tokens in the mask of all earlier rows of the stream, per row; None if unknown."""
    sampled: Bool[Tensor, "batch seq"] | None = None
    """Positions of the mask whose predictions are scored, if the suite sets `score_share`; None: the whole mask."""

    def part(self, rows: slice | Sequence[int]) -> Batch:
        """Return a batch of some of the rows, which may repeat, with an empty `supplied`."""
        selected = {
            f.name: x[rows] for f in fields(self) if f.name != "supplied" and (x := getattr(self, f.name)) is not None
        }
        return replace(self, **selected, supplied={})


@dataclass
class PairBatch:
    """Preference pairs: two batches with one row per pair, and the position at which each pair first differs."""

    sides: tuple[Batch, Batch]
    """The chosen and the rejected texts."""
    divergence: Int[Tensor, "batch"]
    """First position at which the tokens differ; one earlier if one text is a prefix of the other."""

    @property
    def sequence_ids(self) -> Int[np.ndarray, "batch"]:
        """Index of each pair in the stream."""
        return self.sides[0].sequence_ids

    @property
    def clusters(self) -> Int[np.ndarray, "batch"]:
        """Document of each pair, 0 .. n_clusters - 1."""
        return self.sides[0].clusters


def numbered(ids: Sequence[int]) -> list[str]:
    """Return the numbers of the tokens, as text for rows without a tokenizer."""
    return [f"<{token}>" for token in ids]


class Dataset(ABC):
    """A fixed, numbered list of rows with a hash."""

    pair: bool = False
    """True if the rows are preference pairs: `batch` returns a `PairBatch`."""
    supplies: frozenset[str] = frozenset()
    """Names of the quantities that come with each batch of the data, in `Batch.supplied`."""
    supplies_once: frozenset[str] = frozenset()
    """Names of the quantities that come with the data and are the same for every batch; `once` returns them."""
    needs_model: bool = True
    """False if the data can be evaluated without a model."""
    width: int | None = None
    """Width of the supplied activations, the same at every hook; None if the data supply none."""

    @property
    def context(self) -> int | None:
        """Number of positions in the longest row; None if unknown."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the rows: tokens, documents, excluded tokens."""

    @property
    @abstractmethod
    def clusters(self) -> Int[np.ndarray, "n"]:
        """Cluster of each row, 0 .. n_clusters - 1."""

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1 if len(self) else 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch | PairBatch:
        """Return the rows with these indices, in this order, with tensors on `device`."""

    def spelling(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a row; joined, they are the tokenizer's text. By default their numbers."""
        return numbered(ids)

    def once(self, name: str) -> Any:
        """Return the value of one of `supplies_once`. It is requested when it is first needed, and not written into."""
        raise KeyError(name)

    def beyond(self, vocabulary: int) -> tuple[int, int] | None:
        """Return the first token id outside a vocabulary of this size, and its row; None if all are inside.

        Padding counts too, since the model embeds it. Rows with supplied activations are not checked.
        """
        for start in range(0, 0 if "activations" in self.supplies else len(self), 256):
            batch = self.batch(range(start, min(start + 256, len(self))), "cpu")
            for side in batch.sides if isinstance(batch, PairBatch) else (batch,):
                for tokens in (side.tokens, side.targets):
                    if token_and_row := outside(tokens.numpy(), vocabulary):
                        return token_and_row[0], start + token_and_row[1]
        return None

    def describe(self) -> Mapping[str, Any]:
        """Return facts for the provenance: the `counts` of all rows, and the source's own."""
        return dict(self.counts(len(self)))

    def counts(self, rows: int) -> Mapping[str, int]:
        """Return the numbers of sequences, documents and, if known, tokens of the mask in the first `rows` rows."""
        return {"sequences": rows, "documents": len(np.unique(self.clusters[:rows]))}


def outside(tokens: Int[np.ndarray, "n seq"], vocabulary: int) -> tuple[int, int] | None:
    """Return the first token id outside 0 .. `vocabulary` - 1, and its row; None if there is none."""
    if not tokens.size or (tokens.min() >= 0 and tokens.max() < vocabulary):
        return None
    row, position = np.argwhere((tokens < 0) | (tokens >= vocabulary))[0]
    return int(tokens[row, position]), int(row)


@dataclass(frozen=True)
class Document:
    """A unit of independent text, with either `text` or, if already tokenised, `tokens`.

    A document with neither stands for a record without text: it is left out and counted.
    """

    name: str
    """Documents of one name are one cluster."""
    text: str | Passage | None = None
    """A `Passage` is text too long to be held in memory."""
    tokens: Sequence[int] | np.ndarray | None = None
    """Token ids."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Its class in each task that it belongs to; metrics request them as `labels`."""
    spans: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By task of tokens that it belongs to: the stretches of `text` with the label, as (first character, end).

    A token has the label if a character of it that is not white space is inside one. Metrics request these as
    `token_labels`. `text` is then a string of at most 2^20 characters.
    """
    validation: bool = False
    """True for a document of the fit split on which choices are made, and nothing is fitted."""


class Source(ABC):
    """A source of data, chosen by `use:` in `data:`. `__init__` is the schema of its YAML parameters.

    The core (`saeval.text.tokens`) adds and handles the parameters that all text sources share: context, packing,
    BOS, excluded tokens, number of sequences and seed.
    """

    name: ClassVar[str]
    """The name that `use:` selects."""
    kind: ClassVar[DataKind] = "text"
    """`text` and `tokens` sources define `documents`; `pair` and `activations` sources define `dataset`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the documents that this source yields. It is called for every plan, so it must be fast."""

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        """Yield the documents, always in the same order; those of `fit` are disjoint from the evaluated ones.

        A source without its own fit split yields all documents for both. The core then splits them by
        a hash of their names.
        """
        raise NotImplementedError

    def documents_for(self, split: Literal["evaluation", "fit"], tokenizer: Any) -> Iterator[Document]:
        """Yield the documents for a model's tokenizer; override it if they depend on one, such as on its vocabulary.

        By default those of `documents`. `tokenizer` is a Hugging Face tokenizer; for a source of tokens it may be None.
        """
        return self.documents(split)

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Its own defaults of parameters that all text sources share, such as `{"keep": "start"}`."""
    splits_itself: ClassVar[bool] = False
    """True if `documents("fit")` is already disjoint from `documents("evaluation")`."""

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> Dataset:
        """Return the rows, for kinds `pair` and `activations`; `SaevalError` if there is no such split.

        `tokenizer` loads the model's tokenizer; None if the suite has no model.
        """
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        """Return plain data to record in the provenance (version of the corpus, path, revision).

        `saeval check` lists the file names in `read`. The sentences in `unused`, on parts of these files that are not
        used, are warnings.
        """
        return {}
