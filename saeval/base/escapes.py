"""Foreign text where it is shown: a function for each of terminal, line, Markdown, HTML, CSV, plot and file name.

Names, reasons and tokens come from checkpoints, corpora and other people's results. Whoever writes one of these formats
uses its function here, so that no text is taken for markup, a formula, a command of a terminal or a path.
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
"""What moves a cursor, turns the direction of text or cannot be seen: controls, marks of direction, lone surrogates."""
_BUT_BREAKS = re.compile(rf"(?![\n\t]){CONTROL.pattern}")
FORBIDDEN = '/\\:*?"<>|'
"""Characters that file names cannot have on some system."""
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names that are devices on Windows, whatever their ending."""
MAX_BYTES = 200
"""Of a file name: most systems take 255, and what is written has endings and temporary names."""

_ENTITY = re.compile(r"&(?=#?\w+;)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_MARKUP = re.compile(r"[`*|~$]|\\(?=[!-/:-@\[-`{-~]|$)|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(:\[]")
"""Not an underscore between letters, which marks nothing: names of hooks stay as they are typed."""
_OPENING = re.compile(r"(\s*(?:\d{1,9}(?=[.)](?:\s|$))|(?=#+(?:\s|$)|>|[-+=](?:[\s=-]|$))))")
"""Before what makes a heading, a list, a quotation or a rule of a line."""


def terminal(text: str) -> str:
    """Text of several lines: control characters as `\\x1b`, line breaks and tabs as they are."""
    return _BUT_BREAKS.sub(_code, text.replace("\r\n", "\n"))


def line(text: str) -> str:
    """Text on one line: line breaks and tabs as signs, other control characters as `\\x1b`."""
    return CONTROL.sub(_code, text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥"))


def markdown(text: str) -> str:
    """Text that Markdown shows letter by letter, on one line: no markup, no HTML, no column of its own in a table."""
    plain = _TAG.sub("&lt;", _ENTITY.sub("&amp;", line(text)))
    escaped = _MARKUP.sub(r"\\\g<0>", plain)
    return _OPENING.sub(r"\1\\", escaped, count=1) if _OPENING.match(escaped) else escaped


def html(text: str) -> str:
    """Text between tags or in an attribute, on one line."""
    return _html.escape(line(text))


def csv(value: Any) -> Any:
    """A cell: text on one line, with `'` before what a spreadsheet would take for a formula; a number is itself."""
    if not isinstance(value, str):
        return value
    text = line(value)
    return f"'{text}" if text.lstrip("⇥ ")[:1] in tuple("=+-@") and not _is_number(text) else text


def plot(text: str) -> str:
    """Text on one line in which matplotlib finds no formula."""
    return line(text).replace("$", r"\$")


def file_name(text: str) -> str:
    """One component of a path on any system: no separators, control characters or names of devices; never hidden."""
    name = "".join("-" if c in FORBIDDEN else c for c in CONTROL.sub("-", text)).rstrip(". ")
    name = re.sub(r"^[. ]+", lambda found: "-" * bool(found), name)
    name = f"-{name}" if RESERVED.fullmatch(name) or not name else name
    if len(name.encode()) <= MAX_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    ending = dot + ending if stem and len(ending.encode()) < 16 else ""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # two long names of one beginning stay two
    kept = name.encode()[: MAX_BYTES - len(digest) - 1 - len(ending.encode())].decode(errors="ignore")
    return f"{kept}-{digest}{ending}"


def _code(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


__all__ = ["csv", "file_name", "html", "line", "markdown", "plot", "terminal"]
