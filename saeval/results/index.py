"""The index of a results folder: in few columns what its files say, so that a board opens none that it need not.

The files stay the truth. A row of the index holds for as long as size, times and inode of its two files are those that
were read; other files are read again. The index can be removed at any time; a folder that cannot be written has none.
"""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import json
import logging
import marshal
import math
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.base.errors import SaevalError
from saeval.base.provenance import version
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import Unwritable, tidy, write
from saeval.results.result import Result, StoredEstimate
from saeval.results.store import Store
from saeval.stats.estimate import Estimate

if TYPE_CHECKING:
    import pyarrow as pa

    from saeval.results.board import Entry

Found: TypeAlias = dict[str, list[Any]]
"""Plain data."""

log = logging.getLogger("saeval")

FOLDER = "index"
FORM = 1
WORTH = 1000
"""Results from which on a folder has an index: fewer are read as fast without."""
_A_PROCESS = 3000
"""Results to read for which another process is worth its start."""
_PROCESSES = 4
_SETTLED = 2_000_000_000
"""Nanoseconds: a file changed later than this before it was read may change again within a tick of its clock."""
_NUMBERS = ("value", "stderr", "low", "high", "n", "documents", "effective_documents", "largest_share")
"""Of each scalar, in a row's `numbers`."""
_ABSENT, _UNSETTLED = -1, -2


class StaleError(SaevalError):
    """A file that the index knows has changed since; says which, and how."""


@dataclass(frozen=True)
class Basis:
    """The files of some results, in the state in which they were read."""

    keys: list[str]
    digest: str

    @classmethod
    def of(cls, folder: Path, keys: list[str]) -> Basis:
        """As they are now."""
        return cls(keys, hashlib.sha256(_states(folder, keys).tobytes()).hexdigest())


def results(folder: Path | str, include_limited: bool = False) -> tuple[dict[str, Any], list[Result], Basis | None]:
    """As `Store.results`, through the folder's index, with what they rest on; None where that may still change.

    Arrays are read when they are asked for; a file that is not what it was by then raises `StaleError`.
    """
    store = Store(folder)
    manifest = store.listed(include_limited)
    if len(manifest["cells"]) < WORTH:
        return *store.results(include_limited), None
    name = "results" if manifest["limit"] is None else "results.limited"
    index, basis = _current(store, [listed["key"] for listed in manifest["cells"]], name)
    return manifest, index.results(manifest["cells"]), basis


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's search for cycles turned off: among 100,000 results it takes a third of the time and finds none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def forget(folder: Path | str) -> None:
    """Remove the index of a folder."""
    for path in (Path(folder) / FOLDER).glob("results*"):
        with suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class _Head:
    """What is in a result but for its cell and its numbers; many results have the same."""

    status: Any
    reason: str | None
    scalars_and_others: list[list[Any]]
    """Name, unit, better direction, reason, and whether there are arrays; or name, kind, notes."""
    headline: list[str]
    sample: dict[str, Any] | None
    preflight: dict[str, Any] | None

    @cached_property
    def values(self) -> dict[str, dict[str, Any]]:
        """All but the numbers."""
        found: dict[str, dict[str, Any]] = {}
        for name, *rest in self.scalars_and_others:
            if len(rest) == 2:
                found[name] = {"kind": rest[0], **({"notes": rest[1]} if rest[1] is not None else {})}
            else:
                unit, better, reason, without = rest
                found[name] = {"unit": unit, "better": better, "reason": reason, "without": without}
        return found

    @cached_property
    def places(self) -> dict[str, int]:
        """Where the numbers of each scalar begin."""
        scalars = [name for name, skeleton in self.values.items() if "kind" not in skeleton]
        return {name: place * len(_NUMBERS) for place, name in enumerate(scalars)}


