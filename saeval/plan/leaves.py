"""The leaves of the graph: requests that saeval itself answers. Each is an object with its roots and its value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from saeval.base.errors import SaevalError
from saeval.interfaces.data import Batch, Dataset, PairBatch, numbered
from saeval.interfaces.judge import Interview
from saeval.interfaces.model import Capture, Model, Resume
from saeval.interfaces.quantity import Quantity
from saeval.interfaces.substitute import Subject, Substitute
from saeval.plan.nodes import Argument, Binding, Constant, Node

if TYPE_CHECKING:
    from torch import Tensor


class Planned(Protocol):
    """The part of the graph that leaves use."""

    reward_unit: str
    interview: Interview | None
    width: int | None

    def hooks(self) -> Mapping[str, int]: ...
    def resolve(self, name: str, binding: Binding) -> Argument: ...
    def leaf(self, leaf: Leaf, binding: Binding) -> Node: ...
    def substitute(self, subject: Subject, binding: Binding) -> Node: ...


class Values(Protocol):
    """The part of an evaluator, with its current batch, that leaves use."""

    model: Model | None
    batch: Batch | PairBatch
    dataset: Dataset | None

    def side(self, node: Node) -> Batch: ...
    def clean_pass(self, node: Node) -> Capture: ...
    def activations(self, node: Node) -> Tensor: ...
    def resume(self, node: Node) -> Resume: ...


@dataclass(frozen=True)
class Leaf(Quantity):
    """A request that saeval itself answers: `function(values, node)` returns its value for a batch."""

    roots: frozenset[str] = frozenset()
    """Those of model, batch, hook and subject that its value depends on."""
    gives: type | None = None
    """The class of its value, if it is a documented structure."""

    def resolve(self, graph: Planned, binding: Binding) -> Argument:
        """Return its node, or its value if that is known before the run."""
        return graph.leaf(self, binding)


class PlannedLeaf(Leaf):
    """A leaf that is resolved before the run: `function(graph, binding)` returns its node or constant."""

    def resolve(self, graph: Planned, binding: Binding) -> Argument:
        argument: Argument = self.function(graph, binding)
        return argument


LEAVES: dict[str, Leaf] = {}
"""All leaves by name."""


def _leaf(roots: str = "", kind: type[Leaf] = Leaf, **marks: Any) -> Callable[[Callable[..., Any]], Leaf]:
    def register(function: Callable[..., Any]) -> Leaf:
        name = function.__name__
        LEAVES[name] = kind(name, function, {}, roots=frozenset(roots.split()), **marks)
        return LEAVES[name]

    return register


@_leaf(kind=PlannedLeaf, gives=Interview)
def interview(graph: Planned, binding: Binding) -> Constant:
    """The interview with the suite's judge, an `Interview`: prompts -> answers, each kept; for `conclude` alone."""
    if graph.interview is None:
        raise SaevalError("'interview' needs a judge, and this suite has none; add 'judge:'")
    return Constant(graph.interview)


@_leaf("model", gives=Model)
def model(values: Values, node: Node) -> Model | None:
    """The loaded model, a `Model`."""
    return values.model


@_leaf("batch", gives=Batch)
def batch(values: Values, node: Node) -> Batch:
    """The batch, a `Batch`: tokens, targets, mask, real, sequence_ids, clusters."""
    return values.side(node)


@_leaf()
def token_text(values: Values, node: Node) -> Callable[[Sequence[int]], list[str]]:
    """Function: token ids of a row -> the text of each; as `spelling`, but not per-batch, so for `conclude` too."""
    return values.dataset.spelling if values.dataset is not None else numbered


@_leaf("batch", paired=True)
def divergence(values: Values, node: Node) -> Tensor:
    """Pairs only: the first position at which the two sides differ, an integer tensor [batch]."""
    assert isinstance(values.batch, PairBatch)
    return values.batch.divergence


@_leaf(kind=PlannedLeaf)
def reward_unit(graph: Planned, binding: Binding) -> Constant:
    """Unit of the reward: `reward`, or `nats` for the log-likelihood of a causal model."""
    return Constant(graph.reward_unit)


@_leaf("hook", kind=PlannedLeaf)
def hook_name(graph: Planned, binding: Binding) -> Constant:
    """The canonical hook name, such as blocks.6.hook_resid_pre."""
    return Constant(binding.hook)


