"""Stored results by what a person types: a file, a key, a folder with a key, or suite, metric and SAE."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError, suggestion
from saeval.results.result import Result
from saeval.results.store import LIMITED, MANIFEST, Store

_KEY = re.compile(r"[0-9a-f]{4,24}")
"""A key, or its beginning."""


@dataclass(frozen=True)
class Listed:
    """A cell as a manifest lists it, with its result where that is computed."""

    store: Store
    key: str
    cell: Mapping[str, Any]

    @property
    def result(self) -> Result:
        """The result with its arrays; `missing` where it is not computed, `damaged` where its files are."""
        result = self.store.read(self.key, arrays=True) or Result(self.key, "missing", {})
        result.cell = self.cell
        return result

    @property
    def metric(self) -> str:
        return str(self.cell.get("alias", self.cell["metric"]))

    @property
    def names(self) -> set[str]:
        """What the cell's subject may be called: an SAE, an SAE at its hook, a group."""
        subjects = self.cell["subjects"]
        own = {str(self.cell["over"])} if self.cell.get("over") else set()
        if len(subjects) == 1:
            own |= {subjects[0]["name"], f"{subjects[0]['name']}@{subjects[0]['hook_name']}"}
        return own


def is_folder(path: Path) -> bool:
    """Whether a path is a suite's folder of results."""
    return any(os.path.isfile(path / name) for name in (MANIFEST, LIMITED))  # for any text that somebody typed


def folder(word: str, out: Path | str) -> Path | None:
    """The results folder that a word names: a path, or a suite's name under `out`."""
    return next((path for path in (Path(word), Path(out) / word) if is_folder(path)), None)


def suites(out: Path | str) -> list[str]:
    """The suites with results under a folder."""
    if not os.path.isdir(out):
        return []
    found = {path.parent.name for name in (MANIFEST, LIMITED) for path in Path(out).glob(f"*/{name}")}
    return sorted(found)


def cells(path: Path) -> list[Listed]:
    """The cells of a folder's last whole run, else of its last limited one, in the suite's order."""
    store = Store(path)
    return [Listed(store, listed["key"], listed["cell"]) for listed in store.manifest()["cells"]]


def of_file(path: Path) -> Result:
    """The result in a JSON file; `SaevalError` where it holds none that can be believed."""
    result = _read(path)
    if result is None or not result.cell:
        why = result.reason if result is not None else "it cannot be read"
        raise SaevalError(f"{path.parent}: no result of saeval in {why}")
    return result


def _read(path: Path) -> Result | None:
    """The result of a file; where that is damaged, with the cell that a manifest beside it lists."""
    store = Store(path.parent)
    result = store.read(path.stem, arrays=True)
    if result is not None and not result.cell:
        listed = (one for manifest in store.manifests() for one in manifest["cells"] if one["key"] == result.key)
        result.cell = next((one["cell"] for one in listed), {})
    return result


def by_key(word: str, folders: Sequence[Path]) -> list[Result]:
    """Results whose key begins with `word`, each key once, whichever run wrote it."""
    if not _KEY.fullmatch(word):
        return []
    files = {file.stem: file for path in folders for file in sorted(path.glob(f"{word}*.json"))}
    found = (_read(file) for _, file in sorted(files.items()))
    return [result for result in found if result is not None and result.cell]


def under(out: Path | str) -> list[Path]:
    """Every results folder directly under `out`."""
    return [Path(out) / name for name in suites(out)]


def chosen(words: Sequence[str], out: Path | str) -> list[Listed] | Result:
    """What a folder and further words name: one result, or the cells among which they do not decide.

    The words after the folder are the beginning of a key, or a metric and a subject. `SaevalError` for a folder,
    metric or subject that is not there.
    """
    path = folder(words[0], out)
    if path is None:
        known = suites(out)
        near = suggestion(words[0], known) if known else ""
        raise SaevalError(f"no results in '{words[0]}' or '{Path(out) / words[0]}'{near}")
    if len(words) > 3:
        raise SaevalError(f"show takes a folder, a metric and an SAE, got {len(words)} words: quote names with spaces")
    listed = cells(path)
    if len(words) == 2 and (matches := by_key(words[1], [path])):
        if len(matches) == 1:
            return matches[0]
        return [one for one in listed if one.key.startswith(words[1])]
    metric = words[1].split(".")[0]  # a column, `metric.value`
    some = [one for one in listed if one.metric == metric] or [one for one in listed if one.cell["metric"] == metric]
    if not some:
        near = suggestion(metric, sorted({one.metric for one in listed}))
        raise SaevalError(f"{path}: no metric and no key '{words[1]}' among its results{near}")
    if len(words) == 3:
        names = sorted({name for one in some for name in one.names})
        draw = re.compile(rf"{re.escape(words[2])}(#\d+)?")  # of a control, all its draws
        some = [one for one in some if any(map(draw.fullmatch, one.names))]
        if not some:
            raise SaevalError(f"{path}: no result of '{metric}' for '{words[2]}'{suggestion(words[2], names)}")
    return some[0].result if len(some) == 1 else some
