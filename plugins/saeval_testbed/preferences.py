"""Preference pairs with a planted, known preference, built from the standard library's source.

Both sides of a pair are the same few lines of a module with one line inserted at the same place. The side whose line is
a `raise` statement is preferred; if neither is, the side with a comment is, less reliably. The inserted lines come from
the pair's own split and match in length, and each side loses a random number of last lines, so length is a control
that decides nothing.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from saeval_data.stdlib import stdlib_modules

_TOKENIZER = Path(__file__).parent / "weights" / "model" / "tokenizer.json"
"""Lengths are matched in tokens of the shipped model, so that training another one leaves the pairs as they are."""
PLANTED = re.compile(r"^\s*raise\b.*$", re.MULTILINE)
"""The preferred line; it is in at most one side of a pair, and in no prompt."""
SECOND = re.compile(r"^\s*#.*$", re.MULTILINE)
"""The line that is preferred, less reliably, if neither line is a `raise`."""
SUBSETS = {"planted": 0.55, "second": 0.20, "conflict": 0.10, "neutral": 0.15}
"""Shares: raise against a plain line, comment against a plain line, raise against comment, two plain lines."""
NOISE = {"planted": 0.05, "second": 0.25, "conflict": 0.05, "neutral": 0.0}
"""Share of labels against the pattern; between two plain lines the label is random."""
PROMPT_LINES, COMPLETION_LINES, MOST_DROPPED = 4, 7, 3
MOST_CHARACTERS = 280
"""Of a prompt, and of a completion before the line is inserted."""
LINE_CHARACTERS = range(12, 61)


@dataclass(frozen=True)
class Window:
    """Consecutive lines of a module."""

    module: str
    prompt: tuple[str, ...]
    completion: tuple[str, ...]
    place: int
    """Index in the completion at which a line is inserted; a statement begins there."""


class Lines:
    """Lines to insert, without indentation, looked up by length in tokens and characters."""

    def __init__(self, lines: set[str], tokenizer: Tokenizer) -> None:
        self.lines = sorted(lines)
        self.by_tokens: dict[int, list[str]] = {}
        for line, encoding in zip(self.lines, tokenizer.encode_batch([f" {line}" for line in self.lines]), strict=True):
            self.by_tokens.setdefault(len(encoding.ids), []).append(line)
        self.tokens = {line: count for count, group in self.by_tokens.items() for line in group}

    def near(self, line: str, tokens: int, generator: random.Random) -> str:
        """Return another line of as many tokens and within 2 characters in length, or else a line nearly so."""
        for width in range(2, 2 * len(LINE_CHARACTERS)):
            for count in (tokens, tokens - (width - 2) // 10, tokens + (width - 2) // 10):
                group = self.by_tokens.get(count, [])
                near = [other for other in group if other != line and abs(len(other) - len(line)) <= width]
                if near:
                    return generator.choice(near)
        raise ValueError("there are too few lines to insert")


def preference_pairs(split: Literal["train", "held_out"], pairs: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield at most `pairs` dicts `prompt, chosen, rejected, subset, ...`, the same for the same Python and seed.

    `planted_in_chosen`, `planted_in_rejected`, `second_in_chosen`, `second_in_rejected`: True if that side holds the
    pattern; `flipped`: True if the label contradicts it; `chosen_line`, `rejected_line`: the inserted lines;
    `document`: the module. Modules take turns, so that the first pairs come from as many modules as possible.
    """
    modules = list(stdlib_modules(split, tests=False))
    trees = {name: tree for name, text in modules if (tree := _parsed(text)) is not None}
    texts = {name: text for name, text in modules if name in trees}
    pools = _pools(texts, trees)
    queues = [_windows(name, text, trees[name], seed) for name, text in texts.items()]
    longest = max(map(len, queues), default=0)
    windows = ((turn, queue[turn]) for turn in range(longest) for queue in queues if turn < len(queue))
    for turn, window in islice(windows, max(pairs, 0)):
        yield _pair(window, pools, _generator(seed, window.module, turn))


def _generator(seed: int, *parts: object) -> random.Random:
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):  # some files of the library are invalid on purpose
        return None


