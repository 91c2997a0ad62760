"""What text each token of a row stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no whole character yet."""
_LONGEST = 4
"""Bytes, and so tokens, of a character in UTF-8 at most."""


class Spelling:
    """Token ids of a row -> the text that each adds; joined they are what the tokenizer makes of the row.

    A token alone often has no text of its own: it may be some bytes of a character, and whether a space stands before
    a word depends on the token before. So each is decoded after those before it. A character of several tokens stands
    at the first of them, and the others have the empty text. Bytes of no whole character are U+FFFD, each by itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def _decoded(self, ids: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(ids), **options)) if len(ids) else ""

    def __call__(self, ids: Sequence[int]) -> list[str]:
        texts = [""] * len(ids)
        earlier, begin = 0, 0  # tokens from `earlier` to `begin` are spelled: the context of those from there on
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


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(a, b, strict=False)  # one is longer
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))
