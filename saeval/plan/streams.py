"""The `data:` of a suite as rows ready to stream: the evaluated rows and the fit split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from saeval.base.errors import Problem, SaevalError, blamed, quoted_value, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted
from saeval.base.lazy_torch import torch
from saeval.base.parameters import at_key, schema, validated, validated_as
from saeval.interfaces.data import Batch, Dataset, PairBatch, Source
from saeval.interfaces.model import ModelSpec
from saeval.registry.format_recognition import paths
from saeval.registry.registry import Registry
from saeval.stats.randomness import hashed
from saeval.suite.schema import Suite
from saeval.text.packing import Split, TokenOptions, TooFewSequencesError
from saeval.text.tokens import build_tokens

log = logging.getLogger("saeval")
_BLOCK = 256
"""Rows that are read at a time to look for a position that is scored."""


@dataclass(eq=False)
class Streams:
    """The rows of a suite's data source. They are tokenised when `evaluation` or `fit` is first used."""

    source: Source
    options: TokenOptions | None
    """The options by which documents become rows; None for a source with rows of its own."""
    spec: ModelSpec | None
    limit: int | None
    origin: object = None
    score_share: float = 1.0
    """Share of the positions of the evaluated rows at which predictions are scored."""

    @cached_property
    def evaluation(self) -> Dataset:
        """The evaluated rows, up to the limit; the model can embed all their token ids."""
        options = self.options
        with self.answered_for():
            rows = self._rows("evaluation") if options is None else self._tokens("evaluation", options.sequences)
            self._warn(rows.describe())
            rows = Scored(rows, self.score_share) if self.score_share < 1 else rows
            rows = First(rows, self.limit) if self.limit is not None and self.limit < len(rows) else rows
            if self.score_share < 1:
                self._check_share(rows)
            self._check_ids(rows, "evaluation")
            return rows

    @property
    def cut(self) -> int | None:
        """The limit, if there are more rows; None otherwise, since the run is then not limited."""
        return self.limit if isinstance(self.evaluation, First) else None

    @cached_property
    def fit(self) -> Dataset:
        """Up to `fit_sequences` rows of documents that are not evaluated."""
        with self.answered_for():
            if self.options is None:
                rows = self._rows("fit")
            else:
                try:
                    rows = self._tokens("fit", self.options.fit_sequences)
                except TooFewSequencesError:
                    rows = self._tokens("fit", None)
            self._check_ids(rows, "fit")
            return rows

    def _warn(self, described: Mapping[str, Any]) -> None:
        """Warn of unused parts of the data, and of special tokens that are not added a second time."""
        for sentence in self.source.facts().get("unused", ()):
            log.warning("data '%s': %s", self.source.name, sentence)
        ends = {"bos": "begin with a BOS", "eos": "end with an EOS", "separator": "end or begin with a separator"}
        for word, number in described.get("not_doubled", {}).items():
            texts = f"{counted(number, 'text')} of data '{self.source.name}'"
            log.warning("%s %s of their own: no second one is added", texts, ends[word])

    def _check_share(self, rows: Dataset) -> None:
        """Raise `ParameterError` if no position of the rows would be scored, though some could be."""
        positions = 0
        for start in range(0, len(rows), _BLOCK):
            batch = rows.batch(np.arange(start, min(start + _BLOCK, len(rows))), "cpu")
            for side in batch.sides if isinstance(batch, PairBatch) else (batch,):
                if side.sampled is not None and bool(side.sampled.any()):
                    return
                positions += int(side.mask.sum())
        if positions:
            with at_key("score_share"):
                fault = f"scores none of the {positions} positions in the mask of {counted(len(rows), 'row')}"
                raise SaevalError(
                    f"'score_share: {self.score_share:g}' {fault}; choose a larger share, or more sequences"
                )

    def _check_ids(self, rows: Dataset, split: Split) -> None:
        """Raise `SaevalError` for a token id that the model cannot embed."""
        size = self.spec.vocabulary if self.spec else None
        if self.spec is None or size is None or (outside := rows.beyond(size)) is None:
            return
        token, row = outside
        cause = "is its tokenizer another model's?" if self.source.kind == "text" else "was another tokenizer used?"
        where = f"row {row} of the {split} rows"
        raise SaevalError(f"token id {token} in {where} is outside the {size} tokens of '{self.spec.name}'; {cause}")

    def _rows(self, split: Split) -> Dataset:
        return self.source.dataset(split, self.spec.tokenizer if self.spec else None)

    def _tokens(self, split: Split, sequences: int | None) -> Dataset:
        assert self.options is not None
        options = self.options.model_copy(update={"sequences": sequences})
        tokenizer = self._tokenizer if self.spec else _no_tokenizer
        identity = self.spec.tokenizer_identity() if self.spec else ""
        return build_tokens(self.source, options, tokenizer, identity, split)

    def _tokenizer(self) -> Any:
        """Return the model's tokenizer; warn if it has more tokens than the model embeds."""
        assert self.spec is not None
        tokenizer, size = self.spec.tokenizer(), self.spec.vocabulary
        if size is not None and hasattr(tokenizer, "__len__") and len(tokenizer) > size:
            name = self.spec.name
            log.warning("the tokenizer of '%s' has %d tokens, the model embeds %d", name, len(tokenizer), size)
        return tokenizer

    @cached_property
    def description(self) -> dict[str, Any]:
        """The record of the data in results."""
        with self.answered_for():
            identity = {"use": self.source.name, "fingerprint": self.evaluation.fingerprint}
            common = self.options.model_dump() if self.options else {}
            limit = {"limit": self.cut} if self.cut is not None else {}
            # A fact of the rows replaces one of the source with the same name, such as `documents`.
            return {**identity, **common, **limit, **dict(self.source.facts()), **dict(self.evaluation.describe())}

    def answered_for(self) -> AbstractContextManager[None]:
        """Context for calls of the source's code: an error in it becomes a `SaevalError` that names the plugin."""
        return blamed(f"data '{self.source.name}'", self.origin)


