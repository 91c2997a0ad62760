"""The graph of a suite: every request resolved to a node, equal requests to the same node."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from saeval.base.errors import SaevalError, UnknownNameError, blamed, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.identity import Origin
from saeval.base.parameters import parameter_names
from saeval.interfaces.metric import Metric, conclude_requests, observe_requests, substitute_requests
from saeval.interfaces.quantity import Quantity
from saeval.interfaces.substitute import Subject
from saeval.plan.leaves import LEAVES, Leaf, supplied
from saeval.plan.nodes import Argument, Binding, Constant, Node, flattened


class Graph:
    """Resolves requests. `ablation` gives the control of a name at a hook; `identities` hash the roots."""

    def __init__(
        self,
        quantities: Callable[[str], Quantity],
        known: Iterable[str],
        *,
        widths: Mapping[str, int],
        control: Callable[[str, str], Subject],
        model_digest: str,
        data_digest: str,
        fit_digest: Callable[[], str] = str,
        pair: bool = False,
        supplies: Iterable[str] = (),
        site: Callable[[str], str] = str,
        reward_unit: str = "reward",
        origin: Callable[[str], Origin | None] = lambda metric: None,
    ) -> None:
        self._quantity = quantities
        self._known = set(known) | set(LEAVES)
        self.widths = widths
        self._control = control
        self._digests = {"model": model_digest, "batch": data_digest}
        self._fit_digest = fit_digest
        self.sides = 2 if pair else 1
        self._pair = pair
        self._supplies = frozenset(supplies)
        self._site = site
        self.reward_unit = reward_unit
        self._origin = origin
        self._interned: dict[Any, Node] = {}
        self._open: list[str] = []

    def resolve(self, name: str, binding: Binding) -> Argument:
        """The node (or constant) that `name` means under `binding`; `SaevalError` for a name nobody knows."""
        renamed = binding.renamed.get(name)
        if isinstance(renamed, str):
            return self.resolve(renamed, replace(binding, renamed={**binding.renamed, name: name}))
        if renamed is not None:
            return renamed
        if name in self._supplies:
            return self.leaf(supplied(name), binding)
        if name in LEAVES:
            return self._resolve_leaf(LEAVES[name], binding)
        if name in binding.params:
            return Constant(binding.params[name])
        if name in self._open:
            raise SaevalError(f"quantity '{name}' asks for itself: {' -> '.join([*self._open, name])}")
        try:
            quantity = self._quantity(name)
        except UnknownNameError as error:
            known = self._known | set(binding.params) | self._supplies
            by = self._open[-1] if self._open else None
            raise UnknownNameError("quantity", name, known, by=by, failures=error.failures) from None
        self._open.append(name)
        try:
            return self._apply(quantity, binding)
        finally:
            self._open.pop()

    def _apply(self, quantity: Quantity, binding: Binding) -> Node:
        for name, target in quantity.rebinds.items():
            if name == "subject":
                control = str(binding.params.get(target, target))
                if binding.hook is None:
                    raise SaevalError(f"quantity '{quantity.name}' needs a hook")
                binding = replace(binding, subject=self._control(control, binding.hook))
            else:
                binding = replace(binding, renamed={**binding.renamed, name: target})
        sides = [binding]
        if quantity.paired and not self._pair:
            raise SaevalError(f"'{quantity.name}' is about pairs, and this data has none")
        if quantity.fold and self._pair and not quantity.paired:
            sides = [replace(binding, side=side) for side in range(self.sides)]
        args, *others = [self._arguments(quantity, side) for side in sides]
        return self._intern(quantity, args, tuple(others))

    def _arguments(self, quantity: Quantity, binding: Binding) -> dict[str, Argument]:
        args: dict[str, Argument] = {}
        for name, default in quantity.parameters.items():
            mine = name in binding.params or name in binding.renamed or name in self._known | self._supplies
            if not mine and default is not inspect.Parameter.empty:
                args[name] = Constant(default)
            else:
                find = partial(self._at_hooks, quantity) if quantity.at_hooks else self.resolve
                args[name] = self._both_sides(find, name, binding) if quantity.paired else find(name, binding)
        return args

    def _both_sides(self, find: Callable[[str, Binding], Argument], name: str, binding: Binding) -> Argument:
        first = find(name, binding)
        if not isinstance(first, Node) or not first.sided:
            return first
        sides = {f"side {side}": find(name, replace(binding, side=side)) for side in range(self.sides)}
        listed = Quantity(f"sides of {name}", _listed, dict.fromkeys(sides), paired=True, inserted=True)
        return self._intern(listed, sides)

    def _intern(
        self, quantity: Quantity, args: dict[str, Argument], others: tuple[dict[str, Argument], ...] = ()
    ) -> Node:
        key = (quantity.name, quantity.identity, *(_keys(a) for a in (args, *others)))
        if key in self._interned:
            return self._interned[key]
        nodes = [a for side in (args, *others) for a in side.values() if isinstance(a, Node)]
        roots = frozenset().union(*(n.roots for n in nodes)) if nodes else frozenset()
        words = [quantity.name, quantity.identity, *(_digests(a) for a in (args, *others))]
        if quantity.fold:
            if "batch" not in roots:
                raise SaevalError(f"fold '{quantity.name}' asks for nothing of a batch, so there is nothing to sum")
            roots -= {"batch"}
            words.append(self._fit_digest() if quantity.on_fit else self._digests["batch"])
        stage = max((n.available for n in nodes), default=0)
        sides = {n.side for n in nodes if "batch" in n.roots} or {0}
        sided = "batch" in roots and not quantity.paired and any(n.sided for n in nodes)
        hooks = {n.hook_name for n in nodes if n.hook_name}
        node = Node(
            quantity, args, roots, len(self._interned), digest_of(words), stage,
            side=min(sides), sided=sided, hook_name=hooks.pop() if len(hooks) == 1 else None, other_sides=others,
        )  # fmt: skip
        self._interned[key] = node
        return node

    def leaf(self, leaf: Leaf, binding: Binding) -> Node:
        """The node of a leaf whose value a batch gives."""
        side = binding.side if "batch" in leaf.roots and not leaf.paired else 0
        hook = binding.hook if "hook" in leaf.roots else None
        key = ("leaf", leaf.name, side, hook)
        if key not in self._interned:
            words = [leaf.name, side, hook, *(self._digests[root] for root in sorted(leaf.roots & {"model"}))]
            self._interned[key] = Node(
                leaf, {}, leaf.roots, len(self._interned), digest_of(words), 0,
                side=side, sided="batch" in leaf.roots and not leaf.paired, hook_name=hook,
            )  # fmt: skip
        return self._interned[key]

    def _resolve_leaf(self, leaf: Leaf, binding: Binding) -> Argument:
        if "model" in leaf.roots and not self._digests["model"]:
            raise SaevalError(f"'{leaf.name}' needs a model, and this suite has none; add 'model:'")
        if leaf.paired and not self._pair:
            raise SaevalError(f"'{leaf.name}' exists for data of kind 'pair' only")
        if "hook" in leaf.roots and binding.hook is None:
            raise SaevalError(f"'{leaf.name}' belongs to a hook, and this request has none")
        if "subject" in leaf.roots and binding.subject is None:
            raise SaevalError(f"'{leaf.name}' belongs to an SAE, and this request has none")
        return leaf.resolve(self, binding)

    def substitute(self, subject: Subject, binding: Binding) -> Node:
        """The node that loads a substitute."""
        within = Binding(subject.parent, subject.build_params, binding.side, hook_name=subject.hook_name)
        args = {need: self.resolve(need, within) for need in subject.needs}
        for need, arg in args.items():
            if isinstance(arg, Node) and "batch" in arg.roots:
                raise SaevalError(f"{subject.name}: a control cannot be built from '{need}', which belongs to a batch")
        quantity = Quantity(
            "sae", subject.load, dict.fromkeys(subject.needs), identity=subject.key, origin=subject.origin
        )
        node = self._intern(quantity, args)
        if not node.subject:  # its weights are its own, whatever it was built from
            node = replace(
                node, roots=node.roots | {"hook", "subject"}, hook_name=subject.hook_name, subject=subject.name
            )
            self._interned[(quantity.name, quantity.identity, _keys(args))] = node
        return node

    def _at_hooks(self, quantity: Quantity, name: str, binding: Binding) -> Argument:
        """What `name` is at each hook that the quantity's chooser picks, by hook name."""
        if binding.hook is None:
            raise SaevalError(f"'{name}' is wanted at hooks picked from a first one, and this request has none")
        choose, known = quantity.at_hooks, list(self.widths)
        assert choose is not None
        with blamed(f"the choice of hooks of quantity '{quantity.name}'", quantity.origin):
            params = {p: binding.params[p] for p in parameter_names(choose) if p in binding.params}
            picked = choose(binding.hook, list(known), **params)
            if isinstance(picked, str):
                raise TypeError(f"it returned the text {picked!r}; return a list of hook names")
            picked = list(picked)
            if wrong := [hook for hook in picked if hook not in known]:
                raise SaevalError(
                    f"quantity '{quantity.name}' (plugin {quantity.origin}) picks the hook {wrong[0]!r}, which the "
                    f"model does not have{suggestion(str(wrong[0]), known)}"
                )
        hooks = dict.fromkeys(map(self._site, picked))
        at = {hook: self.resolve(name, replace(binding, subject=None, hook_name=hook)) for hook in hooks}
        by_hook = Quantity(f"{name} by hook", dict, dict.fromkeys(at), at_hooks=choose, inserted=True)
        return self._intern(by_hook, at) if at else Constant({})

    def request(self, names: Iterable[str], bindings: list[Binding], metric: Metric) -> dict[str, Any]:
        """A metric's requests: lists over members for groups, over the two sides for pairs, as its kind says."""
        return {name: self._shaped(name, bindings, metric) for name in names}

    def _shaped(self, name: str, bindings: list[Binding], metric: Metric) -> Any:
        def sides(binding: Binding) -> Any:
            first = self._asked(name, binding, metric)
            if metric.data == "pair" and isinstance(first, Node) and first.sided:
                return [first, *(self._asked(name, replace(binding, side=s), metric) for s in range(1, self.sides))]
            return first

        if metric.subject != "group":
            return sides(bindings[0])
        first = self.resolve(name, bindings[0])
        roots = first.roots if isinstance(first, Node) else LEAVES[name].roots if name in LEAVES else frozenset()
        if roots & {"hook", "subject"}:
            return [sides(binding) for binding in bindings]
        return sides(bindings[0])

    def observe(self, metric: Metric, bindings: list[Binding]) -> dict[str, Any]:
        """The arguments of `observe`."""
        return self.request(observe_requests(metric), bindings, metric)

    def _asked(self, name: str, binding: Binding, metric: Metric) -> Argument:
        """What a metric means by `name`: `substitute_scores` is `spliced_scores` of each of its own substitutes."""
        spliced = name.replace("substitute_", "spliced_", 1)
        if not name.startswith("substitute_") or spliced not in self._known:
            return self.resolve(name, binding)
        if not metric.interventions:
            raise SaevalError(f"metric '{metric.name}' asks for {name} but declares no interventions")
        found: dict[str, Argument] = {}
        for intervention, made in self._interventions(metric, binding).items():
            found[intervention] = self.resolve(spliced, replace(binding, renamed={"reconstruction": made}))
        return self._intern(Quantity(name, dict, dict.fromkeys(found)), found)

    def _interventions(self, metric: Metric, binding: Binding) -> dict[str, Node]:
        """What makes each of a metric's substitutes: a function of its own, or `substitutes` for all of them."""
        if isinstance(metric.interventions, Mapping):
            own = {
                name: Quantity.anonymous(function, self._origin(metric.name))
                for name, function in metric.interventions.items()
            }
            return {name: self._intern(made, self._arguments(made, binding)) for name, made in own.items()}
        made = Quantity(
            f"{metric.name}.substitutes", metric.substitutes, dict.fromkeys(substitute_requests(metric)),  # type: ignore[attr-defined]
            identity=json.dumps(dict(binding.params), sort_keys=True, default=str), origin=self._origin(metric.name),
        )  # fmt: skip
        source = self._intern(made, self._arguments(made, binding))
        picks = {n: Quantity(f"{made.name}[{n}]", _picker(n), {}, inserted=True) for n in metric.interventions}
        return {name: self._intern(pick, {"made": source}) for name, pick in picks.items()}

    def conclude(self, metric: Metric, bindings: list[Binding]) -> dict[str, Any]:
        """The arguments of `conclude` beside the total; none may belong to a batch."""
        args = self.request(conclude_requests(metric), bindings, metric)
        for name, node in ((n, a) for n, arg in args.items() for a in flattened(arg)):
            if "batch" in node.roots:
                raise SaevalError(
                    f"conclude of metric '{metric.name}' asks for '{name}', which belongs to a batch; "
                    f"ask for it in observe, or for a fold"
                )
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


def _listed(**sides: Any) -> list[Any]:
    return list(sides.values())
