"""The index of a results folder: its results as columns of one file, so that a board need not open each result.

The files stay the truth. A row of the index holds for as long as size, times and inode of the files read for it are
unchanged; other files are read again. Arrays that no test of the board needs are not read. The index can be deleted at
any time; a folder that cannot be written has none.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.base.errors import SaevalError
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import Unwritable, tidy, write_whole
from saeval.results import file_states
from saeval.results.file_states import FOLDER, UNREAD, Basis, code, facts, result_files, states_of
from saeval.results.index_rows import Held, heads_of, joined, numbers_column, numbers_in, read, states_in, with_states
from saeval.results.result import Result, StoredEstimate
from saeval.results.store import Store
from saeval.stats.estimate import Estimate

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("saeval")

FORM = 4
WORTH = 1000
"""Least number of results with an index: fewer are read as fast without."""
_NUMBERS = ("value", "stderr", "low", "high", "n", "documents", "effective_documents", "largest_share", "p")
"""The numbers of each scalar in a row's `numbers`."""
_FACTS = ("unit", "better", "reason", "without", "comparable", "null", "proportion", "seeds", "depends")
_UNSETTLED = -2
_JSON, _NPZ = slice(0, 4), slice(4, 8)
"""Columns of a result's states."""


class StaleError(SaevalError):
    """An indexed file has changed since; the message names it and the change."""


def results(
    folder: Path | str, include_limited: bool = False, every_array: bool = False
) -> tuple[dict[str, Any], list[Result], Callable[[], Basis | None]]:
    """Return the manifest, its results through the folder's index, and a function for the files read so far.

    It returns None if these files are too young to show a later change, and for a small folder.

    Arrays are read on request; `StaleError` if their file is not the one that the result names. `every_array`: read all
    files and check all arrays.
    """
    store = Store(folder)
    manifest = store.listed(include_limited)
    cells = manifest["cells"]
    if len(cells) < WORTH:
        return *store.results(include_limited), lambda: None
    name = "results" if manifest["limit"] is None else "results.limited"
    metrics = [listed["cell"].get("alias", listed["cell"]["metric"]) for listed in cells]
    tested = _tested(manifest["leaderboard"], metrics[0])
    index = _current(store, [listed["key"] for listed in cells], name, [tested.get(m) for m in metrics], every_array)
    return manifest, index.results(cells), index.basis


def _tested(layout: Mapping[str, Any], first: str) -> dict[str, list[str]]:
    """The values of each metric that a leaderboard of this layout tests, whose arrays it needs; empty: the only one.

    `first`: the metric that ranks where the layout names none.
    """
    found: dict[str, list[str]] = {}
    against = layout.get("against") or {}
    more = against.values() if isinstance(against, Mapping) else ()
    rank_by = layout.get("rank_by") or next(iter(layout.get("columns") or ()), first)
    for name in [rank_by, *itertools.chain.from_iterable(more)]:
        if name:
            metric, _, value = str(name).partition(".")
            found.setdefault(metric, []).extend([value] if value else [])
    return found


@dataclass(frozen=True)
class _Head:
    """The content of a result except for its cell and its numbers; many results share it."""

    status: Any
    reason: str | None
    scalars_and_others: list[list[Any]]
    """Name, unit, better direction, reason, whether there are arrays, comparability, null, whether it is a
    proportion, seeds, what it depends on; or name, kind, notes."""
    headline: list[str]
    main: list[str] | None
    sample: dict[str, Any] | None
    preflight: dict[str, Any] | None

    @cached_property
    def values(self) -> dict[str, dict[str, Any]]:
        """The records of the values, without their numbers."""
        found: dict[str, dict[str, Any]] = {}
        for name, *rest in self.scalars_and_others:
            if len(rest) == 2:
                found[name] = {"kind": rest[0], **({"notes": rest[1]} if rest[1] is not None else {})}
            else:
                found[name] = dict(zip(_FACTS, rest, strict=True))
        return found

    @cached_property
    def places(self) -> dict[str, int]:
        """Position of each scalar's first number."""
        scalars = [name for name, skeleton in self.values.items() if "kind" not in skeleton]
        return {name: place * len(_NUMBERS) for place, name in enumerate(scalars)}


