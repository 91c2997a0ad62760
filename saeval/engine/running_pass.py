"""`RunningPass`: a pass under way, in batches that fit in memory, and its checkpoints."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from saeval.base.errors import SaevalError, Undefined
from saeval.base.lazy_torch import torch
from saeval.base.memory import TooLargeError, out_of_memory
from saeval.base.parameters import faults
from saeval.base.progress import Progress
from saeval.engine.batch_program import Summation
from saeval.engine.evaluator import Draw, Evaluator
from saeval.engine.flaws import Flaw, described
from saeval.engine.pass_state import Place, State, Totals, opened, sums, with_batch, with_flaws
from saeval.engine.passes import Pass
from saeval.interfaces.data import Batch, PairBatch
from saeval.plan.blocks import Block, blocks
from saeval.plan.plan import Plan
from saeval.plan.precision import stopping_points
from saeval.registry.builtin_quantities import mask
from saeval.results.store import Store
from saeval.stats.evidence import EvidenceTree, storable

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class Facts:
    """The content of a checkpoint beside its sums."""

    rows: str
    """Fingerprint of the dataset."""
    place: Place
    """The place after the last batch."""
    dropped: dict[str, tuple[bool, str] | tuple[bool, str, str, str | None]]
    """Failed summations, by key: True if undefined, and the reason; its class and its traceback, if known."""
    cells: list[str]
    """Keys of the cells of the pass."""
    folds: list[str]
    """Digests of the folds that it sums."""
    whole: Place | None = None
    """The place after the last whole block, if a block was under way."""
    block: Place | None = None
    """The place in that block."""


_FACTS = TypeAdapter(Facts)
_BLOCK = " block"
"""End of the names of the sums over a block under way."""


T = TypeVar("T")


class RunningPass:
    """A pass under way: its place, its sums and its checkpoint.

    Each block is summed on its own and then added to the sum of the blocks before it. With a `block`, it is a shard:
    the sum of this block alone, which another process adds.
    """

    def __init__(
        self, plan: Plan, store: Store, planned: Pass, evaluator: Evaluator, batch_size: int,
        block: Block | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.store, self.planned, self.evaluator = plan, store, planned, evaluator
        self.dataset = planned.dataset(plan)
        self.key, self.kind = planned.key(plan), "passes"
        if block is not None:
            self.key, self.kind, self.blocks = shard_key(self.key, block), "shards", [block]
            nothing = dict.fromkeys(planned.summations)
            place = Place(row=block.start, batch_size=batch_size)
            self._state = State(place, nothing, nothing, opened(place), nothing)
            self._saved = time.monotonic()
            return
        stops = [point.sequences for point in stopping_points(self.dataset.clusters)] if planned.adaptive else []
        self.blocks = blocks(self.dataset.clusters, plan.options.block, stops)
        facts, evidence = self._resumed()
        place = (facts.whole or facts.place) if facts else Place(batch_size=batch_size)
        totals, prefix, part = (
            {t: evidence.get(name(t)) for t in planned.summations} for name in (_whole, _of_prefix, _of_block)
        )
        self._state = State(place, totals, prefix, (facts and facts.block) or opened(place), part)
        for summation in planned.summations:
            if facts and summation.key in facts.dropped:
                summation.error = _restored(*facts.dropped[summation.key][:2])
        self._saved = time.monotonic()

    @property
    def place(self) -> Place:
        """The place after the last batch."""
        return self._state.here

    @property
    def totals(self) -> Totals:
        """The evidence up to this place."""
        state = self._state
        return sums(state.totals, state.part) if state.block.batches else state.totals

    @property
    def prefix(self) -> Totals:
        return self._state.prefix

    def run_ahead(self, portions: Sequence[Sequence[Summation]], until: int) -> None:
        """Run additional summations on the next rows; the pass itself then uses the same clean pass."""
        while self._fitting(self._next(until), lambda draw: self.evaluator.run_ahead(draw, portions)) is None:
            pass
        if len(portions) > 1 or not self.planned.cells:  # the SAEs are needed later
            self.evaluator.release_weights()

    def _next(self, until: int) -> np.ndarray:
        """Return the rows of the next batch, all of one block."""
        at = self._state.block
        return np.arange(at.row, min(at.row + at.batch_size, until, self._block_end(at.row)))

    def _block_end(self, row: int) -> int:
        return next(block.end for block in self.blocks if block.end > row)

    def advance(self, until: int, progress: Progress) -> None:
        """Sum the rows up to `until`."""
        try:
            while self._state.block.row < until:
                rows = self._next(until)
                batch_result = self._fitting(rows, self.evaluator.run)
                if batch_result is None:  # again with fewer rows per batch
                    continue
                tokens, parts = batch_result
                state, at = self._state, self._state.block
                moved = replace(
                    at, row=int(rows[-1]) + 1, tokens=at.tokens + tokens, batches=at.batches + 1,
                    flaws=with_flaws(at.flaws, self.evaluator.flaws),
                )  # fmt: skip
                state = replace(state, block=moved, part=with_batch(state.part, parts))
                self._state = state.closed() if moved.row == self._block_end(int(rows[0])) else state
                progress.advanced(len(rows), 0 if self.evaluator.reused else tokens)
                due = time.monotonic() - self._saved > self.plan.options.checkpoint_seconds
                if due and self.kind == "passes":
                    self.save()
        except KeyboardInterrupt:
            try:
                self.save()
            except SaevalError as error:  # such as a full disk; the interruption is still raised
                log.warning("the interrupted pass was not saved: %s", error)
            raise

    def _fitting(self, rows: np.ndarray, run: Callable[[Draw], T]) -> tuple[int, T] | None:
        """Return the rows' number of tokens and the result of `run`; None, with half the batch size, if too large."""
        try:
            returned = run(lambda: self._batch(rows))
            return _tokens(self.evaluator.batch), returned
        except (TooLargeError, Exception) as error:
            if not isinstance(error, TooLargeError) and not out_of_memory(error):
                raise
            reason = str(error)
        if len(rows) == 1:
            self.save()
            *names, last = map(self.plan.options.called, ("device", "sae_device", "dtype", "sae_dtype"))
            options = f"{', '.join(names)} or {last}"
            raise SaevalError(
                f"out of memory with batch size 1 on {self.plan.options.device} ({reason[:200]}); shorten "
                f"data.context, drop the largest SAE or metric, or choose another {options}"
            )
        half = len(rows) // 2
        log.warning("out of memory with %d sequences per batch; continuing with %d", len(rows), half)
        at = self._state.block
        halved = [*at.halved, [int(rows[0]), len(rows), half]]
        self._state = replace(self._state, block=replace(at, batch_size=half, halved=halved))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def error(self, summation: Summation) -> Exception | None:
        """Return why a summation has no value; None if it has one."""
        if isinstance(summation.error, Undefined):
            return summation.error
        mask_is_empty = self.place.row > 0 and self.place.tokens == 0
        if mask_is_empty and any(node.quantity.function is mask for node in summation.reached()):
            return Undefined(f"no token is in the mask: {_EMPTY_MASK}")
        if not self.place.flaws:
            return summation.error
        cell = next((c for c in self.planned.cells if c.key == summation.key), None)
        subject = cell.subjects[0].name if cell is not None and len(cell.subjects) == 1 else ""
        counts = {"tokens": self.place.tokens, "texts": self.place.row * (2 if self.dataset.pair else 1)}
        flaws = {digest: Flaw(*fields) for digest, fields in self.place.flaws.items()}
        split = " of the fit split" if self.planned.on_fit else ""
        reason = described(summation.reached(), flaws, counts, split, subject)
        return summation.error if reason is None else Undefined(reason)

    def fold(self, summation: Summation, total: EvidenceTree | None) -> EvidenceTree | Exception:
        """Return the total of a fold, or why it has none."""
        return self.error(summation) or (Undefined("there are no rows to sum over") if total is None else total)

    def _batch(self, rows: np.ndarray) -> Batch | PairBatch:
        """Return a batch of these rows; `SaevalError`, naming the data's plugin, for any error but lack of memory."""
        try:
            return self.dataset.batch(rows.copy(), self.plan.options.device)
        except Exception as error:
            if out_of_memory(error):
                raise
            with self.plan.streams.answered_for():
                raise

    def keep_prefix(self, documents: int) -> None:
        """Keep the current evidence as that of the prefix."""
        if not self.place.prefix:
            counts = {"sequences": self.place.row, "documents": documents, "tokens": self.place.tokens}
            place = replace(self._state.place, prefix=counts)
            self._state = replace(self._state, place=place, prefix=self.totals)

    def keep_errors(self, errors: dict[str, dict[str, float | None]]) -> None:
        """Keep the standard errors at this stopping point."""
        by_row = {**self.place.errors, str(self.place.row): errors}
        self._state = replace(self._state, place=replace(self._state.place, errors=by_row))

    def save(self) -> None:
        """Write the checkpoint."""
        self._drop_unstorable()
        state = self._state
        named = ((_whole, state.totals), (_of_prefix, state.prefix), (_of_block, state.part))
        evidence = {name(t): e for name, sums_ in named for t, e in sums_.items() if e is not None and t.error is None}
        failed = [t for t in self.planned.summations if t.error is not None]
        dropped = {t.key: [*reason_of(t.error), t.trace] for t in failed if t.error is not None}
        purpose = {
            "cells": [cell.key for cell in self.planned.cells],
            "folds": [t.node.digest for t in self.planned.summations if t.node is not None],
        }
        facts = {"rows": self.dataset.fingerprint, "place": asdict(self.place), "dropped": dropped, **purpose}
        if state.block.batches:
            facts |= {"whole": asdict(state.place), "block": asdict(state.block)}
        self.store.write_checkpoint(self.key, facts, evidence, self.kind)
        self._saved = time.monotonic()

    def left(self, until: int) -> list[Block]:
        """Return the blocks up to a row that are not yet in the sum."""
        row = self._state.place.row
        return [Block(max(b.start, row), b.end) for b in self.blocks if b.end > row and b.start < until]

    def stored_tokens(self, block: Block) -> int | None:
        """Return the number of tokens of a block whose sum is stored; None if it is not."""
        facts = self._shard_facts(self.store.outlook(shard_key(self.key, block), "shards"), block)
        return facts.place.tokens if facts else None

    def _shard_facts(self, stored: tuple[dict[str, Any], Any] | None, block: Block) -> Facts | None:
        try:
            facts = _FACTS.validate_python(stored[0]) if stored else None
        except ValidationError:
            return None
        whole = facts is not None and facts.rows == self.dataset.fingerprint and facts.place.row == block.end
        return facts if whole else None

    def add_shard(self, block: Block) -> int | None:
        """Add the stored sum of the next block; return its number of tokens, or None if there is no such sum."""
        stored = self.store.checkpoint(shard_key(self.key, block), "shards")
        facts = self._shard_facts(stored, block)
        if stored is None or facts is None:
            return None
        for summation in self.planned.summations:
            if summation.error is None and (dropped := facts.dropped.get(summation.key)) is not None:
                undefined, reason, kind, summation.trace = (*dropped, "RuntimeError", None)[:4]
                summation.error = raised(undefined, reason, kind)
        part = {t: stored[1].get(t.key) for t in self.planned.summations}
        # A part of this block that this process had summed before it was interrupted is in the stored sum.
        self._state = replace(self._state, block=facts.place, part=part).closed()
        return facts.place.tokens

    def lose(self, block: Block, reason: str, trace: str) -> None:
        """Go on without a block that could not be summed, which fails all summations that have not failed before."""
        for summation in self.planned.summations:
            if summation.error is None:
                summation.error, summation.trace = raised(False, reason, "ShardError"), trace
        moved = Place(row=block.end, batch_size=self.place.batch_size)
        self._state = replace(self._state, block=moved, part=dict.fromkeys(self.planned.summations)).closed()

    def _drop_unstorable(self) -> None:
        """Fail each summation whose sum cannot be stored."""
        for totals in (self._state.totals, self._state.part):
            for summation, total in totals.items():
                try:
                    if total is not None and summation.error is None:
                        storable(total)
                except Exception as error:
                    summation.error = error

    def _resumed(self) -> tuple[Facts | None, dict[str, EvidenceTree]]:
        """Return the furthest checkpoint over these rows that holds all summations of the pass; it may hold more."""
        needed = {t.key for t in self.planned.summations}
        usable: list[tuple[int, str]] = []
        for key in [] if self.plan.options.fresh else self.store.checkpoints():
            facts, names = self._outlook(key)
            held = {name.removesuffix(_BLOCK) for name in names} | set(facts.dropped if facts else ())
            if facts and facts.rows == self.dataset.fingerprint and needed <= held:
                usable.append((facts.place.row, key))
        for row, key in sorted(usable, reverse=True):
            facts, _ = self._outlook(key)
            if row > 0 and facts is not None and (whole := self.store.checkpoint(key)) is not None:
                return facts, whole[1]
        return None, {}

    def _outlook(self, key: str) -> tuple[Facts | None, set[str]]:
        """Return the facts of a checkpoint and the names of its evidence; nothing, with a warning, if it is damaged."""
        outlook = self.store.outlook(key)
        if outlook is None:
            self.store.checkpoint(key)  # warns of the damage
            return None, set()
        try:
            return _FACTS.validate_python(outlook[0]), outlook[1]
        except ValidationError as error:
            log.warning("checkpoint %s: %s; its pass starts again", key, faults(error, outlook[0])[0].sentence)
            return None, set()


