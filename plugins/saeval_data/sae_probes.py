"""The labelled data sets that the package sae-probes carries."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError, expand_user, names_matching, sha256_file, suggestion
from saeval_data import files
from saeval_data.labelled import Labelled, LabelledTexts

_SUFFIX = ".csv.zst"
_OVERVIEW = "probing_datasets_MASTER.csv.zst"
_REMEDY = "name the folder 'data' of the package with 'folder'"


class SaeProbes(LabelledTexts):
    """The data sets of classes in the package sae-probes, each a task: 113 of two classes, 20 of several.

    `pip install --no-deps sae-probes` suffices, since the package is not imported; or `folder` has its folder `data`.
    `tasks` are names or globs, such as `161_agnews_0` or `*_glue_*`. Its sets of numbers have no classes and are left
    out. `rows` is the largest number of texts of a task, chosen by a hash keyed by `draw`; `balance` takes as many of
    each class. `shares` are those of documents for fitting, validation and testing.
    """

    name = "sae_probes"

    def __init__(
        self,
        tasks: str | list[str] = "*",
        folder: str | None = None,
        rows: int | None = 1000,
        balance: bool = True,
        shares: tuple[float, float, float] = (0.6, 0.15, 0.25),
        draw: int = 0,
    ) -> None:
        super().__init__(rows, balance, shares, draw)
        self.folder = _installed() if folder is None else expand_user(folder)
        self.patterns = [tasks] if isinstance(tasks, str) else tasks
        known = {path.name.removesuffix(_SUFFIX): path for path in sorted(self._sets.glob(f"*{_SUFFIX}"))}
        if not known:
            raise SaevalError(f"data 'sae_probes': {self._sets} holds no {_SUFFIX} files; {_REMEDY}")
        self.paths: dict[str, Path] = {}
        for pattern in self.patterns:
            found = names_matching(pattern, list(known))
            if not found:
                raise SaevalError(f"data 'sae_probes': no task matches '{pattern}'{suggestion(pattern, list(known))}")
            numbers = [name for name in found if name in self._of_numbers]
            if len(numbers) == len(found):
                raise SaevalError(
                    f"data 'sae_probes': '{numbers[0]}' has numbers instead of classes; choose another task"
                )
            self.paths |= {name: known[name] for name in found if name not in self._of_numbers}

    @property
    def _sets(self) -> Path:
        return self.folder / "cleaned_data"

    @cached_property
    def _of_numbers(self) -> set[str]:
        """The names of sets whose targets are numbers, by the package's overview."""
        overview = self.folder / _OVERVIEW
        if not overview.is_file():
            raise SaevalError(f"data 'sae_probes': {overview} is missing; {_REMEDY}")
        names = set()
        for number, record in files.csv_records(overview):
            kind = files.field_of(record, "Data type", f"{overview}: row {number}")
            name = files.field_of(record, "Dataset save name", f"{overview}: row {number}")
            if str(kind).startswith("Continuous"):
                names.add(Path(str(name)).name.removesuffix(".csv"))
        return names

    def fingerprint(self) -> str:
        choices = [self.rows, self.balance, list(self.shares), self.draw]
        parts = [*choices, *([name, sha256_file(path)] for name, path in self.paths.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self) -> Mapping[str, Any]:
        return {"read": list(self.paths)[:20], "files": len(self.paths), **super().facts()}

    def texts(self) -> Iterator[Labelled]:
        for task, path in self.paths.items():
            for number, record in files.csv_records(path):
                where = f"{path}: row {number}"
                text = files.text_of(files.field_of(record, "prompt", where), "prompt", where)
                target = files.field_of(record, "target", where)
                if text and target:
                    yield Labelled(f"{task}:{number}", text, {task: target})


def _installed() -> Path:
    """Return the folder with the data of the installed package."""
    found = importlib.util.find_spec("sae_probes")
    if found is None or not found.submodule_search_locations:
        remedy = "pip install --no-deps sae-probes, or name the folder 'data' of its wheel with 'folder'"
        raise SaevalError(f"data 'sae_probes': the package sae-probes is not installed; {remedy}")
    return Path(found.submodule_search_locations[0]) / "data"
