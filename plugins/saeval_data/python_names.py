"""Names in Python source with their roles, each with the text before it, by the standard library's own tokenizer."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, ClassVar, Literal

from saeval.plugin import Document, SaevalError
from saeval_data.python_tokens import LONGEST, VALIDATION_SHARE
from saeval_data.stdlib import PythonStdlib, hash_share, stdlib_modules

ROLES = {"def": "function", "class": "class", ".": "attribute"}
"""Roles of names by what is before them; a name after anything else is a `use`."""
BEFORE = 600
"""Most characters before a name, from the begin of a line on."""


class PythonNames(PythonStdlib):
    """Names in the running Python's standard library, each in the lines before it; needs no download.

    Each text ends with the line of one name. Labels: `role` (`function` and `class`, where they are defined,
    `attribute` after a dot, else `use`), and `definition` (`yes` for the first two, which are its children). The name's
    tokens have the label `word`. Of each module, `each` names of each role are chosen by a hash keyed by `draw`.
    Modules are documents, split as by `python-stdlib`; a fifth of the fit modules are for validation.
    """

    name = "python-names"
    defaults: ClassVar[Mapping[str, Any]] = {"keep": "end", "fit_sequences": 2000}

    def __init__(self, each: int = 6, draw: int = 0) -> None:
        if not 1 <= each <= 1000:
            raise SaevalError(f"data '{self.name}': 'each' must be from 1 to 1000, found {each}")
        self.each, self.draw = each, draw

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.each} {self.draw}"

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for module, text in stdlib_modules("held_out" if split == "evaluation" else "train", tests=False):
            if len(text) > LONGEST or (found := names_of(text)) is None:
                continue
            validation = split == "fit" and hash_share(f"validation {module}") < VALIDATION_SHARE
            for role, places in found.items():
                chosen = sorted(places, key=lambda place: hash_share(f"{self.draw}\0{module}\0{place[0]}"))[: self.each]
                for start, end in sorted(chosen):
                    yield _document(module, text, role, start, end, validation)


def names_of(text: str) -> dict[str, list[tuple[int, int]]] | None:
    """Return the characters (first, end) of the names of each role; None if Python cannot read the module."""
    try:
        ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    lines = text.splitlines(keepends=True)
    if len(lines) != text.count("\n") + (not text.endswith("\n")):  # a form feed, say, splits lines for one alone
        return None
    starts = [0, *accumulate(map(len, lines))]
    found: dict[str, list[tuple[int, int]]] = {role: [] for role in (*ROLES.values(), "use")}
    previous = ""
    for token in tokens:
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            first = starts[token.start[0] - 1] + token.start[1]
            found[ROLES.get(previous, "use")].append((first, first + len(token.string)))
        previous = token.string
    return found


def _document(module: str, text: str, role: str, start: int, end: int, validation: bool) -> Document:
    earliest = max(start - BEFORE, 0)
    newline = text.find("\n", earliest, start) if earliest else -1
    begin = newline + 1 if newline >= 0 else earliest
    stop = text.find("\n", end) + 1 or len(text)
    labels = {"role": role, "definition": "yes" if role in ("function", "class") else "no"}
    spans = {"word": [(start - begin, end - begin)]}
    return Document(module, text[begin:stop], labels=labels, spans=spans, validation=validation)
