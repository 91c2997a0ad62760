"""Prompts that ask for the first letter of words in the tokenizer's own vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from saeval.plugin import Document, SaevalError, Source, hashed
from saeval_data.labelled import PARTS
from saeval_data.stdlib import hash_share

TEMPLATE = " has the first letter:"
LEAST_WORDS = 40
LEAST_LETTERS = 2
_SPACES = ("Ġ", "▁")
"""How tokenizers write the space before a word in their vocabularies."""
_CHUNK = 4096
"""Words that are tokenised at a time to see which are one token."""


class Spelling(Source):
    """Prompts ` WORD has the first letter:` about words that are one token, after examples of the same form.

    The words are those of the model's tokenizer: ASCII letters with a space before, at least two. A hash keyed by
    `draw` chooses `words` of them, null for all, and for each prompt `examples` of the words for fitting, never the
    word itself. Labels: `first_letter` (A to Z) of the text; `word` and `answer` of tokens, the word asked about and
    the letter that ends the text. Spellings of a word in small and capital letters are one document. `shares` are those
    of each letter's words for fitting, validation and testing.
    """

    name = "spelling"
    splits_itself: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"keep": "end", "fit_sequences": None}

    def __init__(
        self,
        words: int | None = 2000,
        examples: int = 10,
        shares: tuple[float, float, float] = (0.6, 0.15, 0.25),
        draw: int = 0,
    ) -> None:
        if words is not None and words < LEAST_WORDS:
            raise SaevalError(f"data '{self.name}': 'words' must be at least {LEAST_WORDS}, or null; found {words}")
        if not 0 <= examples <= 1000:
            raise SaevalError(f"data '{self.name}': 'examples' must be from 0 to 1000, found {examples}")
        if not (all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-9):
            wanted = "three shares above 0 that sum to 1, for fit, validation and test"
            raise SaevalError(f"data '{self.name}': 'shares' must be {wanted}; found {list(shares)}")
        self.words, self.examples, self.shares, self.draw = words, examples, shares, draw

    def fingerprint(self) -> str:
        choices = [TEMPLATE, self.words, self.examples, list(self.shares), self.draw]
        return hashlib.sha256(json.dumps(choices).encode()).hexdigest()

    def documents_for(self, split: Literal["evaluation", "fit"], tokenizer: Any) -> Iterator[Document]:
        parts = self._parts(self._chosen(tokenizer))
        known = [word for word, part in parts.items() if part == "fit"]
        keys = np.array([hashed(word) for word in known])
        for word, part in parts.items():
            if (part == "test") == (split == "evaluation"):
                order = np.argsort(hashed(self.draw, "example", word, keys), kind="stable")
                yield self._prompt(word, [known[number] for number in order], part == "validation")

    def facts(self) -> Mapping[str, Any]:
        return {"words": self.words, "examples": self.examples}

    def _prompt(self, word: str, known: Sequence[str], validation: bool) -> Document:
        """Return the prompt about a word after the first examples among the known words."""
        examples = [other for other in known if other.lower() != word.lower()][: self.examples]
        before = "".join(f"\n {example}{TEMPLATE} {example[0].upper()}" for example in examples) + "\n "
        asked = f"{before}{word}{TEMPLATE} "
        letter = word[0].upper()
        spans = {"word": [(len(before), len(before) + len(word))], "answer": [(len(asked), len(asked) + 1)]}
        return Document(
            word.lower(), asked + letter, labels={"first_letter": letter}, spans=spans, validation=validation
        )

    def _chosen(self, tokenizer: Any) -> list[str]:
        """Return the chosen words of the vocabulary, in the order of their hashes."""
        if not getattr(tokenizer, "is_fast", False):
            raise SaevalError(f"data '{self.name}': labels of tokens need a fast tokenizer, with offsets")
        words = {token[1:] for token in tokenizer.get_vocab() if token[:1] in _SPACES and _is_word(token[1:])}
        ordered = sorted(words, key=lambda word: (self._hash("word", word), word))
        chosen: list[str] = []
        for start in range(0, len(ordered), _CHUNK):
            chosen += _single(ordered[start : start + _CHUNK], tokenizer)
            if self.words is not None and len(chosen) >= self.words:
                return chosen[: self.words]
        if len(chosen) < LEAST_WORDS:
            raise SaevalError(
                f"data '{self.name}': the tokenizer has {len(chosen)} words of letters with a space before them that "
                f"stay one token in a prompt; it needs {LEAST_WORDS}. Use 'labelled' texts with a span 'word'"
            )
        return chosen

    def _parts(self, words: Sequence[str]) -> dict[str, str]:
        """Return the part of each word: each letter's words are cut in the same proportions."""
        fit, validation = self.shares[0], self.shares[0] + self.shares[1]
        by_letter: dict[str, list[str]] = {}
        for name in dict.fromkeys(word.lower() for word in words):
            by_letter.setdefault(name[0], []).append(name)
        parts: dict[str, str] = {}
        for names in by_letter.values():
            ordered = sorted(names, key=lambda name: (self._hash("part", name), name))
            for number, name in enumerate(ordered):
                share = (number + 0.5) / len(ordered)
                parts[name] = PARTS[(share >= fit) + (share >= validation)]
        return {word: parts[word.lower()] for word in words}

    def _hash(self, *words: str) -> float:
        return hash_share("\0".join([str(self.draw), *words]))


def _is_word(text: str) -> bool:
    return len(text) >= LEAST_LETTERS and text.isascii() and text.isalpha()


def _single(words: Sequence[str], tokenizer: Any) -> list[str]:
    """Return the words of which a prompt has one token."""
    texts = [f"\n {word}{TEMPLATE}" for word in words]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return [
        word
        for word, offsets in zip(words, encoded["offset_mapping"], strict=True)
        if sum(start < 2 + len(word) and end > 2 for start, end in offsets) == 1
    ]
