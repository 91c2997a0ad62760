"""`RunningPass`: a pass under way, in batches that fit in memory, and its checkpoints."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

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
from saeval.engine.passes import Pass
from saeval.interfaces.data import Batch, PairBatch
from saeval.plan.plan import Plan
from saeval.registry.builtin_quantities import mask
from saeval.results.store import Store
from saeval.stats.evidence import EvidenceTree, added, storable

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class Place:
    """The progress of a pass, as plain data."""

    row: int = 0
    """Number of rows done."""
    tokens: int = 0
    """Number of tokens in the mask so far."""
    batches: int = 0
    batch_size: int = 0
    halved: list[list[int]] = field(default_factory=list)
    """[row, sequences that did not fit, sequences tried next] for each time that memory ran out."""
    prefix: dict[str, int] = field(default_factory=dict)
    """Numbers of sequences, documents and tokens of the prefix, once it is complete."""
    flaws: dict[str, list[Any]] = field(default_factory=dict)
    """Flaws so far, by node digest, each as a list: values that were not finite."""
    errors: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    """Standard errors at each stopping point: by row, name of the value, and subject."""


@dataclass(frozen=True)
class Facts:
    """The content of a checkpoint beside its sums."""

    rows: str
    """Fingerprint of the dataset."""
    place: Place
    dropped: dict[str, tuple[bool, str]]
    """Failed summations, by key: True if undefined, and the reason."""
    cells: list[str]
    """Keys of the cells of the pass."""
    folds: list[str]
    """Digests of the folds that it sums."""


_FACTS = TypeAdapter(Facts)


T = TypeVar("T")
Totals: TypeAlias = Mapping[Summation, "EvidenceTree | None"]


@dataclass(frozen=True)
class State:
    """A place and the evidence up to it; replaced as a whole, so that an interruption never sees half a batch."""

    place: Place
    totals: Totals
    prefix: Totals
    """The evidence of the first rows, kept for values that depend on the number of rows."""


class RunningPass:
    """A pass under way: its place, its sums and its checkpoint."""

    def __init__(self, plan: Plan, store: Store, planned: Pass, evaluator: Evaluator, batch_size: int) -> None:
        self.plan, self.store, self.planned, self.evaluator = plan, store, planned, evaluator
        self.dataset = planned.dataset(plan)
        self.key = planned.key(plan)
        facts, evidence = self._resumed()
        place = facts.place if facts else Place(batch_size=batch_size)
        totals = {t: evidence.get(t.key) for t in planned.summations}
        self._state = State(place, totals, {t: evidence.get(_of_prefix(t)) for t in planned.summations})
        for summation in planned.summations:
            if facts and summation.key in facts.dropped:
                summation.error = _restored(*facts.dropped[summation.key])
        self._saved = time.monotonic()

    @property
    def place(self) -> Place:
        return self._state.place

    @property
    def totals(self) -> Totals:
        return self._state.totals

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
        return np.arange(self.place.row, min(self.place.row + self.place.batch_size, until))

    def advance(self, until: int, progress: Progress) -> None:
        """Sum the rows up to `until`."""
        try:
            while self.place.row < until:
                rows = self._next(until)
                batch_result = self._fitting(rows, self.evaluator.run)
                if batch_result is None:  # again with fewer rows per batch
                    continue
                tokens, parts = batch_result
                totals = dict(self.totals)
                for summation, part in parts:
                    before = totals[summation]
                    try:
                        totals[summation] = part if before is None else added(before, part)
                    except Exception as error:  # evidence that cannot be added is a failure of its cell alone
                        summation.error = error
                at = self.place
                moved = replace(
                    at, row=int(rows[-1]) + 1, tokens=at.tokens + tokens, batches=at.batches + 1,
                    flaws=_joined(at.flaws, self.evaluator.flaws),
                )  # fmt: skip
                self._state = replace(self._state, place=moved, totals=totals)
                progress.advanced(len(rows), 0 if self.evaluator.reused else tokens)
                if time.monotonic() - self._saved > self.plan.options.checkpoint_seconds:
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
        halved = [*self.place.halved, [int(rows[0]), len(rows), half]]
        self._state = replace(self._state, place=replace(self.place, batch_size=half, halved=halved))
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
            self._state = replace(self._state, place=replace(self.place, prefix=counts), prefix=self.totals)

    def keep_errors(self, errors: dict[str, dict[str, float | None]]) -> None:
        """Keep the standard errors at this stopping point."""
        by_row = {**self.place.errors, str(self.place.row): errors}
        self._state = replace(self._state, place=replace(self.place, errors=by_row))

    def save(self) -> None:
        """Write the checkpoint."""
        self._drop_unstorable()
        evidence = {t.key: total for t, total in self.totals.items() if total is not None and t.error is None}
        evidence |= {_of_prefix(t): e for t, e in self.prefix.items() if e is not None and t.error is None}
        dropped = {t.key: [isinstance(t.error, Undefined), str(t.error)] for t in self.totals if t.error is not None}
        purpose = {
            "cells": [cell.key for cell in self.planned.cells],
            "folds": [t.node.digest for t in self.planned.summations if t.node is not None],
        }
        facts = {"rows": self.dataset.fingerprint, "place": asdict(self.place), "dropped": dropped, **purpose}
        self.store.write_checkpoint(self.key, facts, evidence)
        self._saved = time.monotonic()

    def _drop_unstorable(self) -> None:
        """Fail each summation whose sum cannot be stored."""
        for summation, total in self.totals.items():
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
            if facts and facts.rows == self.dataset.fingerprint and needed <= {*names, *facts.dropped}:
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


def _joined(before: Mapping[str, list[Any]], new: Mapping[str, Flaw]) -> dict[str, list[Any]]:
    totals = {k: flaw + Flaw(*before[k]) if k in before else flaw for k, flaw in new.items()}
    return {**before, **{k: [flaw.count, flaw.per] for k, flaw in totals.items()}}


def _of_prefix(summation: Summation) -> str:
    return f"{summation.key} prefix"


def _tokens(batch: Batch | PairBatch) -> int:
    return sum(int(side.mask.sum()) for side in (batch.sides if isinstance(batch, PairBatch) else (batch,)))


def _restored(undefined: bool, reason: str) -> Exception:
    """Return the error of a summation that dropped out of a pass before the pass was interrupted."""
    return Undefined(reason) if undefined else RuntimeError(f"{reason} (before this run was interrupted)")
