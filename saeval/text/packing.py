"""Packing of documents into rows of tokens: tokenised in batches, cut or concatenated, sampled by a keyed hash."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field

from saeval.base.errors import SaevalError, lone_surrogate
from saeval.base.run_options import MOST_ROWS
from saeval.base.text_files import LONG, Passage
from saeval.interfaces.data import Document, Source
from saeval.text.annotations import Annotations, Annotator
from saeval.text.windows import tokens_of

Split = Literal["evaluation", "fit"]

FIT_SHARE = 0.2
PADDING = -1
EMPTY = "empty"
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 1_000_000


LONGEST = 2**20
"""Largest number of input positions of a row."""
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Rows = Annotated[int, Field(ge=1, le=MOST_ROWS, strict=True)]


class TokenOptions(BaseModel):
    """Options for turning documents into rows, the same for all sources of text or tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: Annotated[int, Field(ge=1, le=LONGEST, strict=True)]
    """Number of input positions per row, including BOS; a row has one more token."""
    sequences: _Rows | None = None
    """Number of rows; None for all. A larger number adds rows to the same ones."""
    seed: Seed = 0
    bos: bool = True
    """Begin every row with the tokenizer's BOS."""
    exclude: list[Literal["bos", "eos", "pad"] | TokenId] = ["bos"]
    """Input tokens outside the mask."""
    packing: Literal["documents", "concat"] = "documents"
    keep: Literal["all", "start", "end"] = "all"
    """What is kept of a document that is longer than a row: all of it, in several rows, or one row at an end."""
    bos_id: TokenId | None = None
    """BOS in place of the tokenizer's, or without a tokenizer."""
    eos_id: TokenId | None = None
    """EOS, likewise."""
    fit_sequences: Annotated[_Rows | None, Field(exclude=True)] = 64
    """Largest number of rows of the fit split; None for all. Excluded from digests, since these rows are of other
    documents."""


class Packed(NamedTuple):
    """Rows in their final order, padded on the right; `documents` is -1 at padding."""

    tokens: Int[np.ndarray, "n context+1"]
    documents: Int[np.ndarray, "n context+1"]
    clusters: Int[np.ndarray, "n"]
    excluded: list[int]
    cluster_names: list[str]
    annotations: Annotations | None
    """Labels of the rows and their tokens, if documents have any."""
    left_out: dict[str, int]
    """Number of documents without tokens, by reason."""
    not_doubled: dict[str, int]
    """Number of documents with their own BOS or separator, which got no second one."""


@dataclass(frozen=True)
class _Row:
    tokens: Int[np.ndarray, "context+1"]
    documents: Int[np.ndarray, "context+1"]
    name: str
    order: int
    """Its hash, by which rows are drawn and ordered."""
    start: int
    """Index in its first document's tokens of its first token after BOS."""
    length: int
    """Number of its tokens after BOS."""


def included_of(
    tokens: Int[np.ndarray, "*n length"], documents: Int[np.ndarray, "*n length"], excluded: Sequence[int]
) -> Bool[np.ndarray, "*n length-1"]:
    """Return the inputs that are real tokens and not excluded, whatever their targets."""
    included = documents[..., :-1] >= 0
    for token in excluded:
        included &= tokens[..., :-1] != token
    return np.asarray(included)


def mask_of(
    tokens: Int[np.ndarray, "*n length"], documents: Int[np.ndarray, "*n length"], excluded: Sequence[int]
) -> Bool[np.ndarray, "*n length-1"]:
    """Return the mask: inputs that are real tokens and not excluded, with a target of the same document."""
    mask = included_of(tokens, documents, excluded) & (documents[..., :-1] == documents[..., 1:])
    return np.asarray(mask)


class TooFewSequencesError(SaevalError):
    """The documents give fewer rows than requested."""


