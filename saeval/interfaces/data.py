"""What the engine asks of data: rows of context+1 tokens, one mask, the document as the cluster."""

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
    """Rows of one stream on the model's device.

    `mask` is the one mask: the input is a real token and not excluded, and its target is a real
    token of the same document. It drives intervention, ablation and every average. `real` says
    which inputs are tokens at all (attention).
    """

    tokens: Int[Tensor, "batch seq"]
    """Input token ids; without meaning where `real` is false."""
    targets: Int[Tensor, "batch seq"]
    """The token after each input."""
    mask: Bool[Tensor, "batch seq"]
    """Positions that are replaced, ablated and averaged."""
    real: Bool[Tensor, "batch seq"]
    """Inputs that are tokens at all, not padding."""
    sequence_ids: Int[np.ndarray, "batch"]
    """Each row's number in the stream, whatever the batches."""
    clusters: Int[np.ndarray, "batch"]
    """Each row's document, 0 .. n_clusters - 1: the unit of the error bars."""
    supplied: Mapping[str, Any] = field(default_factory=dict)
    """What else the source supplies by name, as `Dataset.supplies` lists it: quantities in place of others."""
    included: Bool[Tensor, "batch seq"] | None = None
    """Inputs that are real and not excluded, whatever their targets; where not given, those of the mask."""
    before: Int[np.ndarray, "batch"] | None = None
    """How many tokens of the mask the stream has in the rows before each; None where the source does not say."""

    def part(self, rows: slice | Sequence[int]) -> Batch:
        """Some of the rows, perhaps more than once, without what the source supplies."""
        taken = {
            f.name: x[rows] for f in fields(self) if f.name != "supplied" and (x := getattr(self, f.name)) is not None
        }
        return replace(self, **taken, supplied={})


@dataclass
class PairBatch:
    """Preference pairs: two batches of equal rows and where each pair first differs."""

    sides: tuple[Batch, Batch]
    """Chosen, rejected."""
    divergence: Int[Tensor, "batch"]
    """First differing position; one earlier when one is a prefix of the other."""

    @property
    def sequence_ids(self) -> Int[np.ndarray, "batch"]:
        return self.sides[0].sequence_ids

    @property
    def clusters(self) -> Int[np.ndarray, "batch"]:
        return self.sides[0].clusters


class Dataset(ABC):
    """Rows ready to stream: fixed, numbered, hashed."""

    pair: bool = False
    supplies: frozenset[str] = frozenset()
    """Names of the quantities that come with the data."""
    needs_model: bool = True

    @property
    def context(self) -> int | None:
        """Positions of the longest row; None where that is not known."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the rows: tokens, documents, mask policy."""

    @property
    @abstractmethod
    def clusters(self) -> Int[np.ndarray, "n"]:
        """Cluster of each row, 0 .. n_clusters - 1."""

    @property
    def n_clusters(self) -> int:
        return int(self.clusters.max()) + 1 if len(self) else 0

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch | PairBatch:
        """These rows, in this order."""

    def beyond(self, vocabulary: int) -> tuple[int, int] | None:
        """The first token id that a vocabulary of this size does not have, and its row; None where all are in it.

        Padding counts too: the model embeds it. Rows that come with activations are not asked.
        """
        for start in range(0, 0 if self.supplies else len(self), 256):
            batch = self.batch(range(start, min(start + 256, len(self))), "cpu")
            for side in batch.sides if isinstance(batch, PairBatch) else (batch,):
                for tokens in (side.tokens, side.targets):
                    if found := outside(tokens.numpy(), vocabulary):
                        return found[0], start + found[1]
        return None

    def describe(self) -> Mapping[str, Any]:
        """Facts for the provenance: what `counts` says of all rows, corpus fingerprint."""
        return dict(self.counts(len(self)))

    def counts(self, rows: int) -> Mapping[str, int]:
        """What the first rows are: sequences, documents, tokens of the mask where these are known."""
        return {"sequences": rows, "documents": len(np.unique(self.clusters[:rows]))}


def outside(tokens: Int[np.ndarray, "n seq"], vocabulary: int) -> tuple[int, int] | None:
    """The first token id below 0 or not below `vocabulary`, and its row."""
    if not tokens.size or (tokens.min() >= 0 and tokens.max() < vocabulary):
        return None
    row, position = np.argwhere((tokens < 0) | (tokens >= vocabulary))[0]
    return int(tokens[row, position]), int(row)


@dataclass(frozen=True)
class Document:
    """A unit of independent text: its name is its cluster. `text`, or `tokens` where already tokenised.

    A `Passage` is text too long to be held as a whole. A document with neither stands for a record that has none: it
    is left out and counted.
    """

    name: str
    text: str | Passage | None = None
    tokens: Sequence[int] | np.ndarray | None = None


class Source(ABC):
    """Where text comes from, chosen by `use:` in `data:`. `__init__` is the YAML schema of its own parameters.

    Context, packing, BOS, exclusion, the number of sequences and the seed are every text source's
    and are handled by the core (`saeval.text.tokens`).
    """

    name: ClassVar[str]
    kind: ClassVar[DataKind] = "text"

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the documents this source will yield, cheap enough to take at every plan."""

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        """The documents, always in the same order; `fit` ones are disjoint from the evaluated.

        A source without a fit split of its own yields all documents for both: the core then cuts
        them by a hash of the name.
        """
        raise NotImplementedError

    splits_itself: ClassVar[bool] = False
    """Whether `documents("fit")` is already disjoint from `documents("evaluation")`."""

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> Dataset:
        """For kinds `pair` and `activations`: the rows themselves; `SaevalError` for a split there is not.

        `tokenizer` loads the model's; None where the suite has no model.
        """
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        """What to record in the provenance (version of the corpus, path, revision).

        A list `read` names the files that are read, which `saeval check` shows; the sentences of a list `unused` say
        what of them is not used, and are warnings.
        """
        return {}
