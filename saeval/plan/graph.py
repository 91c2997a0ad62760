"""The graph of a suite: each request is resolved to a node, and equal requests to the same node."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from saeval.base.errors import SaevalError, UnknownNameError, blamed, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted
from saeval.base.identity import Origin
from saeval.base.parameters import parameter_names
from saeval.interfaces.judge import Interview
from saeval.interfaces.metric import Metric, requested
from saeval.interfaces.quantity import Quantity
from saeval.interfaces.substitute import Subject
from saeval.plan.leaves import LEAVES, Leaf, supplied, supplied_once
from saeval.plan.nodes import Argument, Binding, Constant, Node, flattened


class NoSAEError(SaevalError):
    """A request needs an SAE or control, and there is none."""


@dataclass(eq=False)
class Graph:
    """Resolves requests to nodes."""

    quantity: Callable[[str], Quantity]
    """Returns the quantity of a name."""
    names: Set[str]
    """Names of all quantities, leaves and values that come with the data."""
    hooks: Callable[[], Mapping[str, int]]
    """Returns the width of each hook of the model. Called only if a request needs one, since it reads the config."""
    control: Callable[[str, str], Subject]
    """Returns the control of a name at a hook."""
    digests: Mapping[str, str]
    """Identify the model and the rows in the digest of every node; that of the model is empty without one."""
    fit_digest: Callable[[], str]
    pair: bool
    supplies: Set[str]
    """Names that come with each batch of the data."""
    supplies_once: Set[str]
    """Names that come with the data and are the same for every batch; `once` returns their values."""
    once: Callable[[str], Any]
    width: int | None
    """Width of the activations that the data supply; None if a model computes them."""
    site: Callable[[str], str]
    reward_unit: str
    interview: Interview | None
    """The interview with the suite's judge."""
    origin: Callable[[str], Origin | None]
    """Returns the origin of a metric."""
    _interned: dict[Any, Node] = field(default_factory=dict)
    _open: list[tuple[str, Subject | None]] = field(default_factory=list)
    """The requests under way. A control's own requests may repeat a name, for the SAE that it is built from."""

    @property
    def sides(self) -> int:
        return 2 if self.pair else 1

    def resolve(self, name: str, binding: Binding) -> Argument:
        """Return the node or constant of `name` under `binding`; `UnknownNameError` for an unknown name."""
        renamed = binding.renamed.get(name)
        if isinstance(renamed, str):
            return self.resolve(renamed, replace(binding, renamed={**binding.renamed, name: name}))
        if renamed is not None:
            return renamed
        if name in self.supplies:
            return self.leaf(supplied(name), binding)
        if name in self.supplies_once:
            return self.leaf(supplied_once(name, self.once), binding)
        if name in LEAVES:
            return self._resolve_leaf(LEAVES[name], binding)
        if name in binding.params:
            return Constant(binding.params[name])
        if (name, binding.subject) in self._open:
            under_way = " -> ".join([*(outer for outer, _ in self._open), name])
            raise SaevalError(f"quantity '{name}' requests itself: {under_way}")
        try:
            quantity = self.quantity(name)
        except UnknownNameError as error:
            names = self.names | set(binding.params)
            by = self._open[-1][0] if self._open else None
            raise UnknownNameError("quantity", name, names, by=by, failures=error.failures) from None
        self._open.append((name, binding.subject))
        try:
            return self._apply(quantity, binding)
        finally:
            self._open.pop()

    def _apply(self, quantity: Quantity, binding: Binding) -> Node:
        for name, target in quantity.rebinds.items():
            if callable(target):
                given = parameter_names(target)
                target = target(**{p: binding.params[p] for p in given if p in binding.params})
            if name == "subject":
                control = str(binding.params.get(str(target), target))
                if binding.hook is None:
                    raise SaevalError(f"quantity '{quantity.name}' needs a hook")
                binding = replace(binding, subject=self.control(control, binding.hook))
            elif name == "member":
                if not 0 <= int(target) < len(binding.members):
                    has = counted(len(binding.members), "SAE")
                    raise SaevalError(f"needs a group of at least {int(target) + 1} different SAEs, not of {has}")
                binding = replace(binding, subject=binding.members[int(target)])
            else:
                binding = replace(binding, renamed={**binding.renamed, name: str(target)})
        sides = [binding]
        if quantity.paired and not self.pair:
            raise SaevalError(f"'{quantity.name}' needs preference pairs, and this data has none")
        if quantity.fold and self.pair and not quantity.paired:
            sides = [replace(binding, side=side) for side in range(self.sides)]
        args, *other_sides = [self._arguments(quantity, side) for side in sides]
        return self._intern(quantity, args, tuple(other_sides))

    def _arguments(self, quantity: Quantity, binding: Binding) -> dict[str, Argument]:
        args: dict[str, Argument] = {}
        for name, default in quantity.parameters.items():
            is_requested = name in binding.params or name in binding.renamed or name in self.names
            if not is_requested and default is not inspect.Parameter.empty:
                args[name] = Constant(default)
            else:
                resolve = partial(self._resolve_at_hooks, quantity) if quantity.at_hooks else self.resolve
                args[name] = self._both_sides(resolve, name, binding) if quantity.paired else resolve(name, binding)
        return args

    def _both_sides(self, resolve: Callable[[str, Binding], Argument], name: str, binding: Binding) -> Argument:
        first = resolve(name, binding)
        if not isinstance(first, Node) or not first.sided:
            return first
        sides = {f"side {side}": resolve(name, replace(binding, side=side)) for side in range(self.sides)}
        as_list = Quantity(f"sides of {name}", _list_of, dict.fromkeys(sides), paired=True, inserted=True)
        return self._intern(as_list, sides)

    def _intern(
        self, quantity: Quantity, args: dict[str, Argument], other_sides: tuple[dict[str, Argument], ...] = ()
    ) -> Node:
        """Return the node of a quantity with these arguments: the existing one if there is one."""
        key = (quantity.name, quantity.identity, *(_keys(a) for a in (args, *other_sides)))
        if key in self._interned:
            return self._interned[key]
        nodes = [a for side in (args, *other_sides) for a in side.values() if isinstance(a, Node)]
        roots = frozenset().union(*(n.roots for n in nodes)) if nodes else frozenset()
        words = [quantity.name, quantity.identity, *(_digests(a) for a in (args, *other_sides))]
        if quantity.fold:
            if "batch" not in roots:
                raise SaevalError(f"fold '{quantity.name}' requests nothing per-batch, so there is nothing to sum")
            roots -= {"batch"}
            words.append(self.fit_digest() if quantity.on_fit else self.digests["batch"])
        stage = max((n.available for n in nodes), default=0)
        sides = {n.side for n in nodes if "batch" in n.roots} or {0}
        sided = "batch" in roots and not quantity.paired and any(n.sided for n in nodes)
        hooks = {n.hook_name for n in nodes if n.hook_name}
        node = Node(
            quantity, args, roots, len(self._interned), digest_of(words), stage,
            side=min(sides), sided=sided, hook_name=hooks.pop() if len(hooks) == 1 else None, other_sides=other_sides,
        )  # fmt: skip
        self._interned[key] = node
        return node

    def leaf(self, leaf: Leaf, binding: Binding) -> Node:
        """Return the node of a leaf whose value comes from a batch."""
        side = binding.side if "batch" in leaf.roots and not leaf.paired else 0
        hook = binding.hook if "hook" in leaf.roots else None
        key = ("leaf", leaf.name, side, hook)
        if key not in self._interned:
            words = [leaf.name, side, hook, *(self.digests[root] for root in sorted(leaf.roots & {"model"}))]
            if leaf.name in self.supplies_once:  # no batch root says which data it comes from
                words.append(self.digests["batch"])
            self._interned[key] = Node(
                leaf, {}, leaf.roots, len(self._interned), digest_of(words), 0,
                side=side, sided="batch" in leaf.roots and not leaf.paired, hook_name=hook,
            )  # fmt: skip
        return self._interned[key]

    def _resolve_leaf(self, leaf: Leaf, binding: Binding) -> Argument:
        if "model" in leaf.roots and not self.digests["model"]:
            raise SaevalError(f"'{leaf.name}' needs a model, and this suite has none; add 'model:'")
        if leaf.paired and not self.pair:
            raise SaevalError(f"'{leaf.name}' exists only for data of kind 'pair'")
        if "hook" in leaf.roots and binding.hook is None:
            raise SaevalError(f"'{leaf.name}' needs a hook, and this request has none")
        if "subject" in leaf.roots and binding.subject is None:
            raise NoSAEError(f"'{leaf.name}' needs an SAE, and this request has none")
        return leaf.resolve(self, binding)

    def substitute(self, subject: Subject, binding: Binding) -> Node:
        """Return the node that loads a substitute."""
        build_binding = Binding(subject.parent, subject.build_params, binding.side, hook_name=subject.hook_name)
        args = {need: self.resolve(need, build_binding) for need in subject.needs}
        for need, arg in args.items():
            if isinstance(arg, Node) and "batch" in arg.roots:
                raise SaevalError(f"{subject.name}: 'build' requests '{need}', which is per-batch; use a fold instead")
        needs = dict.fromkeys(subject.needs)
        quantity = Quantity("sae", subject.load, needs, identity=subject.key, origin=subject.origin)
        node = self._intern(quantity, args)
        if not node.subject:  # it depends on its hook and subject, whatever it is built from
            roots = node.roots | {"hook", "subject"}
            node = replace(node, roots=roots, hook_name=subject.hook_name, subject=subject.name)
            self._interned[(quantity.name, quantity.identity, _keys(args))] = node
        return node

    def _resolve_at_hooks(self, quantity: Quantity, name: str, binding: Binding) -> Argument:
        """Resolve `name` at each hook that the quantity chooses: a dict by hook name."""
        if binding.hook is None:
            raise SaevalError(f"'{name}' is requested at hooks chosen from a first hook, and this request has none")
        choose, existing = quantity.at_hooks, list(self.hooks())
        assert choose is not None
        with blamed(f"the choice of hooks of quantity '{quantity.name}'", quantity.origin):
            params = {p: binding.params[p] for p in parameter_names(choose) if p in binding.params}
            chosen = choose(binding.hook, list(existing), **params)
            if isinstance(chosen, str):
                raise TypeError(f"it returned the text {chosen!r}; return a list of hook names")
            chosen = list(chosen)
            if unknown := [hook for hook in chosen if hook not in existing]:
                raise SaevalError(
                    f"quantity '{quantity.name}' (plugin {quantity.origin}) chooses the hook {unknown[0]!r}, which the "
                    f"model does not have{suggestion(str(unknown[0]), existing)}"
                )
        hooks = dict.fromkeys(map(self.site, chosen))
        at = {hook: self.resolve(name, replace(binding, subject=None, hook_name=hook)) for hook in hooks}
        by_hook = Quantity(f"{name} by hook", dict, dict.fromkeys(at), at_hooks=choose, inserted=True)
        return self._intern(by_hook, at) if at else Constant({})

    def request(
        self, metric: Metric, method: Literal["observe", "conclude"], bindings: list[Binding]
    ) -> dict[str, Any]:
        """Return the arguments of a metric's method: lists over members for a group, over the two sides for pairs.

        Without an SAE, a request that needs one is the parameter's default; `NoSAEError` if it has none.
        """
        names, args = requested(metric, method), dict[str, Any]()
        for name in names:
            try:
                args[name] = self._resolve_for(metric, name, bindings)
            except NoSAEError:
                default = parameter_names(getattr(metric, method))[name]
                if default is inspect.Parameter.empty:
                    raise
                args[name] = Constant(default)
        return args

    def _resolve_for(self, metric: Metric, name: str, bindings: list[Binding]) -> Any:
        def sides(binding: Binding) -> Any:
            first = self._resolve_in(metric, name, binding)
            if metric.data == "pair" and isinstance(first, Node) and first.sided:
                later = (self._resolve_in(metric, name, replace(binding, side=s)) for s in range(1, self.sides))
                return [first, *later]
            return first

        if metric.subject == "group":
            first = self.resolve(name, bindings[0])
            constant = LEAVES[name].roots if name in LEAVES else frozenset()
            if first.per_member if isinstance(first, Node) else constant & {"hook", "subject"}:
                return [sides(binding) for binding in bindings]
        return sides(bindings[0])

    def _resolve_in(self, metric: Metric, name: str, binding: Binding) -> Argument:
        """Resolve `name` in a metric: `substitute_scores` is `spliced_scores` of each intervention, as a dict."""
        spliced = name.replace("substitute_", "spliced_", 1)
        if not name.startswith("substitute_") or spliced not in self.names:
            return self.resolve(name, binding)
        if not metric.interventions:
            raise SaevalError(f"metric '{metric.name}' requests {name} but declares no interventions")
        made = self._interventions(metric, binding).items()
        if not made:
            raise NoSAEError(f"each intervention of metric '{metric.name}' needs an SAE, and this request has none")
        renamed = {intervention: replace(binding, renamed={"reconstruction": node}) for intervention, node in made}
        by_intervention = {intervention: self.resolve(spliced, bound) for intervention, bound in renamed.items()}
        return self._intern(Quantity(name, dict, dict.fromkeys(by_intervention)), by_intervention)

    def _interventions(self, metric: Metric, binding: Binding) -> dict[str, Node]:
        """Return the node of each of a metric's substitutes: from a function per name, or one `substitutes` for all."""
        origin = self.origin(metric.name)
        if isinstance(metric.interventions, Mapping):
            functions = {name: Quantity.anonymous(function, origin) for name, function in metric.interventions.items()}
            nodes: dict[str, Node] = {}
            for name, make in functions.items():
                with suppress(NoSAEError):  # left out where there is no SAE
                    nodes[name] = self._intern(make, self._arguments(make, binding))
            return nodes
        substitutes = Quantity(
            f"{metric.name}.substitutes", metric.substitutes, dict.fromkeys(requested(metric, "substitutes")),  # type: ignore[attr-defined]
            identity=json.dumps(dict(binding.params), sort_keys=True, default=str), origin=origin,
        )  # fmt: skip
        source = self._intern(substitutes, self._arguments(substitutes, binding))
        picks = {n: Quantity(f"{substitutes.name}[{n}]", _picker(n), {}, inserted=True) for n in metric.interventions}
        return {name: self._intern(pick, {"made": source}) for name, pick in picks.items()}

    def conclude(self, metric: Metric, bindings: list[Binding]) -> dict[str, Any]:
        """Return the arguments of `conclude` beside the total; `SaevalError` if one is per-batch."""
        args = self.request(metric, "conclude", bindings)
        for name, node in ((n, a) for n, arg in args.items() for a in flattened(arg)):
            if "batch" in node.roots:
                request = f"conclude of metric '{metric.name}' requests '{name}', which is per-batch"
                raise SaevalError(f"{request}; request it in observe, or use a fold")
        return args


def _keys(args: Mapping[str, Argument]) -> tuple[Any, ...]:
    return tuple((name, a.serial if isinstance(a, Node) else ("=", repr(a.value))) for name, a in args.items())


def _digests(args: Mapping[str, Argument]) -> list[Any]:
    return [[name, a.digest if isinstance(a, Node) else repr(a.value)] for name, a in args.items()]


def _picker(name: str) -> Callable[..., Any]:
    def pick(made: Mapping[str, Any]) -> Any:
        if name not in made:
            raise KeyError(f"substitutes returned {sorted(made)}, but interventions declares '{name}'")
        return made[name]

    return pick


def _list_of(**sides: Any) -> list[Any]:
    return list(sides.values())