class _Indexed(Result):
    """A result in the index. Its values are put together, and its arrays read, when they are asked for."""

    form: object = None

    def __init__(self, index: _Index, head: _Head, place: int, key: str, cell: Mapping[str, Any], form: object) -> None:
        self.key, self.cell, self.status, self.reason, self.sample = key, cell, head.status, head.reason, head.sample
        self._index, self._head, self._place, self.form = index, head, place, form

    def __getattr__(self, name: str) -> Any:
        made: dict[str, Any]
        if name == "values":
            made = {value: self.scalar(value)[0] or facts for value, facts in self._head.values.items()}
        elif name == "provenance":
            made = {"preflight": self._head.preflight} if self._head.preflight else {}
        elif name in ("components", "arrays"):
            made = {}
        elif name == "headline":
            return self._head.headline
        else:
            raise AttributeError(name)
        self.__dict__[name] = made
        return made

    def scalar(self, name: str) -> tuple[dict[str, Any] | None, Estimate | None]:
        place = self._head.places.get(name)
        if place is None:
            return None, None
        index, facts = self._index, self._head.values[name]
        start = index.starts[self._place] + place
        numbers = [None if x != x else x for x in index.numbers[start : start + len(_NUMBERS)].tolist()]
        value, stderr, low, high, n, documents, effective, share = numbers
        record = {
            "value": value, "stderr": stderr, "ci95": None if low is None else [low, high],
            "n": int(n) if n is not None and n.is_integer() else n, "unit": facts["unit"], "better": facts["better"],
            "documents": None if documents is None else int(documents), "effective_documents": effective,
            "largest_share": share, "reason": facts["reason"],
        }  # fmt: skip
        if value is None or not facts["without"]:
            return record, None
        least = math.inf if effective is None else effective
        return record, StoredEstimate(value, record["n"] or 0, least, name, self)

    def estimate(self, name: str) -> Estimate | None:
        return self.scalar(name)[1]

    @property
    def digest(self) -> str:
        """The hash of the file of its arrays."""
        return str(self._index.digests[self._place])

    def load(self, names: Sequence[str]) -> list[np.ndarray]:
        """Some of its arrays."""
        store = self._index.store
        try:
            return store.arrays(self.key, self.digest, names)
        except DamagedError as error:
            raise StaleError(f"{store.folder / self.key}.npz: {error}; run the suite again") from None


