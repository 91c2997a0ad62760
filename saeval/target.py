"""`Target`: something a pass sums, a cell's `observe` or a fold."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saeval.memory import refuse_too_large
from saeval.nodes import Node, closure, flattened
from saeval.totals import EvidenceTree


@dataclass(eq=False)
class Target:
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
        """Drop out, for this reason; `TooLargeError` where the batch was too large, which is no target's fault."""
        refuse_too_large(error)
        self.trace = "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def nodes(self) -> list[Node]:
        return [n for call in self.arguments for a in call.values() for n in flattened(a)]

    def reached(self) -> list[Node]:
        """All nodes that are computed for it in its pass."""
        return list(closure(self.nodes(), beyond=lambda node: not node.quantity.fold).values())
