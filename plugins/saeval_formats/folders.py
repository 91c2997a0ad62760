"""Formats with one folder per SAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from saeval.plugin import SaevalError, names_matching, names_matching_any, suggestion
from saeval_formats.reference import LocalLoader, folder_of, in_order


class FolderLoader(LocalLoader):
    """A format with one folder per SAE. `path` may contain globs; `sites` are globs for the folders below it."""

    expands = {**LocalLoader.expands, "sites": str | list[str]}  # noqa: RUF012
    markers: ClassVar[tuple[str, ...]]
    """File names; a folder that has any of them holds an SAE."""

    def at_path(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return one reference per SAE below `path` whose relative path matches `sites`; the reference without it."""
        rest = {key: value for key, value in reference.items() if key != "sites"}
        if (wanted := reference.get("sites")) is None:
            return {"": dict(reference)}
        if "path" not in rest:
            raise SaevalError(f"{self.name}: 'sites' needs 'path', the folder of the SAEs' folders")
        folder = folder_of(Path(str(rest["path"])), self.name, "SAEs in folders")
        names = chosen(wanted, below(folder, self.markers), f"{self.name}: {folder}: no SAE", "sites")
        return {site: {**rest, "path": str(folder / site)} for site in names}


def chosen(wanted: Any, names: list[str], missing: str, key: str) -> list[str]:
    """Return the names that a glob, or any of a list of globs, matches, in the order of `names`.

    `SaevalError` if a glob matches none; `missing` begins that message, and `key` is the suite's key.
    """
    globs = wanted if isinstance(wanted, list) else [wanted]
    for glob in globs:
        if not isinstance(glob, str) or not glob:
            raise SaevalError(f"{missing.partition(':')[0]}: '{key}' must be a glob or list of globs, found {wanted!r}")
        if not names_matching(glob, names):
            raise SaevalError(f"{missing} matches '{key}: {glob}'{suggestion(glob, names)[:400]}")
    return names_matching_any(globs, names)


def below(folder: Path, markers: tuple[str, ...]) -> list[str]:
    """Return the relative paths of the folders below `folder` that have any of `markers`; 2 comes before 12."""
    files = {file.parent for marker in markers for file in folder.rglob(marker)} - {folder}
    return sorted((file.relative_to(folder).as_posix() for file in files), key=lambda path: in_order((path,)))


def holding(folder: Path, format: str, markers: tuple[str, ...]) -> Path:
    """Return the first of `markers` in a folder; `SaevalError` if there is none, with the number of SAEs below it."""
    for marker in markers:
        if (folder / marker).is_file():
            return folder / marker
    inner = below(folder, markers)
    several = "an SAE in a folder" if len(inner) == 1 else f"{len(inner)} SAEs in folders"
    remedy = f"it holds {several}: add 'sites: \"*\"', or name one" if inner else "check 'path'"
    raise SaevalError(f"{format}: {folder}: no {' or '.join(markers)}; {remedy}")
