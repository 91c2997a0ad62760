"""Preference pairs as rows of tokens: both sides, the first position where they differ, labels and rewards."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saeval.plugin import Batch, Dataset, PairBatch, SaevalError, torch, unread_special

_TOKENISED = 256
"""Number of pairs per call of the tokenizer."""


@dataclass(frozen=True)
class Pair:
    """One record: its `row`, from 0, and its `cluster`; pairs of different clusters are independent."""

    row: int
    cluster: str
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rewards: tuple[float, float] | None = None
    """Recorded rewards of chosen and rejected, if any; then no text is read."""
    lacks: str | None = None
    """The part that is null, "text" or "reward"; such a pair is left out."""


@dataclass(frozen=True)
class Tokenised:
    """The token ids of a pair, and the position where the sides first differ."""

    pair: Pair
    sides: tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]
    divergence: int


def divergence(chosen: Sequence[int] | np.ndarray, rejected: Sequence[int] | np.ndarray) -> int:
    """Return the first position where the sides differ, or the last shared position if one is a prefix of the other."""
    shared = min(len(chosen), len(rejected))
    differ = np.flatnonzero(np.asarray(chosen[:shared]) != np.asarray(rejected[:shared]))
    return int(differ[0]) if len(differ) else max(shared - 1, 0)


@dataclass(frozen=True)
class PairOptions:
    """Options of tokenisation and of the choice of pairs."""

    context: int | None = None
    """Maximum number of tokens; longer pairs are left out, because truncation would change the reward."""
    bos: bool = True
    eos: bool = False
    pairs: int | None = None


def tokenised(
    pairs: Iterable[Pair], tokenizer: Any, options: PairOptions, left_out: Counter[str], not_doubled: Counter[str]
) -> Iterator[Tokenised]:
    """Yield the tokens of each pair, with prompt and completion tokenised together; `left_out` counts unusable pairs.

    A side whose text already has a BOS or EOS, as from a chat template, gets no second one; `not_doubled` counts these.
    """
    ends = [_special(tokenizer, word) if asked else [] for word, asked in (("bos", options.bos), ("eos", options.eos))]
    spelled = unread_special(tokenizer, "bos", ends[0]), unread_special(tokenizer, "eos", ends[1])
    waiting = iter(pairs)
    while batch := list(islice(waiting, _TOKENISED)):
        originals = [p.prompt + side for p in batch for side in (p.chosen, p.rejected)]
        texts = [text.removeprefix(spelled[0]).removesuffix(spelled[1]) for text in originals]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for index, pair in enumerate(batch):
            sides = [_without_ends(encoded[2 * index + i], ends, originals[2 * index + i], spelled) for i in (0, 1)]
            first, second = (np.array([*ends[0], *ids, *ends[1]], dtype=np.int32) for ids, _ in sides)
            not_doubled.update(chain.from_iterable(words for _, words in sides))
            if not pair.chosen or not pair.rejected:
                left_out["empty completion"] += 1
            elif options.context is not None and max(len(first), len(second)) > options.context:
                left_out[f"longer than {options.context} tokens"] += 1
            else:
                yield Tokenised(pair, (first, second), divergence(first, second))


def _without_ends(
    ids: list[int], ends: Sequence[list[int]], text: str, spelled: tuple[str, str]
) -> tuple[list[int], list[str]]:
    """Return the ids without BOS and EOS, which are added later, and the names of those that the text had."""
    words = []
    if ends[0] and ids[:1] == ends[0]:
        ids = ids[1:]
        words.append("bos")
    if ends[1] and ids[-1:] == ends[1]:
        ids = ids[:-1]
        words.append("eos")
    words += ["bos"] if spelled[0] and text.startswith(spelled[0]) else []
    return ids, words + (["eos"] if spelled[1] and text.endswith(spelled[1]) else [])


def _special(tokenizer: Any, word: str) -> list[int]:
    token = getattr(tokenizer, f"{word}_token_id", None)
    if token is None:
        raise SaevalError(f"the tokenizer has no {word.upper()} token; set '{word}: false'")
    return [int(token)]


class PairDataset(Dataset):
    """Pairs in a fixed order. The sequence id of a pair is its row in the source.

    The mask is the real positions from the divergence on, because the sides are equal before it. The reward of a
    causal model is the log-likelihood of the tokens from the divergence on, each predicted at the previous position.
    """

    pair = True

    def __init__(
        self,
        rows: Sequence[Tokenised],
        spelling: Callable[[Sequence[int]], list[str]] | None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        pairs = [row.pair for row in rows]
        self._flat = [np.concatenate([r.sides[i] for r in rows] or [np.zeros(0, np.int32)]) for i in (0, 1)]
        self._lengths = np.array([[len(side) for side in r.sides] for r in rows], dtype=np.int64).reshape(-1, 2).T
        self._starts = np.cumsum(self._lengths, axis=1) - self._lengths
        self._divergence = np.array([r.divergence for r in rows], dtype=np.int64)
        self.sequence_ids = np.array([pair.row for pair in pairs], dtype=np.int64)
        names = {name: i for i, name in enumerate(dict.fromkeys(pair.cluster for pair in pairs))}
        self._clusters = np.array([names[pair.cluster] for pair in pairs], dtype=np.int64)
        columns = list(pairs[0].labels) if pairs else []
        self._labels = {name: np.array([pair.labels[name] for pair in pairs], dtype=np.str_) for name in columns}
        recorded = bool(pairs) and pairs[0].rewards is not None
        self._rewards: Float[np.ndarray, "2 n"] | None = None
        if recorded:
            self._rewards = np.array([pair.rewards for pair in pairs], dtype=np.float64).T
        self._same = np.array([np.array_equal(*row.sides) for row in rows], dtype=bool)
        self._spelling, self._facts = spelling, dict(facts or {})
        self.needs_model = not recorded
        self.supplies = frozenset({"labels"} | ({"clean_reward"} if recorded else {"scored", "spelling"}))

    @property
    def context(self) -> int | None:
        return int(self._lengths.max(initial=0)) or None

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((len(self), sorted(self._labels), self._rewards is not None)).encode())
        numbers = [*self._flat, self._lengths, self._divergence, self.sequence_ids, self._clusters]
        for array in (*numbers, *([self._rewards] if self._rewards is not None else [])):
            digest.update(np.ascontiguousarray(array).data)
        for name in sorted(self._labels):
            digest.update("\0".join(self._labels[name].tolist()).encode())
        return digest.hexdigest()

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return self._clusters

    def __len__(self) -> int:
        return len(self.sequence_ids)

    def describe(self) -> Mapping[str, Any]:
        columns = {name: sorted(set(values.tolist()))[:50] for name, values in self._labels.items()}
        return {**super().describe(), "columns": columns, **self._facts}

    def counts(self, rows: int) -> Mapping[str, int]:
        """Return the counts; if text is read, also the number of pairs with equal sides (`identical`)."""
        counts = dict(super().counts(rows))
        return counts if self._rewards is not None else {**counts, "identical": int(self._same[:rows].sum())}

    def spelling(self, ids: Sequence[int]) -> list[str]:
        return self._spelling(ids) if self._spelling else super().spelling(ids)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> PairBatch:
        index = np.asarray(rows, dtype=np.int64)
        width = int(self._lengths[:, index].max(initial=0))
        divergence = torch.from_numpy(self._divergence[index]).to(device)
        sides = (self._side(0, index, width, divergence), self._side(1, index, width, divergence))
        return PairBatch(sides, divergence)

    def _side(self, side: int, index: Int[np.ndarray, "batch"], width: int, divergence: torch.Tensor) -> Batch:
        tokens = np.zeros((len(index), width + 1), dtype=np.int64)
        for row, i in enumerate(index):
            start, length = self._starts[side, i], self._lengths[side, i]
            tokens[row, :length] = self._flat[side][start : start + length]
        on_device = torch.from_numpy(tokens).to(divergence.device)
        lengths = torch.from_numpy(self._lengths[side, index]).to(divergence.device)[:, None]
        positions = torch.arange(width, device=divergence.device)
        real = positions < lengths
        supplied: dict[str, Any] = {"labels": {name: values[index] for name, values in self._labels.items()}}
        if self._rewards is not None:
            supplied["clean_reward"] = torch.from_numpy(self._rewards[side, index]).to(divergence.device)
        else:
            supplied["scored"] = (positions >= divergence[:, None] - 1) & (positions < lengths - 1)
            supplied["spelling"] = self._spelling
        return Batch(
            on_device[:, :-1], on_device[:, 1:], real & (positions >= divergence[:, None]), real,
            self.sequence_ids[index], self._clusters[index], supplied,
        )  # fmt: skip
