"""Windows of a long text: tokenised one after the other, they give the tokens of the whole in little memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

WINDOW = 2**17
"""Characters of a window."""
_OVERLAP, _WIDE = 2**10, 2**14
"""Characters that two windows share, and share where fewer do not suffice."""
_AGREEING = 32
"""Tokens on which two windows have to agree, one after the other, to be joined in their middle."""
_TOGETHER = 8
"""Windows handed to the tokenizer at a time, which uses several threads for them."""


class _Window(NamedTuple):
    start: int
    """The place of its first character in the whole text."""
    text: str
    ids: Int[np.ndarray, "n"]
    encoding: Any
    """The tokenizer's own account of it, which knows where each token stands."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def span(self, token: int) -> tuple[int, int]:
        """First character and end of a token, in the whole text."""
        found = self.encoding.token_to_chars(token)
        return (self.start + found[0], self.start + found[1]) if found else (self.start, self.start)


def tokens_of(text: str | Iterable[str], tokenizer: Any) -> Iterator[Int[np.ndarray, "n"]]:
    """The tokens of a text that is given as a whole or in pieces, a part at a time.

    Windows overlap, and are joined amid tokens on which both agree: what a token is depends on the text near it alone.
    Where none agree, as in a line of many thousand equal characters, the text is cut there. A tokenizer without
    offsets is given the whole text.
    """
    pieces = (text[i : i + WINDOW] for i in range(0, len(text), WINDOW)) if isinstance(text, str) else text
    if not getattr(tokenizer, "is_fast", False):
        whole = text if isinstance(text, str) else "".join(pieces)
        yield np.asarray(tokenizer([whole], add_special_tokens=False, verbose=False)["input_ids"][0], dtype=np.int32)
        return
    last, first = None, 0
    for window in _tokenised(_windows(pieces), tokenizer):
        if last is not None:
            window, end, begin = _joined(last, window, tokenizer)
            yield last.ids[first:end]
            first = begin
        last = window
    if last is not None:
        yield last.ids[first:]


def _windows(pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Place and text of each window."""
    start, text = 0, ""
    for piece in pieces:
        text += piece
        while len(text) > WINDOW:
            yield start, text[:WINDOW]
            start, text = start + WINDOW - _OVERLAP, text[WINDOW - _OVERLAP :]
    yield start, text


def _tokenised(windows: Iterator[tuple[int, str]], tokenizer: Any) -> Iterator[_Window]:
    while batch := list(islice(windows, _TOGETHER)):
        encoded = tokenizer([text for _, text in batch], add_special_tokens=False, verbose=False)
        for index, (start, text) in enumerate(batch):
            yield _Window(start, text, np.array(encoded["input_ids"][index], dtype=np.int32), encoded[index])


def _joined(last: _Window, window: _Window, tokenizer: Any) -> tuple[_Window, int, int]:
    """The window, perhaps begun earlier, the end of the last one's tokens, and the first token of this one."""
    if (seam := _seam(last, window)) is not None:
        return window, *seam
    rest = window.text[last.end - window.start :]
    for shared in (_WIDE, 0):
        text = last.text[len(last.text) - shared :] + rest
        (window,) = _tokenised(iter([(last.end - shared, text)]), tokenizer)
        if shared and (seam := _seam(last, window)) is not None:
            return window, *seam
    return window, len(last.ids), 0


def _seam(last: _Window, window: _Window) -> tuple[int, int] | None:
    """Where the last window's tokens end and this one's begin: in the middle of the longest stretch that is equal."""
    i, j = bisect_left(range(len(last.ids)), window.start, key=lambda token: last.span(token)[0]), 0
    best = run = (0, 0, 0)
    while i < len(last.ids) and j < len(window.ids) and (own := window.span(j))[1] <= last.end:
        other = last.span(i)
        if own == other and last.ids[i] == window.ids[j]:
            i, j = i + 1, j + 1
            run = (run[0] + 1, i, j)
            best = max(best, run)
        else:
            i, j, run = i + (other[0] <= own[0]), j + (own[0] <= other[0]), (0, 0, 0)
    length, i, j = best
    for back in range(length // 2, length) if length >= _AGREEING else ():
        if last.span(i - back - 1)[1] <= last.span(i - back)[0]:  # not within a character of several tokens
            return i - back, j - back
    return None