class Scored(Dataset):
    """The same rows, with predictions scored at a share of the positions.

    A hash of (sequence id, position) chooses them, so they depend neither on the batch nor on the number of rows. The
    positions of a smaller share are among those of a larger one.
    """

    def __init__(self, rows: Dataset, share: float) -> None:
        self._rows, self._share = rows, share
        self.pair, self.supplies, self.needs_model = rows.pair, rows.supplies, rows.needs_model
        self.supplies_once, self.width = rows.supplies_once, rows.width

    @property
    def context(self) -> int | None:
        return self._rows.context

    def describe(self) -> Mapping[str, Any]:
        return {**self._rows.describe(), "score_share": self._share, "fingerprint": self.fingerprint}

    def counts(self, rows: int) -> Mapping[str, int]:
        return self._rows.counts(rows)

    @property
    def fingerprint(self) -> str:
        return digest_of([self._rows.fingerprint, "score_share", self._share])

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return self._rows.clusters

    def __len__(self) -> int:
        return len(self._rows)

    def once(self, name: str) -> Any:
        return self._rows.once(name)

    def beyond(self, vocabulary: int) -> tuple[int, int] | None:
        return self._rows.beyond(vocabulary)

    def spelling(self, ids: Sequence[int]) -> list[str]:
        return self._rows.spelling(ids)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch | PairBatch:
        batch = self._rows.batch(rows, device)
        for side in batch.sides if isinstance(batch, PairBatch) else [batch]:
            keys = hashed("score_share", side.sequence_ids[:, None], np.arange(side.tokens.shape[1]))
            side.sampled = side.mask & torch.from_numpy(keys < self._share * 2.0**64).to(side.mask.device)
        return batch


