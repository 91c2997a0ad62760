"""Explanations that the user gives: a file of words for features."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from saeval.plugin import SaevalError, digest_of, expand_user, quoted_value, read_text, searched_in, sha256_file

_SAE = "{sae}"
_FEATURE, _WORDS = ("feature", "index"), ("explanation", "description")
"""Names of the fields, ours and those that feature browsers export."""


class _ReadPath(str):
    """A path whose `repr`, which is part of the keys of what is computed from it, has a hash of the files there."""

    content: str

    def __repr__(self) -> str:
        return f"{super().__repr__()} with content {self.content}"


def _with_content(path: str) -> str:
    expanded = expand_user(path)
    pattern = expanded.name.replace(_SAE, "*")
    if _SAE in str(expanded.parent):
        raise ValueError(f"'{_SAE}' may stand in the name of the file alone, as in words/{_SAE}.jsonl")
    files = sorted(expanded.parent.glob(pattern)) if _SAE in expanded.name else [expanded]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"no such file: {path}{searched_in(expanded)}")
    found = _ReadPath(path)
    found.content = digest_of([[file.name, sha256_file(file)] for file in files])
    return found


WordsPath = Annotated[str, AfterValidator(_with_content)]
"""A file of explanations; `{sae}` in its name stands for the SAE's name. Results are of its content."""


def file_of(path: str, sae_name: str) -> Path:
    """Return the file of an SAE: `{sae}` in the path stands for its name."""
    return expand_user(Path(path.replace(_SAE, sae_name)))


@functools.lru_cache(32)
def _read(file: Path, changed: float) -> dict[int, str]:
    text = read_text(file)
    try:
        whole = json.loads(text)
        records = whole if isinstance(whole, list) else [whole]
        places = [f"entry {number}" for number in range(1, len(records) + 1)]
    except ValueError:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        records, places = [], [f"line {number}" for number, _ in lines]
        for number, line in lines:
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise SaevalError(f"{file}, line {number}: this is no JSON ({error})") from None
    words: dict[int, str] = {}
    for place, record in zip(places, records, strict=True):
        feature, explanation = _fields(record)
        if feature is None or explanation is None:
            example = '{"feature": 12, "explanation": "names of months"}'
            raise SaevalError(f"{file}, {place}: expected an object such as {example}, got {quoted_value(record)}")
        words.setdefault(feature, explanation)
    return words


def _fields(record: Any) -> tuple[int | None, str | None]:
    if not isinstance(record, dict):
        return None, None
    number = next((record[key] for key in _FEATURE if key in record), None)
    words = next((record[key] for key in _WORDS if key in record), None)
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    is_number = isinstance(number, int) and not isinstance(number, bool)
    return (number if is_number else None), (words.strip() if isinstance(words, str) and words.strip() else None)


def given_words(path: Path, sae_name: str) -> dict[int, str]:
    """Return the words of each feature in the SAE's file; `SaevalError` that names the line if it cannot be read."""
    file = file_of(str(path), sae_name)
    if not file.is_file():
        raise SaevalError(f"no such file: {file}{searched_in(file)}")
    return _read(file, file.stat().st_mtime)
