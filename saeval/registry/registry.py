"""Everything that has a name: metrics, quantities, SAEs, models, data, controls, suites, reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from saeval.base.errors import SaevalError, UnknownNameError, blamed, said
from saeval.base.identity import Origin
from saeval.base.parameters import schema
from saeval.interfaces.data import Source
from saeval.interfaces.metric import Metric, faults
from saeval.interfaces.model import ModelAdapter, RegisteredModel
from saeval.interfaces.quantity import Quantity
from saeval.interfaces.sae import RegisteredSAE, SAELoader
from saeval.interfaces.substitute import Control
from saeval.registry.discovery import Failure, Plugins
from saeval.results.report import Report
from saeval.suite.schema import RegisteredSuite

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    name: str
    thing: T
    origin: Origin


class Names(Generic[T]):
    """One kind of named thing. A name claimed twice is refused when it is asked for, naming both claimants."""

    def __init__(self, kind: str, entries: list[Entry[T]], failures: list[Failure]) -> None:
        self.kind = kind
        self._claims: dict[str, list[Entry[T]]] = {}
        for entry in entries:
            claims = self._claims.setdefault(entry.name, [])
            if all(claim.thing is not entry.thing for claim in claims):  # one class supplied twice is no quarrel
                claims.append(entry)
        self._failures = failures

    def __iter__(self) -> Iterator[Entry[T]]:
        return (claims[0] for _, claims in sorted(self._claims.items()))

    def __contains__(self, name: object) -> bool:
        return name in self._claims

    def names(self) -> list[str]:
        return sorted(self._claims)

    def duplicates(self) -> dict[str, list[Origin]]:
        return {name: [c.origin for c in claims] for name, claims in self._claims.items() if len(claims) > 1}

    def entry(self, name: str) -> Entry[T]:
        """The one claim on `name`; `UnknownNameError` if there is none, `SaevalError` that names both if two."""
        claims = self._claims.get(name, [])
        if len(claims) > 1:
            both = " and ".join(str(claim.origin) for claim in claims)
            raise SaevalError(f"{self.kind} '{name}' is supplied by both {both}; uninstall one")
        if not claims:
            raise UnknownNameError(self.kind, name, self._claims, failures=self._failures)
        return claims[0]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).thing


class Registry:
    """All names that the plugins of this process supply."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def _names(self, kind: str, hook: str, accept: Callable[[Any], bool], wrap: Callable[..., Any]) -> Names[Any]:
        entries = []
        for thing, origin in self.plugins.collect(hook):
            try:
                if not accept(thing):
                    if hook != "saeval_models":  # the one hook with two kinds of things
                        error = f"{hook} returned {_shown(thing)}, which is no {kind}"
                        self.plugins.failures.append(Failure(origin, error))
                    continue
                made = wrap(thing, origin)
                name = made.name
                if not isinstance(name, str) or not name:
                    raise TypeError(f"'name' is {name!r}; it must be text")
                if isinstance(made, type):
                    if missing := getattr(made, "__abstractmethods__", None):
                        raise TypeError(f"it lacks {', '.join(sorted(missing))}")
                    schema(made)  # a class whose parameters cannot be read would fail every listing
            except (Exception, SystemExit) as error:  # a plugin's own fault is told with its name
                self.plugins.failures.append(Failure(origin, f"{kind} {_shown(thing)}: {said(error)}"))
                continue
            entries.append(Entry(name, made, origin))
        return Names(kind, entries, self.plugins.failures)

    @cached_property
    def metrics(self) -> Names[type[Metric]]:
        return self._names("metric", "saeval_metrics", _subclass(Metric), _sound)

    @cached_property
    def quantities(self) -> Names[Quantity]:
        return self._names("quantity", "saeval_quantities", callable, Quantity.of)

    @cached_property
    def loaders(self) -> Names[type[SAELoader]]:
        return self._names("SAE format", "saeval_sae_loaders", _subclass(SAELoader), _same)

    @cached_property
    def saes(self) -> Names[RegisteredSAE]:
        return self._names("SAE", "saeval_saes", _instance(RegisteredSAE), _same)

    @cached_property
    def adapters(self) -> Names[type[ModelAdapter]]:
        return self._names("model adapter", "saeval_models", _subclass(ModelAdapter), _same)

    @cached_property
    def models(self) -> Names[RegisteredModel]:
        return self._names("model", "saeval_models", _instance(RegisteredModel), _same)

    @cached_property
    def data(self) -> Names[type[Source]]:
        return self._names("data source", "saeval_data", _subclass(Source), _same)

    @cached_property
    def controls(self) -> Names[type[Control]]:
        return self._names("control", "saeval_controls", _subclass(Control), _sound_control)

    @cached_property
    def suites(self) -> Names[RegisteredSuite]:
        return self._names("suite", "saeval_suites", _instance(RegisteredSuite), _same)

    @cached_property
    def reports(self) -> Names[Report]:
        return self._names("report format", "saeval_reports", _instance(Report), _same)


def accepting(names: Names[Any], live: object, plugins: Plugins) -> Any:
    """The first of some loaders or adapters that takes a user's own object, made, with its entry; None without one.

    One that raises takes none, and is a failure of its plugin.
    """
    for entry in names:
        try:
            made = entry.thing()
            if made.accepts(live):
                return made, entry
        except (Exception, SystemExit) as error:
            plugins.failures.append(Failure(entry.origin, f"{names.kind} '{entry.name}': {said(error)}"))
    return None


def _shown(thing: Any) -> str:
    """A name for what a plugin returned, whatever its `__repr__` does."""
    try:
        return str(getattr(thing, "__qualname__", None) or repr(thing))
    except Exception:
        return f"an object of {type(thing).__qualname__}"


def writer(reports: Names[Report], name: str, of: Literal["write", "compare"]) -> Callable[..., str]:
    """What the format `name` does `of` leaderboards or comparisons; called, a `SaevalError` names a plugin that fails.

    `SaevalError` for a format that does not exist or cannot do it.
    """
    entry = reports.entry(name)
    write = entry.thing.writer(of, [other.thing for other in reports])

    def written(shown: Any) -> str:
        with blamed(f"report format '{name}'", entry.origin):
            text = write(shown)
            if not isinstance(text, str):
                raise TypeError(f"it returned {type(text).__name__}, not text")
            return text

    return written


def _same(thing: Any, origin: Origin) -> Any:
    return thing


def _sound(metric: type[Metric], origin: Origin) -> type[Metric]:
    """A metric as it is, if suites can use it."""
    fault = faults(metric)
    if fault:
        raise TypeError(fault)
    return metric


def _sound_control(control: type[Control], origin: Origin) -> type[Control]:
    """A control as it is, if suites can use it."""
    if not callable(getattr(control, "build", None)):
        raise TypeError("it has no method 'build'")
    if control.per not in ("hook", "sae"):
        raise TypeError(f"'per' is {control.per!r}; it must be 'hook' or 'sae'")
    return control


def _subclass(base: type) -> Callable[[Any], bool]:
    return lambda thing: isinstance(thing, type) and issubclass(thing, base)


def _instance(base: type) -> Callable[[Any], bool]:
    return lambda thing: isinstance(thing, base)
