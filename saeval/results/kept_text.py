"""`KeptText`: the text of a large leaderboard, kept beside the index for as long as no file of the results changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from saeval.base.errors import SaevalError
from saeval.base.escapes import file_name
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import Unwritable, write
from saeval.results.index import FOLDER, FORM, Basis, code, files_of, settled
from saeval.results.report import Report
from saeval.results.store import LIMITED, MANIFEST

log = logging.getLogger("saeval")


class KeptText:
    """The text of one report format about one folder. Make it before the results are read."""

    def __init__(self, folder: Path | str, include_limited: bool, report: Report) -> None:
        self._folder = Path(folder)
        self._path = self._folder / FOLDER / f"text.{file_name(report.name)}.json"
        manifests = files_of([str(self._folder / name) for name in (MANIFEST, LIMITED)])
        self._settled = settled(manifests, time.time_ns()).all()
        self._facts = {
            "form": FORM,
            "saeval": code(report.write),
            "limited": include_limited,
            "manifests": manifests.tolist(),
        }

    def read(self) -> tuple[str, list[str]] | None:
        """The text, and what is left out of it; None where a file has changed since, or nothing is kept."""
        try:
            kept = unsealed(self._path.read_bytes())
            if {name: kept.get(name) for name in self._facts} != self._facts:
                return None
            if Basis.of(self._folder, kept["keys"]).digest != kept["digest"]:
                return None
            return str(kept["text"]), list(kept["left_out"])
        except FileNotFoundError:
            return None
        except (OSError, SaevalError, DamagedError, KeyError, TypeError, ValueError) as error:
            log.debug("%s: of no use (%s)", self._path, error)
            return None

    def keep(self, text: str, left_out: Sequence[str], basis: Basis | None) -> None:
        """Write it, with the files that it rests on; not where these are not known, or too young to tell a change."""
        if basis is None or not self._settled:
            return
        kept = {**self._facts, "keys": basis.keys, "digest": basis.digest, "text": text, "left_out": list(left_out)}
        try:
            write(self._path, sealed(kept), "")
        except Unwritable as error:
            log.debug("%s", error)
