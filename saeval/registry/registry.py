"""The registry: everything that plugins supply by name, of every kind in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from saeval.base.errors import SaevalError, UnknownNameError, blamed, said
from saeval.base.identity import Origin
from saeval.base.parameters import schema
from saeval.interfaces.data import Source
from saeval.interfaces.engine import WorkerEngine
from saeval.interfaces.judge import Judge
from saeval.interfaces.metric import Metric
from saeval.interfaces.model import ModelAdapter, RegisteredModel
from saeval.interfaces.quantity import Quantity
from saeval.interfaces.sae import RegisteredSAE, SAELoader
from saeval.interfaces.substitute import Control
from saeval.registry.discovery import Failure, Plugins
from saeval.registry.kinds import KINDS, NamedKind
from saeval.results.report import Report
from saeval.suite.schema import RegisteredSuite

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A named thing and its supplier."""

    name: str
    thing: T
    origin: Origin
    supplied: Any = None
    """What the plugin returned, if `thing` was made from it, as a quantity is from a function."""

    def same_as(self, other: Entry[T]) -> bool:
        """True if both are one object, whichever plugins supplied it: a name that it has twice is no conflict."""
        return self.thing is other.thing if self.supplied is None else self.supplied is other.supplied


class Names(Generic[T]):
    """The named things of one kind. A name that two plugins supply is an error when it is looked up, not before."""

    def __init__(self, kind: str, entries: list[Entry[T]], failures: list[Failure]) -> None:
        self.kind = kind
        self._claims: dict[str, list[Entry[T]]] = {}
        for entry in entries:
            claims = self._claims.setdefault(entry.name, [])
            if not any(claim.same_as(entry) for claim in claims):
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
        """Return the entry of `name`; `UnknownNameError` if there is none, `SaevalError` if two plugins supply it."""
        claims = self._claims.get(name, [])
        if len(claims) > 1:
            suppliers = " and ".join(str(claim.origin) for claim in claims)
            remedy = "rename one or uninstall its plugin"
            raise SaevalError(f"{self.kind} '{name}' is supplied by both {suppliers}; {remedy}")
        if not claims:
            raise UnknownNameError(self.kind, name, self._claims, failures=self._failures)
        return claims[0]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).thing


class Registry:
    """All names that the plugins of this process supply: an attribute per kind in `KINDS`, created on first use."""

    metrics: Names[type[Metric]]
    quantities: Names[Quantity]
    controls: Names[type[Control]]
    loaders: Names[type[SAELoader]]
    data: Names[type[Source]]
    saes: Names[RegisteredSAE]
    models: Names[RegisteredModel]
    adapters: Names[type[ModelAdapter]]
    suites: Names[RegisteredSuite]
    judges: Names[type[Judge]]
    engines: Names[type[WorkerEngine]]
    reports: Names[Report]

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    if not TYPE_CHECKING:  # type checkers know the attributes above and no others

        def __getattr__(self, attribute: str) -> Names[Any]:
            for kind in KINDS:
                if kind.attribute == attribute:
                    setattr(self, attribute, names := self._names(kind))
                    return names
            raise AttributeError(f"a registry has no '{attribute}'")

    def every(self, listed: str | None = None) -> Iterator[tuple[NamedKind, Names[Any]]]:
        """Yield each kind with its names, in order of `KINDS`; only kinds that `saeval ls` lists under a given word."""
        for kind in KINDS:
            if listed in (None, kind.listed):
                yield kind, getattr(self, kind.attribute)

    def _names(self, kind: NamedKind) -> Names[Any]:
        entries = []
        same_hook = [candidate for candidate in KINDS if candidate.hook == kind.hook]
        for supplied, origin in self.plugins.collect(kind.hook):
            try:
                if not kind.accepts(supplied):
                    if kind is same_hook[0] and not any(candidate.accepts(supplied) for candidate in same_hook):
                        words = " or ".join(candidate.word for candidate in same_hook)
                        error = f"{kind.hook} returned {_shown(supplied)}, which is no {words}"
                        self.plugins.failures.append(Failure(origin, error))
                    continue
                named = Quantity.of(supplied, origin) if kind.supplied == "function" else supplied
                if kind.faults and (fault := resolve_name(kind.faults)(named)):
                    raise TypeError(fault)
                name = named.name
                if not isinstance(name, str) or not name:
                    raise TypeError(f"'name' is {name!r}; it must be text")
                if isinstance(named, type):
                    if missing := getattr(named, "__abstractmethods__", None):
                        raise TypeError(f"it does not implement {', '.join(sorted(missing))}")
                    schema(named)  # a class whose parameters cannot be read would fail every listing
            except (Exception, SystemExit) as error:  # reported as a failure of the plugin
                self.plugins.failures.append(Failure(origin, f"{kind.word} {_shown(supplied)}: {said(error)}"))
                continue
            entries.append(Entry(name, named, origin, None if named is supplied else supplied))
        return Names(kind.word, entries, self.plugins.failures)


def accepting(names: Names[Any], live: object, plugins: Plugins) -> Any:
    """Return the first loader or adapter that accepts a user's own object, with its entry; None if none does.

    One that raises does not accept it, and is a failure of its plugin.
    """
    for entry in names:
        try:
            candidate = entry.thing()
            if candidate.accepts(live):
                return candidate, entry
        except (Exception, SystemExit) as error:
            plugins.failures.append(Failure(entry.origin, f"{names.kind} '{entry.name}': {said(error)}"))
    return None


def _shown(thing: Any) -> str:
    """Return a name for what a plugin returned, even if its `__repr__` raises."""
    try:
        return str(getattr(thing, "__qualname__", None) or repr(thing))
    except Exception:
        return f"an object of {type(thing).__qualname__}"


def writer(
    reports: Names[Report], name: str, of: Literal["write", "compare", "compare_folders"]
) -> Callable[..., str | bytes]:
    """Return the function by which the report format `name` writes leaderboards, or compares, as text or bytes.

    `SaevalError` if the format does not exist or cannot do it. The function raises one that names the plugin if the
    plugin fails.
    """
    entry = reports.entry(name)
    write = entry.thing.writer(of, [report.thing for report in reports])

    def written(shown: Any) -> str | bytes:
        with blamed(f"report format '{name}'", entry.origin):
            content: str | bytes = write(shown)
            if not isinstance(content, str | bytes):
                raise TypeError(f"it returned {type(content).__name__}, not text or bytes")
            return content

    return written
