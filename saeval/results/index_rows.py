"""The rows of an index, read from the files of results, by several processes if there are many."""

from __future__ import annotations

import gc
import json
import marshal
import math
import os
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saeval.results.file_states import UNREAD, facts, states_of
from saeval.results.records import Shown
from saeval.results.result import FORM
from saeval.results.store import Opened, Store

if TYPE_CHECKING:
    import pyarrow as pa

_A_PROCESS = 3000
"""Results to read for which another process is worth its start."""
_PROCESSES = 4
_SHARE = 500
"""Results that a process reads at a time."""
_HELD = 1 << 28
"""Bytes of arrays that a process keeps in memory."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Turn off Python's search for cycles: among 100,000 results it takes a third of the time and finds none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass
class Held:
    """Arrays that a board needs, kept from reading their results."""

    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """By the result's key and their names."""
    bytes: int = 0

    def add(self, result: Shown, opened: Opened, values: Sequence[str]) -> None:
        """Keep the arrays of these values of a result, of its first if there are none; unless too many are held."""
        if self.bytes >= _HELD:
            return
        values = values or [name for name in result.values if f"without/{name}" in opened.places][:1]
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
            "key": texts_column([key for key, _ in self.arrays]),
            "name": texts_column([name for _, name in self.arrays]),
            "array": pa.LargeListArray.from_arrays(numbers_column(ends), numbers_column(numbers)),
        })  # fmt: skip

    def join(self, table: pa.Table) -> None:
        """Add the arrays of another process."""
        lists = table["array"].combine_chunks()
        ends, numbers = numbers_in(lists.offsets), numbers_in(lists.values)
        names = zip(table["key"].to_pylist(), table["name"].to_pylist(), strict=True)
        self.arrays.update(zip(names, np.split(numbers, ends[1:-1]), strict=False))


