"""The memo of one pass: each node computed once a batch, kept until its last consumer has had it."""

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
from saeval.interfaces.contents import Care
from saeval.interfaces.data import Batch, PairBatch
from saeval.interfaces.model import Capture, Model, Resume
from saeval.plan.leaves import Leaf
from saeval.plan.nodes import Constant, Node
from saeval.stats.evidence import EvidenceTree, Stamp, added, stamped

if TYPE_CHECKING:
    from torch import Tensor


class Failed:
    """An error kept in place of a value; raised anew for each consumer with its first traceback only.

    A lack of memory is the batch's fault, not the value's: `TooLargeError` at once.
    """

    def __init__(self, error: Exception) -> None:
        refuse_too_large(error)
        self._error, self._traceback = error, error.__traceback__

    @property
    def error(self) -> Exception:
        return self._error.with_traceback(self._traceback)


GATHERED = 16
"""Results that may wait for one gathered call: they are held in memory until then."""


Draw: TypeAlias = Callable[[], "Batch | PairBatch"]
"""A batch, made anew at every call."""


class _Redo(BaseException):
    """A shared value was written into: this batch's values cannot be used."""


@dataclass
class Evaluator:
    """Evaluates a pass's summations batch by batch."""

    model: Model | None
    summations: Sequence[Summation]
    totals: Mapping[int, EvidenceTree | Exception]
    """Folds of earlier passes by node serial."""
    n_clusters: int
    passes: int = 0
    """Forward passes made: clean, cut and resumed."""
    flaws: dict[str, Flaw] = field(default_factory=dict)
    """Of the last batch: values that are not finite, by their nodes' digests."""
    _lasting: dict[int, Any] = field(default_factory=dict)
    _writers: dict[int, Failed] = field(default_factory=dict)
    """Nodes whose function wrote into what others share: never called again."""
    _wider: BatchProgram | None = None
    """While `run_ahead` is under way: all that its clean pass is to serve."""
    _ahead: tuple[Batch | PairBatch, dict[int, Capture]] | None = None
    """The clean pass of `run_ahead`, and the rows that it is of."""
    _checked: set[int] = field(default_factory=set)
    """Nodes and summations, by `id`, whose first call was checked by content: a write that escapes the version counters
    costs a look at every number, so what is seen at every call is the counters alone."""

    def __post_init__(self) -> None:
        self.arrange()

    def arrange(self) -> None:
        """Take up the summations that have not failed."""
        self.program = BatchProgram([t for t in self.summations if t.error is None])

    def run_ahead(self, draw: Draw, portions: Sequence[Sequence[Summation]]) -> None:
        """Run summations that are not the pass's own, portion by portion, on the batch that `run` is shown next.

        One clean pass serves them all and `run`. Where there are several portions, weights are let go of in between.
        """
        own = self.summations
        self._wider = BatchProgram([summation for summations in (own, *portions) for summation in summations])
        try:
            for summations in portions:
                self.summations = summations
                self.arrange()
                self.run(draw)
                if len(portions) > 1:
                    self.release_weights()
        finally:
            self.summations, self._wider = own, None
            self.arrange()

    def run(self, draw: Draw) -> list[tuple[Summation, EvidenceTree]]:
        """Evidence of every summation that has not failed; a summation that fails keeps its error and drops out.

        Where something wrote into what others share, the batch is drawn and done again. `TooLargeError` if it does
        not fit.
        A summation whose values are flawed here may lack its evidence; it does not drop out, so that `flaws` go on.
        """
        while True:
            try:
                return list(self._run(draw()))
            except _Redo:
                self._lasting.clear()
                self.arrange()
            except TooLargeError:
                self._memo.clear()
                self._captures.clear()
                self.arrange()
                raise

    def _run(self, batch: Batch | PairBatch) -> Iterator[tuple[Summation, EvidenceTree]]:
        self._memo: dict[int, Any] = {}
        self._left = self.program.uses.copy()
        self.batch = batch
        self.flaws = {}
        ahead, self._ahead = self._ahead, None
        self._captures: dict[int, Capture] = ahead[1] if ahead and _same_rows(ahead[0], batch) else {}
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
                if isinstance(error, Undefined) or not self._flawed(item):
                    item.fail(error)
            for node in item.nodes():
                self._release(node)
        self._memo.clear()
        if self._wider is not None:
            self._ahead = batch, self._captures
        self._captures = {}
        if any(t.error is not None for t in self.program.summations):
            self.arrange()

    def _flawed(self, summation: Summation) -> bool:
        return any(node.digest in self.flaws for node in summation.reached())

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
        return Care.ARRAYS if all(id(one) in self._checked for one in callers) else Care.EVERYTHING

    def conclude(
        self, function: Callable[..., Any], totals: Sequence[Any], requests: Mapping[str, Any], foreign: bool = False
    ) -> Any:
        """`function(*totals, ...)` with the values of `requests`, none of which belongs to a batch."""
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

    def release_weights(self) -> None:
        """Let go of weights until they are asked for again."""
        self._lasting.clear()

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return [self._argument(one) for one in argument]
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
                except Exception as error:  # kept, so that every consumer fails with the same reason
                    memo[node.serial] = Failed(error)
                for used in node.inputs:
                    self._release(used)
        value = memo[node.serial]
        if isinstance(value, Failed):
            raise value.error
        return value

    def _note_flaw(self, node: Node, value: Any) -> None:
        """Note where a value that must be finite is not."""
        if node.quantity.finite and "batch" in node.roots and (found := flaw(value, self.side(node).mask)):
            self.flaws[node.digest] = found

    def side(self, node: Node) -> Batch:
        """The batch; of pairs, the node's side of it."""
        return self.batch.sides[node.side] if isinstance(self.batch, PairBatch) else self.batch

    def _total(self, node: Node) -> Any:
        """A copy for each consumer: arrays, unlike tensors, do not tell when they are written into."""
        if node.serial not in self.totals:
            raise RuntimeError(f"fold '{node.name}' was not taken in an earlier pass")
        total = self.totals[node.serial]
        if isinstance(total, Exception):
            raise Failed(total).error
        return copy.deepcopy(total)

    def _compute(self, node: Node) -> Any:
        if isinstance(node.quantity, Leaf):
            return node.quantity.function(self, node)
        return self._called([node], {name: self._argument(a) for name, a in node.args.items()})

    def _called(self, nodes: Sequence[Node], arguments: Mapping[str, Any]) -> Any:
        """The function of `nodes`; if it writes into its arguments, they fail for good and the batch is done again."""
        quantity = nodes[0].quantity
        what, foreign = f"'{quantity.name}'", quantity.foreign
        if theirs := [used.subject for used in nodes[0].inputs if used.subject and used.quantity.foreign]:
            what, foreign = f"'{theirs[0]}', in '{quantity.name}',", True
        try:
            value = called(quantity.function, arguments, what, self._care(foreign, *nodes))
            self._checked.update(map(id, nodes))
            return value
        except WrittenInPlaceError as error:
            self._writers.update({node.serial: Failed(error) for node in nodes})
            raise _Redo from None

    def clean_pass(self, node: Node) -> Capture:
        """The clean pass over the node's side, made at the first request."""
        if node.side not in self._captures:
            self.passes += 1
            needed = self._wider or self.program
            captured = self._model.capture(self.side(node), needed.hooks, needed.final, needed.resumable)
            self._captures[node.side] = captured
        return self._captures[node.side]

    def activations(self, node: Node) -> Tensor:
        """The activations at the node's hook: the memo holds them from here on, unless a wider pass is to have them."""
        activations, hook_name = self.clean_pass(node).activations, node.hook_name or ""
        return activations.pop(hook_name) if self._wider is None else activations[hook_name]

    def resume(self, node: Node) -> Resume:
        """The rest of the pass, from the node's hook on."""
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

        return Resume(resumed, lambda rows: self._resumer(side.part(rows), captured.part(rows), hook_name))

    def _gather_waiting(self) -> None:
        for node in self.program.gathered:
            if node.serial not in self._memo and self._at_hand(node):
                with suppress(Exception):  # kept in the memo for the cells that need it
                    self._value(node)

    def _at_hand(self, node: Node) -> bool:
        """Whether what a gathered node waits for is computed already."""
        return isinstance(own := node.gathered, Constant) or own.serial in self._memo

    def _gather(self, wanted: Node) -> None:
        """Compute every instance at hand that shares all arguments but the gathered one with `wanted`, in one call."""
        alike = [n for n in self.program.gathered if n is not wanted and _shared(n) == _shared(wanted)]
        group = [n for n in alike if n.serial not in self._memo and self._at_hand(n)] + [wanted]
        ready, gathered = [], []
        for node in group:
            try:
                gathered.append(self._argument(node.gathered))
                ready.append(node)
            except Exception as error:  # this instance fails, the others are scored
                self._memo[node.serial] = Failed(error)
        if ready:
            over = wanted.quantity.gathered
            try:
                shared = {name: self._argument(a) for name, a in ready[0].args.items() if name != over}
                values = self._called(ready, {**shared, over: gathered})
            except Exception as error:  # the common part failed: so has every instance
                values = [Failed(error)] * len(ready)
            for node, value in zip(ready, values, strict=True):
                self._memo[node.serial] = value
                self._note_flaw(node, value)
        for node in group:
            for used in node.inputs:
                self._release(used)

    def _release(self, node: Node) -> None:
        if "batch" not in node.roots:  # weights and folds stay for the whole pass
            return
        self._left[node.serial] -= 1
        if self._left[node.serial] <= 0:
            self._memo.pop(node.serial, None)


def _same_rows(a: Batch | PairBatch, b: Batch | PairBatch) -> bool:
    sides = [side.sides if isinstance(side, PairBatch) else (side,) for side in (a, b)]
    return all(torch.equal(x.tokens, y.tokens) and torch.equal(x.real, y.real) for x, y in zip(*sides, strict=True))


def _shared(node: Node) -> tuple[Any, ...]:
    """What gathered nodes of one call have in common."""
    shared = {name: a for name, a in node.args.items() if name != node.quantity.gathered}
    return (node.name, *(a.serial if isinstance(a, Node) else repr(a.value) for a in shared.values()))
