"""`check_source`: tests that a data source yields the same sound documents, or rows, every time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from saeval.base.errors import SaevalError, lone_surrogate, said
from saeval.base.parameters import validated
from saeval.base.text_files import Passage
from saeval.interfaces.data import Batch, DataKind, Dataset, Document, PairBatch, Source
from saeval.interfaces.documentation import description
from saeval.testing.substitute_checks import seeded

T = TypeVar("T")
Split = Literal["evaluation", "fit"]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_KEYED = "sort what a set, a folder or a shuffle gives, and draw from a generator with a seed of your own"


def check_source(
    source: type[Source], params: Mapping[str, Any] | None = None, *, other: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> list[Document] | Dataset:  # fmt: skip
    """Test that a data source yields the same sound documents, or rows, every time, with a fingerprint of them.

    `params` are its keys in a suite's `data:`, without `use`. `other` are keys that give other documents, which have to
    change the fingerprint. Checks the class, the parameters, the fingerprint, the order and form of the documents, two
    readers at once, and the fit split. For the kinds `pair` and `activations` it checks the data set instead: that a
    row is the same in every batch, and shapes, dtypes, masks, documents and, for pairs, where they differ.
    `tokenizer` is given to `documents_for` and `dataset`.

    Returns the documents or the data set of the evaluation. Raises `AssertionError` with what was violated, the
    smallest
    example and the remedy.
    """
    check = _Check(source, dict(params or {}), tokenizer)
    check.check_class()
    check.check_fingerprint(other)
    check.check_facts()
    return check.check_documents() if source.kind in ("text", "tokens") else check.check_dataset()


class _Check:
    def __init__(self, source: type[Source], params: dict[str, Any], tokenizer: Any) -> None:
        self.source, self.params, self.tokenizer = source, params, tokenizer
        self.what = f"data source '{getattr(source, 'name', source.__name__)}'"

    def made(self, params: Mapping[str, Any] | None = None) -> Source:
        """Return a new object of the source, made as a suite makes it."""
        given = self.params if params is None else params
        return self._called("__init__", lambda: self.source(**validated(self.source, given, self.what)))

    def _called(self, method: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (AssertionError, SaevalError):
            raise
        except Exception as error:  # of somebody else's class
            raise AssertionError(f"{self.what}: {method} raised {said(error)}") from error

    def check_class(self) -> None:
        """Check the name, the kind and the docstring."""
        name = getattr(self.source, "name", None)
        assert isinstance(name, str) and NAME.fullmatch(name), (
            f"{self.source.__name__}.name is {name!r}; it is written in suites: lower case, of letters, digits, _ and -"
        )
        kinds = get_args(DataKind)
        assert self.source.kind in kinds, f"{self.what}: kind is {self.source.kind!r}, not one of {', '.join(kinds)}"
        missing = getattr(self.source, "__abstractmethods__", ())
        assert not missing, f"{self.what} does not implement {', '.join(sorted(missing))}"
        needed = "documents" if self.source.kind in ("text", "tokens") else "dataset"
        ways = ("documents", "documents_for") if needed == "documents" else ("dataset",)
        assert any(getattr(self.source, way) is not getattr(Source, way) for way in ways), (
            f"{self.what}: a source of kind '{self.source.kind}' defines '{needed}'"
        )
        assert description(self.source), f"{self.what} has no docstring; `saeval ls data` prints its first line"

    def check_fingerprint(self, other: Mapping[str, Any] | None) -> None:
        """Check that it is text, the same for equal sources, and another for other documents."""
        source = self.made()
        first = self._called("fingerprint", source.fingerprint)
        assert isinstance(first, str) and first, f"{self.what}: fingerprint returned {first!r}; return text"
        for again, label in ((source, "the second call"), (self.made(), "another object with the same parameters")):
            with seeded(1):
                now = self._called("fingerprint", again.fingerprint)
            assert now == first, (
                f"{self.what}: the fingerprint is {now} for {label}, {first} for the first: hash the documents, not "
                "the "
                f"time, id() or hash(), or no stored result is ever used again"
            )
        if other is not None:
            now = self._called("fingerprint", self.made(other).fingerprint)
            assert now != first, (
                f"{self.what}: the fingerprint is {first} for {self.params} and for {dict(other)}, so results of one "
                f"would be used for the other; hash all that the documents depend on"
            )

    def check_facts(self) -> None:
        """Check that the facts are plain data."""
        facts = self._called("facts", self.made().facts)
        try:
            json.dumps(dict(facts), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{self.what}: facts must be plain data for JSON, but {error}: {facts}") from None

    # ---- text and tokens

    def check_documents(self) -> list[Document]:
        """Check the documents of both splits; return those of the evaluation."""
        source = self.made()
        documents = self._read(source, "evaluation")
        assert documents, f"{self.what} yields no document"
        for index, document in enumerate(documents):
            self._check_document(index, document)
        assert any(d.text is not None or d.tokens is not None for d in documents), (
            f"{self.what}: none of its {len(documents)} documents has text or tokens"
        )
        self._check_same(documents, self._read(source, "evaluation"), "a second reading of the same object", (
            "it keeps its place between calls, such as in an open file or an iterator; open it in `documents`"
        ))  # fmt: skip
        with seeded(1):
            again = self._read(self.made(), "evaluation")
        self._check_same(documents, again, "another object and other global seeds", (
            f"the order or the choice is not fixed; {_KEYED}"
        ))  # fmt: skip
        one, two = self._open(source, "evaluation"), self._open(source, "evaluation")
        interleaved = [copy for pair in zip_longest(one, two) for copy in map(_copied, pair) if copy]
        self._check_same(documents, interleaved[::2], "two readers at once", (
            "two iterators share their place; keep it in local variables of `documents`"
        ))  # fmt: skip
        held = list(self._open(source, "evaluation"))
        self._check_same(documents, [_copied(d) for d in held], "documents that are kept while later ones are read", (
            "a later document overwrites an earlier one; yield a new list or array for each"
        ))  # fmt: skip
        self._check_splits(documents, self._read(source, "fit"))
        return documents

    def _open(self, source: Source, split: Split) -> Iterator[Document]:
        return iter(self._called("documents", lambda: source.documents_for(split, self.tokenizer)))

    def _read(self, source: Source, split: Split) -> list[Document]:
        return self._called("documents", lambda: [_copied(d) for d in self._open(source, split)])

    def _check_document(self, index: int, document: Document) -> None:
        where = f"{self.what}: document {index}"
        assert isinstance(document, Document), f"{where} is a {type(document).__name__}; yield Document(name, text)"
        assert isinstance(document.name, str) and document.name, f"{where} has the name {document.name!r}; give it text"
        where = f"{where} ('{document.name}')"
        text, tokens = document.text, document.tokens
        assert text is None or tokens is None, f"{where} has both text and tokens; give one of them"
        kinds = " or ".join(["text", "a Passage"])
        assert text is None or isinstance(text, str | Passage), f"{where} has a {type(text).__name__} for {kinds}"
        if self.source.kind == "tokens" and text is not None:
            raise AssertionError(f"{where} has text, but the kind of its source is 'tokens'")
        if isinstance(text, str) and (bad := lone_surrogate(text)) is not None:
            raise AssertionError(
                f"{where} has {bad}, which cannot be encoded; read with errors='replace', or refuse it"
            )
        if tokens is not None:
            array = np.asarray(tokens)
            assert array.ndim == 1 and array.dtype.kind in "iu", (
                f"{where} has tokens of {array.dtype} and shape {list(array.shape)}; expected whole numbers [n]"
            )
            assert not (array < 0).any(), (
                f"{where} has the token {array.min()} at {int(array.argmin())}; ids are at least 0"
            )
        for task, label in document.labels.items():
            assert isinstance(label, str), f"{where} has the label {label!r} in task '{task}'; labels are text"
        for task, spans in document.spans.items():
            assert isinstance(text, str), f"{where} has spans in task '{task}' but no text"
            for start, end in spans:
                assert 0 <= start < end <= len(text), (
                    f"{where} has the span ({start}, {end}) in task '{task}', outside its {len(text)} characters"
                )

    def _check_same(self, first: Sequence[Document], now: Sequence[Document | None], label: str, cause: str) -> None:
        for index, (before, after) in enumerate(zip_longest(first, now)):
            assert _facts(before) == _facts(after), (
                f"{self.what}: document {index} is {_shown(after)} with {label}, {_shown(before)} at first: {cause}"
            )

    def _check_splits(self, documents: Sequence[Document], fit: Sequence[Document]) -> None:
        if not self.source.splits_itself:
            for index, (one, other) in enumerate(zip_longest(documents, fit)):
                assert _facts(one) == _facts(other), (
                    f"{self.what}: document {index} is {_shown(other)} in the fit split, {_shown(one)} in the "
                    "evaluation; "
                    f"yield the same for both and let saeval split them, or set splits_itself = True"
                )
            return
        names = {document.name for document in documents}
        texts = {_facts(document)[1] for document in documents} - {None}
        for document in fit:
            shared = document.name in names or _facts(document)[1] in texts
            assert not shared, (
                f"{self.what}: {_shown(document)} is in the fit split and in the evaluation, but splits_itself is "
                "True; "
                f"give each document to one of them"
            )

    # ---- pairs and activations

    def check_dataset(self) -> Dataset:
        """Check the rows of the evaluation; return the data set."""
        load = None if self.tokenizer is None else lambda: self.tokenizer
        rows = self._called("dataset", lambda: self.made().dataset("evaluation", load))
        assert isinstance(rows, Dataset), f"{self.what}: dataset returned a {type(rows).__name__}, no Dataset"
        pair = self.source.kind == "pair"
        assert rows.pair == pair, (
            f"{self.what}: its kind is '{self.source.kind}', but pair is {rows.pair} on the data set"
        )
        n = len(rows)
        assert n > 1, f"{self.what}: the data set has {n} rows; two are the least that can be compared"
        with seeded(1):
            again = self._called("dataset", lambda: self.made().dataset("evaluation", load))
        assert again.fingerprint == rows.fingerprint, (
            f"{self.what}: the fingerprint of the data set is {again.fingerprint} for another object, "
            f"{rows.fingerprint} "
            f"for the first: the rows or their order are not fixed; {_KEYED}"
        )
        clusters = np.asarray(rows.clusters)
        present = np.unique(clusters)
        assert clusters.shape == (n,) and np.array_equal(present, np.arange(len(present))), (
            f"{self.what}: clusters are {clusters[:5].tolist()}... of shape {list(clusters.shape)}; expected one "
            "number "
            f"for each of {n} rows, from 0 without a gap"
        )
        few = list(range(min(n, 4)))
        whole = self._batch(rows, few)
        for name in rows.supplies:
            sides = whole.sides if isinstance(whole, PairBatch) else (whole,)
            assert all(name in side.supplied for side in sides), (
                f"{self.what}: supplies names '{name}', no batch has it"
            )
        for number, side in enumerate(whole.sides if isinstance(whole, PairBatch) else (whole,)):
            self._check_side(side, f"side {number} of the pairs" if pair else "the batch", few, clusters)
        if isinstance(whole, PairBatch):
            self._check_divergence(whole)
        backwards = few[::-1]
        for label, now, order in (
            ("the rows in reverse", self._batch(rows, backwards), backwards),
            *((f"row {row} alone", self._batch(rows, [row]), [row]) for row in few),
        ):
            self._check_rows(whole, now, order, label)
        return rows

    def _batch(self, rows: Dataset, chosen: list[int]) -> Batch | PairBatch:
        batch = self._called(f"batch({chosen})", lambda: rows.batch(chosen, "cpu"))
        wanted = PairBatch if rows.pair else Batch
        assert isinstance(batch, wanted), f"{self.what}: batch returned a {type(batch).__name__}, no {wanted.__name__}"
        return batch

    def _check_side(self, side: Batch, label: str, rows: list[int], clusters: np.ndarray) -> None:
        for name, kinds in (("tokens", "i"), ("targets", "i"), ("mask", "b"), ("real", "b")):
            tensor = getattr(side, name)
            shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
            assert shape == tuple(side.tokens.shape) and len(shape) == 2 and shape[0] == len(rows), (
                f"{self.what}: {name} of {label} is {list(shape)} for {len(rows)} rows; expected [batch, seq]"
            )
            assert dtype == ("bool" if kinds == "b" else "int64"), f"{self.what}: {name} of {label} is {dtype}"
        outside = (side.mask & ~side.real).nonzero()
        assert not len(outside), (
            f"{self.what}: position {outside[0].tolist()[1]} of row {outside[0].tolist()[0]} of {label} is in the "
            "mask but "
            f"not real: padding would be scored"
        )
        assert np.asarray(side.clusters).tolist() == clusters[rows].tolist(), (
            f"{self.what}: clusters of {label} are {np.asarray(side.clusters).tolist()}, of the data set "
            f"{clusters[rows].tolist()}"
        )

    def _check_divergence(self, pairs: PairBatch) -> None:
        one, two = (side.tokens.masked_fill(~side.real, -1) for side in pairs.sides)
        for row, place in enumerate(pairs.divergence.tolist()):
            differs = (one[row] != two[row]).nonzero().flatten().tolist()
            first = differs[0] if differs else len(one[row])
            prefix = bool(differs) and -1 in (int(one[row, first]), int(two[row, first]))
            assert place == first - prefix, (
                f"{self.what}: divergence of pair {row} is {place}, but its texts first differ at {first - prefix}"
            )

    def _check_rows(self, whole: Batch | PairBatch, now: Batch | PairBatch, rows: list[int], label: str) -> None:
        before_sides = whole.sides if isinstance(whole, PairBatch) else (whole,)
        now_sides = now.sides if isinstance(now, PairBatch) else (now,)
        for before, after in zip(before_sides, now_sides, strict=True):
            for name in ("sequence_ids", "clusters", "tokens", "targets", "mask", "real"):
                expected = torch.as_tensor(getattr(before, name))[rows]
                given = torch.as_tensor(getattr(after, name))
                if name in ("tokens", "targets", "mask", "real"):  # a batch may be as wide as its longest row
                    width = min(expected.shape[1], given.shape[1])
                    real = torch.as_tensor(before.real)[rows][:, :width]
                    expected, given = expected[:, :width] * real, given[:, :width] * real
                assert torch.equal(expected, given), (
                    f"{self.what}: {name} is {given[0].tolist()} with {label}, {expected[0].tolist()} in the batch "
                    f"{list(range(len(before.tokens)))}: return the rows that are asked for, in that order, with ids "
                    "of the "
                    f"data set rather than places in the batch"
                )


def _copied(document: Document | None) -> Any:
    """Return a document whose tokens are its own: a source might write into those that it has yielded."""
    if not isinstance(document, Document) or document.tokens is None:
        return document
    return Document(
        document.name, document.text, np.array(document.tokens), document.labels, document.spans, document.validation
    )


def _facts(document: Document | None) -> tuple[Any, ...]:
    if document is None:
        return (None, None)
    text = str(document.text) if isinstance(document.text, str) else document.text
    content = text if document.tokens is None else tuple(np.asarray(document.tokens).tolist())
    spans = {task: list(map(tuple, spans)) for task, spans in document.spans.items()}
    return document.name, content, dict(document.labels), spans, document.validation


def _shown(document: Document | None) -> str:
    if document is None:
        return "missing"
    return f"'{document.name}' ({str(_facts(document)[1])[:40]!r})"
