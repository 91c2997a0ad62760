"""`Quantity`: a function whose parameters are requests, as a pytest fixture's are."""

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
from saeval.stats.evidence import Evidence

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Quantity:
    """A named function, and what its decorators say of it."""

    name: str
    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    """Requests, with the function's own defaults (`inspect.Parameter.empty` where none)."""
    fold: bool = False
    on_fit: bool = False
    planned: bool = False
    gathered: str = ""
    """The parameter of which one call takes all of a batch's values; empty where each value has a call of its own."""
    paired: bool = False
    resumes: str = ""
    finite: str = ""
    """What its value is called where it must be finite inside the mask; empty where that is not asked."""
    inserted: bool = False
    """True for a step that the graph puts between two quantities: a pair's sides as a list, values by hook."""
    rebinds: Mapping[str, str] = field(default_factory=dict)
    at_hooks: Callable[..., Iterable[str]] | None = None
    identity: str = ""
    """What makes its code the same, part of every key."""
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
        """A metric's own function, perhaps a `functools.partial`: equal ones with equal arguments are one quantity.

        Its code is known by its name alone: the metric's own identity stands for the code in every key.
        """
        given, fixed = getattr(function, "args", ()), getattr(function, "keywords", {})
        inner: Any = getattr(function, "func", function)
        requests = {name: default for name, default in parameter_names(function).items() if name not in fixed}
        identity = json.dumps([inner.__module__, given, fixed], sort_keys=True, default=repr)
        return cls(inner.__qualname__, function, requests, identity=identity, origin=origin)

    @property
    def foreign(self) -> bool:
        """Whether somebody else than saeval wrote it, so that its calls are watched."""
        return self.origin is not None and not self.origin.own

    @property
    def doc(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def shape(self) -> str:
        """The return annotation as written."""
        annotation = getattr(self.function, "__annotations__", {}).get("return", "")
        return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def fold(function: F) -> F:
    """Mark a function that returns evidence: it is summed over all batches, and whoever requests it gets the total."""
    return _mark(function, fold=True)


def fit_split(function: F) -> F:
    """Mark a fold as taken over documents disjoint from the evaluated ones."""
    return _mark(function, on_fit=True)


def planned(function: F) -> F:
    """Mark a fold as taken over all planned rows, also where a suite stops adaptively: one value for all its users."""
    return _mark(function, planned=True)


def rebound(**names: str) -> Callable[[F], F]:
    """Resolve the function's requests with names rebound.

    `rebound(final="clean_final")`: wherever `final` is asked for, down to any depth, it is
    `clean_final`. `rebound(subject="ablation")`: the SAE is the control that the metric's
    parameter `ablation` names.
    """
    return lambda function: _mark(function, rebinds=names)


def at_hooks(choose: Callable[..., Iterable[str]]) -> Callable[[F], F]:
    """Resolve the function's requests at several hooks: each comes as a dict by hook name.

    `choose(hook_name, hooks, ...)` picks the names, in order, out of all `hooks` of the model; what
    else it asks for are parameters of the metric. They may be none. The passes that a substitute
    resumes keep the activations at these hooks, too (`spliced_pass`).
    """
    return lambda function: _mark(function, at_hooks=choose)


@overload
def gathered(over: str) -> Callable[[F], F]: ...
@overload
def gathered(over: F) -> F: ...
def gathered(over: str | F) -> Callable[[F], F] | F:
    """Compute all of a batch's instances in one call, as `@gathered("final")` does.

    Instances that agree in all parameters but `over` are computed together: this parameter is the list of their
    values, and the function returns a list in the same order. Without a name it is the last parameter.
    """
    if not isinstance(over, str):
        return _mark(over, gathered=list(parameter_names(over))[-1])

    def marked(function: F) -> F:
        if over not in parameter_names(function):
            raise TypeError(f"@gathered('{over}'): '{function.__name__}' has no parameter of this name")
        return _mark(function, gathered=over)

    return marked


def paired(function: F) -> F:
    """Over preference pairs: what belongs to a batch comes as the list [chosen, rejected], and the value to both.

    Other quantities are asked once for each side.
    """
    return _mark(function, paired=True)


def resuming(times: str) -> Callable[[F], F]:
    """Mark a function that calls `resume` as often as its parameter `times` says, so that passes can be counted."""
    return lambda function: _mark(function, resumes=times)


def finite(what: str) -> Callable[[F], F]:
    """Mark a function whose value must be finite, as `finite("reconstruction")` does.

    The engine counts the tokens of the mask whose value is NaN or infinite (texts, for a value `[batch]`). Whatever
    was computed from such a value is undefined, with a reason that names `what` and the count over the whole pass.
    """
    return lambda function: _mark(function, finite=what)


def _mark(function: F, **marks: Any) -> F:
    function.__saeval__ = {**getattr(function, "__saeval__", {}), **marks}  # type: ignore[attr-defined]
    return function


def _returns_evidence(function: Callable[..., Any]) -> bool:
    """True for a fold as it was written before `@fold`: the return annotation is evidence."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        holder = SimpleNamespace(__annotations__={"return": annotation})
        try:
            annotation = typing.get_type_hints(holder, getattr(function, "__globals__", {}))["return"]
        except (NameError, AttributeError, TypeError, SyntaxError):
            return False  # a name imported for annotations only: no evidence, since that must exist to be returned
    return isinstance(annotation, type) and issubclass(annotation, Evidence)
