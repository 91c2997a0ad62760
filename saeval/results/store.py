"""The results folder: every file is whole or absent, whatever happens to the process."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from msgspec import MsgspecError

from saeval.base.errors import SaevalError, expand_user, said, searched_in
from saeval.base.sealed_json import DamagedError, EarlierError, is_whole, sealed, unsealed, validated
from saeval.base.whole_files import FREE_SPACE, sync, tidy, write_whole
from saeval.results import npz
from saeval.results.file_states import content_of
from saeval.results.records import MANIFEST_FILE, RESULT_FILE, SHOWN_FILE, Shown, ShownValue, shown_of
from saeval.results.result import FORM, Result
from saeval.stats.evidence import Evidence, EvidenceTree

log = logging.getLogger("saeval")

MANIFEST, LIMITED = "manifest.json", "manifest.limited.json"
MANIFEST_FORM = 2
_SHOWN = 4
"""Damaged files that a warning names."""
_ABANDONED_DAYS = 30
"""After which an interrupted pass that nobody resumed is forgotten."""


class Opened(NamedTuple):
    """The content of the two files of a result, and their state when they were read."""

    result: Result | Shown | None
    """The result, or the part of it that a leaderboard shows; None if there is none."""
    digest: str | None = None
    """The hash of the file of its arrays."""
    content: bytes = b""
    """Of that file; empty if it was not read."""
    places: Mapping[str, int] = {}
    """Where the arrays are in it, by name; -1 in a file that was not read."""
    state: os.stat_result | None = None
    """Of the JSON file; None where it was not read."""
    beside: os.stat_result | None = None
    """Of the file of the arrays."""
    unread: bool = False
    """True if the file of the arrays was not read, since nobody asked for them."""

    def array(self, name: str) -> np.ndarray | None:
        """One of the arrays; None where the file was not written by saeval."""
        return npz.array(self.content, self.places.get(name, -1))


class Store:
    """One suite's folder: `<key>.json` and `<key>.npz`, `folds/`, `passes/`, `shards/`, and the last run's manifest."""

    def __init__(self, folder: Path | str, manifest: str = MANIFEST) -> None:
        """`manifest`: the name of the file in which a run lists its cells, which may share the folder's results."""
        self._listed_in = manifest
        expand_user(folder)  # one that no system can look for is the user's mistake, and no damage
        self.folder = Path(folder)
        self._prefix = f"{self.folder}{os.sep}"
        """Paths of 100,000 files cost more as `Path` than it costs to read them."""
        self._named: set[Path] = set()
        """Damaged files that a warning has named."""

    def has(self, key: str) -> bool:
        """Whether a cell is finished. Failed ones are tried again; undefined ones are an outcome."""
        return _finished(self.read(key))

    def finished(self, keys: Collection[str]) -> set[str]:
        """Those of the cells that are finished; one warning names what is stored but cannot be believed."""
        read = {key: self.read(key) for key in dict.fromkeys(keys)}
        reasons = [result.reason for result in read.values() if result is not None and result.status == "damaged"]
        earlier = sum(result is not None and result.status == "missing" for result in read.values())
        if reasons:
            more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            named = ", ".join(str(reason) for reason in reasons[:_SHOWN])
            log.warning("%s: damaged results, which a run computes again: %s%s", self.folder, named, more)
        if earlier:
            log.warning("%s: %d results of another version of saeval, which a run computes again", self.folder, earlier)
        return {key for key, result in read.items() if _finished(result)}

    def read(self, key: str, arrays: bool = False) -> Result | None:
        """A stored result, with its arrays if asked for; None where there is none.

        Its files are believed only where they agree with the checksums in them: otherwise its status is `damaged`, its
        `reason` says why, and it has no cell and no values. One of another version of saeval is `missing`.
        """
        opened = self._opened(key)
        assert not isinstance(opened.result, Shown)
        if opened.result is not None and arrays and opened.content:
            try:
                opened.result.arrays = npz.arrays(opened.content)
            except DamagedError as error:
                return Result(key, "damaged", {}, reason=f"{key}.npz: {error}")
        return opened.result

    def opened(self, key: str, arrays: bool = True) -> Opened:
        """A result with what a leaderboard shows of it, and with the file of its arrays not yet unpacked.

        Without `arrays`, that file is not read, and so not checked, unless only the file itself can name its arrays.
        """
        return self._opened(key, shown=True, arrays=arrays)

    def _opened(self, key: str, shown: bool = False, arrays: bool = True) -> Opened:
        def without_values(status: Literal["missing", "damaged"], reason: str) -> Result | Shown:
            return Shown(FORM, key, status, reason, {}) if shown else Result(key, status, {}, reason=reason)

        file = f"{key}.json"
        try:
            content, state = content_of(f"{self._prefix}{file}")
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return Opened(None)
            reason = f"{file} cannot be read ({error.strerror or error})"
            return Opened(without_values("damaged", reason))
        result: Result | Shown | None
        try:
            if result := _shown(content) if shown else None:
                digest = result.arrays
            else:
                record = unsealed(content)
                if record.get("schema") != FORM:
                    raise EarlierError("another version of saeval wrote it")
                validated(RESULT_FILE.validate_python, record)
                digest = record.get("arrays")
                result = shown_of(record) if shown else Result.from_record(record)
            if result.key != key:
                raise DamagedError(f"it is the result of {result.key}")
        except EarlierError as error:
            return Opened(without_values("missing", f"{file}: {error}"), state=state)
        except DamagedError as error:
            return Opened(without_values("damaged", f"{file}: {error}"), state=state)
        if digest is None:
            return Opened(result, state=state, unread=True)
        if not arrays and isinstance(result, Shown) and result.array_names is not None:
            return Opened(result, digest, places=dict.fromkeys(result.array_names, -1), state=state, unread=True)
        try:
            beside, other = self._beside(key, digest)
            names = npz.members(beside)
            for name, value in result.values.items():
                is_array = (value.kind if isinstance(value, ShownValue) else value.get("kind")) == "array"
                needed = f"value/{name}" if is_array else f"sizes/{name}"
                if needed not in names and (is_array or f"without/{name}" in names):
                    raise DamagedError(f"it has no array '{needed}'")
        except DamagedError as error:
            return Opened(without_values("damaged", f"{key}.npz: {error}"), state=state)
        return Opened(result, digest, beside, names, state, other)

    def arrays(self, key: str, digest: str, names: Sequence[str]) -> tuple[list[np.ndarray], os.stat_result]:
        """Some of the arrays of a result whose file has this hash, and the file's state.

        `DamagedError` for a file with another hash, or without these arrays.
        """
        content, state = self._beside(key, digest)
        places = npz.members(content)
        found = [npz.array(content, places.get(name, -1)) for name in names]
        if any(array is None for array in found):
            every = npz.arrays(content)
            found = [every.get(name) for name in names]
        for name, array in zip(names, found, strict=True):
            if array is None:
                raise DamagedError(f"it has no array '{name}'")
        return [array for array in found if array is not None], state

    def _beside(self, key: str, digest: str) -> tuple[bytes, os.stat_result]:
        """The content and state of the file of a result's arrays; `DamagedError` unless it has this hash."""
        try:
            content, state = content_of(f"{self._prefix}{key}.npz")
        except OSError as error:
            raise DamagedError(f"it cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedError("its content does not match the checksum in its JSON")
        return content, state

    def write(self, result: Result) -> None:
        """Arrays first, so that a JSON never stands without them; each is in the other's checksum."""
        record = finite(result.record())
        if result.arrays:
            content = npz.packed(result.arrays)
            _write(self.folder / f"{result.key}.npz", content)
            record["arrays"] = hashlib.sha256(content).hexdigest()
            record["array_names"] = list(result.arrays)  # so that a board need not open the file to know them
        _write(self.folder / f"{result.key}.json", sealed(record, indent=1))

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """A limited run keeps its own, so that trying a suite leaves the whole run's leaderboard as it was."""
        name = self._listed_in if manifest["limit"] is None or self._listed_in != MANIFEST else LIMITED
        _write(self.folder / name, sealed(_shared(finite(manifest)), indent=1))

    def manifest(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The manifest of the last whole run, else of the last limited one; `SaevalError` where there is neither.

        With `names`, without the cells of SAEs of other names.
        """
        path = next((p for name in (MANIFEST, LIMITED) if (p := self.folder / name).exists()), None)
        if path is None and not self.folder.exists():
            raise SaevalError(
                f"{self.folder}: no such folder{searched_in(self.folder)}; name a folder of results, OUT/SUITE"
            )
        if path is None:
            inner = sorted({p.parent.name for name in (MANIFEST, LIMITED) for p in self.folder.glob(f"*/{name}")})
            if inner:
                first = self.folder / inner[0]
                raise SaevalError(
                    f"{self.folder}: no {MANIFEST} here; its suites: {', '.join(inner)}; name {first}, say"
                )
            raise SaevalError(
                f"{self.folder}: no {MANIFEST} here; run the suite first, and name its folder of results, OUT/SUITE"
            )
        try:
            return self._manifest(path, names)
        except (OSError, DamagedError) as error:
            raise SaevalError(f"{path}: not readable ({error}); run the suite again") from None

    def _manifest(self, path: Path, names: Collection[str] | None = None) -> dict[str, Any]:
        manifest = unsealed(path.read_bytes())
        if manifest.get("schema") != MANIFEST_FORM:
            raise DamagedError(f"its schema is {manifest.get('schema')!r:.40}, this saeval's is {MANIFEST_FORM}")
        validated(MANIFEST_FILE.validate_python, manifest)
        return _unshared(manifest, names)

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests that are here and can be read."""
        found = []
        for name in (MANIFEST, LIMITED):
            try:
                found.append(self._manifest(self.folder / name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, DamagedError) as error:
                log.warning("%s: not readable (%s)", self.folder / name, error)
        return found

    def results(
        self, include_limited: bool = False, names: Collection[str] | None = None
    ) -> tuple[dict[str, Any], list[Result]]:
        """The manifest of the last run and its cells' results, those `missing` included, with their arrays.

        With `names`, those of SAEs of other names are left out. Raises `SaevalError` for a run with `--limit` unless
        `include_limited`.
        """
        manifest = self.listed(include_limited, names)
        found = []
        for listed in manifest["cells"]:
            result = self.read(listed["key"], arrays=True) or Result(listed["key"], "missing", {})
            result.cell, result.layout = listed["cell"], manifest["leaderboard"]
            found.append(result)
        return manifest, found

    def listed(self, include_limited: bool = False, names: Collection[str] | None = None) -> dict[str, Any]:
        """The manifest of the last run, as `results` takes it."""
        manifest = self.manifest(names)
        if manifest["limit"] is not None and not include_limited:
            raise SaevalError(
                f"{self.folder}: this run was limited to {manifest['limit']} sequences and stays out of leaderboards; "
                f"run it without --limit, or ask with --include-limited"
            )
        return manifest

    def fold(self, digest: str) -> EvidenceTree | None:
        """A stored fold; None where there is none."""
        found = self.checkpoint(digest, kind="folds")
        return found[1].get("fold") if found else None

    def write_fold(self, digest: str, total: EvidenceTree) -> None:
        self.write_checkpoint(digest, {}, {"fold": total}, kind="folds")

    def checkpoint(self, key: str, kind: str = "passes") -> tuple[dict[str, Any], dict[str, EvidenceTree]] | None:
        """A pass's facts and evidence so far; None where there is none, or with a warning where it is damaged."""
        path = self.folder / kind / f"{key}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file:
                arrays = npz.unpacked(file)
            header = _header(arrays, f"{kind}/{key}")
            if header["arrays"] != _digest(arrays):
                raise DamagedError("its content does not match its checksum")
            classes = {_class_name(cls): cls for cls in _subclasses(Evidence)}
            if not _classes(header["evidence"]) <= classes.keys():
                return None  # a plugin's that is not here now
            return header["facts"], {name: _thaw(form, arrays, classes) for name, form in header["evidence"].items()}
        except EarlierError:
            return None
        except Exception as error:  # damaged, or a plugin's own `from_state` raised: it counts as absent
            why = str(error) if isinstance(error, DamagedError) else said(error)
            if path not in self._named:
                log.warning("%s: damaged (%s); it is computed again", path, why)
            self._named.add(path)
            return None

    def outlook(self, key: str, kind: str = "passes") -> tuple[dict[str, Any], set[str]] | None:
        """A pass's facts and the names of its evidence, without reading the sums; None where they cannot be read."""
        try:
            path = self.folder / kind / f"{key}.npz"
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                header = _header({"header": arrays["header"]}, f"{kind}/{key}")
            return header["facts"], set(header["evidence"])
        except Exception:  # reported when the whole file is read
            return None

    def write_checkpoint(
        self, key: str, facts: Mapping[str, Any], evidence: Mapping[str, EvidenceTree], kind: str = "passes"
    ) -> None:
        arrays: dict[str, np.ndarray] = {}
        forms = {name: _freeze(tree, f"{index}", arrays) for index, (name, tree) in enumerate(evidence.items())}
        header = {"facts": dict(facts), "evidence": forms, "of": f"{kind}/{key}", "arrays": _digest(arrays)}
        text = np.array(sealed(header).decode())
        # A shard has a place for each document of the stream, most of them zeros.
        _write(self.folder / kind / f"{key}.npz", npz.packed({"header": text, **arrays}, small=kind == "shards"))

    def checkpoints(self) -> list[str]:
        """Keys of the passes that were interrupted."""
        return sorted(file.stem for file in (self.folder / "passes").glob("*.npz"))

    def drop_checkpoints(self, ended: Collection[str]) -> None:
        """Forget the passes that have `ended`, those whose cells have all been computed since, and abandoned ones.

        A pass that another run was interrupted in keeps its checkpoint. Results and folds are safe on the disk first.
        """
        for folder in self._folders:
            sync(folder)
        shards = sorted((self.folder / "shards").glob("*.npz"))
        ones = {path.stem.partition("-")[0]: path.stem for path in shards}  # all of a pass are of the same cells
        computed = {key for key, one in ones.items() if key in ended or self._computed(one, "shards")}
        for path in shards:
            if path.stem.partition("-")[0] in computed or _age_in_days(path) > _ABANDONED_DAYS:
                path.unlink(missing_ok=True)
        for key in self.checkpoints():
            path = self.folder / "passes" / f"{key}.npz"
            if key in ended or self._computed(key) or _age_in_days(path) > _ABANDONED_DAYS:
                path.unlink(missing_ok=True)

    def _computed(self, key: str, kind: str = "passes") -> bool:
        """Whether nothing is left that the pass was for."""
        facts, _ = self.outlook(key, kind) or ({}, set())
        stored, folds = [self.read(cell) for cell in facts.get("cells", [])], facts.get("folds", [])
        if stored:
            return all(r is not None and r.status in ("ok", "undefined", "failed") for r in stored)
        return bool(folds) and all((self.folder / "folds" / f"{fold}.npz").exists() for fold in folds)

    def drop_results(self, keys: Iterable[str]) -> None:
        """Remove the results of cells that no later run will ask for."""
        for name in (f"{key}.{end}" for key in keys for end in ("json", "npz")):
            (self.folder / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in self._folders:
            tidy(folder)

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.folder, self.folder / "folds", self.folder / "passes", self.folder / "shards"


def _shared(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest in which what many cells have in common stands once."""
    places: dict[str, dict[str, int]] = {"kinds": {}, "subjects": {}}

    def place(name: str, record: Any) -> int:
        return places[name].setdefault(json.dumps(record), len(places[name]))

    cells: dict[str, list[Any]] = {"key": [], "kind": [], "subjects": []}
    for listed in manifest["cells"]:
        kind = {name: value for name, value in listed["cell"].items() if name != "subjects"}
        cells["key"].append(listed["key"])
        cells["kind"].append(place("kinds", kind))
        cells["subjects"].append([place("subjects", subject) for subject in listed["cell"]["subjects"]])
    return {
        **manifest,
        **{name: [json.loads(text) for text in found] for name, found in places.items()},
        "cells": cells,
    }


def _unshared(manifest: dict[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """The same with whole cells; those with the same subjects, model or data have the same objects of them."""
    kinds, subjects, cells = manifest.pop("kinds"), manifest.pop("subjects"), manifest["cells"]
    listed: Iterable[Any] = zip(cells["key"], cells["kind"], map(tuple, cells["subjects"]), strict=True)
    if names is not None:
        saes = ((place, one["name"]) for place, one in enumerate(subjects) if one.get("kind", "sae") == "sae")
        others = {(place,) for place, name in saes if name not in names}
        listed = (cell for cell in listed if cell[2] not in others)
    lists: dict[tuple[int, ...], list[Any]] = {}
    made = []
    for key, kind, places in listed:
        if places not in lists:
            lists[places] = [subjects[place] for place in places]
        made.append({"key": key, "cell": {"subjects": lists[places], **kinds[kind]}, "kind": kind})
    return {**manifest, "cells": made}


def _shown(content: bytes) -> Shown | None:
    """Return the part of an unchanged file that a leaderboard shows; None if the file needs a closer check."""
    if not is_whole(content):
        return None
    try:
        shown = SHOWN_FILE.decode(content)
    except MsgspecError:
        return None
    return shown if shown.schema == FORM and shown.checked else None


def _finished(result: Result | None) -> bool:
    return result is not None and result.status in ("ok", "undefined")


def _age_in_days(path: Path) -> float:
    try:
        return (time.time() - path.stat().st_mtime) / 86400
    except OSError:  # another process was quicker
        return 0.0


def _header(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """What a checkpoint says of itself; `DamagedError` where it is damaged, or the file of another name."""
    if "header" not in arrays:
        raise DamagedError("it has no header")
    header = unsealed(str(arrays["header"]).encode())
    if header.get("of") != name:
        raise DamagedError(f"it is the file of {header.get('of')}")
    return header


def _freeze(tree: EvidenceTree, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(tree, dict):
        return {"names": {name: _freeze(one, f"{prefix}/{name}", arrays) for name, one in tree.items()}}
    state = tree.state()
    arrays.update({f"{prefix}:{name}": array for name, array in state.items()})
    return {"class": _class_name(type(tree)), "prefix": prefix, "fields": list(state)}


def _classes(forms: Mapping[str, Any]) -> set[str]:
    """The classes of evidence, by name."""
    return {
        name
        for form in forms.values()
        for name in (_classes(form["names"]) if "names" in form else {str(form["class"])})
    }


def _thaw(form: Mapping[str, Any], arrays: Mapping[str, np.ndarray], classes: Mapping[str, type[Evidence]]) -> Any:
    if "names" in form:
        return {name: _thaw(one, arrays, classes) for name, one in form["names"].items()}
    cls = classes[form["class"]]  # only those that plugins have already defined: nothing is imported from a file
    return cls.from_state({name: arrays[f"{form['prefix']}:{name}"] for name in form["fields"]})


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _subclasses(cls: type[Evidence]) -> Iterable[type[Evidence]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of a checkpoint's arrays: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"header"}):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, f"{FREE_SPACE} --out")


def finite(value: Any) -> Any:
    """Plain data as JSON can hold it: what is not finite becomes null, what is foreign its text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None  # no negative zero
    if isinstance(value, Mapping):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def stored_results(folder: Path | str, include_limited: bool = False) -> list[Result]:
    """Return the results of a folder's last run, with their arrays; `SaevalError` if there are none.

    It refuses a run with `--limit` unless `include_limited`.
    """
    return Store(folder).results(include_limited)[1]
