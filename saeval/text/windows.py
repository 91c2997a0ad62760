"""Tokenisation of long texts in overlapping windows, which takes little memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

WINDOW = 2**17
"""Number of characters per window."""
_OVERLAP, _WIDE = 2**10, 2**14
"""Number of characters that two windows share, and of the second attempt if that is too few."""
_AGREEING = 32
"""Number of consecutive tokens that must be equal in two windows to join them."""
_TOGETHER = 8
"""Number of windows per call of the tokenizer, which uses several threads for them."""


class _Window(NamedTuple):
    start: int
    """Index of its first character in the whole text."""
    text: str
    ids: Int[np.ndarray, "n"]
    encoding: Any
    """The tokenizer's encoding, with the characters of each token."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def span(self, token: int) -> tuple[int, int]:
        """Return the first character and the end of a token, in the whole text."""
        span = self.encoding.token_to_chars(token)
        return (self.start + span[0], self.start + span[1]) if span else (self.start, self.start)


def tokens_of(text: str | Iterable[str], tokenizer: Any) -> Iterator[Int[np.ndarray, "n"]]:
    """Yield the tokens of a text, a whole or its pieces, in parts.

    Windows overlap and are joined in the middle of a stretch of equal tokens, since a token depends only on the text
    near it. If there is no such stretch, as in a line of many thousand equal characters, the text is cut there. A
    tokenizer without offsets gets the whole text.
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
    """Yield start and text of each window."""
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
    """Return the window, perhaps with an earlier start, the end of the last one's tokens and this one's first token."""
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
    """Return the end of the last window's tokens and the start of this one's, amid the longest equal stretch."""
    i, j = bisect_left(range(len(last.ids)), window.start, key=lambda token: last.span(token)[0]), 0
    best = run = (0, 0, 0)
    while i < len(last.ids) and j < len(window.ids) and (span := window.span(j))[1] <= last.end:
        last_span = last.span(i)
        if span == last_span and last.ids[i] == window.ids[j]:
            i, j = i + 1, j + 1
            run = (run[0] + 1, i, j)
            best = max(best, run)
        else:
            i, j, run = i + (last_span[0] <= span[0]), j + (span[0] <= last_span[0]), (0, 0, 0)
    length, i, j = best
    for back in range(length // 2, length) if length >= _AGREEING else ():
        if last.span(i - back - 1)[1] <= last.span(i - back)[0]:  # not inside a character of several tokens
            return i - back, j - back
    return None