class First(Dataset):
    """The first rows of a dataset, as `--limit` keeps them."""

    def __init__(self, rows: Dataset, count: int) -> None:
        self._rows, self._count = rows, min(count, len(rows))
        self.pair, self.supplies, self.needs_model = rows.pair, rows.supplies, rows.needs_model
        self.supplies_once, self.width = rows.supplies_once, rows.width

    @property
    def context(self) -> int | None:
        return self._rows.context

    def describe(self) -> Mapping[str, Any]:
        counts = self._rows.counts(len(self._rows))
        facts = {name: fact for name, fact in self._rows.describe().items() if name not in (*counts, "tokens")}
        return {**facts, **self.counts(self._count)}

    def counts(self, rows: int) -> Mapping[str, int]:
        return self._rows.counts(rows)

    @property
    def fingerprint(self) -> str:
        return digest_of([self._rows.fingerprint, self._count])

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return np.unique(self._rows.clusters[: self._count], return_inverse=True)[1]

    def __len__(self) -> int:
        return self._count

    def spelling(self, ids: Sequence[int]) -> list[str]:
        return self._rows.spelling(ids)

    def once(self, name: str) -> Any:
        return self._rows.once(name)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch | PairBatch:
        batch = self._rows.batch(rows, device)
        clusters = self.clusters[np.asarray(rows)]
        for side in batch.sides if isinstance(batch, PairBatch) else [batch]:
            side.clusters = clusters
        return batch


def _no_tokenizer() -> Any:
    raise SaevalError("text data needs a model for its tokenizer; add 'model:'")


def streams(
    suite: Suite, registry: Registry, spec: ModelSpec | None, limit: int | None, problems: list[Problem]
) -> Streams | None:
    """Return the suite's streams; None, with problems, if its `data:` is wrong."""
    raw = suite.body.data
    entry = {"use": raw} if isinstance(raw, str) else dict(raw)
    use = entry.pop("use", None) if "use" in entry else next((key for key in entry if _chooses(registry, key)), None)
    if not isinstance(use, str):
        near = "; did you mean 'texts'?" if "text" in entry else ""
        message = f"'data' needs 'use', one of: {', '.join(registry.data.names())}{near}"
        problems.append(suite.problem(message, "data"))
        return None
    try:
        source_class = registry.data[use]
    except SaevalError as error:
        message = str(error)
        if paths(use):
            readers = ", ".join(entry.name for entry in registry.data if "path" in schema(entry.thing).model_fields)
            remedy = f"write {{use: SOURCE, path: {use}}}, with a source of {readers}"
            message = f"no data source is named '{use}', which is a path; {remedy}"
        problems.append(suite.problem(message, "data", "use"))
        return None
    share = entry.pop("score_share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        message = f"'score_share' is a number above 0 and at most 1, got {quoted_value(share)}"
        problems.append(suite.problem(message, "data", "score_share"))
        return None
    textual = source_class.kind in ("text", "tokens")
    shared = {*(TokenOptions.model_fields if textual else ()), "score_share"}
    parameters = set(schema(source_class).model_fields)
    unknown = [key for key in entry if key not in shared | parameters]
    for key in unknown:
        message = f"unknown parameter '{key}' of data '{use}'{suggestion(key, shared | parameters)}"
        problems.append(suite.problem(message, "data", key, key=True))
    if unknown:
        return None
    try:
        given = validated(source_class, {k: v for k, v in entry.items() if k in parameters}, f"data '{use}'")
        common = {**source_class.defaults, **{k: v for k, v in entry.items() if k in shared - parameters}}
        options = validated_as(TokenOptions, common, f"data '{use}'") if textual else None
        origin = registry.data.entry(use).origin
        with blamed(f"data '{use}'", origin, values=True):
            source = source_class(**given)
        return Streams(source, options, spec, limit, origin, float(share))
    except (SaevalError, ValueError) as error:
        problems += suite.problems(error, "data")
    return None


def _chooses(registry: Registry, key: str) -> bool:
    """True if a key of `data:` names both a source and its parameter, as in `texts: [...]`, which needs no `use`."""
    return key in registry.data and key in schema(registry.data[key]).model_fields
