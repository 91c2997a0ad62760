"""Calls of functions that plugins supply: they may write into nothing that others share, and keep nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from saeval.base.lazy_torch import is_tensor, torch
from saeval.base.stateless import StateChangedError, remedy
from saeval.interfaces.contents import Care, contents, frozen_state, state, weights_of
from saeval.interfaces.substitute import Substitute


class Watcher(Protocol):
    """Sees calls, each of which is checked with `Care.EVERYTHING`."""

    def watches(self, function: Callable[..., Any]) -> bool:
        """Whether it wants to see a function of saeval's own; it sees every other."""

    def returned(self, function: Callable[..., Any], value: Any) -> None:
        """A call that it watches returned this."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


class WrittenInPlaceError(RuntimeError):
    """A function wrote into an argument that others share."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Check every call that `watcher` watches, not only the first of each function."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def called(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    what: str,
    care: Care = Care.VERSIONS,
    totals: Sequence[Any] = (),
) -> Any:
    """`function(*totals, **arguments)`.

    `WrittenInPlaceError` if it wrote into one of these, also where it raised, and `StateChangedError`, with
    `Care.EVERYTHING`, if it keeps state: both as far as `care` looks.
    """
    watcher = _watcher.get()
    if watcher and care == Care.VERSIONS and not watcher.watches(function):
        watcher = None
    care = Care.EVERYTHING if watcher else care
    given = {**({"total": list(totals)} if totals else {}), **arguments}
    before = {name: contents(value, care) for name, value in given.items()}
    # What a live SAE holds is the user's: where it was written into, it is put back.
    held = [t for x in given.values() if isinstance(x, Substitute) for t in weights_of(x)]
    copies = [(tensor, tensor.detach().clone()) for tensor in held] if care == Care.EVERYTHING else []
    kept = frozen_state(function) if care == Care.EVERYTHING else {}

    def check() -> None:
        for name, value in given.items():
            if contents(value, care) != before[name]:
                with torch.no_grad():
                    for tensor, copy in copies:
                        tensor.copy_(copy)
                raise WrittenInPlaceError(
                    f"{what} writes in place into '{name}', which other metrics share; "
                    f"work on a copy, such as {_copy(name, value)}"
                )
        if care == Care.EVERYTHING:
            now = state(function)
            for name in sorted(kept.keys() | now.keys()):
                if kept.get(name) != now.get(name):
                    raise StateChangedError(remedy(f"{what} changes '{name}', which outlives the call"))

    # Never in a `finally`: Ctrl-C must arrive whatever the function had done by then.
    try:
        returned = function(*totals, **arguments)
    except SystemExit as error:
        check()
        raise RuntimeError(f"{what} calls sys.exit({error.code!r}); raise an exception instead") from None
    except Exception:
        check()
        raise
    check()
    if watcher:
        watcher.returned(function, returned)
    return returned


def _copy(name: str, value: Any) -> str:
    """How to copy an argument."""
    if is_tensor(value):
        return f"{name}.clone()"
    return f"{name}.copy()" if isinstance(value, np.ndarray) else f"copy.deepcopy({name}), or .clone() of its tensors"