class Packer:
    """Packs the documents of one source into rows, without holding all documents in memory.

    `tokenizer` returns a Hugging Face tokenizer; for a source of tokens it may raise `SaevalError`.
    `SaevalError` if the options need a special token that neither they nor the tokenizer have.
    """

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
        bos, eos = self._special("bos"), self._special("eos")
        if options.bos and bos is None:
            raise SaevalError(f"data: 'bos: true' needs a BOS token, but {missing}; set 'bos_id' or 'bos: false'")
        if options.packing == "concat" and bos is None and eos is None:
            raise SaevalError(f"data: 'packing: concat' needs an EOS or BOS token, but {missing}; set 'eos_id'")
        self.prefix = [bos] if options.bos and bos is not None else []
        self.separator = next((token for token in (eos, bos) if token is not None), 0)
        named = [self._special(word) if isinstance(word, str) else word for word in options.exclude]
        self.excluded = sorted({token for token in named if token is not None})
        size = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None
        beyond = [token for token in [*self.excluded, *self.prefix] if size is not None and token >= size]
        if beyond:
            raise SaevalError(f"data: token id {beyond[0]} is beyond the tokenizer's {size} tokens")
        self._spelled = unread_special(self.tokenizer, "bos", self.prefix)
        self._names: list[str] = []
        self._annotator = Annotator(source.name)
        self._masked = 0  # rows in which 'exclude' leaves no token
        self._largest: float = math.inf
        """Rows with a larger hash are not in the sample."""
        self._left_out: Counter[str] = Counter()
        self._not_doubled: Counter[str] = Counter()

    def _special(self, word: str) -> int | None:
        token: int | None = getattr(self.options, f"{word}_id", None)
        return token if token is not None else getattr(self.tokenizer, f"{word}_token_id", None)

    def pack(self, split: Split) -> Packed:
        """Return the rows with the smallest keyed hashes, in the order of the hash."""
        tokenised = self._tokenised(_documents(self.source, split, self.tokenizer, self._left_out))
        rows = self._of_documents(tokenised) if self.options.packing == "documents" else self._of_stream(tokenised)
        count = self.options.sequences
        sample = self._smallest(self._within_memory(rows), count)
        if len(sample) < (count or 1):
            requested = f"'sequences: {count}' was requested" if count else "at least one sequence is needed"
            raise TooFewSequencesError(
                f"data '{self.source.name}': {requested}, but its {split} documents give {len(sample)} "
                f"of context {self.options.context}; {self._remedy()}"
            )
        number = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in sample))}
        return Packed(
            tokens=np.stack([row.tokens for row in sample]),
            documents=np.stack([row.documents for row in sample]),
            clusters=np.array([number[row.name] for row in sample], dtype=np.int64),
            excluded=self.excluded,
            cluster_names=list(number),
            annotations=self._annotations(sample),
            left_out=dict(self._left_out),
            not_doubled=dict(self._not_doubled),
        )

    def _annotations(self, sample: Sequence[_Row]) -> Annotations | None:
        first = len(self.prefix)
        owners = [int(row.documents[first]) for row in sample]
        starts, lengths = [row.start for row in sample], [row.length for row in sample]
        return self._annotator.rows(owners, starts, lengths, first, self.options.context + 1)

    def _smallest(self, rows: Iterable[_Row], count: int | None) -> list[_Row]:
        """Return the rows with the `count` smallest hashes, in their order. The others need not be built."""
        kept: list[tuple[int, _Row]] = []  # the largest hash first
        for row in rows:
            if count is None or len(kept) < count:
                heapq.heappush(kept, (-row.order, row))
            else:
                heapq.heappushpop(kept, (-row.order, row))
            if len(kept) == count:
                self._largest = -kept[0][0]
        return [row for _, row in sorted(kept, reverse=True)]

    def _remedy(self) -> str:
        if not self._masked:
            return "request fewer, shorten 'context' or add documents"
        words = ", ".join(str(word) for word in self.options.exclude[:5]) + ", ..." * (len(self.options.exclude) > 5)
        cause = f"'exclude: [{words}]' leaves no token in {self._masked} more rows"
        if self.prefix and self.options.context == 1:
            return f"{cause}, whose only input is BOS; raise 'context', or set 'exclude: []'"
        return f"{cause}; exclude fewer, or add documents with other tokens"

    def _within_memory(self, rows: Iterable[_Row]) -> Iterator[_Row]:
        """Yield the rows; `SaevalError` before those that are kept exceed the available memory."""
        from saeval.base.memory import available  # late: building and hashing rows needs numpy alone

        each = 2 * 8 * (self.options.context + 1)  # tokens and documents of 4 bytes, and their copies in one array
        most = available("cpu") // each
        for count, row in enumerate(rows, start=1):
            if min(count, self.options.sequences or count) > most:
                raise SaevalError(
                    f"data '{self.source.name}': rows of context {self.options.context} take "
                    f"{each / 2**20:.2g} MiB each, so that no more than {most} of them fit in memory; "
                    "request fewer 'sequences', or shorten 'context'"
                )
            yield row

    def _tokenised(self, documents: Iterable[Document]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and tokens of each nonempty document, in parts if it is long; the number indexes `_names`."""
        for batch in _batches(documents):
            texts = [self._without_bos(d.text) for d in batch if d.tokens is None and not _long(d)]
            # verbose=False: no warning for documents longer than the model's context, since they are cut below.
            located = any(document.spans for document in batch)
            if located and not getattr(self.tokenizer, "is_fast", False):
                raise SaevalError(f"data '{self.source.name}': labels of tokens need a fast tokenizer, with offsets")
            words = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": located}
            encoded = self.tokenizer(texts, **words) if texts else {"input_ids": []}
            ids, offsets = iter(encoded["input_ids"]), iter(encoded.get("offset_mapping", ()))
            for document in batch:
                parts: Iterable[Any]
                where: list[tuple[int, int]] | None = None
                if document.spans and (document.tokens is not None or _long(document)):
                    raise SaevalError(
                        f"document '{document.name}': labels of tokens need a text of at most {LONG} characters"
                    )
                if document.tokens is not None:
                    parts = [document.tokens]
                elif isinstance(document.text, Passage):
                    pieces = iter(document.text)
                    parts = tokens_of(chain([self._without_bos(next(pieces, ""))], pieces), self.tokenizer)
                elif _long(document):
                    parts = tokens_of(self._without_bos(document.text), self.tokenizer)
                else:
                    parts = [next(ids)]
                    where = self._located(document, next(offsets)) if located else None
                yield from self._numbered(document, (np.asarray(part, dtype=np.int32) for part in parts), where)

    def _located(self, document: Document, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the characters of each token in the document's own text, from those in its text without BOS."""
        lost = len(self._spelled) if self._spelled and str(document.text).startswith(self._spelled) else 0
        return [(start + lost, end + lost) for start, end in offsets]

    def _numbered(
        self, document: Document, parts: Iterable[np.ndarray], offsets: Sequence[tuple[int, int]] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the parts of one document with its number, without its own BOS if every row begins with one."""
        first, number, doubled = True, None, 0
        for tokens in parts:
            if first and len(tokens):
                first = False
                if self.prefix == tokens[:1].tolist():
                    self._not_doubled["bos"] += 1
                    tokens, doubled = tokens[1:], 1
            if len(tokens):
                if number is None:
                    number = len(self._names)
                    self._names.append(document.name)
                    self._annotator.add(number, document, offsets and offsets[doubled:])
                yield number, tokens
        if number is None:
            self._left_out[EMPTY] += 1

    def _without_bos(self, text: Any) -> str:
        """Return a text without the BOS spelled at its start, if the tokenizer reads that as ordinary characters."""
        if not self._spelled or not text.startswith(self._spelled):
            return str(text)
        self._not_doubled["bos"] += 1
        return str(text).removeprefix(self._spelled)

    def _of_documents(self, tokenised: Iterable[tuple[int, np.ndarray]]) -> Iterator[_Row]:
        """Yield rows of single documents. Without BOS, consecutive rows overlap by one token: each is a target once."""
        context = self.options.context
        width = context if self.prefix else context + 1
        chunks: Counter[str] = Counter()  # documents of one name share a counter, so that every row has its own key

        def row_of(number: int, tokens: np.ndarray, start: int) -> Iterator[_Row]:
            name = self._names[number]
            order = self._order(name, chunks[name])
            chunks[name] += 1
            if order <= self._largest:
                yield from self._row(tokens, np.full(len(tokens), number, dtype=np.int32), name, order, start)

        for number, parts in groupby(tokenised, key=itemgetter(0)):
            buffer, before = np.empty(0, dtype=np.int32), 0
            if self.options.keep != "all":
                whole = np.concatenate([part for _, part in parts])
                before = 0 if self.options.keep == "start" else max(0, len(whole) - width)
                yield from row_of(number, whole[before : before + width], before)
                continue
            for _, part in parts:
                buffer, start = np.concatenate([buffer, part]), 0
                while start + width <= len(buffer):
                    yield from row_of(number, buffer[start : start + width], before + start)
                    start += context
                buffer, before = buffer[start:], before + start
            if len(buffer):
                yield from row_of(number, buffer, before)

    def _of_stream(self, tokenised: Iterable[tuple[int, np.ndarray]]) -> Iterator[_Row]:
        """Yield full rows of the concatenated documents; a separator belongs to the document before it."""
        context = self.options.context
        width = context if self.prefix else context + 1
        tokens, documents = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
        separator = np.int32(self.separator)
        index, last, ended = 0, None, False
        for number, added in tokenised:
            if self._annotator:
                raise SaevalError(f"data '{self.source.name}': labels belong to documents; set 'packing: documents'")
            if last not in (None, number):
                begins = bool(added[0] == separator)
                if ended or begins:
                    self._not_doubled["separator"] += 1
                    added = added[1:] if ended and begins and len(added) > 1 else added
                else:
                    tokens, documents = np.append(tokens, separator), np.append(documents, np.int32(last))
            tokens = np.concatenate([tokens, added])
            documents = np.concatenate([documents, np.full(len(added), number, dtype=np.int32)])
            last, ended, start = number, bool(added[-1] == separator), 0
            while start + width <= len(tokens):
                piece = slice(start, start + width)
                owners = Counter(self._names[document] for document in documents[piece].tolist())
                name = owners.most_common(1)[0][0]
                order = self._order(name, index)
                index, start = index + 1, start + context
                if order <= self._largest:
                    yield from self._row(tokens[piece], documents[piece], name, order, 0)
            tokens, documents = tokens[start:], documents[start:]

    def _order(self, name: str, index: int) -> int:
        """Return the hash of a row."""
        return int.from_bytes(hashlib.sha256(f"{self.options.seed}\0{name}\0{index}".encode()).digest())

    def _row(self, tokens: np.ndarray, documents: np.ndarray, name: str, order: int, start: int) -> Iterator[_Row]:
        """Yield a row with BOS, which belongs to the document after it, and padding; nothing if its mask is empty."""
        first = len(self.prefix)
        row = np.zeros(self.options.context + 1, dtype=np.int32)
        owner = np.full(self.options.context + 1, PADDING, dtype=np.int32)
        row[:first], owner[:first] = self.prefix, documents[0]
        row[first : first + len(tokens)], owner[first : first + len(tokens)] = tokens, documents
        if not mask_of(row, owner, self.excluded).any():
            self._masked += bool(mask_of(row, owner, ()).any())
        else:
            yield _Row(row, owner, name, order, start, len(tokens))


def unread_special(tokenizer: Any, word: Literal["bos", "eos"], ids: Sequence[int]) -> str:
    """Return the spelling of a special token, if the tokenizer reads it as ordinary characters; else an empty string.

    `ids` holds the token that is put before or after texts; if it is not this special token, the result is empty.
    """
    spelling = getattr(tokenizer, f"{word}_token", None)
    if not spelling or not ids or list(ids) != [getattr(tokenizer, f"{word}_token_id", None)]:
        return ""
    read = tokenizer([spelling], add_special_tokens=False, verbose=False)["input_ids"][0]
    return "" if list(read) == list(ids) else str(spelling)


def _long(document: Document) -> bool:
    """Return True if the document's text is tokenised in parts."""
    return isinstance(document.text, Passage) or (document.text is not None and len(document.text) > LONG)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) if isinstance(document.text, str) else 0
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _documents(source: Source, split: Split, tokenizer: Any, left_out: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a split; a source without its own fit split is split by a hash of document names.

    Documents without text or tokens are left out and counted.
    """
    is_fit = None if source.splits_itself else _fit_rule(source, split, tokenizer)
    for document in source.documents_for(split, tokenizer):
        if why := _lack(document):
            left_out[why] += 1
        elif is_fit is None or is_fit(document.name) == (split == "fit"):
            yield document


def _lack(document: Document) -> str | None:
    """Return why a document has nothing to tokenise; None if it has. `SaevalError` if its text is not valid."""
    content = document.text if document.tokens is None else document.tokens
    if content is None:
        return "null"
    if document.tokens is None and not isinstance(content, str | Passage):
        raise SaevalError(f"document '{document.name}': expected text, found {type(content).__name__}")
    if isinstance(content, str) and (half := lone_surrogate(content)):
        raise SaevalError(f"document '{document.name}': '{half}' is half of a surrogate pair, so this is not text")
    return EMPTY if isinstance(content, Sized) and len(content) == 0 else None


def _fit_rule(source: Source, split: Split, tokenizer: Any) -> Callable[[str], bool]:
    """Return the rule for names of the fit split: a low hash, or the lowest one if all fall on the same side."""
    shares: dict[str, float] = {}
    sides: set[bool] = set()
    for document in source.documents_for(split, tokenizer):
        if _lack(document):
            continue
        share = shares.setdefault(document.name, _share(document.name))
        sides.add(share < FIT_SHARE)
        if len(sides) == 2:  # a few documents show this, so a large corpus is not read twice
            return lambda name: _share(name) < FIT_SHARE
    if len(shares) > 1:
        lowest = min(shares, key=lambda name: (shares[name], name))
        return lambda name: name == lowest
    if split == "fit":
        raise SaevalError(
            f"data '{source.name}': a fit split needs at least 2 documents, found {len(shares)}; "
            "add documents, or cut the text into several"
        )
    return lambda name: False


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