class _Index:
    """The rows of an index, for the cells of a manifest."""

    def __init__(self, store: Store, table: pa.Table) -> None:
        self.store = store
        numbers = table["numbers"].combine_chunks()
        self.starts = numbers.offsets.to_pylist()
        self.numbers: Float[np.ndarray, "numbers"] = numbers.values.to_numpy()
        self.digests = table["arrays"].to_pylist()
        self._codes = table["head"].to_pylist()
        self._heads = [_Head(*json.loads(text)) for text in _heads(table)]

    def results(self, cells: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The results of the cells, which are its rows."""
        heads = self._heads
        return [
            _Indexed(self, heads[code], place, listed["key"], listed["cell"], (code, id(self), listed["kind"]))
            for place, (code, listed) in enumerate(zip(self._codes, cells, strict=True))
        ]


def _current(store: Store, keys: list[str], name: str) -> tuple[_Index, Basis | None]:
    """The index for these cells. What it lacks, and what has changed since, is read and written into it."""
    now = time.time_ns()
    states = _states(store.folder, keys)
    basis = Basis(keys, hashlib.sha256(states.tobytes()).hexdigest())
    old = _load(store.folder / FOLDER, name)
    places = np.full(len(keys), -1)
    if old is not None and len(old):
        known = {key: place for place, key in enumerate(old["key"].to_pylist())}
        places = np.array([known.get(key, -1) for key in keys])
        places[(_states_of(old)[places] != states).any(axis=1)] = -1
        if len(known) == len(keys) and (places == np.arange(len(keys))).all():
            return _Index(store, old), basis
    anew = np.flatnonzero(places < 0)
    old_enough = settled(states, now)
    read = _read(store, [keys[place] for place in anew], np.where(old_enough[:, None], states, _UNSETTLED)[anew])
    places[anew] = np.arange(len(anew)) + (len(old) if old is not None else 0)
    table = _joined([old, read] if old is not None else [read]).take(places)
    _keep(store.folder / FOLDER, name, table)
    return _Index(store, table), basis if old_enough.all() else None


def _states(folder: Path, keys: Sequence[str]) -> Int[np.ndarray, "results state"]:
    """Those of the two files of each result."""
    start = f"{folder}{os.sep}"
    return files_of([f"{start}{key}{suffix}" for key in keys for suffix in (".json", ".npz")]).reshape(len(keys), 8)


def files_of(paths: Sequence[str]) -> Int[np.ndarray, "files state"]:
    """Size, times and inode of each file."""
    found: list[int] = []
    stat = os.stat
    for path in paths:
        try:
            state = stat(path)
        except OSError:
            found += (_ABSENT, _ABSENT, _ABSENT, _ABSENT)
        else:
            found += (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino & 0x7FFFFFFFFFFFFFFF)
    return np.array(found, dtype=np.int64).reshape(len(paths), 4)


def settled(states: Int[np.ndarray, "files state"], now: int) -> Bool[np.ndarray, "files"]:
    """Which files are so old that a change from now on must change a time of theirs."""
    times = states.reshape(len(states), -1, 4)[:, :, 1:3]
    return np.asarray(times.max(axis=(1, 2)) < now - _SETTLED)


@cache
def code(function: Callable[..., Any] | None = None) -> str:
    """The version of saeval's code, and of the package that a function is from: what they make may differ with it."""
    folders = {Path(__file__).parent}
    module = sys.modules.get(function.__module__) if function is not None else None
    if module is not None and module.__file__:
        folders.add(Path(module.__file__).parent)
    paths = sorted(str(path) for folder in folders for path in folder.glob("*.py"))
    return hashlib.sha256(repr((version(), paths, files_of(paths).tolist())).encode()).hexdigest()


def _states_of(table: pa.Table) -> Int[np.ndarray, "files state"]:
    return np.asarray(table["state"].combine_chunks().values.to_numpy()).reshape(-1, 8)


def _read(store: Store, keys: Sequence[str], states: Int[np.ndarray, "files state"]) -> pa.Table:
    """The rows of these results, from their files; of many, other processes read their share."""
    count = max(1, min(_PROCESSES, os.cpu_count() or 1, len(keys) // _A_PROCESS))
    cuts = [len(keys) * place // count for place in range(count + 1)]
    shares = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    others = [_started(store.folder, keys[share]) for share in shares[1:]]
    tables = [_rows(store, keys[shares[0]])]
    for share, process in zip(shares[1:], others, strict=True):
        tables.append(_answered(process) or _rows(store, keys[share]))
    import pyarrow as pa  # late: only large folders need it

    return _joined(tables).append_column("state", pa.FixedSizeListArray.from_arrays(states.ravel(), 8))


def _rows(store: Store, keys: Sequence[str]) -> pa.Table:
    """The rows of these results, from their files."""
    import pyarrow as pa  # late: as above

    heads: dict[bytes, int] = {}
    texts: list[str] = []
    digests: list[str | None] = []
    codes = array("i")
    starts, numbers = array("i", [0]), array("d")
    for key in keys:
        result, digest, names = store.opened(key)
        head, own = _split(result or Result(key, "missing", {}), names)
        same = marshal.dumps(head, 2)  # equal bytes for equal heads, and faster than JSON
        if same not in heads:
            heads[same] = len(texts)
            texts.append(json.dumps(head))
        codes.append(heads[same])
        digests.append(digest)
        numbers.extend(own)
        starts.append(len(numbers))
    columns = {
        "key": pa.array(keys, pa.string()),
        "head": pa.array(codes, pa.int32()),
        "arrays": pa.array(digests, pa.string()),
        "numbers": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(np.array(numbers), pa.float64())),
    }
    return pa.table(columns).replace_schema_metadata({"heads": json.dumps(texts)})


def _split(result: Result, names: Collection[str]) -> tuple[tuple[Any, ...], list[float]]:
    """The fields of a `_Head`, and the numbers."""
    values: list[tuple[Any, ...]] = []
    numbers: list[Any] = []
    for name, record in result.values.items():
        if "kind" in record:
            values.append((name, record["kind"], record.get("notes")))
        else:
            get = record.get
            values.append((name, get("unit"), get("better"), get("reason"), f"without/{name}" in names))
            numbers += (record["value"], record["stderr"], *(record["ci95"] or (None, None)), record["n"])
            numbers += (get("documents"), get("effective_documents"), get("largest_share"))
    numbers = [math.nan if number is None else number for number in numbers]
    preflight = result.provenance.get("preflight")
    return (result.status, result.reason, values, result.headline, result.sample, preflight), numbers


def _heads(table: pa.Table) -> list[str]:
    found: list[str] = json.loads(table.schema.metadata[b"heads"])
    return found


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of several, each with heads of its own."""
    import pyarrow as pa  # late: as above

    if len(tables) == 1:
        return tables[0]
    heads: dict[str, int] = {}
    parts = []
    for table in tables:
        codes = np.array([heads.setdefault(text, len(heads)) for text in _heads(table)], dtype=np.int32)
        own = codes[table["head"].to_numpy()] if len(table) else np.zeros(0, dtype=np.int32)
        parts.append(table.set_column(table.column_names.index("head"), "head", pa.array(own, pa.int32())))
    joined = pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).combine_chunks()
    return joined.replace_schema_metadata({"heads": json.dumps(list(heads))})


def _packed(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq  # late: as above

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


def _unpacked(content: bytes) -> pa.Table:
    import pyarrow as pa  # late: as above
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(content)).read().combine_chunks()  # `read_table` imports pandas


def _load(folder: Path, name: str) -> pa.Table | None:
    """The index that is there; None where there is none, or none of use."""
    try:
        facts = unsealed((folder / f"{name}.json").read_bytes())
        if facts["form"] != FORM or facts["saeval"] != code():
            return None
        content = (folder / f"{name}.parquet").read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["parquet"]:
            raise DamagedError("its content does not match its checksum")
        return _unpacked(content)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it, it is made again
        log.debug("%s: no index (%s)", folder, error)
        return None


def _keep(folder: Path, name: str, table: pa.Table) -> None:
    """Write the index; where that is impossible, the files are read each time."""
    content = _packed(table)
    facts = {"form": FORM, "saeval": code(), "parquet": hashlib.sha256(content).hexdigest()}
    try:
        write(folder / f"{name}.parquet", content, "")
        write(folder / f"{name}.json", sealed(facts), "")
    except Unwritable as error:
        log.debug("%s", error)
    else:
        tidy(folder)


class Tests:
    """What tests of a large board gave, kept beside the index under a hash of all that they rest on."""

    def __init__(self, folder: Path | str) -> None:
        self._path = Path(folder) / FOLDER / "tests.json"
        self._kept: dict[str, Any] = {}
        try:
            facts = unsealed(self._path.read_bytes())
            self._kept = facts["tests"] if facts["form"] == FORM and facts["saeval"] == code() else {}
        except (OSError, DamagedError, KeyError):
            log.debug("%s: nothing of use", self._path)

    def __call__(self, what: str, entries: Sequence[Entry | None], compute: Callable[[], Found]) -> Found:
        """What `compute` gives for the entries; `what` says which test, and all else that it depends on."""
        if len(entries) < WORTH:
            return compute()
        name, digest = what.split("\n")[0], _digest(what, entries)
        kept = self._kept.get(name, {})
        if kept.get("of") != digest:
            kept = self._kept[name] = {"of": digest, "found": compute()}
            facts = {"form": FORM, "saeval": code(), "tests": self._kept}
            try:
                write(self._path, sealed(facts), "")
            except Unwritable as error:
                log.debug("%s", error)
        found: Found = kept["found"]
        return found


def _digest(what: str, entries: Sequence[Entry | None]) -> str:
    digest = hashlib.sha256(what.encode())
    for entry in entries:
        if entry is None:
            digest.update(b"none")
            continue
        one = entry.estimate
        if isinstance(one, StoredEstimate):
            own: object = one.identity
        else:
            own = hashlib.sha256(one.without.tobytes() + one.sizes.tobytes()).hexdigest() if one is not None else None
        facts = (entry.value, entry.n, entry.status, entry.reason, entry.draws, entry.spread, own)
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _started(folder: Path, keys: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """A process that reads these results; None where there can be none."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-c", "from saeval.results.index import serve; serve()"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except OSError:
        return None
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:  # one that has died is noticed when it does not answer
        pipe.write(json.dumps({"folder": str(folder), "keys": list(keys)}).encode())
    return process


def serve() -> None:
    """What such a process does."""
    asked = json.loads(sys.stdin.buffer.read())
    with uncollected():
        sys.stdout.buffer.write(_packed(_rows(Store(asked["folder"]), asked["keys"])))


def _answered(process: subprocess.Popen[bytes] | None) -> pa.Table | None:
    """What such a process has read; None where it failed."""
    if process is None:
        return None
    with process:
        assert process.stdout is not None
        content = process.stdout.read()
    if process.returncode != 0:
        return None
    return _unpacked(content)