@_leaf("hook", kind=PlannedLeaf)
def input_hook(graph: Planned, binding: Binding) -> Constant:
    """The hook whose activations the SAE encodes: `hook_name`, or a transcoder's input hook."""
    return Constant((binding.subject and binding.subject.input_hook) or binding.hook)


@_leaf("hook", kind=PlannedLeaf)
def d_in(graph: Planned, binding: Binding) -> Constant:
    """Width of the hook, an integer."""
    if graph.width is not None:
        return Constant(graph.width)
    if (width := graph.hooks().get(binding.hook or "")) is None:
        raise SaevalError(f"the model has no hook '{binding.hook}'")
    return Constant(width)


@_leaf("hook subject", kind=PlannedLeaf, gives=Substitute)
def sae(graph: Planned, binding: Binding) -> Node:
    """The substitute, a `Substitute`: an SAE or a control."""
    assert binding.subject is not None
    return graph.substitute(binding.subject, binding)


@_leaf("hook subject", kind=PlannedLeaf)
def subject_name(graph: Planned, binding: Binding) -> Constant:
    """The substitute's name in the suite."""
    assert binding.subject is not None
    return Constant(binding.subject.name)


@_leaf("hook subject", kind=PlannedLeaf)
def sae_name(graph: Planned, binding: Binding) -> Constant:
    """The SAE's name in the suite; of a control built from an SAE, that SAE's name."""
    return Constant(_sae_of(binding).name)


@_leaf("hook subject", kind=PlannedLeaf)
def training_seed(graph: Planned, binding: Binding) -> Constant:
    """The seed that the SAE was trained with, by its entry or checkpoint, or None; of a control, its SAE's."""
    seed = (_sae_of(binding).facts or {}).get("seed")
    return Constant(seed if isinstance(seed, int) and not isinstance(seed, bool) else None)


def _sae_of(binding: Binding) -> Subject:
    subject = binding.subject
    assert subject is not None
    return subject.parent if subject.kind == "control" and subject.parent else subject


@_leaf("model batch hook", finite="activations")
def activations(values: Values, node: Node) -> Tensor:
    """Activations at the hook, [batch, seq, d_in], in the model's dtype and unit."""
    return values.activations(node)


@_leaf(kind=PlannedLeaf)  # its roots are those of the activations, which the data may supply without a model
def sae_input(graph: Planned, binding: Binding) -> Argument:
    """Activations that the SAE encodes, [batch, seq, d_in]: those at its hook; of a transcoder, at its input hook."""
    if binding.subject is not None and binding.subject.input_hook is not None:
        binding = replace(binding, subject=None, hook_name=binding.subject.input_hook)
    return graph.resolve("activations", binding)


@_leaf("model batch", finite="final state")
def clean_final(values: Values, node: Node) -> Tensor | None:
    """Final hidden state of the clean pass, [batch, seq, d_model]; for reward models the reward, [batch]."""
    return values.clean_pass(node).final


@_leaf("model batch hook", gives=Resume)
def resume(values: Values, node: Node) -> Resume:
    """Function, a `Resume`: activations at the hook -> final state, running only the model after the hook."""
    return values.resume(node)


def supplied(name: str) -> Leaf:
    """Return the leaf of a name that the data supply with each batch."""

    def value(values: Values, node: Node) -> Any:
        side = values.side(node)
        if name not in side.supplied:
            raise KeyError(f"the data source declares '{name}' in 'supplies', but a batch has {sorted(side.supplied)}")
        return side.supplied[name]

    return Leaf(name, value, {}, roots=frozenset({"batch"}))


def supplied_once(name: str, once: Callable[[str], Any]) -> Leaf:
    """Return the leaf of a name whose value the data supply for all batches together."""

    def value(values: Values, node: Node) -> Any:
        return once(name)

    return Leaf(name, value, {})


def hooks_of(leaf: Leaf, nodes: Iterable[Node]) -> list[str]:
    """Return the hooks at which `nodes` contain this leaf."""
    return sorted({n.hook_name for n in nodes if n.quantity is leaf and n.hook_name})


def reach_the_end(nodes: Iterable[Node]) -> bool:
    """True if a node needs the model's final state, clean or resumed."""
    return any(n.quantity is clean_final or n.quantity is resume for n in nodes)
