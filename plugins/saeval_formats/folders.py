"""Folders that hold one SAE each, and folders of such folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from saeval.plugin import SaevalError, names_matching, names_matching_any, suggestion
from saeval_formats.reference import LocalLoader, folder_of, in_order


class FolderLoader(LocalLoader):
    """A format of one folder an SAE. `path` may hold globs; `sites` are globs for the folders below it."""

    markers: ClassVar[tuple[str, ...]]
    """The files of which any makes a folder one of the format's."""

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for part, one in super().expand(reference).items():
            for site, inner in sites(one, self.name, self.markers).items():
                found["/".join(word for word in (part, site) if word)] = inner
        return found


def sites(reference: Mapping[str, Any], format: str, markers: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """One reference for each SAE below `path` whose relative path matches `sites`: a glob, or a list of them.

    Without `sites` the reference itself.
    """
    wanted = reference.get("sites")
    if wanted is None:
        return {"": dict(reference)}
    rest = {key: value for key, value in reference.items() if key != "sites"}
    if "path" not in rest:
        raise SaevalError(f"{format}: 'sites' needs 'path', the folder that they are in")
    folder = folder_of(Path(str(rest["path"])), format, "SAEs in folders")
    return {
        site: {**rest, "path": str(folder / site)}
        for site in chosen(wanted, below(folder, markers), f"{format}: {folder}: no SAE", "sites")
    }


def chosen(wanted: Any, names: list[str], missing: str, key: str) -> list[str]:
    """The names that a glob, or any of a list of them, matches, in the order of the names."""
    globs = wanted if isinstance(wanted, list) else [wanted]
    for glob in globs:
        if not isinstance(glob, str) or not glob:
            raise SaevalError(f"{missing.partition(':')[0]}: '{key}' is a glob or a list of globs, found {wanted!r}")
        if not names_matching(glob, names):
            raise SaevalError(f"{missing} matches '{key}: {glob}'{suggestion(glob, names)[:400]}")
    return names_matching_any(globs, names)


def below(folder: Path, markers: tuple[str, ...]) -> list[str]:
    """The folders at any depth that hold one of `markers`, by their paths relative to `folder`: 2 comes before 12."""
    files = {file.parent for marker in markers for file in folder.rglob(marker)} - {folder}
    return sorted((file.relative_to(folder).as_posix() for file in files), key=lambda path: in_order((path,)))


def holding(folder: Path, format: str, markers: tuple[str, ...]) -> Path:
    """The first of `markers` in a folder; `SaevalError` where there is none, which counts the SAEs below."""
    for marker in markers:
        if (folder / marker).is_file():
            return folder / marker
    inner = below(folder, markers)
    remedy = f"it holds {len(inner)} SAEs in folders: add 'sites: \"*\"', or name one" if inner else "check 'path'"
    raise SaevalError(f"{format}: {folder}: no {' or '.join(markers)}; {remedy}")
