"""The rows of an index: what the files of results say, read by several processes where there are many."""

from __future__ import annotations

import gc
import itertools
import json
import marshal
import math
import os
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int

from saeval.results.file_states import facts, states_of
from saeval.results.result import Result
from saeval.results.store import Opened, Store

if TYPE_CHECKING:
    import pyarrow as pa

Wanted: TypeAlias = Mapping[str, Sequence[str]]
"""Values of metrics; of a metric without any, its own one."""

_A_PROCESS = 3000
"""Results to read for which another process is worth its start."""
_PROCESSES = 4
_HELD = 1 << 28
"""Bytes of arrays that a process keeps of those that it reads."""


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


@dataclass
class Held:
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


def read(store: Store, keys: Sequence[str], wanted: Wanted) -> tuple[pa.Table, Held]:
    """The rows of these results, from their files, and the arrays of the wanted values.

    Of many results, other processes read their share.
    """
    count = max(1, min(_PROCESSES, os.cpu_count() or 1, len(keys) // _A_PROCESS))
    later = max(len(keys) - _A_PROCESS, 0) // count  # this one reads meanwhile
    cuts = [0, *(len(keys) - later * place for place in range(count - 1, -1, -1))]
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
    return joined(tables), held


def _rows(store: Store, keys: Sequence[str], wanted: Wanted) -> tuple[pa.Table, Held]:
    """The rows of these results, from their files, and the arrays of the wanted values."""
    import pyarrow as pa  # late: as above

    heads: dict[bytes, int] = {}
    texts: list[str] = []
    digests: list[str | None] = []
    codes = array("i")
    starts, numbers, states = array("i", [0]), array("d"), array("q")
    held = Held()
    for key in keys:
        opened = store.opened(key)
        if opened.content and opened.result is not None:
            held.add(opened.result, opened, wanted)
        for state, suffix in ((opened.state, ".json"), (opened.beside, ".npz")):
            if state is not None:
                states.extend(facts(state))
            else:
                states.extend(states_of([f"{store.folder}{os.sep}{key}{suffix}"]))
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
    return with_states(table, np.array(states, dtype=np.int64)), held


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


def heads_of(table: pa.Table) -> list[str]:
    found: list[str] = json.loads(table.schema.metadata[b"heads"])
    return found


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of several, each with heads of its own."""
    import pyarrow as pa  # late: as above

    if len(tables) == 1:
        return tables[0]
    heads: dict[str, int] = {}
    parts = []
    for table in tables:
        codes = np.array([heads.setdefault(text, len(heads)) for text in heads_of(table)], dtype=np.int32)
        own = codes[table["head"].to_numpy()] if len(table) else np.zeros(0, dtype=np.int32)
        parts.append(table.set_column(table.column_names.index("head"), "head", pa.array(own, pa.int32())))
    joined = pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).combine_chunks()
    return joined.replace_schema_metadata({"heads": json.dumps(list(heads))})


def states_in(table: pa.Table) -> Int[np.ndarray, "files state"]:
    return np.asarray(table["state"].combine_chunks().values.to_numpy()).reshape(-1, 8)


def with_states(table: pa.Table, states: Int[np.ndarray, "files state"]) -> pa.Table:
    import pyarrow as pa  # late: only large folders need it

    return table.append_column("state", pa.FixedSizeListArray.from_arrays(states.ravel(), 8))


def _started(folder: Path, keys: Sequence[str], wanted: Wanted) -> subprocess.Popen[bytes] | None:
    """A process that reads these results; None where there can be none."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-c", "from saeval.results.index_rows import serve; serve()"]
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
