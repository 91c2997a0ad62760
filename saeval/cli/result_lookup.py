"""Finding stored results by the words of a command line: a file, a key, a folder and a key, or suite, metric, SAE."""

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
"""A key, or its first letters."""


@dataclass(frozen=True)
class Listed:
    """A cell as listed in a manifest."""

    store: Store
    key: str
    cell: Mapping[str, Any]

    @property
    def result(self) -> Result:
        """The cell's result with its arrays; its status is `missing` if it is not computed yet."""
        result = self.store.read(self.key, arrays=True) or Result(self.key, "missing", {})
        result.cell = self.cell
        return result

    @property
    def metric(self) -> str:
        return str(self.cell.get("alias", self.cell["metric"]))

    @property
    def names(self) -> set[str]:
        """Names that mean the cell's subject: of an SAE or control, alone or with its hook, or of a group."""
        subjects = self.cell["subjects"]
        names = {str(self.cell["over"])} if self.cell.get("over") else set()
        if len(subjects) == 1:
            names |= {subjects[0]["name"], f"{subjects[0]['name']}@{subjects[0]['hook_name']}"}
        return names


def is_folder(path: Path) -> bool:
    """Return True if a path is a suite's folder of results."""
    return any(os.path.isfile(path / name) for name in (MANIFEST, LIMITED))  # never raises, unlike Path.is_file


def folder(word: str, out: Path | str) -> Path | None:
    """Return the results folder that a word names: a path, or a suite's name under `out`; None if there is none."""
    return next((path for path in (Path(word), Path(out) / word) if is_folder(path)), None)


def suites(out: Path | str) -> list[str]:
    """Return the names of the suites with results under a folder."""
    if not os.path.isdir(out):
        return []
    return sorted({path.parent.name for name in (MANIFEST, LIMITED) for path in Path(out).glob(f"*/{name}")})


def cells(path: Path) -> list[Listed]:
    """Return the cells of a folder's last whole run, or else of its last limited run, in the suite's order."""
    store = Store(path)
    return [Listed(store, listed["key"], listed["cell"]) for listed in store.manifest()["cells"]]


def of_file(path: Path) -> Result:
    """Return the result in a JSON file. `SaevalError` if the file is not a result, or is damaged and in no manifest."""
    result = _read(path)
    if result is None or not result.cell:
        why = result.reason if result is not None else "it cannot be read"
        raise SaevalError(f"{path.parent}: no result of saeval in {why}")
    return result


def _read(path: Path) -> Result | None:
    """Return the result in a file; a damaged one gets its cell from a manifest in the same folder."""
    store = Store(path.parent)
    result = store.read(path.stem, arrays=True)
    if result is not None and not result.cell:
        listed = (cell for manifest in store.manifests() for cell in manifest["cells"] if cell["key"] == result.key)
        result.cell = next((cell["cell"] for cell in listed), {})
    return result


def by_key(word: str, folders: Sequence[Path]) -> list[Result]:
    """Return the results in these folders whose key begins with `word`, each key once."""
    if not _KEY.fullmatch(word):
        return []
    files = {file.stem: file for path in folders for file in sorted(path.glob(f"{word}*.json"))}
    results = (_read(file) for _, file in sorted(files.items()))
    return [result for result in results if result is not None and result.cell]


def under(out: Path | str) -> list[Path]:
    """Return the results folders directly under `out`."""
    return [Path(out) / name for name in suites(out)]


def chosen(words: Sequence[str], out: Path | str) -> list[Listed] | Result:
    """Return the one result that a folder and further words name, or all matching cells if there are several.

    The words after the folder are the first letters of a key, or a metric and perhaps a subject. `SaevalError` for an
    unknown folder, metric or subject.
    """
    path = folder(words[0], out)
    if path is None:
        names = suites(out)
        near = suggestion(words[0], names) if names else ""
        raise SaevalError(f"no results in '{words[0]}' or '{Path(out) / words[0]}'{near}")
    if len(words) > 3:
        raise SaevalError(f"show takes a folder, a metric and an SAE, got {len(words)} words: quote names with spaces")
    listed = cells(path)
    if len(words) == 2 and (matches := by_key(words[1], [path])):
        if len(matches) == 1:
            return matches[0]
        return [cell for cell in listed if cell.key.startswith(words[1])]
    metric = words[1].split(".")[0]  # a column, `metric.value`
    matching = [cell for cell in listed if cell.metric == metric] or [c for c in listed if c.cell["metric"] == metric]
    if not matching:
        near = suggestion(metric, sorted({cell.metric for cell in listed}))
        raise SaevalError(f"{path}: no metric and no key '{words[1]}' among its results{near}")
    if len(words) == 3:
        names = sorted({name for cell in matching for name in cell.names})
        draw = re.compile(rf"{re.escape(words[2])}(#\d+)?")  # of a control, all its draws
        matching = [cell for cell in matching if any(map(draw.fullmatch, cell.names))]
        if not matching:
            raise SaevalError(f"{path}: no result of '{metric}' for '{words[2]}'{suggestion(words[2], names)}")
    return matching[0].result if len(matching) == 1 else matching
