"""Python source with labels of tokens, by the standard library's own tokenizer and parser."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal

from saeval.plugin import Document
from saeval_data.stdlib import PythonStdlib, hash_share, stdlib_modules

VALIDATION_SHARE = 0.2
LONGEST = 200_000
"""Most characters of a module; longer ones, mostly tables, are left out."""
DEPTH = 2
TASKS = (
    "string", "docstring", "comment", "keyword", "number", "definition_name", "attribute", f"depth_{DEPTH}",
    "block_start",
)  # fmt: skip
Stretch = tuple[int, int]


class PythonTokens(PythonStdlib):
    """The running Python's standard library, with labels of tokens; needs no download.

    Tasks: `string`, `docstring`, `comment`, `keyword`, `number`, `definition_name` (after `def` and `class`),
    `attribute` (a name after a dot), `depth_2` (in a block that is inside another) and `block_start` (the first line of
    a block). Documents and split are those of `python-stdlib`; a fifth of the fit documents are for validation.
    """

    name = "python-tokens"
    defaults: ClassVar[Mapping[str, Any]] = {"fit_sequences": 512}

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for name, text in stdlib_modules("held_out" if split == "evaluation" else "train", tests=False):
            if len(text) > LONGEST or (spans := stretches(text)) is None:
                continue
            validation = split == "fit" and hash_share(f"validation {name}") < VALIDATION_SHARE
            yield Document(name, text, spans=spans, validation=validation)


def stretches(text: str) -> dict[str, list[Stretch]] | None:
    """Return the stretches of each task in a module's source; None if Python cannot read it."""
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    lines = text.splitlines(keepends=True)
    if len(lines) != text.count("\n") + (not text.endswith("\n")):  # a form feed, say, splits lines for one alone
        return None
    place = _Places(lines)
    spans: dict[str, list[Stretch]] = {task: [] for task in TASKS}
    spans["docstring"] = [place.of_node(node) for node in _docstrings(tree)]
    opened: list[int] = []  # formatted strings, which have tokens of their own from Python 3.12 on
    depth, previous = 0, ""
    begins_block = False
    for token in tokens:
        start, end = place.at(*token.start), place.at(*token.end)
        kind, kind_name = token.type, tokenize.tok_name[token.type]
        if kind_name == "FSTRING_START":
            opened.append(start)
        elif kind_name == "FSTRING_END" and opened:
            first = opened.pop()
            spans["string"] += [] if opened else [(first, end)]
        elif kind == tokenize.STRING and not opened:
            spans["string"].append((start, end))
        elif kind == tokenize.COMMENT:
            spans["comment"].append((start, end))
        elif kind == tokenize.NUMBER:
            spans["number"].append((start, end))
        elif kind == tokenize.NAME and keyword.iskeyword(token.string):
            spans["keyword"].append((start, end))
        elif kind == tokenize.NAME and previous in ("def", "class"):
            spans["definition_name"].append((start, end))
        elif kind == tokenize.NAME and previous == ".":
            spans["attribute"].append((start, end))
        if kind == tokenize.INDENT:
            depth, begins_block = depth + 1, True
        elif kind == tokenize.DEDENT:
            depth -= 1
        elif kind not in (tokenize.NL, tokenize.COMMENT, tokenize.NEWLINE) and end > start:
            spans[f"depth_{DEPTH}"] += [(start, end)] if depth >= DEPTH else []
            spans["block_start"] += [(start, end)] if begins_block else []
        if kind == tokenize.NEWLINE:
            begins_block = False
        previous = token.string
    return spans


class _Places:
    """Characters of a text by line and column."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._starts = [0, *accumulate(map(len, lines))]

    def at(self, line: int, column: int) -> int:
        """Return the character at a line, from 1, and a column in characters."""
        return min(self._starts[min(line - 1, len(self._lines))] + column, self._starts[-1])

    def of_node(self, node: ast.expr) -> Stretch:
        """Return the stretch of an expression, whose columns are in bytes of UTF-8."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._of_bytes(node.lineno, node.col_offset), self._of_bytes(node.end_lineno, node.end_col_offset)

    def _of_bytes(self, line: int, column: int) -> int:
        widths = list(accumulate((len(character.encode()) for character in self._lines[line - 1]), initial=0))
        return self.at(line, bisect_right(widths, column) - 1)


def _docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.value
