"""The state of a pass: how far it is, and the evidence so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from saeval.engine.batch_program import Summation
from saeval.engine.flaws import Flaw
from saeval.stats.evidence import EvidenceTree, added

Totals: TypeAlias = Mapping[Summation, "EvidenceTree | None"]


@dataclass(frozen=True)
class Place:
    """The progress of a pass, or of a block of it, as plain data."""

    row: int = 0
    """The next row of the stream."""
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

    def then(self, block: Place) -> Place:
        """Return the place after a block that begins here."""
        flaws = {digest: Flaw(*fields) for digest, fields in block.flaws.items()}
        return replace(
            self, row=block.row, tokens=self.tokens + block.tokens, batches=self.batches + block.batches,
            batch_size=block.batch_size, halved=[*self.halved, *block.halved], flaws=with_flaws(self.flaws, flaws),
        )  # fmt: skip


@dataclass(frozen=True)
class State:
    """A place and the evidence up to it; replaced as a whole, so that an interruption never sees half a batch."""

    place: Place
    """The place after the last whole block."""
    totals: Totals
    """The sums of the whole blocks."""
    prefix: Totals
    """The evidence of the first rows, kept for values that depend on the number of rows."""
    block: Place
    """The place in the block under way: its row, and the tokens and batches since its start."""
    part: Totals
    """The sums over the rows of the block under way."""

    @property
    def here(self) -> Place:
        """The place after the last batch."""
        return self.place.then(self.block)

    def closed(self) -> State:
        """Return the state in which the block under way has been added to those before it."""
        after = self.here
        return State(after, sums(self.totals, self.part), self.prefix, opened(after), dict.fromkeys(self.part))


def opened(place: Place) -> Place:
    """Return the place at the start of a block that begins at `place`."""
    return Place(row=place.row, batch_size=place.batch_size)


def sums(before: Totals, part: Totals) -> dict[Summation, EvidenceTree | None]:
    """Return the sums of both. Evidence that cannot be added is a failure of its summation alone."""
    return {summation: _sum(summation, total, part[summation]) for summation, total in before.items()}


def _sum(summation: Summation, before: EvidenceTree | None, part: EvidenceTree | None) -> EvidenceTree | None:
    if before is None or part is None:
        return part if before is None else before
    try:
        return added(before, part)
    except Exception as error:
        summation.error = error
        return before


def with_batch(before: Totals, parts: list[tuple[Summation, EvidenceTree]]) -> dict[Summation, EvidenceTree | None]:
    """Return the sums with those of one more batch."""
    return {**before, **{summation: _sum(summation, before[summation], part) for summation, part in parts}}


def with_flaws(before: Mapping[str, list[Any]], new: Mapping[str, Flaw]) -> dict[str, list[Any]]:
    """Return the flaws with those of further rows."""
    totals = {k: flaw + Flaw(*before[k]) if k in before else flaw for k, flaw in new.items()}
    return {**before, **{k: [flaw.count, flaw.per] for k, flaw in totals.items()}}
