"""The results folder: every file is whole or absent, whatever happens to the process."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saeval.errors import SaevalError, looked_up
from saeval.evidence import Evidence
from saeval.result import SCHEMA, Result
from saeval.textfile import read_text
from saeval.totals import EvidenceTree

MANIFEST, LIMITED = "manifest.json", "manifest.limited.json"


class Store:
    """One suite's folder: `<key>.json` and `<key>.npz`, `folds/`, `passes/`, and the manifest of the last run."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def has(self, key: str) -> bool:
        """Whether a cell is finished. Failed ones are tried again; undefined ones are an outcome."""
        result = self.read(key)
        return result is not None and result.status != "failed"

    def read(self, key: str, arrays: bool = False) -> Result | None:
        """A stored result; None where there is none or where the file is not one of ours."""
        try:
            record = json.loads(read_text(self.folder / f"{key}.json"))
            if record["schema"] != SCHEMA or record["key"] != key:
                return None
            result = Result.from_record(record)
        except (OSError, ValueError, KeyError, TypeError, SaevalError):
            return None
        if arrays:
            result.arrays = dict(_load(self.folder / f"{key}.npz") or {})
        return result

    def write(self, result: Result) -> None:
        """Arrays first, so that a JSON never stands without them."""
        if result.arrays:
            _save(self.folder / f"{result.key}.npz", result.arrays)
        text = json.dumps(finite(result.record()), indent=1, allow_nan=False) + "\n"
        _write(self.folder / f"{result.key}.json", text.encode())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """A limited run keeps its own, so that trying a suite leaves the whole run's leaderboard as it was."""
        name = MANIFEST if manifest["limit"] is None else LIMITED
        _write(self.folder / name, (json.dumps(finite(manifest), indent=1) + "\n").encode())

    def manifest(self) -> dict[str, Any]:
        """The manifest of the last whole run, else of the last limited one; `SaevalError` where there is neither."""
        path = next((p for name in (MANIFEST, LIMITED) if (p := self.folder / name).exists()), None)
        if path is None and not self.folder.exists():
            raise SaevalError(
                f"{self.folder}: no such folder{looked_up(self.folder)}; name a folder of results, OUT/SUITE"
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
            found: dict[str, Any] = json.loads(read_text(path))
            return found
        except (OSError, ValueError) as error:
            raise SaevalError(f"{path}: not readable ({error}); run the suite again") from None

    def results(self, include_limited: bool = False) -> tuple[dict[str, Any], list[Result]]:
        """The manifest of the last run and its cells' results, those `missing` included, with their arrays.

        Raises `SaevalError` for a run with `--limit` unless `include_limited`.
        """
        manifest = self.manifest()
        if manifest["limit"] is not None and not include_limited:
            raise SaevalError(
                f"{self.folder}: this run was limited to {manifest['limit']} sequences and stays out of leaderboards; "
                f"run it without --limit, or ask with --include-limited"
            )
        found = []
        for listed in manifest["cells"]:
            result = self.read(listed["key"], arrays=True) or Result(listed["key"], "missing", {})
            result.cell = listed["cell"]
            found.append(result)
        return manifest, found

    def fold(self, digest: str) -> EvidenceTree | None:
        """A stored fold; None where there is none."""
        found = self.checkpoint(digest, kind="folds")
        return found[1].get("fold") if found else None

    def write_fold(self, digest: str, total: EvidenceTree) -> None:
        self.write_checkpoint(digest, {}, {"fold": total}, kind="folds")

    def checkpoint(self, key: str, kind: str = "passes") -> tuple[dict[str, Any], dict[str, EvidenceTree]] | None:
        """A pass's facts and evidence so far."""
        arrays = _load(self.folder / kind / f"{key}.npz")
        if arrays is None:
            return None
        try:
            header = json.loads(str(arrays["header"]))
            return header["facts"], {name: _thaw(form, arrays) for name, form in header["evidence"].items()}
        except Exception:  # damaged, or a plugin's own `from_state` raised: it counts as absent
            return None

    def write_checkpoint(
        self, key: str, facts: Mapping[str, Any], evidence: Mapping[str, EvidenceTree], kind: str = "passes"
    ) -> None:
        arrays: dict[str, np.ndarray] = {}
        forms = {name: _freeze(tree, f"{index}", arrays) for index, (name, tree) in enumerate(evidence.items())}
        header = json.dumps({"facts": dict(facts), "evidence": forms})
        _save(self.folder / kind / f"{key}.npz", {"header": np.array(header), **arrays})

    def checkpoints(self) -> list[str]:
        """Keys of the passes that were interrupted."""
        return sorted(file.stem for file in (self.folder / "passes").glob("*.npz"))

    def drop_checkpoints(self) -> None:
        """Forget interrupted passes, and what a killed process left half-written."""
        for file in (self.folder / "passes").glob("*"):
            file.unlink(missing_ok=True)


def _freeze(tree: EvidenceTree, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(tree, dict):
        return {"names": {name: _freeze(one, f"{prefix}/{name}", arrays) for name, one in tree.items()}}
    state = tree.state()
    arrays.update({f"{prefix}:{name}": array for name, array in state.items()})
    return {"class": _class_name(type(tree)), "prefix": prefix, "fields": list(state)}


def _thaw(form: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    if "names" in form:
        return {name: _thaw(one, arrays) for name, one in form["names"].items()}
    known = {_class_name(cls): cls for cls in _subclasses(Evidence)}
    cls = known[form["class"]]  # only classes that plugins have already defined: nothing is imported from a file
    return cls.from_state({name: arrays[f"{form['prefix']}:{name}"] for name in form["fields"]})


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _subclasses(cls: type[Evidence]) -> Iterable[type[Evidence]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    _write(path, buffer.getvalue())


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile.BadZipFile and zlib.error: a foreign or damaged file counts as absent
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary name, fsync, rename: a reader sees the old file or the new one, never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    except OSError as error:
        raise SaevalError(f"{path.parent}: cannot be written ({error.strerror}); choose another --out") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # temporary files are private, results are not
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise SaevalError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another --out"
        ) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


_UMASK = os.umask(0)
os.umask(_UMASK)