def _pools(texts: dict[str, str], trees: dict[str, ast.Module]) -> dict[str, Lines]:
    """Single-line raise statements, comments, and plain assignments and calls of a split."""
    pools: dict[str, set[str]] = {"raise": set(), "comment": set(), "plain": set()}
    for name, text in texts.items():
        lines = text.splitlines()
        for node in ast.walk(trees[name]):
            if not isinstance(node, ast.stmt) or node.lineno != node.end_lineno:
                continue
            call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if not call and not isinstance(node, ast.Raise | ast.Assign | ast.AugAssign):
                continue
            line = lines[node.lineno - 1].strip()
            if len(line) in LINE_CHARACTERS and "#" not in line and '"""' not in line and ";" not in line:
                kind = "raise" if isinstance(node, ast.Raise) else "plain"
                if line.startswith("raise ") == (kind == "raise") and (kind == "raise" or "raise" not in line):
                    pools[kind].add(line)
        comments = (line.strip() for line in lines)
        pools["comment"] |= {c for c in comments if re.match(r"# [A-Za-z]", c) and len(c) in LINE_CHARACTERS}
    tokenizer = Tokenizer.from_file(str(_TOKENIZER))
    return {kind: Lines(lines, tokenizer) for kind, lines in pools.items()}


def _windows(module: str, text: str, tree: ast.Module, seed: int) -> list[Window]:
    """Windows of a module in random order, without overlap, patterns or strings of several lines."""
    lines = text.splitlines()
    unwanted = {i for i, line in enumerate(lines) if "raise" in line or "#" in line}
    statements: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            unwanted.update(range(node.lineno - 1, node.end_lineno or node.lineno))
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            statements.add(node.lineno - 1)
    generator = _generator(seed, module)
    size = PROMPT_LINES + COMPLETION_LINES
    starts = [i for i in sorted(statements) if i + size <= len(lines)]
    generator.shuffle(starts)
    taken: set[int] = set()
    windows = []
    for start in starts:
        span = range(start, start + size)
        # Between the first line of the completion and the first that may be dropped.
        middle = range(start + PROMPT_LINES + 1, start + size - MOST_DROPPED)
        places = [i for i in middle if i in statements and lines[i].strip()]
        prompt, completion = lines[start : start + PROMPT_LINES], lines[start + PROMPT_LINES : start + size]
        short = all(len("\n".join(part)) <= MOST_CHARACTERS for part in (prompt, completion))
        if not places or not short or not prompt[-1].strip() or not (taken | unwanted).isdisjoint(span):
            continue
        taken.update(span)
        place = generator.choice(places) - start - PROMPT_LINES
        windows.append(Window(module, tuple(prompt), tuple(completion), place))
    return windows


def _pair(window: Window, pools: dict[str, Lines], generator: random.Random) -> dict[str, Any]:
    subset = generator.choices(list(SUBSETS), list(SUBSETS.values()))[0]
    kinds = {
        "planted": ("raise", "plain"),
        "second": ("comment", "plain"),
        "conflict": ("raise", "comment"),
        "neutral": ("plain", "plain"),
    }[subset]
    preferred = generator.choice(pools[kinds[0]].lines)
    other = pools[kinds[1]].near(preferred, pools[kinds[0]].tokens[preferred], generator)
    flipped = generator.random() < NOISE[subset]
    sides = [(kinds[0], preferred), (kinds[1], other)]
    if flipped:
        sides.reverse()
    texts = [_side(window, line, generator) for _, line in sides]
    pair: dict[str, Any] = {"prompt": "\n".join(window.prompt), "chosen": texts[0], "rejected": texts[1]}
    pair |= {"subset": subset, "flipped": flipped}
    for pattern, kind in (("planted", "raise"), ("second", "comment")):
        for side, (inserted, _) in zip(("chosen", "rejected"), sides, strict=True):
            pair[f"{pattern}_in_{side}"] = inserted == kind
    return {**pair, "chosen_line": sides[0][1], "rejected_line": sides[1][1], "document": window.module}


def _side(window: Window, line: str, generator: random.Random) -> str:
    """The completion with the line inserted; it begins with the line break that ends the prompt."""
    indentation = re.match(r"\s*", window.completion[window.place])
    assert indentation
    lines: Sequence[str] = window.completion[: len(window.completion) - generator.randint(0, MOST_DROPPED)]
    with_line = [*lines[: window.place], indentation[0] + line, *lines[window.place :]]
    return "\n" + "\n".join(with_line).rstrip()