class _Indexed(Result):
    """A result in the index. Its values are assembled, and its arrays read, on request."""

    form: object = None

    def __init__(self, index: _Index, head: _Head, place: int, key: str, cell: Mapping[str, Any], form: object) -> None:
        self.key, self.cell, self.status, self.reason, self.sample = key, cell, head.status, head.reason, head.sample
        self._index, self._head, self._place, self.form, self.main = index, head, place, form, head.main

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
        value, stderr, low, high, n, documents, effective, share, p = numbers
        record: dict[str, Any] = {
            "value": value, "stderr": stderr, "ci95": None if low is None else [low, high],
            "n": int(n) if n is not None and n.is_integer() else n, "unit": facts["unit"], "better": facts["better"],
            "documents": None if documents is None else int(documents), "effective_documents": effective,
            "largest_share": share, "reason": facts["reason"],
            "comparable": facts["comparable"] or "model", "null": facts["null"], "p": p,
            "proportion": facts["proportion"], "seeds": facts["seeds"], "depends": facts["depends"],
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
            arrays, state = store.arrays(self.key, self.digest, names)
        except DamagedError as error:
            raise StaleError(f"{store.folder / self.key}.npz: {error}; run the suite again") from None
        self._index.states[self._place, _NPZ] = facts(state)
        return arrays


class _Index:
    """The rows of an index, for the cells of a manifest."""

    def __init__(self, store: Store, table: pa.Table, held: Held, began: int) -> None:
        """`began`: time in ns before the first file was read."""
        self.store, self.held, self._began = store, held, began
        self._keys: list[str] = table["key"].to_pylist()
        self.states = states_in(table).copy()
        """States of all files read so far."""
        numbers = table["numbers"].combine_chunks()
        self.starts = numbers.offsets.to_pylist()
        self.numbers: Float[np.ndarray, "numbers"] = numbers_in(numbers.values)
        self.digests = table["arrays"].to_pylist()
        self._codes = table["head"].to_pylist()
        self.heads_of = [_Head(*json.loads(text)) for text in heads_of(table)]

    def results(self, cells: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The results of the cells, which are its rows."""
        heads = self.heads_of
        return [
            _Indexed(self, heads[code], place, listed["key"], listed["cell"], (code, id(self), listed["kind"]))
            for place, (code, listed) in enumerate(zip(self._codes, cells, strict=True))
        ]

    def basis(self) -> Basis | None:
        """The files read so far; None if one is too young to show a later change."""
        if not _settled(self.states, self._began).all():
            return None
        read = self.states[:, _NPZ.start] != UNREAD
        states = self.states[:, _JSON].tobytes() + self.states[read, _NPZ].tobytes()
        with_arrays = [self._keys[place] for place in np.flatnonzero(read).tolist()]
        return Basis(self._keys, with_arrays, hashlib.sha256(states).hexdigest())


def _current(
    store: Store, keys: list[str], name: str, wanted: Sequence[Sequence[str] | None], every_array: bool
) -> _Index:
    """Return the index for these cells, after reading and adding the results that are missing or have changed.

    With `every_array`, all results are read, and all their arrays.
    """
    now = time.time_ns()
    old = None if every_array else _load(store.folder / FOLDER, name)
    places = np.full(len(keys), -1)
    if old is not None and len(old):
        known = {key: place for place, key in enumerate(old["key"].to_pylist())}
        places = np.array([known.get(key, -1) for key in keys])
        then = states_in(old)[places]
        places[(then != _states(store.folder, keys, then[:, _NPZ.start] != UNREAD)).any(axis=1)] = -1
        if len(known) == len(keys) and (places == np.arange(len(keys))).all():
            return _Index(store, old, Held(), now)
    anew = np.flatnonzero(places < 0)
    rows, held = read(store, [keys[place] for place in anew], [wanted[place] for place in anew.tolist()], every_array)
    places[anew] = np.arange(len(anew)) + (len(old) if old is not None else 0)
    table = joined([old, rows] if old is not None else [rows]).take(numbers_column(places))
    states = states_in(table)
    old_enough = _settled(states, now)
    kept = table
    if not old_enough.all():
        kept = with_states(table.drop_columns("state"), np.where(old_enough[:, None], states, _UNSETTLED))
    _keep(store.folder / FOLDER, name, kept)
    return _Index(store, table, held, now)


def _states(
    folder: Path, keys: Sequence[str], with_arrays: Bool[np.ndarray, "results"]
) -> Int[np.ndarray, "results state"]:
    """States of the two files of each result; without its arrays, of the JSON file alone."""
    states = np.full((len(keys), 8), UNREAD)
    read = [keys[place] for place in np.flatnonzero(with_arrays).tolist()]
    for here, some, names, suffix in ((slice(None), _JSON, keys, ".json"), (with_arrays, _NPZ, read, ".npz")):
        states[here, some] = np.frombuffer(states_of(result_files(folder, names, suffix)), np.int64).reshape(-1, 4)
    return states


def _settled(states: Int[np.ndarray, "results state"], now: int) -> Bool[np.ndarray, "results"]:
    """True for results whose files are so old that any later change must change one of their times."""
    times = states.reshape(len(states), -1, 4)[:, :, 1:3]
    return np.asarray(times.max(axis=(1, 2)) < now - file_states.SETTLED)


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
    """Load the stored index; None if it is missing, damaged or of another version."""
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
    except Exception as error:  # whatever is wrong with it, it is rebuilt
        log.debug("%s: no index (%s)", folder, error)
        return None


def _keep(folder: Path, name: str, table: pa.Table) -> None:
    """Write the index. If that is impossible, the files are read each time."""
    content = _packed(table)
    facts = {"form": FORM, "saeval": code(), "parquet": hashlib.sha256(content).hexdigest()}
    try:
        write_whole(folder / f"{name}.parquet", content, "")
        write_whole(folder / f"{name}.json", sealed(facts), "")
    except Unwritable as error:
        log.debug("%s", error)
    else:
        tidy(folder)
