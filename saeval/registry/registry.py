"""Everything that has a name, of every kind in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from saeval.base.errors import SaevalError, UnknownNameError, blamed, said
from saeval.base.identity import Origin
from saeval.base.parameters import schema
from saeval.interfaces.data import Source
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
            raise SaevalError(f"{self.kind} '{name}' is supplied by both {both}; rename one or uninstall its plugin")
        if not claims:
            raise UnknownNameError(self.kind, name, self._claims, failures=self._failures)
        return claims[0]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).thing


class Registry:
    """All names that the plugins of this process supply: an attribute for each of `KINDS`, made when first used."""

    metrics: Names[type[Metric]]
    quantities: Names[Quantity]
    controls: Names[type[Control]]
    loaders: Names[type[SAELoader]]
    data: Names[type[Source]]
    saes: Names[RegisteredSAE]
    models: Names[RegisteredModel]
    adapters: Names[type[ModelAdapter]]
    suites: Names[RegisteredSuite]
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
        """The names of every kind, or of those that `saeval ls` lists under a word, in the order of `KINDS`."""
        for kind in KINDS:
            if listed in (None, kind.listed):
                yield kind, getattr(self, kind.attribute)

    def _names(self, kind: NamedKind) -> Names[Any]:
        entries = []
        together = [other for other in KINDS if other.hook == kind.hook]
        for thing, origin in self.plugins.collect(kind.hook):
            try:
                if not kind.accepts(thing):
                    if kind is together[0] and not any(other.accepts(thing) for other in together):
                        words = " or ".join(other.word for other in together)
                        error = f"{kind.hook} returned {_shown(thing)}, which is no {words}"
                        self.plugins.failures.append(Failure(origin, error))
                    continue
                made = Quantity.of(thing, origin) if kind.supplied == "function" else thing
                if kind.faults and (fault := resolve_name(kind.faults)(made)):
                    raise TypeError(fault)
                name = made.name
                if not isinstance(name, str) or not name:
                    raise TypeError(f"'name' is {name!r}; it must be text")
                if isinstance(made, type):
                    if missing := getattr(made, "__abstractmethods__", None):
                        raise TypeError(f"it lacks {', '.join(sorted(missing))}")
                    schema(made)  # a class whose parameters cannot be read would fail every listing
            except (Exception, SystemExit) as error:  # a plugin's own fault is reported with its name
                self.plugins.failures.append(Failure(origin, f"{kind.word} {_shown(thing)}: {said(error)}"))
                continue
            entries.append(Entry(name, made, origin))
        return Names(kind.word, entries, self.plugins.failures)


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
