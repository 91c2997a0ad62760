"""`KeptText`: the text of a large leaderboard, stored beside the index and valid until one of its files changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from saeval.base.errors import SaevalError
from saeval.base.escapes import file_name
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import Unwritable, write_whole
from saeval.results import file_states
from saeval.results.file_states import FOLDER, Basis, code, states_of

log = logging.getLogger("saeval")

_FORM = 3
_FILES = ("manifest.json", "manifest.limited.json", "certificate.json")
"""Files of the folder that a leaderboard shows, besides the results."""


class KeptText:
    """The stored text of one report format for one folder. Create it before the results are read.

    Reading it imports no plugin, and nothing else that is slow.
    """

    def __init__(
        self,
        folder: Path | str,
        include_limited: bool,
        report: str,
        plugins: Sequence[Path | str],
        shape: object = None,
    ) -> None:
        """`plugins`: files of `--plugin`. `shape`: what else the text depends on, as plain data, such as its width."""
        self._folder = Path(folder)
        self._path = self._folder / FOLDER / f"text.{file_name(report)}.json"
        manifests = states_of([str(self._folder / name) for name in _FILES])
        self._settled = max(*manifests[1::4], *manifests[2::4]) < time.time_ns() - file_states.SETTLED
        files = [str(Path(file).resolve()) for file in plugins]
        self._facts = {
            "form": _FORM,
            "report": report,
            "limited": include_limited,
            "shape": shape,
            "manifests": manifests.tolist(),
            "plugins": sorted([point.name, point.value] for point in entry_points(group="saeval")),
            "files": [files, states_of(files).tolist()],
        }

    def read(self) -> tuple[str, list[str]] | None:
        """Return the text and the sentences for standard error; None without a text, or if a file has changed since."""
        try:
            kept = unsealed(self._path.read_bytes())
            if {name: kept.get(name) for name in self._facts} != self._facts or kept["code"] != code(kept["folders"]):
                return None
            if Basis.of(self._folder, kept["keys"], kept["with_arrays"]).digest != kept["digest"]:
                return None
            return str(kept["text"]), list(kept["asides"])
        except FileNotFoundError:
            return None
        except (OSError, SaevalError, DamagedError, KeyError, TypeError, ValueError) as error:
            log.debug("%s: not usable (%s)", self._path, error)
            return None

    def keep(self, text: str, asides: Sequence[str], basis: Basis | None, folders: Iterable[Path]) -> None:
        """Store the text with the states of its files, unless these are unknown or too young to show a later change.

        `folders`: those of the plugins.
        """
        if basis is None or not self._settled:
            return
        places = sorted(map(str, folders))
        kept = {
            **self._facts, "folders": places, "code": code(places), "keys": basis.keys,
            "with_arrays": basis.with_arrays, "digest": basis.digest, "text": text, "asides": list(asides),
        }  # fmt: skip
        try:
            write_whole(self._path, sealed(kept), "")
        except Unwritable as error:
            log.debug("%s", error)