def read(
    store: Store, keys: Sequence[str], wanted: Sequence[Sequence[str] | None], every_array: bool = False
) -> tuple[pa.Table, Held]:
    """Return the rows of these results, read from their files, and the arrays of the values that are wanted of each.

    The arrays of other results are not read; with `every_array` they are read and checked.

    Other processes help with many results. Each takes the next share when it has read the last one, so that none waits
    for another that starts late or has a slower core.
    """
    waiting = deque(range(0, len(keys), _SHARE))
    tables: dict[int, pa.Table] = {}
    held = Held()

    def share(start: int) -> tuple[Sequence[str], Sequence[Sequence[str] | None], bool]:
        return keys[start : start + _SHARE], wanted[start : start + _SHARE], every_array

    def delegate() -> None:
        with suppress(OSError), _reader(store.folder) as process:
            while waiting:
                try:
                    start = waiting.pop()
                except IndexError:  # another thread has taken it
                    return
                try:
                    tables[start], arrays = _answered(process, share(start))
                except (OSError, ValueError):
                    waiting.append(start)
                    return
                held.join(arrays)

    helpers = [
        Thread(target=delegate) for _ in range(min(_PROCESSES, os.cpu_count() or 1, len(keys) // _A_PROCESS) - 1)
    ]
    for helper in helpers:
        helper.start()
    while waiting or any(map(Thread.is_alive, helpers)):
        try:
            start = waiting.popleft()
        except IndexError:
            for helper in helpers:
                helper.join()
        else:
            tables[start] = _rows(store, *share(start), held)
    return joined([tables[start] for start in sorted(tables)] or [_rows(store, [], [], False, held)]), held


def _rows(
    store: Store, keys: Sequence[str], wanted: Sequence[Sequence[str] | None], every_array: bool, held: Held
) -> pa.Table:
    """Return the rows of these results, read from their files, and add the wanted arrays to `held`."""
    import pyarrow as pa  # late: as above

    heads: dict[bytes, int] = {}
    texts: list[str] = []
    digests: list[str] = []
    codes: list[int] = []
    starts, states = [0], array("q")
    numbers: list[float | None] = []
    for key, values in zip(keys, wanted, strict=True):
        opened = store.opened(key, arrays=every_array or values is not None)
        shown = opened.result or Shown(FORM, key, "missing", None, {})
        assert isinstance(shown, Shown)
        if values is not None and opened.content:
            held.add(shown, opened, values)
        for state, suffix in ((opened.state, ".json"), (opened.beside, ".npz")):
            if state is not None:
                states.extend(facts(state))
            elif opened.unread and suffix == ".npz":
                states.extend((UNREAD,) * 4)
            else:
                states.extend(states_of([f"{store.folder}{os.sep}{key}{suffix}"]))
        head = _split(shown, opened.places, numbers)
        same = marshal.dumps(head, 2)  # equal bytes for equal heads, and faster than JSON
        if same not in heads:
            heads[same] = len(texts)
            texts.append(json.dumps(head))
        codes.append(heads[same])
        digests.append(opened.digest or "")
        starts.append(len(numbers))
    columns = {
        "key": texts_column(keys),
        "head": numbers_column(np.array(codes, dtype=np.int32)),
        "arrays": texts_column(digests),
        "numbers": pa.ListArray.from_arrays(
            numbers_column(np.array(starts, dtype=np.int32)),
            numbers_column(np.array(numbers, dtype=np.float64)),  # None becomes NaN
        ),
    }
    table = pa.table(columns).replace_schema_metadata({"heads": json.dumps(texts)})
    return with_states(table, np.array(states, dtype=np.int64))


_NO_INTERVAL = (math.nan, math.nan)


def _split(result: Shown, names: Collection[str], numbers: list[Any]) -> tuple[Any, ...]:
    """Return the fields of a `_Head`, and add the numbers to `numbers`."""
    values: list[tuple[Any, ...]] = []
    for name, value in result.values.items():
        if value.kind is not None:
            values.append((name, value.kind, value.notes))
            continue
        without = f"without/{name}" in names
        facts = (value.unit, value.better, value.reason, without, value.comparable, value.null)
        values.append((name, *facts, value.proportion, value.seeds, value.depends))
        numbers += (value.value, value.stderr, *(value.ci95 or _NO_INTERVAL), value.n)
        numbers += (value.documents, value.effective_documents, value.largest_share, value.p)
    declared = result.headline, result.main
    return result.status, result.reason, values, *declared, result.sample, result.provenance.preflight


def heads_of(table: pa.Table) -> list[str]:
    found: list[str] = json.loads(table.schema.metadata[b"heads"])
    return found


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables, each of which has its own heads."""
    import pyarrow as pa  # late: as above

    if len(tables) == 1:
        return tables[0]
    heads: dict[str, int] = {}
    parts = []
    for table in tables:
        codes = np.array([heads.setdefault(text, len(heads)) for text in heads_of(table)], dtype=np.int32)
        own = codes[numbers_in(table["head"].combine_chunks())] if len(table) else np.zeros(0, dtype=np.int32)
        parts.append(table.set_column(table.column_names.index("head"), "head", numbers_column(own)))
    joined = pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).combine_chunks()
    return joined.replace_schema_metadata({"heads": json.dumps(list(heads))})


def states_in(table: pa.Table) -> Int[np.ndarray, "files state"]:
    return numbers_in(table["state"].combine_chunks().values).reshape(-1, 8)


def with_states(table: pa.Table, states: Int[np.ndarray, "files state"]) -> pa.Table:
    import pyarrow as pa  # late: only large folders need it

    return table.append_column("state", pa.FixedSizeListArray.from_arrays(numbers_column(states.ravel()), 8))


def numbers_column(values: np.ndarray) -> pa.Array:
    """A column of these numbers, which it shares. `pa.array` and `to_numpy` would import pandas, which takes longer
    than 10,000 results."""
    import pyarrow as pa  # late: as above

    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.type_for_alias(values.dtype.name), len(values), [None, buffer])


def numbers_in(column: pa.Array) -> np.ndarray:
    """The numbers of a column without nulls."""
    dtype = np.dtype(str(column.type).replace("double", "float64"))
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def texts_column(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa  # late: as above

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


@contextmanager
def _reader(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads results of a folder for this one, until its input ends."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-c", "from saeval.results.index_rows import serve; serve()", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:  # fmt: skip
        yield process


def serve() -> None:
    """Answer each line of standard input, one `share` of results, with two tables."""
    import pyarrow as pa  # late: as above

    gc.disable()
    store = Store(sys.argv[1])
    for line in sys.stdin.buffer:
        (keys, wanted, every_array), held = json.loads(line), Held()
        for table in (_rows(store, keys, wanted, every_array, held), held.table()):
            with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
                stream.write_table(table)
        sys.stdout.buffer.flush()


def _answered(process: subprocess.Popen[bytes], share: tuple[Any, ...]) -> tuple[pa.Table, pa.Table]:
    """Return the answer of a reading process; `OSError` or `ValueError` if it has failed."""
    import pyarrow as pa  # late: as above

    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(share).encode() + b"\n")
    process.stdin.flush()
    rows, arrays = (pa.ipc.open_stream(process.stdout).read_all() for _ in range(2))
    return rows, arrays
