"""`BatchProgram`: the order in which the values of a batch are computed, and the number of consumers of each."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from saeval.base.memory import refuse_too_large
from saeval.plan import leaves
from saeval.plan.leaves import hooks_of
from saeval.plan.nodes import Constant, Node, closure, flattened
from saeval.stats.evidence import EvidenceTree


@dataclass(eq=False)
class Summation:
    """A function whose evidence a pass sums: a cell's `observe`, or a fold."""

    key: str
    function: Callable[..., Any]
    arguments: list[Mapping[str, Any]]
    """The requests of each call per batch: one call, or one per side for a fold over pairs."""
    order: int = 0
    """Position among summations. Those of one SAE are adjacent, so that its activations can be freed early."""
    total: EvidenceTree | None = None
    error: Exception | None = None
    trace: str | None = None
    """The error's traceback as text; the error itself has none, so that it keeps no tensors alive."""
    node: Node | None = None
    """The node of the fold, if it is one."""
    foreign: bool = False
    """True if its function comes from a third-party plugin."""

    def fail(self, error: Exception) -> None:
        """Drop out because of `error`; raise `TooLargeError` instead if the batch was too large."""
        refuse_too_large(error)
        self.trace = "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def nodes(self) -> list[Node]:
        return [n for call in self.arguments for a in call.values() for n in flattened(a)]

    def reached(self, given: Collection[int] = ()) -> list[Node]:
        """Return all nodes that are computed for it in its pass, and those that are `given`, by serial."""

        def computed(node: Node) -> bool:
            return not node.quantity.fold and node.serial not in given

        return list(closure(self.nodes(), beyond=computed).values())


class BatchProgram:
    """The nodes that a pass computes per batch, in order: SAE by SAE, then summations that wait for gathered values."""

    def __init__(self, summations: Sequence[Summation], given: Collection[int] = ()) -> None:
        """`given`: serials of nodes whose values are known before, so that nothing below them is computed."""
        self.summations, self._given = summations, given
        self.uses: Counter[int] = Counter()
        """Number of uses of each node, by serial."""
        self.nodes: dict[int, Node] = {}
        """All nodes that are computed per batch, by serial."""
        gathered_by: dict[int, set[int]] = {}
        first: dict[int, int] = {}
        for summation in summations:
            gathered = [n for n in self._reach(summation) if n.quantity.gathered and n.serial not in given]
            gathered_by[id(summation)] = {n.serial for n in gathered}
            for node in gathered:
                first[node.serial] = min(first.get(node.serial, summation.order), summation.order)
        self.gathered = [self.nodes[serial] for serial in first]
        # The input of a gathered node is computed together with its SAE, though it is used only at the end.
        early: list[tuple[int, int, Summation | Node]] = [
            (first[n.serial], 1, n.gathered) for n in self.gathered if isinstance(n.gathered, Node)
        ]
        early += [(t.order, 0, t) for t in summations if not gathered_by[id(t)]]
        late = [(t.order, 2, t) for t in summations if gathered_by[id(t)]]
        turn = itemgetter(0, 1)
        self.items = [x for *_, x in sorted(early, key=turn)] + [x for *_, x in sorted(late, key=turn)]
        self.hooks = hooks_of(leaves.activations, self.nodes.values())
        self.resumable = hooks_of(leaves.resume, self.nodes.values())
        self.final = any(n.quantity is leaves.clean_final for n in self.nodes.values())
        elsewhere = [i for n in self.nodes.values() if n.quantity.at_hooks for i in n.inputs]
        self.on_the_way = hooks_of(leaves.activations, elsewhere)
        """Hooks that an `@at_hooks` quantity reads; resumed passes keep their activations, as the clean pass does."""

    def _reach(self, summation: Summation) -> list[Node]:
        """Add the nodes that a summation needs in this pass, and count their uses; return them."""
        reached = summation.reached(self._given)
        self.uses.update(node.serial for node in summation.nodes())
        for node in reached:
            if node.serial not in self.nodes and not node.quantity.fold:
                self.nodes[node.serial] = node
                if node.serial not in self._given:
                    self.uses.update(n.serial for n in node.inputs)
        return reached

    @property
    def touches_model(self) -> bool:
        """True if a batch runs through the model at all."""
        return bool(self.hooks or self.resumable or self.final)

    @property
    def resumes(self) -> int:
        """Number of resumed passes per batch: one for each node that requests `resume`, or as many as it declares."""
        return sum(times for node in self.nodes.values() for _, times in resumes(node))


def resumes(node: Node) -> list[tuple[str, int]]:
    """Return the hooks at which a node resumes, each with the number of resumed passes per batch."""
    times = node.args.get(node.quantity.resumes)
    count = max(1, int(times.value)) if isinstance(times, Constant) else 1
    return [(used.hook_name or "", count) for used in node.inputs if used.quantity is leaves.resume]
