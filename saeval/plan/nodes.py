"""The nodes of a suite's graph: quantities with their requests resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from saeval.interfaces.quantity import Quantity
from saeval.interfaces.substitute import Subject


@dataclass(frozen=True, eq=False)
class Node:
    """A quantity with its requests resolved. From these follow its roots: those of model, batch, hook and subject."""

    quantity: Quantity
    args: Mapping[str, Argument]
    roots: frozenset[str]
    serial: int
    digest: str
    """Hash of everything that determines the value: code, arguments, weights, tokens."""
    stage: int
    """The first pass in which it can be computed: the one after the passes of the folds it needs."""
    side: int = 0
    sided: bool = False
    """True if, over pairs, each side has its own node."""
    hook_name: str | None = None
    subject: str = ""
    """For a node that loads a substitute: the substitute's name in the suite."""
    other_sides: tuple[Mapping[str, Argument], ...] = ()
    """For a fold over pairs: its arguments on the sides after the first."""

    @property
    def name(self) -> str:
        return self.quantity.name

    @property
    def inputs(self) -> list[Node]:
        """The nodes among its arguments."""
        return [a for a in self.args.values() if isinstance(a, Node)]

    @property
    def per_member(self) -> bool:
        """True if, in a group, each member has its own value."""
        if "member" in self.quantity.rebinds or not self.roots & {"hook", "subject"}:
            return False
        return bool(self.subject) or not self.inputs or any(node.per_member for node in self.inputs)

    @property
    def gathered(self) -> Argument:
        """The argument whose values one call takes for several nodes; only for a `gathered` quantity."""
        return self.args[self.quantity.gathered]

    @property
    def available(self) -> int:
        """The first pass that can use the value; for a fold, the one after its own pass."""
        return self.stage + 1 if self.quantity.fold else self.stage


@dataclass(frozen=True)
class Constant:
    """An argument whose value is known before the run."""

    value: Any


Argument: TypeAlias = "Node | Constant"


@dataclass(frozen=True)
class Binding:
    """The meaning of names in one configured metric: its subject, parameters, side of a pair and renamed requests."""

    subject: Subject | None
    params: Mapping[str, Any] = field(default_factory=dict)
    side: int = 0
    renamed: Mapping[str, Argument | str] = field(default_factory=dict)
    hook_name: str | None = None
    members: tuple[Subject, ...] = ()
    """The members of its group, for quantities with `@rebound(member=...)`."""

    @classmethod
    def of(cls, subject: Subject, params: Mapping[str, Any], members: tuple[Subject, ...] = ()) -> Binding:
        """Return the binding of a metric's subject: a subject of kind `hook` has a hook and no SAE."""
        if subject.kind == "hook":
            return cls(None, params, hook_name=subject.hook_name)
        return cls(subject, params, members=members)

    @property
    def hook(self) -> str | None:
        return self.subject.hook_name if self.subject else self.hook_name


def flattened(argument: Any) -> list[Node]:
    """Return the nodes in an argument, which may be a nested list."""
    if isinstance(argument, Node):
        return [argument]
    return [node for item in argument for node in flattened(item)] if isinstance(argument, list) else []


def closure(nodes: Iterable[Node], beyond: Callable[[Node], bool] = lambda node: True) -> dict[int, Node]:
    """Return `nodes` and all nodes that they need, by serial; the inputs of a node only if `beyond(node)`."""
    reached: dict[int, Node] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.serial in reached:
            continue
        reached[node.serial] = node
        if beyond(node):
            waiting += node.inputs
            waiting += [a for side in node.other_sides for a in side.values() if isinstance(a, Node)]
    return reached
