"""The nodes of a suite's graph: quantities with their requests resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from saeval.interfaces.quantity import Quantity
from saeval.interfaces.substitute import Subject


@dataclass(frozen=True, eq=False)
class Node:
    """A quantity with its requests resolved. Its roots, of model, batch, hook and subject, follow from them."""

    quantity: Quantity
    args: Mapping[str, Argument]
    roots: frozenset[str]
    serial: int
    digest: str
    """Hash of everything that determines the value: code, arguments, weights, tokens."""
    stage: int
    """The first pass in which it can be computed: one more than those of the folds it needs."""
    side: int = 0
    sided: bool = False
    """Over pairs: whether each side has its own."""
    hook_name: str | None = None
    subject: str = ""
    """Of a node that loads a substitute: its name in the suite."""
    other_sides: tuple[Mapping[str, Argument], ...] = ()
    """A fold over pairs: its arguments on the sides after the first."""

    @property
    def name(self) -> str:
        return self.quantity.name

    @property
    def inputs(self) -> list[Node]:
        """The nodes whose values this one's computation takes."""
        return [a for a in self.args.values() if isinstance(a, Node)]

    @property
    def gathered(self) -> Argument:
        """The argument of which one call takes the values of several nodes; only where the quantity is `gathered`."""
        return self.args[self.quantity.gathered]

    @property
    def available(self) -> int:
        """The first pass that can use the value: a fold's is whole only after its own pass."""
        return self.stage + 1 if self.quantity.fold else self.stage


@dataclass(frozen=True)
class Constant:
    value: Any


Argument: TypeAlias = "Node | Constant"
Arguments: TypeAlias = "Mapping[str, Argument | list[Any]]"


@dataclass(frozen=True)
class Binding:
    """What the names of one configured metric mean: its subject, its parameters, the side of a pair."""

    subject: Subject | None
    params: Mapping[str, Any] = field(default_factory=dict)
    side: int = 0
    renamed: Mapping[str, Argument | str] = field(default_factory=dict)
    hook_name: str | None = None

    @property
    def hook(self) -> str | None:
        return self.subject.hook_name if self.subject else self.hook_name


def flattened(argument: Any) -> list[Node]:
    """The nodes in an argument, which may be nested lists."""
    if isinstance(argument, Node):
        return [argument]
    return [node for one in argument for node in flattened(one)] if isinstance(argument, list) else []


def closure(nodes: Iterable[Node], beyond: Callable[[Node], bool] = lambda node: True) -> dict[int, Node]:
    """All nodes needed for `nodes`, by serial; what a node was made of only where `beyond` says so."""
    found: dict[int, Node] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.serial in found:
            continue
        found[node.serial] = node
        if beyond(node):
            waiting += node.inputs
            waiting += [a for side in node.other_sides for a in side.values() if isinstance(a, Node)]
    return found
