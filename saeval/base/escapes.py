"""Escaping of foreign text: one function each for terminal, line, Markdown, HTML, LaTeX, CSV and file name.

Names, reasons and tokens come from checkpoints, corpora and other people's results. Code that writes one of these
formats must use its function, so that no text acts as markup, a formula, a terminal command or a path.
"""

from __future__ import annotations

import hashlib
import html as _html
import re
from typing import Any

CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)
"""Characters that are invisible, move the cursor or change the text direction, and lone surrogates."""
_BUT_BREAKS = re.compile(rf"(?![\n\t]){CONTROL.pattern}")
FORBIDDEN = '/\\:*?"<>|'
"""Characters that file names cannot contain on some systems."""
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names of devices on Windows, with any extension."""
MAX_BYTES = 200
"""Longest file name in bytes. Most systems allow 255, which leaves room for extensions and temporary names."""

_ENTITY = re.compile(r"&(?=#?\w+;)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_MARKUP = re.compile(r"[`*|~$]|\\(?=[!-/:-@\[-`{-~]|$)|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(:\[]")
"""Markdown markup. An underscore between letters is none, so hook names stay as they are."""
_OPENING = re.compile(r"(\s*(?:\d{1,9}(?=[.)](?:\s|$))|(?=#+(?:\s|$)|>|[-+=](?:[\s=-]|$))))")
"""The start of a line that would be a heading, a list, a quotation or a rule."""


def terminal(text: str) -> str:
    """Escape text of several lines for a terminal: control characters become `\\x1b`; line breaks and tabs stay."""
    return _BUT_BREAKS.sub(_code, text.replace("\r\n", "\n"))


def line(text: str) -> str:
    """Put text on one line: line breaks and tabs become the signs ⏎ and ⇥, other control characters `\\x1b`."""
    return CONTROL.sub(_code, text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥"))


def markdown(text: str) -> str:
    """Escape text for Markdown, on one line: no markup, no HTML, no table columns."""
    plain = _TAG.sub("&lt;", _ENTITY.sub("&amp;", line(text)))
    escaped = _MARKUP.sub(r"\\\g<0>", plain)
    return _OPENING.sub(r"\1\\", escaped, count=1) if _OPENING.match(escaped) else escaped


def html(text: str) -> str:
    """Escape text for HTML, between tags or in an attribute, on one line."""
    return _html.escape(line(text))


_LATEX = {
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    '"': r"\char34{}", "[": "{[}", "]": "{]}", "*": "{*}", "-": "-{}",
    "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$",
    "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\dots{}", "⏎": r"$\hookleftarrow$", "⇥": r"$\mapsto$",
    "Δ": r"$\Delta$", "Σ": r"$\Sigma$", "μ": r"$\mu$", "∞": r"$\infty$", "·": r"$\cdot$", "≤": r"$\leq$",
    "≥": r"$\geq$", "≈": r"$\approx$", "²": r"$^2$", "³": r"$^3$", "‖": r"$\Vert$", "√": r"$\surd$",
}  # fmt: skip
"""Spellings of LaTeX's own signs, of signs that begin an argument or a ligature, and of saeval's signs."""


def latex(text: str) -> str:
    """Escape text for LaTeX, on one line: no command, comment, ligature, argument or table column.

    Letters of other scripts stay, and need XeLaTeX or LuaLaTeX; other signs beyond ASCII become `\\u2603`.
    """
    return "".join(map(_latex_sign, line(text)))


def _latex_sign(sign: str) -> str:
    if sign in _LATEX:
        return _LATEX[sign]
    if sign.isascii() or sign.isalpha():
        return sign
    return f"{_LATEX[chr(92)]}u{ord(sign):04x}"


def csv(value: Any) -> Any:
    """Escape a CSV cell: text on one line, with `'` before a spreadsheet formula. Other values are unchanged."""
    if not isinstance(value, str):
        return value
    text = line(value)
    return f"'{text}" if text.lstrip("⇥ ")[:1] in tuple("=+-@") and not _is_number(text) else text


def file_name(text: str) -> str:
    """Return a valid path component for any system: no separators, control characters or device names; not hidden."""
    name = "".join("-" if c in FORBIDDEN else c for c in CONTROL.sub("-", text)).rstrip(". ")
    name = re.sub(r"^[. ]+", "-", name)
    name = f"-{name}" if RESERVED.fullmatch(name) or not name else name
    if len(name.encode()) <= MAX_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    ending = dot + ending if stem and len(ending.encode()) < 16 else ""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # long names with the same start stay distinct
    start = name.encode()[: MAX_BYTES - len(digest) - 1 - len(ending.encode())].decode(errors="ignore")
    return f"{start}-{digest}{ending}"


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
