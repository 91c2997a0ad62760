"""Finds the SAE formats that can read a path, to suggest one when a suite names no format or the wrong one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError, expand_user
from saeval.registry.registry import Registry


def readable(path: str, registry: Registry) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Return the entries of `saes:` that read a path, and why the other formats cannot; both by name of the format.

    An entry is `{use, path}` for one SAE. If the path is a folder of several, it has `sites: "*"`, or a glob as its
    path. Only headers are read.
    """
    able: dict[str, Mapping[str, Any]] = {}
    unable: dict[str, str] = {}
    for entry in registry.loaders:
        for reference in _references(path):
            try:
                loader = entry.thing()
                loader.info(next(iter(loader.expand(reference).values())))
            except SaevalError as error:
                unable.setdefault(entry.name, str(error))
            except Exception as error:  # a plugin's loader, given a file of another format
                unable.setdefault(entry.name, f"{type(error).__name__}: {error}")
            else:
                able[entry.name] = {"use": entry.name, **reference}
                break
    return able, {name: reason for name, reason in unable.items() if name not in able}


def _references(path: str) -> Iterator[dict[str, str]]:
    yield {"path": path}
    if os.path.isdir(os.path.expanduser(path)):
        yield {"path": path, "sites": "*"}
        yield {"path": f"{path.rstrip('/')}/*"}


def suggested(path: Any, registry: Registry, use: str | None = None) -> str:
    """Return `; it looks like ...` with the entry to write for an existing path; "" if the format `use` reads it."""
    if not isinstance(path, str | Path) or not (existing := next(iter(paths(str(path))), None)):
        return ""
    able, _ = readable(existing, registry)
    if use in able:
        return ""
    if len(able) == 1:
        ((name, entry),) = able.items()
        entry = {**entry, "path": entry["path"] if existing == str(path) else str(path)}
        return f"; it looks like an SAE of the format '{name}': write {written(entry)}"
    if able:
        return f"; it can be read as {', '.join(able)}: write {{use: FORMAT, path: {path}}}"
    return ""


def by_keys(entry: Mapping[str, Any], registry: Registry) -> list[str]:
    """Return the formats that an entry's keys mean, whatever its files look like.

    These formats need more than a path, as `mapping` needs the names of tensors, and the entry has one of these keys.
    """
    formats = ((format.name, format.thing.entry) for format in registry.loaders)
    needed = {
        name: {field.alias or key for key, field in model.model_fields.items() if field.is_required()} - {"path"}
        for name, model in formats
        if model is not None
    }
    return [name for name, keys in needed.items() if keys & set(entry)]


def paths(path: str) -> list[str]:
    """Return the path itself if it exists, else the paths that match it as a glob."""
    try:
        expanded = expand_user(path)
    except SaevalError:  # not a possible path, such as one that is too long
        return []
    return [path] if expanded.exists() else sorted(glob.glob(str(expanded)))


def written(entry: Mapping[str, Any]) -> str:
    """Return an entry as one line of YAML."""
    quoted = {key: f'"{value}"' if set("*?[{:, ") & set(str(value)) else str(value) for key, value in entry.items()}
    return "{" + ", ".join(f"{key}: {value}" for key, value in quoted.items()) + "}"
