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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.errors import SaevalError
from saeval.estimate import Estimate
from saeval.provenance import version
from saeval.result import Result, StoredEstimate
from saeval.sealed import DamagedError, sealed, unsealed
from saeval.store import Opened, Store
from saeval.wholefile import Unwritable, tidy, write

if TYPE_CHECKING:
    import pyarrow as pa

    from saeval.board import Entry

Found: TypeAlias = dict[str, list[Any]]
"""Plain data."""
Wanted: TypeAlias = Mapping[str, Sequence[str]]
"""Values of metrics."""

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
_HELD = 1 << 28
"""Bytes of arrays that a process keeps of those that it reads."""


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
    keys = [listed["key"] for listed in manifest["cells"]]
    index, basis = _current(store, keys, name, _tested(manifest["leaderboard"]))
    return manifest, index.results(manifest["cells"]), basis


def _tested(layout: Mapping[str, Any]) -> Wanted:
    """The values of which a leaderboard of this layout tests differences, so that it needs their arrays."""
    found: dict[str, list[str]] = {}
    against = layout.get("against") or {}
    more = against.values() if isinstance(against, Mapping) else ()
    for name in [layout.get("rank_by"), *itertools.chain.from_iterable(more)]:
        if name:
            metric, _, value = str(name).partition(".")
            found.setdefault(metric, []).extend([value] if value else [])
    return found


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
        held = [self._index.held.arrays.get((self.key, name)) for name in names]
        found = [array for array in held if array is not None]
        if len(found) == len(names):
            return found
        store = self._index.store
        try:
            return store.arrays(self.key, self.digest, names)
        except DamagedError as error:
            raise StaleError(f"{store.folder / self.key}.npz: {error}; run the suite again") from None


class _Index:
    """The rows of an index, for the cells of a manifest."""

    def __init__(self, store: Store, table: pa.Table, held: _Held) -> None:
        self.store, self.held = store, held
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


def _current(store: Store, keys: list[str], name: str, wanted: Wanted) -> tuple[_Index, Basis | None]:
    """The index for these cells. What it lacks, and what has changed since, is read and written into it."""
    now = time.time_ns()
    old = _load(store.folder / FOLDER, name)
    places = np.full(len(keys), -1)
    if old is not None and len(old):
        states = _states(store.folder, keys)
        known = {key: place for place, key in enumerate(old["key"].to_pylist())}
        places = np.array([known.get(key, -1) for key in keys])
        places[(_states_of(old)[places] != states).any(axis=1)] = -1
        if len(known) == len(keys) and (places == np.arange(len(keys))).all():
            return _Index(store, old, _Held()), Basis(keys, hashlib.sha256(states.tobytes()).hexdigest())
    anew = np.flatnonzero(places < 0)
    read, held = _read(store, [keys[place] for place in anew], wanted)
    places[anew] = np.arange(len(anew)) + (len(old) if old is not None else 0)
    table = _joined([old, read] if old is not None else [read]).take(places)
    states = _states_of(table)
    old_enough = settled(states, now)
    kept = table
    if not old_enough.all():
        kept = _with_states(table.drop_columns("state"), np.where(old_enough[:, None], states, _UNSETTLED))
    _keep(store.folder / FOLDER, name, kept)
    basis = Basis(keys, hashlib.sha256(states.tobytes()).hexdigest())
    return _Index(store, table, held), basis if old_enough.all() else None


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
            found += _facts(stat(path))
        except OSError:
            found += (_ABSENT, _ABSENT, _ABSENT, _ABSENT)
    return np.array(found, dtype=np.int64).reshape(len(paths), 4)


def _facts(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino & 0x7FFFFFFFFFFFFFFF


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


def _with_states(table: pa.Table, states: Int[np.ndarray, "files state"]) -> pa.Table:
    import pyarrow as pa  # late: only large folders need it

    return table.append_column("state", pa.FixedSizeListArray.from_arrays(states.ravel(), 8))


@dataclass
class _Held:
    """Arrays that were read with their results and are needed at once."""

    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """By the result's key and their names."""
    bytes: int = 0

    def add(self, result: Result, opened: Opened, wanted: Wanted) -> None:
        """Keep the arrays of the wanted values of a result, unless there are too many already."""
        values = wanted.get(result.metric)
        if values is None or self.bytes >= _HELD:
            return
        values = values or [name for name in result.values if f"without/{name}" in opened.places][:2]
        for name in (f"{part}/{value}" for value in values for part in ("without", "sizes")):
            array = opened.array(name)
            if array is not None and array.dtype == np.float64 and array.ndim == 1:
                self.arrays[result.key, name] = array
                self.bytes += array.nbytes

    def table(self) -> pa.Table:
        import pyarrow as pa  # late: as above

        ends = np.cumsum([0, *(array.size for array in self.arrays.values())], dtype=np.int64)
        numbers = np.concatenate(list(self.arrays.values())) if self.arrays else np.zeros(0)
        return pa.table({
            "key": pa.array([key for key, _ in self.arrays], pa.string()),
            "name": pa.array([name for _, name in self.arrays], pa.string()),
            "array": pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(numbers, pa.float64())),
        })  # fmt: skip

    def join(self, table: pa.Table) -> None:
        """Those of another process."""
        lists = table["array"].combine_chunks()
        ends, numbers = lists.offsets.to_numpy(), lists.values.to_numpy()
        names = zip(table["key"].to_pylist(), table["name"].to_pylist(), strict=True)
        self.arrays.update(zip(names, np.split(numbers, ends[1:-1]), strict=False))


