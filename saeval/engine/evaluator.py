"""Evaluates the nodes of a pass: each once per batch, kept in a memo until its last consumer has used it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from saeval.base.errors import Undefined
from saeval.base.lazy_torch import torch
from saeval.base.memory import TooLargeError, refuse_too_large
from saeval.engine.batch_program import BatchProgram, Summation
from saeval.engine.flaws import Flaw, flaw
from saeval.engine.isolation import WrittenInPlaceError, called
from saeval.engine.kept_passes import KeptBatch, KeptPasses, frontier
from saeval.interfaces.contents import Care
from saeval.interfaces.data import Batch, Dataset, PairBatch
from saeval.interfaces.model import Capture, Model, Resume
from saeval.plan.leaves import Leaf
from saeval.plan.nodes import Constant, Node
from saeval.stats.evidence import EvidenceTree, Stamp, added, stamped

if TYPE_CHECKING:
    from torch import Tensor


class Failed:
    """An error kept in place of a value, and raised for each consumer with its original traceback.

    Lack of memory is due to the size of the batch, not to the value, so it raises `TooLargeError` at once.
    """

    def __init__(self, error: Exception) -> None:
        refuse_too_large(error)
        self._error, self._traceback = error, error.__traceback__

    @property
    def error(self) -> Exception:
        return self._error.with_traceback(self._traceback)


GATHERED = 16
"""Number of results that may wait in memory for one gathered call."""


Draw: TypeAlias = Callable[[], "Batch | PairBatch"]
"""Returns the batch, a new copy in each call."""


class _Redo(BaseException):
    """A shared value was written into, so the batch must be computed again."""


@dataclass
class Evaluator:
    """Evaluates a pass's summations batch by batch."""

    model: Model | None
    summations: Sequence[Summation]
    totals: Mapping[int, EvidenceTree | Exception]
    """Folds of earlier passes by node serial."""
    n_clusters: int
    dataset: Dataset | None = None
    """The data that spell their tokens; None if there are none."""
    kept: KeptPasses | None = None
    """What earlier calls have kept; None if nothing is to be kept."""
    passing: frozenset[str] = frozenset()
    """As in `Plan`: values that depend on these are not kept."""
    passes: int = 0
    """Number of forward passes: clean, cut and resumed."""
    flaws: dict[str, Flaw] = field(default_factory=dict)
    """Flaws of the last batch, by their nodes' digests: values that are not finite."""
    reused: bool = False
    """True if the clean pass of the last batch is that of `run_ahead`."""
    _lasting: dict[int, Any] = field(default_factory=dict)
    """Values that do not depend on the batch, such as weights, by node serial."""
    _writers: dict[int, Failed] = field(default_factory=dict)
    """Nodes whose function wrote into a shared value; it is never called again."""
    _wider: BatchProgram | None = None
    """During `run_ahead`: everything that its clean pass serves."""
    _ahead: tuple[Batch | PairBatch, dict[int, Capture]] | None = None
    """The batch of `run_ahead` and its clean pass, by side."""
    _checked: set[int] = field(default_factory=set)
    """Nodes and summations, by `id`, whose first call was checked by content. Later calls are checked by version
    counters alone, which miss some writes, since comparing the content reads every number."""

    def __post_init__(self) -> None:
        self.arrange()

    def arrange(self) -> None:
        """Build the program of the summations that have not failed."""
        self.program = BatchProgram([t for t in self.summations if t.error is None])
        self._programs: dict[frozenset[int], BatchProgram] = {frozenset(): self.program}
        self._frontier = frontier(self.program, self.passing) if self.kept else {}

    def run_ahead(self, draw: Draw, portions: Sequence[Sequence[Summation]]) -> None:
        """Run additional summations, portion by portion, on the batch that `run` gets next.

        One clean pass serves all portions and `run`. If there are several portions, weights are released in between.
        """
        original = self.summations
        self._wider = BatchProgram([summation for summations in (original, *portions) for summation in summations])
        try:
            for summations in portions:
                self.summations = summations
                self.arrange()
                self.run(draw)
                if len(portions) > 1:
                    self.release_weights()
        finally:
            self.summations, self._wider = original, None
            self.arrange()

    def run(self, draw: Draw) -> list[tuple[Summation, EvidenceTree]]:
        """Return the evidence of each summation that has not failed; one that fails keeps its error and drops out.

        If a function wrote into a shared value, the batch is drawn and computed again. `TooLargeError` if the batch
        does not fit in memory. A summation with flawed values may lack its evidence, but does not drop out, so that
        `flaws` are counted in later batches, too.
        """
        while True:
            try:
                return list(self._run(draw()))
            except _Redo:
                self._lasting.clear()
                if self.kept is not None:  # what was written into may be kept
                    self.kept.drop(self.batch)
                self.arrange()
            except TooLargeError:
                self._memo.clear()
                self._captures.clear()
                self.arrange()
                raise

    def _run(self, batch: Batch | PairBatch) -> Iterator[tuple[Summation, EvidenceTree]]:
        self._memo: dict[int, Any] = {}
        self.batch = batch
        self._take_kept()
        self._left = self.program.uses.copy()
        self.flaws = {}
        ahead, self._ahead = self._ahead, None
        self._captures: dict[int, Capture] = ahead[1] if ahead and _same_rows(ahead[0], batch) else {}
        self.reused = bool(self._captures)
        stamp = Stamp(batch.sequence_ids, batch.clusters, self.n_clusters)
        waiting = 0
        for item in self.program.items:
            if isinstance(item, Node):
                with suppress(Exception):  # kept in the memo for the cells that need it
                    self._value(item)
                waiting += 1
                if waiting % GATHERED == 0:
                    self._gather_waiting()
                continue
            try:
                yield item, self._observe(item, stamp)
            except Exception as error:  # one bad cell fails alone
                refuse_too_large(error)
                if isinstance(error, Undefined) or not any(node.digest in self.flaws for node in item.reached()):
                    item.fail(error)
            for node in item.nodes():
                self._release(node)
        self._memo.clear()
        if self._wider is not None:
            self._ahead = batch, self._captures
        self._captures = {}
        if self.kept is not None and self.flaws:  # they are counted again in each call
            self.kept.drop(batch)
        if any(t.error is not None for t in self.program.summations):
            self.arrange()

    def _take_kept(self) -> None:
        """Put the kept values of the batch into the memo, and use the program that computes the others."""
        self._of_kept: KeptBatch | None = None
        if self.kept is not None:
            self._of_kept = self.kept.batch(self.batch)
            values = self._of_kept.values
            self._memo |= {s: values[node.digest] for s, node in self._frontier.items() if node.digest in values}
        given = frozenset(self._memo)
        if given not in self._programs:
            self._programs[given] = BatchProgram([t for t in self.summations if t.error is None], given)
        self.program = self._programs[given]

    def _keep(self, node: Node, value: Any) -> None:
        if self.kept is not None and self._of_kept is not None and node.serial in self._frontier:
            self.kept.keep(self._of_kept, node, value)

    def _observe(self, summation: Summation, stamp: Stamp) -> EvidenceTree:
        total: EvidenceTree | None = None
        for call in summation.arguments:
            arguments = {name: self._argument(a) for name, a in call.items()}
            try:
                observed = called(summation.function, arguments, "it", self._care(summation.foreign, summation))
            except WrittenInPlaceError as error:
                summation.fail(error)
                raise _Redo from None
            part = stamped(observed, stamp)
            total = part if total is None else added(total, part)
        assert total is not None
        if summation.foreign:
            self._checked.add(id(summation))
        return total

    def _care(self, foreign: bool, *callers: Node | Summation) -> Care:
        if not foreign:
            return Care.VERSIONS
        return Care.ARRAYS if all(id(caller) in self._checked for caller in callers) else Care.EVERYTHING

    def conclude(
        self, function: Callable[..., Any], totals: Sequence[Any], requests: Mapping[str, Any], foreign: bool = False
    ) -> Any:
        """Return `function(*totals, ...)` with the values of `requests`, none of which is per-batch."""
        while True:
            try:
                arguments = {name: self._argument(a) for name, a in requests.items()}
                break
            except TooLargeError as error:  # there is no batch to make smaller
                raise MemoryError(str(error)) from None
            except _Redo:
                self._lasting.clear()
        try:
            return called(function, arguments, "it", Care.EVERYTHING if foreign else Care.VERSIONS, totals)
        except WrittenInPlaceError:
            self._lasting.clear()
            raise

    def keep_weights_of(self, other: Evaluator) -> None:
        """Take over the weights that another evaluator of the same nodes has loaded."""
        self._lasting = other._lasting

    def release_weights(self) -> None:
        """Release weights from memory; they are loaded again when requested."""
        self._lasting.clear()

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return [self._argument(item) for item in argument]
        if isinstance(argument, Constant):
            return argument.value
        return self._value(argument)

    def _value(self, node: Node) -> Any:
        if node.serial in self._writers:
            raise self._writers[node.serial].error
        memo = self._memo if "batch" in node.roots else self._lasting
        if node.serial not in memo:
            if node.quantity.fold:
                return self._total(node)
            if node.quantity.gathered:
                self._gather(node)
            else:
                try:
                    memo[node.serial] = self._compute(node)
                    self._note_flaw(node, memo[node.serial])
                    self._keep(node, memo[node.serial])
                except Exception as error:  # kept, so that each consumer fails with the same reason
                    memo[node.serial] = Failed(error)
                for used in node.inputs:
                    self._release(used)
        value = memo[node.serial]
        if isinstance(value, Failed):
            raise value.error
        return value

    def _note_flaw(self, node: Node, value: Any) -> None:
        """Record the flaw of a value that must be finite."""
        if node.quantity.finite and "batch" in node.roots and (not_finite := flaw(value, self.side(node).mask)):
            self.flaws[node.digest] = not_finite

    def side(self, node: Node) -> Batch:
        """Return the batch; for pairs, the node's side of it."""
        return self.batch.sides[node.side] if isinstance(self.batch, PairBatch) else self.batch

    def _total(self, node: Node) -> Any:
        """Return a copy of a fold's total: arrays, unlike tensors, have no counter of writes."""
        if node.serial not in self.totals:
            raise RuntimeError(f"fold '{node.name}' was not summed in an earlier pass")
        total = self.totals[node.serial]
        if isinstance(total, Exception):
            raise Failed(total).error
        return copy.deepcopy(total)

    def _compute(self, node: Node) -> Any:
        if isinstance(node.quantity, Leaf):
            return node.quantity.function(self, node)
        return self._called([node], {name: self._argument(a) for name, a in node.args.items()})

    def _called(self, nodes: Sequence[Node], arguments: Mapping[str, Any]) -> Any:
        """Call the function of `nodes`. If it writes into its arguments, they fail for good and `_Redo` is raised."""
        quantity = nodes[0].quantity
        caller, foreign = f"'{quantity.name}'", quantity.foreign
        if subjects := [used.subject for used in nodes[0].inputs if used.subject and used.quantity.foreign]:
            caller, foreign = f"'{subjects[0]}', in '{quantity.name}',", True
        try:
            value = called(quantity.function, arguments, caller, self._care(foreign, *nodes))
            self._checked.update(map(id, nodes))
            return value
        except WrittenInPlaceError as error:
            self._writers.update({node.serial: Failed(error) for node in nodes})
            raise _Redo from None

    def clean_pass(self, node: Node) -> Capture:
        """Return the clean pass over the node's side, which is run at the first request."""
        if node.side not in self._captures:
            needed = self._wider or self.program
            kept = self._of_kept
            captured = self.kept.capture(kept, node.side, needed) if self.kept and kept else None
            if captured is None:
                self.passes += 1
                captured = self._model.capture(self.side(node), needed.hooks, needed.final, needed.resumable)
                if self.kept and kept:
                    self.kept.keep_capture(kept, node.side, captured, needed)
            self._captures[node.side] = captured
        return self._captures[node.side]

    def activations(self, node: Node) -> Tensor:
        """Return the activations at the node's hook, and drop them from the capture unless others will read them."""
        activations, hook_name = self.clean_pass(node).activations, node.hook_name or ""
        return activations.pop(hook_name) if self._wider is None else activations[hook_name]

    def resume(self, node: Node) -> Resume:
        """Return the rest of the pass, from the node's hook on."""
        return self._resumer(self.side(node), self.clean_pass(node), node.hook_name or "")

    @property
    def _model(self) -> Model:
        if self.model is None:
            raise RuntimeError("this suite has no model")
        return self.model

    def _resumer(self, side: Batch, captured: Capture, hook_name: str) -> Resume:
        def resumed(activations: Any) -> Capture:
            self.passes += 1
            return self._model.resumed(side, captured, hook_name, activations, self.program.on_the_way)

        def until(activations: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
            self.passes += 1
            return self._model.resumed(side, captured, hook_name, activations, hooks, final=False).activations

        return Resume(resumed, lambda rows: self._resumer(side.part(rows), captured.part(rows), hook_name), until)

    def _gather_waiting(self) -> None:
        for node in self.program.gathered:
            if node.serial not in self._memo and self._at_hand(node):
                with suppress(Exception):  # kept in the memo for the cells that need it
                    self._value(node)

    def _at_hand(self, node: Node) -> bool:
        """True if the gathered argument of a node is already computed."""
        return isinstance(argument := node.gathered, Constant) or argument.serial in self._memo

    def _gather(self, wanted: Node) -> None:
        """Compute `wanted` in one call with all nodes at hand that differ from it in the gathered argument only."""
        alike = [n for n in self.program.gathered if n is not wanted and _shared(n) == _shared(wanted)]
        group = [n for n in alike if n.serial not in self._memo and self._at_hand(n)] + [wanted]
        ready, gathered = [], []
        for node in group:
            try:
                gathered.append(self._argument(node.gathered))
                ready.append(node)
            except Exception as error:  # this node fails, the others are computed
                self._memo[node.serial] = Failed(error)
        if ready:
            over = wanted.quantity.gathered
            try:
                shared = {name: self._argument(a) for name, a in ready[0].args.items() if name != over}
                values = self._called(ready, {**shared, over: gathered})
            except Exception as error:  # the shared call failed, and so has every node
                values = [Failed(error)] * len(ready)
            for node, value in zip(ready, values, strict=True):
                self._memo[node.serial] = value
                if not isinstance(value, Failed):
                    self._note_flaw(node, value)
                    self._keep(node, value)
        for node in group:
            for used in node.inputs:
                self._release(used)

    def _release(self, node: Node) -> None:
        if "batch" not in node.roots:  # weights and folds are kept for the whole pass
            return
        self._left[node.serial] -= 1
        if self._left[node.serial] <= 0:
            self._memo.pop(node.serial, None)


def _same_rows(a: Batch | PairBatch, b: Batch | PairBatch) -> bool:
    sides = [side.sides if isinstance(side, PairBatch) else (side,) for side in (a, b)]
    return all(torch.equal(x.tokens, y.tokens) and torch.equal(x.real, y.real) for x, y in zip(*sides, strict=True))


def _shared(node: Node) -> tuple[Any, ...]:
    """Return the key that gathered nodes of one call share."""
    shared = {name: a for name, a in node.args.items() if name != node.quantity.gathered}
    return (node.name, *(a.serial if isinstance(a, Node) else repr(a.value) for a in shared.values()))
