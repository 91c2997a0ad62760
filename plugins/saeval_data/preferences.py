"""Preference pairs from JSON Lines, Parquet and Hugging Face datasets: their texts, or only recorded rewards."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from saeval.plugin import DataKind, SaevalError, Source, Spelling, hashed, quoted_value, sha256_file
from saeval_data import files
from saeval_data.pairs import Pair, PairDataset, PairOptions, Tokenised, tokenised
from saeval_data.stdlib import hash_share
from saeval_data.tables import Stored, columns_of, records_of

_REWARDS = ("chosen_reward", "rejected_reward")
"""Columns of recorded rewards that are used by default."""
_NO_TOKENS = np.zeros(0, np.int32)
_BOTH = (
    "rewards are recorded in columns, so there is no text for a model; leave out 'model', or 'chosen_reward' and "
    "'rejected_reward'"
)
_NEITHER = (
    "text needs a model for its tokenizer and rewards; add 'model:', or name the columns of recorded rewards with "
    "'chosen_reward' and 'rejected_reward'"
)
_SWAPPED, _ORDER = 11, 12
"""Keys of the hashed draws."""


class Pairs(Source):
    """Base class of sources of preference pairs: selects, orders and tokenises the pairs."""

    kind: ClassVar[DataKind] = "pair"

    def __init__(self, options: PairOptions, fit_share: float, swap: float, seed: int) -> None:
        for word, share in (("fit_share", fit_share), ("swap", swap)):
            if not 0 <= share <= 1:
                raise SaevalError(f"data '{self.name}': '{word}' must be between 0 and 1, found {share}")
        for word, number in (("pairs", options.pairs), ("context", options.context)):
            if number is not None and number < 1:
                raise SaevalError(f"data '{self.name}': '{word}' must be at least 1, found {number}")
        self.options, self.fit_share, self.swap, self.seed = options, fit_share, swap, seed

    @abstractmethod
    def records(self) -> Iterable[Pair]:
        """Return all pairs, always in the same order."""

    @property
    def recorded(self) -> bool:
        """True if the data contain rewards, so that no text is read."""
        return False

    def dataset(
        self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None
    ) -> PairDataset:  # fmt: skip
        """Return the pairs of one split that a keyed hash selects, the longest first."""
        if split == "fit" and self.fit_share == 0:
            raise SaevalError(f"data '{self.name}' has no fit split; set aside a share, as in 'fit_share: 0.1'")
        if self.recorded == (tokenizer is not None):
            raise SaevalError(f"data '{self.name}': {_BOTH if self.recorded else _NEITHER}")
        chosen = [p for p in self._pairs if (hash_share(f"fit {p.cluster}") < self.fit_share) == (split == "fit")]
        keys = hashed(_ORDER, self.seed, np.array([p.row for p in chosen], dtype=np.int64))
        left_out: Counter[str] = Counter()
        not_doubled: Counter[str] = Counter()
        ordered = _whole((self._swapped(chosen[i]) for i in np.argsort(keys, kind="stable")), left_out)
        wanted = self.options.pairs if split == "evaluation" else None
        pairs: Iterator[Tokenised]
        spelling: Spelling | None
        if tokenizer is None:
            pairs, spelling = (Tokenised(p, (_NO_TOKENS, _NO_TOKENS), 0) for p in ordered), None
        else:
            loaded = tokenizer()
            pairs, spelling = tokenised(ordered, loaded, self.options, left_out, not_doubled), Spelling(loaded)
        rows = list(islice(pairs, wanted))
        # Then the rows of a batch have similar lengths, and a lack of memory shows in the first batch.
        rows.sort(key=lambda row: -max(map(len, row.sides)))
        self._check(rows, wanted, left_out, split)
        facts = {"left_out": dict(left_out), "not_doubled": dict(not_doubled), "swap": self.swap, "seed": self.seed}
        return PairDataset(rows, spelling, facts)

    def _check(self, rows: list[Tokenised], wanted: int | None, left_out: Mapping[str, int], split: str) -> None:
        if len(rows) >= (wanted or 1):
            return
        need = f"'pairs: {wanted}' were requested" if wanted else "at least one pair is needed"
        reasons = "".join(f", {count} left out as {reason}" for reason, count in left_out.items())
        raise SaevalError(f"data '{self.name}': {need}, but its {split} split has {len(rows)}{reasons}")

    @cached_property
    def _pairs(self) -> list[Pair]:
        return list(self.records())

    def _swapped(self, pair: Pair) -> Pair:
        """Return the pair, with its label swapped if a keyed draw selects it."""
        if not self.swap or int(hashed(_SWAPPED, self.seed, pair.row)) >= self.swap * 2**64:
            return pair
        rewards = pair.rewards and (pair.rewards[1], pair.rewards[0])
        return replace(pair, chosen=pair.rejected, rejected=pair.chosen, rewards=rewards)


class Preferences(Pairs):
    """Preference pairs from `path` (.jsonl, .parquet, globs of these, a dataset folder) or `name` (a hub dataset).

    `chosen`, `rejected` and `prompt` name columns of text; without `prompt`, both sides must contain it. `config`,
    `split` and `revision` select a hub dataset; `split` also selects a split of a dataset folder.
    `by` names columns to split results by. `trained_on` lists row ranges [from, to), counted from 0, on which the
    reward model was trained; they make a column `trained_on`. `document` names a column; pairs with the same value are
    one document, so they are not independent. By default this is the prompt, or each pair if there is none.
    Pairs of more than `context` tokens, and those with an empty or null side, are left out and counted. `pairs` limits
    their number; a hash of (`seed`, row) selects them. `bos` and `eos` add the tokenizer's BOS and EOS to each side.
    `fit_share` is the share of documents in the fit split. `swap` is the share of pairs whose labels are swapped, for
    a baseline. `chosen_reward` and `rejected_reward` name columns of recorded rewards: then no text is read and no
    model is needed. A suite without a model uses columns with these names by default.
    """

    name = "preferences"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        prompt: str | None = None,
        chosen: str = "chosen",
        rejected: str = "rejected",
        chosen_reward: str | None = None,
        rejected_reward: str | None = None,
        by: list[str] | None = None,
        document: str | None = None,
        trained_on: list[tuple[int, int]] | None = None,
        pairs: int | None = None,
        context: int | None = None,
        bos: bool = True,
        eos: bool = False,
        fit_share: float = 0.0,
        swap: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(PairOptions(context, bos, eos, pairs), fit_share, swap, seed)
        if (chosen_reward is None) != (rejected_reward is None):
            raise SaevalError("data 'preferences': 'chosen_reward' and 'rejected_reward' must be set together")
        self.stored = Stored(self.name, path, name, config, split, revision)
        self.paths = self.stored.paths
        for file in self.paths:
            if not (file.suffix in (".jsonl", ".parquet") if file.is_file() else len(self.paths) == 1):
                expected = (
                    "a .jsonl or .parquet file or a folder" if len(self.paths) == 1 else ".jsonl or .parquet files"
                )
                raise SaevalError(f"data 'preferences': expected {expected}, found {file}")
        self.texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        self.rewards = (chosen_reward, rejected_reward) if chosen_reward and rejected_reward else None
        self.by, self.document, self.trained_on = by or [], document, trained_on or []
        for first, end in self.trained_on:
            if not 0 <= first < end:
                raise SaevalError(f"data 'preferences': 'trained_on' needs ranges [from, to), found [{first}, {end}]")
        if self.trained_on and "trained_on" in self.by:
            raise SaevalError("data 'preferences': 'trained_on' is set as ranges and as a column in 'by'; remove one")

    @property
    def recorded(self) -> bool:
        return self.rewards is not None

    @property
    def _files(self) -> list[Path]:
        """The files that records are read from; empty for a dataset."""
        return [path for path in self.paths if path.is_file()]

    def dataset(
        self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None
    ) -> PairDataset:  # fmt: skip
        if tokenizer is None and self.rewards is None:
            columns = columns_of(self._files[0]) if self._files else self.stored.columns
            self.rewards = _REWARDS if set(_REWARDS) <= set(columns) else None
        return super().dataset(split, tokenizer)

    def fingerprint(self) -> str:
        parts = [self.texts, self.rewards, self.by, self.document, self.trained_on, self.stored.split]
        if not self.paths:
            parts += [self.stored.name, self.stored.config, self.stored.commit]
        else:
            read = self._files or sorted(f for f in self.paths[0].rglob("*") if f.is_file())
            parts += [sha256_file(file) for file in read]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self) -> Mapping[str, Any]:
        read = [path.name for path in self._files] or self.stored.read
        where: dict[str, Any] = {"path": ", ".join(map(str, self.paths)), "read": read[:20], "files": len(read)}
        if not self.paths:
            where = {"dataset": self.stored.name, "revision": self.stored.commit}
        unused = [
            f"{path}: column 'prompt' is not used; add 'prompt: prompt' if '{self.texts['chosen']}' and "
            f"'{self.texts['rejected']}' do not begin with it"
            for path in ([] if self.texts["prompt"] or self.rewards else self._files)
            if "prompt" in columns_of(path)
        ]
        options = {"by": self.by, "trained_on": [list(r) for r in self.trained_on], "fit_share": self.fit_share}
        return {**where, **options, **({"unused": unused[:3]} if unused else {})}

    def records(self) -> Iterator[Pair]:
        wanted = [c for c in (*(self.rewards or self.texts.values()), *self.by, self.document) if c is not None]
        fields = list(dict.fromkeys(wanted))
        of_files = chain.from_iterable(records_of(path, fields) for path in self._files)
        records = of_files if self._files else self.stored.records(fields)
        for row, (_, where, record) in enumerate(records):
            labels = {name: _label(record[name], name, where) for name in self.by}
            if self.trained_on:
                labels["trained_on"] = "yes" if any(a <= row < b for a, b in self.trained_on) else "no"
            document = _label(record[self.document], self.document, where) if self.document else None
            if self.rewards is not None:
                rewards = [_number(record[name], name, where) for name in self.rewards]
                chosen, rejected = (reward if reward is not None else math.nan for reward in rewards)
                lacks = "reward" if None in rewards else None
                yield Pair(row, document or str(row), labels=labels, rewards=(chosen, rejected), lacks=lacks)
                continue
            texts = {n: files.text_of(record[name], name, where) if name else "" for n, name in self.texts.items()}
            lacks = "text" if None in texts.values() else None
            prompt, chosen_text, rejected_text = (texts[name] or "" for name in ("prompt", "chosen", "rejected"))
            cluster = document or prompt or str(row)
            yield Pair(row, cluster, prompt, chosen_text, rejected_text, labels, lacks=lacks)


def _whole(pairs: Iterable[Pair], left_out: Counter[str]) -> Iterator[Pair]:
    """Yield the pairs without null parts, and count the others."""
    for pair in pairs:
        if pair.lacks is None:
            yield pair
        else:
            left_out[f"null {pair.lacks}"] += 1


def _number(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise SaevalError(f"{where}: expected a number in '{name}', found {quoted_value(value)}")
    return number


def _label(value: Any, name: str, where: str) -> str:
    return "–" if value is None else str(files.text_of(str(value), name, where))