def _read(store: Store, keys: Sequence[str], wanted: Wanted) -> tuple[pa.Table, _Held]:
    """The rows of these results, from their files, and the arrays of the wanted values.

    Of many results, other processes read their share.
    """
    count = max(1, min(_PROCESSES, os.cpu_count() or 1, len(keys) // _A_PROCESS))
    cuts = [len(keys) * place // count for place in range(count + 1)]
    shares = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    others = [_started(store.folder, keys[share], wanted) for share in shares[1:]]
    first, held = _rows(store, keys[shares[0]], wanted)
    tables = [first]
    for share, process in zip(shares[1:], others, strict=True):
        if (answer := _answered(process)) is not None:
            tables.append(answer[0])
            held.join(answer[1])
        else:
            rows, own = _rows(store, keys[share], wanted)
            tables.append(rows)
            held.arrays.update(own.arrays)
    return _joined(tables), held


def _rows(store: Store, keys: Sequence[str], wanted: Wanted) -> tuple[pa.Table, _Held]:
    """The rows of these results, from their files, and the arrays of the wanted values."""
    import pyarrow as pa  # late: as above

    heads: dict[bytes, int] = {}
    texts: list[str] = []
    digests: list[str | None] = []
    codes = array("i")
    starts, numbers, states = array("i", [0]), array("d"), array("q")
    held = _Held()
    for key in keys:
        opened = store.opened(key)
        if opened.content and opened.result is not None:
            held.add(opened.result, opened, wanted)
        for state, suffix in ((opened.state, ".json"), (opened.beside, ".npz")):
            if state is not None:
                states.extend(_facts(state))
            else:
                states.extend(files_of([f"{store.folder}{os.sep}{key}{suffix}"]).ravel().tolist())
        head, own = _split(opened.result or Result(key, "missing", {}), opened.places)
        same = marshal.dumps(head, 2)  # equal bytes for equal heads, and faster than JSON
        if same not in heads:
            heads[same] = len(texts)
            texts.append(json.dumps(head))
        codes.append(heads[same])
        digests.append(opened.digest)
        numbers.extend(own)
        starts.append(len(numbers))
    columns = {
        "key": pa.array(keys, pa.string()),
        "head": pa.array(codes, pa.int32()),
        "arrays": pa.array(digests, pa.string()),
        "numbers": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(np.array(numbers), pa.float64())),
    }
    table = pa.table(columns).replace_schema_metadata({"heads": json.dumps(texts)})
    return _with_states(table, np.array(states, dtype=np.int64)), held


_SCALAR = itemgetter("value", "stderr", "ci95", "n", "unit", "better")


def _split(result: Result, names: Iterable[str]) -> tuple[tuple[Any, ...], list[float]]:
    """The fields of a `_Head`, and the numbers."""
    values: list[tuple[Any, ...]] = []
    numbers: list[Any] = []
    for name, record in result.values.items():
        if "kind" in record:
            values.append((name, record["kind"], record.get("notes")))
        else:
            get = record.get
            value, stderr, ci95, n, unit, better = _SCALAR(record)
            values.append((name, unit, better, get("reason"), f"without/{name}" in names))
            low, high = ci95 or (None, None)
            numbers += (value, stderr, low, high, n)
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


def _started(folder: Path, keys: Sequence[str], wanted: Wanted) -> subprocess.Popen[bytes] | None:
    """A process that reads these results; None where there can be none."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-c", "from saeval.index import serve; serve()"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except OSError:
        return None
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:  # one that has died is noticed when it does not answer
        pipe.write(json.dumps({"folder": str(folder), "keys": list(keys), "wanted": dict(wanted)}).encode())
    return process


def serve() -> None:
    """What such a process does."""
    asked = json.loads(sys.stdin.buffer.read())
    import pyarrow as pa  # late: as above

    with uncollected():
        rows, held = _rows(Store(asked["folder"]), asked["keys"], asked["wanted"])
        for table in (rows, held.table()):
            with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
                stream.write_table(table)


def _answered(process: subprocess.Popen[bytes] | None) -> tuple[pa.Table, pa.Table] | None:
    """What such a process has read; None where it failed."""
    if process is None:
        return None
    with process:
        assert process.stdout is not None
        content = process.stdout.read()
    if process.returncode != 0:
        return None
    import pyarrow as pa  # late: as above

    source = pa.BufferReader(content)
    return pa.ipc.open_stream(source).read_all(), pa.ipc.open_stream(source).read_all()
