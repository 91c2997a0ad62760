"""The text of each token in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""The character that a decoder writes for bytes of an incomplete character."""
_LONGEST = 4
"""Maximum number of bytes, and so of tokens, of a character in UTF-8."""


class Spelling:
    """Token ids of a row -> the text that each token adds; joined, these are the tokenizer's text of the row.

    A single token often has no text of its own: it may be part of a character, and the space before a word may depend
    on the previous token. So each token is decoded together with those before it. A character of several tokens
    belongs to the first of them; the others have empty text. Each byte of an incomplete character is U+FFFD.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def _decoded(self, ids: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(ids), **options)) if len(ids) else ""

    def __call__(self, ids: Sequence[int]) -> list[str]:
        texts = [""] * len(ids)
        earlier, begin = 0, 0  # tokens from `earlier` to `begin` have their text: the context of the next
        while begin < len(ids):
            for end in range(begin + 1, min(begin + _LONGEST, len(ids)) + 1):
                text = self._decoded(ids[earlier:end])
                if _UNFINISHED not in text:
                    before = self._decoded(ids[earlier:begin])
                    texts[begin] = text[_shared(text, before) :]
                    earlier, begin = begin, end
                    break
            else:
                texts[begin] = self._decoded(ids[begin : begin + 1])
                earlier = begin = begin + 1
        return texts


def whole_characters(texts: Sequence[str], values: Sequence[float]) -> list[tuple[str, float]]:
    """Return the texts of tokens that are not empty, with their values, from a part of a row.

    A character of several tokens has the value of largest magnitude of them, also if it began before the part.
    """
    characters: list[tuple[str, float]] = []
    pending = 0.0
    for text, value in zip(texts, values, strict=True):
        if text:
            characters.append((text, max(value, pending, key=abs)))
            pending = 0.0
        elif characters:
            characters[-1] = characters[-1][0], max(characters[-1][1], value, key=abs)
        else:
            pending = max(pending, value, key=abs)
    return characters


def _shared(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = zip(a, b, strict=False)  # one is longer
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
