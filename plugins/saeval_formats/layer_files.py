"""Formats with one file per layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from saeval.plugin import SaevalError, formatting
from saeval_formats.folders import chosen
from saeval_formats.reference import LocalLoader, folder_of, in_order


class LayerFileLoader(LocalLoader):
    """A format with one file per layer. `path` is a file and may contain globs, or a folder with `sites`, globs."""

    expands = {**LocalLoader.expands, "sites": str | list[str]}  # noqa: RUF012
    pattern: ClassVar[re.Pattern[str]]
    """The names of the files; the group is the layer."""

    def at_path(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return one reference per file whose name without its suffixes matches `sites`; the reference without it."""
        if (wanted := reference.get("sites")) is None:
            return {"": reference}
        rest = {key: value for key, value in reference.items() if key != "sites"}
        if "path" not in rest:
            raise SaevalError(f"{self.name}: 'sites' needs 'path', the folder of the files")
        folder = folder_of(Path(str(rest["path"])), self.name, "one file per layer")
        files = {name.partition(".")[0]: name for name in self._files(folder)}
        sites = chosen(wanted, list(files), f"{self.name}: {folder}: no file", "sites")
        return {site: {**rest, "path": str(folder / files[site])} for site in sites}

    def file(self, path: Path) -> tuple[Path, str | None]:
        """Return the file at a path and its layer, if its name has one; `SaevalError` for a folder."""
        path = path.expanduser()
        if path.is_dir():
            files = self._files(path)
            remedy = (
                f"it holds {formatting.counted(len(files), 'SAE')}: add 'sites: \"*\"', or name one"
                if files
                else "check 'path'"
            )
            raise SaevalError(f"{self.name}: {path}: is a folder, expected a file; {remedy}")
        match = self.pattern.fullmatch(path.name)
        return path, match[1] if match else None

    def _files(self, folder: Path) -> list[str]:
        names = [file.name for file in folder.iterdir() if self.pattern.fullmatch(file.name)]
        return sorted(names, key=lambda name: in_order((name,)))
