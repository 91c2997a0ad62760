"""`Quantity`: a function whose parameters are requests, like those of a pytest fixture; and its decorators."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar, overload

from saeval.base.identity import Origin, code_identity
from saeval.base.parameters import parameter_names
from saeval.interfaces.judge import Cost
from saeval.stats.evidence import Evidence

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Quantity:
    """A named function with the marks of its decorators."""

    name: str
    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    """Requests with their defaults (`inspect.Parameter.empty` if there is none)."""
    fold: bool = False
    on_fit: bool = False
    planned: bool = False
    gathered: str = ""
    """The parameter whose values of a batch are all passed in one call, as a list; empty for one call per value."""
    paired: bool = False
    resumes: str = ""
    """The parameter that says how often the function calls `resume`; empty if it never does."""
    asks: Callable[..., Cost] | None = None
    """Returns what its questions to the judge cost at most, from `judge` and the parameters it names."""
    finite: str = ""
    """Name of its value in messages, if it must be finite inside the mask; empty if that is not checked."""
    inserted: bool = False
    """True for a step that the graph inserts between two quantities: a pair's sides as a list, values by hook."""
    rebinds: Mapping[str, str | int | Callable[..., str]] = field(default_factory=dict)
    at_hooks: Callable[..., Iterable[str]] | None = None
    identity: str = ""
    """Identifies the version of its code; part of every key."""
    origin: Origin | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], origin: Origin) -> Quantity:
        marks = {"fold": _returns_evidence(function), **getattr(function, "__saeval__", {})}
        return cls(
            name=getattr(function, "__name__", type(function).__name__),
            function=function,
            parameters=parameter_names(function),
            identity=code_identity(function, origin),
            origin=origin,
            **marks,
        )

    @classmethod
    def anonymous(cls, function: Callable[..., Any], origin: Origin | None = None) -> Quantity:
        """Return the quantity of a function that a metric holds, perhaps a `functools.partial`.

        Equal functions with equal arguments are one quantity. `identity` has no version of the code, since the
        metric's identity is part of every key.
        """
        positional, fixed = getattr(function, "args", ()), getattr(function, "keywords", {})
        inner: Any = getattr(function, "func", function)
        requests = {name: default for name, default in parameter_names(function).items() if name not in fixed}
        identity = json.dumps([inner.__module__, positional, fixed], sort_keys=True, default=repr)
        return cls(inner.__qualname__, function, requests, identity=identity, origin=origin)

    @property
    def foreign(self) -> bool:
        """True if it does not ship with saeval: its calls are then checked for writes into their arguments."""
        return self.origin is not None and not self.origin.own

    @property
    def doc(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def scores(self) -> bool:
        """True if it returns `TokenScores`, by its annotation."""
        return "TokenScores" in self.shape

    @property
    def shape(self) -> str:
        """The return annotation as written."""
        annotation = getattr(self.function, "__annotations__", {}).get("return", "")
        return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def fold(function: F) -> F:
    """Mark a function that returns the `Evidence` of one batch: requests for it receive the sum over all batches."""
    return _mark(function, fold=True)


def fit_split(function: F) -> F:
    """Mark a fold that is computed on the fit split: documents disjoint from the evaluated ones."""
    return _mark(function, on_fit=True)


def planned(function: F) -> F:
    """Mark a fold computed over all planned rows, even if `precision:` stops the run early: cells share its value."""
    return _mark(function, planned=True)


def rebound(**names: str | int | Callable[..., str]) -> Callable[[F], F]:
    """Return a decorator that resolves the function's requests with names rebound.

    `rebound(final="clean_final")`: every request for `final`, at any depth, receives
    `clean_final`. `rebound(subject="ablation")`: the SAE is replaced by the control that the
    metric's parameter `ablation` names. `rebound(member=0)`: requests are for the first SAE of
    the metric's group, so that a quantity can use several members of it. A function in place of
    a name returns it; its parameters are those of the metric.
    """
    return lambda function: _mark(function, rebinds=names)


def at_hooks(choose: Callable[..., Iterable[str]]) -> Callable[[F], F]:
    """Return a decorator that resolves the function's requests at several hooks: each is a dict by hook name.

    `choose(hook_name, hooks, ...)` returns the chosen names, in order, out of all `hooks` of the
    model, perhaps none; its other parameters are parameters of the metric. The resumed passes of
    a substitute also keep the activations at these hooks (`spliced_pass`).
    """
    return lambda function: _mark(function, at_hooks=choose)


@overload
def gathered(over: str) -> Callable[[F], F]: ...
@overload
def gathered(over: F) -> F: ...
def gathered(over: str | F) -> Callable[[F], F] | F:
    """Compute all instances of a batch in one call, as in `@gathered("final")`.

    Instances that agree in all parameters but `over` are computed together: the function receives the list of
    their values for `over`, and returns a list in the same order. Without a name, `over` is the last parameter.
    `TypeError` if the function has no such parameter.
    """
    if not isinstance(over, str):
        return _mark(over, gathered=list(parameter_names(over))[-1])

    def marked(function: F) -> F:
        if over not in parameter_names(function):
            raise TypeError(f"@gathered('{over}'): '{function.__name__}' has no parameter of this name")
        return _mark(function, gathered=over)

    return marked


def paired(function: F) -> F:
    """Mark a function of preference pairs: per-batch requests are lists [chosen, rejected], and its value is shared.

    Quantities without this mark are computed once per side.
    """
    return _mark(function, paired=True)


def resuming(times: str) -> Callable[[F], F]:
    """Mark a function that calls `resume` as many times as its parameter `times` says, so that passes are counted."""
    return lambda function: _mark(function, resumes=times)


def asking(cost: Callable[..., Cost]) -> Callable[[F], F]:
    """Mark a function that asks the judge by `interview`, so that requests are counted before the run.

    `cost(judge, ...)` returns at most how much, a `Cost`; its other parameters are parameters of the metric.
    """
    return lambda function: _mark(function, asks=cost)


def finite(what: str) -> Callable[[F], F]:
    """Mark a function whose value must be finite inside the mask, as in `finite("reconstruction")`.

    The engine counts the tokens of the mask whose value is NaN or infinite (rows, for a value `[batch]`). Everything
    computed from such a value is undefined; the reason names `what` and the count over the whole pass.
    """
    return lambda function: _mark(function, finite=what)


def _mark(function: F, **marks: Any) -> F:
    function.__saeval__ = {**getattr(function, "__saeval__", {}), **marks}  # type: ignore[attr-defined]
    return function


def _returns_evidence(function: Callable[..., Any]) -> bool:
    """Return True for a fold without `@fold`, as in earlier versions: its return annotation is a class of evidence."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        holder = SimpleNamespace(__annotations__={"return": annotation})
        try:
            annotation = typing.get_type_hints(holder, getattr(function, "__globals__", {}))["return"]
        except (NameError, AttributeError, TypeError, SyntaxError):
            return False  # imported for annotations only, so not evidence, which must exist to be returned
    return isinstance(annotation, type) and issubclass(annotation, Evidence)