_EMPTY_MASK = "every input is excluded or has no target; check the data's 'exclude' and 'context'"


def shard_key(key: str, block: Block) -> str:
    """Return the name of the stored sum of a block of the pass `key`."""
    return f"{key}-{block.start}-{block.end}"


def reason_of(error: Exception) -> list[Any]:
    """Return an error as plain data, from which `raised` makes it in another process."""
    return [isinstance(error, Undefined), str(error), type(error).__name__]


def raised(undefined: bool, reason: str, kind: str) -> Exception:
    """Return an error as another process has raised it, of a class with the same name."""
    error: Exception = Undefined(reason) if undefined else type(kind, (Exception,), {})(reason)
    return error


def _whole(summation: Summation) -> str:
    return summation.key


def _of_prefix(summation: Summation) -> str:
    return f"{summation.key} prefix"


def _of_block(summation: Summation) -> str:
    return f"{summation.key}{_BLOCK}"


def _tokens(batch: Batch | PairBatch) -> int:
    return sum(int(side.mask.sum()) for side in (batch.sides if isinstance(batch, PairBatch) else (batch,)))


def _restored(undefined: bool, reason: str) -> Exception:
    """Return the error of a summation that dropped out of a pass before the pass was interrupted."""
    return Undefined(reason) if undefined else RuntimeError(f"{reason} (before this run was interrupted)")
