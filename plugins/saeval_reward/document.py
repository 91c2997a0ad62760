"""A page of blocks, rendered as Markdown and as HTML. All content of a block is escaped as text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from saeval.plugin import escapes, formatting


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Warned:
    text: str


@dataclass(frozen=True)
class Picture:
    """An image file beside the page."""

    file: str
    text: str


@dataclass(frozen=True)
class Grid:
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens, with those marked that have an activation."""

    label: str
    tokens: Sequence[str]
    activations: Sequence[float]


Block: TypeAlias = Heading | Paragraph | Warned | Picture | Grid | Passage

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.5rem; text-align: right; white-space: pre-wrap; max-width: 40rem; }
th { background: #f3f3f3; }
td.text { text-align: left; overflow-wrap: anywhere; }
p.passage { font: 13px/1.6 ui-monospace, monospace; white-space: pre-wrap; margin: 0.2rem 0 0.2rem 1rem; }
p.passage span { color: #777; }
p.warning { background: #fff4d6; border-left: 4px solid #e0a100; padding: 0.4rem 0.8rem; }
img { max-width: 100%; }
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    """A complete HTML page, without scripts."""
    head = f'<meta charset="utf-8"><title>{escapes.html(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(_html(block) for block in [Heading(title, 1), *blocks])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same as Markdown."""
    return "\n\n".join(_markdown(block) for block in [Heading(title, 1), *blocks]) + "\n"


def cell(value: Any) -> str:
    """The text of a table cell: four digits of a float, a dash for None."""
    return formatting.number(value) if value is None or isinstance(value, float) else str(value)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escapes.html(block.text)}</h{block.level}>"
    if isinstance(block, Picture):
        return f'<p><img src="{escapes.html(block.file)}" alt="{escapes.html(block.text)}"></p>'
    if isinstance(block, Grid):
        head = "".join(f"<th>{escapes.html(name)}</th>" for name in block.columns)
        lines = "".join(f"<tr>{''.join(_td(value) for value in row)}</tr>\n" for row in block.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>"
    if isinstance(block, Passage):
        highest = max([abs(a) for a in block.activations], default=0.0)
        marked = "".join(_marked(t, a, highest) for t, a in zip(block.tokens, block.activations, strict=True))
        return f'<p class="passage"><span>{escapes.html(block.label)}</span>  {marked}</p>'
    kind = ' class="warning"' if isinstance(block, Warned) else ""
    return f"<p{kind}>{escapes.html(block.text)}</p>"


def _td(value: Any) -> str:
    kind = ' class="text"' if isinstance(value, str) else ""
    return f"<td{kind}>{escapes.html(cell(value))}</td>"


def _marked(token: str, activation: float, highest: float) -> str:
    text = escapes.html(token)
    if not activation or not highest:
        return text
    strength = 0.15 + 0.75 * min(1.0, abs(activation) / highest)
    return f'<mark title="{activation:.4g}" style="background: rgba(255, 150, 0, {strength:.2f})">{text}</mark>'


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escapes.markdown(block.text)}"
    if isinstance(block, Picture):
        return f"![{escapes.markdown(block.text)}]({block.file})"
    if isinstance(block, Grid):
        lines = [[escapes.markdown(cell(value)) for value in row] for row in block.rows]
        names = [escapes.markdown(name) for name in block.columns]
        return "\n".join("| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *lines))
    if isinstance(block, Passage):
        marked = itertools.groupby(zip(block.tokens, block.activations, strict=True), key=lambda pair: bool(pair[1]))
        text = "".join(_run("".join(token for token, _ in pairs), fires) for fires, pairs in marked)
        return f"- {escapes.markdown(block.label)}: {text}"
    return f"{'> **Warning:** ' if isinstance(block, Warned) else ''}{escapes.markdown(block.text)}"


def _run(text: str, bold: bool) -> str:
    """Tokens as escaped text, bold if they fire. Spaces at the ends stay outside the bold markers."""
    body = text.strip(" ")
    if not bold or not body:
        return escapes.markdown(text)
    before, after = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :]
    return f"{before}**{escapes.markdown(body)}**{after}"
