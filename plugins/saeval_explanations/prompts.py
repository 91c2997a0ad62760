"""The questions to a judge: what does a feature mean, where does it fire, are these its tokens? And their answers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

from saeval.plugin import Prompt, Reply
from saeval_explanations.windows import Window

LOUD = 0.3
"""Share of the largest activation of a window from which on a token is marked for the explanation."""
WORDS_LENGTH = 60
"""Most tokens of an explanation."""
_ANSWER_LENGTH, _ANSWER_START = 6, 20
"""Most tokens of a reply for each window, and beside them."""
LARGEST = 10
"""The surest answer to whether a feature fires."""

_SYSTEM = (
    "You study neurons of a language model. You answer in exactly the form that is asked for, and with nothing else."
)
_EXPLAINER = (
    "A neuron is active in these texts. The tokens on which it is most active stand between << and >>.\n\n{texts}\n\n"
    "What do the marked tokens, or the texts around them, have in common? Name what is specific. Do not mention the "
    "marks, and do not list all texts. Answer with one short phrase alone."
)
_DETECTOR = (
    "A neuron is active on: {words}\n\nThese are {count} texts.\n\n{texts}\n\n"
    "For each text, give a whole number from 0 (the neuron is certainly not active anywhere in it) to 10 (it certainly "
    "is). Answer with a JSON list of {count} numbers alone, such as {example}."
)
_FUZZER = (
    "A neuron is active on: {words}\n\nThese are {count} texts. Some tokens stand between << and >>.\n\n{texts}\n\n"
    "For each text, give a whole number from 0 (the neuron is certainly not active on the marked tokens) to 10 (it "
    "certainly is). Answer with a JSON list of {count} numbers alone, such as {example}."
)
_EXAMPLE = (0, 10, 3, 8, 1, 9, 2, 7, 0, 10)
_LIST = re.compile(r"\[[^\[\]]*\]")


def marked(texts: Sequence[str], marks: Sequence[bool]) -> str:
    """Return the text of tokens with those that are marked between << and >>; neighbours share one pair of marks.

    The text's own << and >> get a space, so that they are no marks.
    """
    parts, inside = [], False
    for text, mark in zip(texts, marks, strict=True):
        if mark != inside:
            parts.append("<<" if mark else ">>")
            inside = mark
        parts.append(text.replace("<<", "< <").replace(">>", "> >"))
    return "".join(parts) + (">>" if inside else "")


def loud(window: Window) -> list[bool]:
    """Return for each token of a window whether the feature's activation there is large."""
    largest = max((abs(act) for _, act in window.tokens), default=0.0)
    return [abs(act) > 0 and abs(act) >= LOUD * largest for _, act in window.tokens]


def explaining(windows: Sequence[Window]) -> Prompt:
    """Return the question of what these windows have in common."""
    shown = [marked([text for text, _ in window.tokens], loud(window)) for window in windows]
    return Prompt((("system", _SYSTEM), ("user", _EXPLAINER.format(texts=_numbered(shown)))), WORDS_LENGTH)


def detecting(words: str, texts: Sequence[str]) -> Prompt:
    """Return the question in which of these texts the feature fires."""
    return _scoring(_DETECTOR, words, texts)


def fuzzing(words: str, texts: Sequence[str]) -> Prompt:
    """Return the question in which of these texts the right tokens are marked."""
    return _scoring(_FUZZER, words, texts)


def _scoring(question: str, words: str, texts: Sequence[str]) -> Prompt:
    example = json.dumps([_EXAMPLE[i % len(_EXAMPLE)] for i in range(len(texts))])
    user = question.format(words=words, count=len(texts), texts=_numbered(texts), example=example)
    return Prompt((("system", _SYSTEM), ("user", user)), _ANSWER_LENGTH * len(texts) + _ANSWER_START)


def _numbered(texts: Sequence[str]) -> str:
    # A text as a JSON string: one line each, whatever it contains, so that it cannot pass for another number.
    return "\n".join(f"{number}. {json.dumps(text, ensure_ascii=False)}" for number, text in enumerate(texts, 1))


def read_words(reply: Reply) -> str | None:
    """Return the explanation in a reply; None if it is empty or was cut short."""
    lines = [line for line in map(_plain, reply.text.splitlines()) if line]
    return _unquoted(lines[0]) or None if reply.complete and lines else None


def _plain(text: str) -> str:
    """Return text without control and formatting characters, and without what would pass for our marks."""
    shown = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
    return " ".join(shown.replace("<<", " ").replace(">>", " ").split())


def _unquoted(text: str) -> str:
    """Return text without quotes, or Markdown's stars, around the whole of it; those of a token in it stay."""
    for quote in ('"', "'", "`", "**", "*"):
        inner = text[len(quote) : -len(quote)]
        if text.startswith(quote) and text.endswith(quote) and inner.strip() and quote not in inner:
            return inner.strip()
    return text


def read_numbers(count: int, reply: Reply) -> tuple[int, ...] | None:
    """Return the numbers from 0 to 10 in a reply; None unless its only list has exactly `count` of them."""
    lists = _LIST.findall(reply.text)
    if not reply.complete or len(lists) != 1 or reply.text.count("[") != 1:
        return None
    try:
        numbers = json.loads(lists[0])
    except ValueError:
        return None
    # 7.0 is 7; true is no number.
    whole = [int(n) for n in numbers if type(n) in (int, float) and 0 <= n <= LARGEST and n == int(n)]
    return tuple(whole) if len(whole) == len(numbers) == count else None
