"""`BatchProgram`: in which order one batch's values are computed, and how many consumers each has."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval.base.memory import refuse_too_large
from saeval.plan import leaves
from saeval.plan.leaves import hooks_of
from saeval.plan.nodes import Constant, Node, closure, flattened
from saeval.stats.evidence import EvidenceTree


@dataclass(eq=False)
class Summation:
    """Something a pass sums: a cell's `observe`, or a fold."""

    key: str
    function: Callable[..., Any]
    arguments: list[Mapping[str, Any]]
    """One mapping of requests for each call a batch: one, or one a side for folds over pairs."""
    order: int = 0
    """Targets of one SAE stand together, so that its activations need not outlive them."""
    total: EvidenceTree | None = None
    error: Exception | None = None
    trace: str | None = None
    """The error's traceback as text: the error itself must not hold on to a batch's tensors."""
    node: Node | None = None
    """The fold, where this is one."""
    foreign: bool = False
    """Whether somebody else than saeval wrote its function."""

    def fail(self, error: Exception) -> None:
        """Drop out, for this reason; `TooLargeError` where the batch was too large, which is no summation's fault."""
        refuse_too_large(error)
        self.trace = "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def nodes(self) -> list[Node]:
        return [n for call in self.arguments for a in call.values() for n in flattened(a)]

    def reached(self) -> list[Node]:
        """All nodes that are computed for it in its pass."""
        return list(closure(self.nodes(), beyond=lambda node: not node.quantity.fold).values())


class BatchProgram:
    """What the summations of a pass need of one batch: SAE by SAE, then all that waits for gathered values."""

    def __init__(self, summations: Sequence[Summation]) -> None:
        self.summations = summations
        self.uses: Counter[int] = Counter()
        """How often each node is used, by serial."""
        self.nodes: dict[int, Node] = {}
        """All that is computed in a batch, by serial."""
        gathered_by: dict[int, set[int]] = {}
        first: dict[int, int] = {}
        for summation in summations:
            gathered = [n for n in self._reach(summation) if n.quantity.gathered]
            gathered_by[id(summation)] = {n.serial for n in gathered}
            for node in gathered:
                first[node.serial] = min(first.get(node.serial, summation.order), summation.order)
        self.gathered = [self.nodes[serial] for serial in first]
        # A gathered node's own input is computed in its SAE's turn, though it is used only at the end.
        early: list[tuple[int, int, Summation | Node]] = [
            (first[n.serial], 1, n.gathered) for n in self.gathered if isinstance(n.gathered, Node)
        ]
        early += [(t.order, 0, t) for t in summations if not gathered_by[id(t)]]
        late = [(t.order, 2, t) for t in summations if gathered_by[id(t)]]
        self.items = [x for *_, x in sorted(early, key=_turn)] + [x for *_, x in sorted(late, key=_turn)]
        self.hooks = hooks_of(leaves.activations, self.nodes.values())
        self.resumable = hooks_of(leaves.resume, self.nodes.values())
        self.final = any(n.quantity is leaves.clean_final for n in self.nodes.values())
        elsewhere = [i for n in self.nodes.values() if n.quantity.at_hooks for i in n.inputs]
        self.on_the_way = hooks_of(leaves.activations, elsewhere)
        """Hooks that something looks at beside its own: resumed passes keep them as the clean one does."""

    def _reach(self, summation: Summation) -> list[Node]:
        """The nodes a summation needs in this pass (not those behind folds), counting each new edge once."""
        reached = closure(summation.nodes(), beyond=lambda n: not n.quantity.fold)
        self.uses.update(node.serial for node in summation.nodes())
        for serial, node in reached.items():
            if serial not in self.nodes and not node.quantity.fold:
                self.nodes[serial] = node
                self.uses.update(n.serial for n in node.inputs)
        return list(reached.values())

    @property
    def touches_model(self) -> bool:
        """Whether a batch goes through the model at all."""
        return bool(self.hooks or self.resumable or self.final)

    @property
    def substitutes(self) -> set[str]:
        """Names of the substitutes that are loaded."""
        return {n.subject for n in self.nodes.values() if n.subject}

    @property
    def resumed(self) -> list[tuple[str, int]]:
        """The hook that each node resumes at, and how often it does so in a batch."""
        return [resumed for node in self.nodes.values() for resumed in resumes(node)]

    @property
    def resumes(self) -> int:
        """Resumed passes a batch: one for each node that asks for `resume`, or as many as it says."""
        return sum(times for _, times in self.resumed)


def resumes(node: Node) -> list[tuple[str, int]]:
    """The hooks that a node resumes at, and how often it does so in a batch."""
    times = node.args.get(node.quantity.resumes)
    often = max(1, int(times.value)) if isinstance(times, Constant) else 1
    return [(used.hook_name or "", often) for used in node.inputs if used.quantity is leaves.resume]


def _turn(entry: tuple[int, int, Any]) -> tuple[int, int]:
    return entry[0], entry[1]
