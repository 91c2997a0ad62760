"""Calls functions that plugins supply, and checks that they do not write into shared values or keep state."""

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
    """An observer of calls; every call that it watches is checked with `Care.EVERYTHING`."""

    def watches(self, function: Callable[..., Any]) -> bool:
        """True to watch a first-party function; functions of other plugins are always watched."""

    def returned(self, function: Callable[..., Any], value: Any) -> None:
        """Called with the value that a watched call returned."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


class WrittenInPlaceError(RuntimeError):
    """A function wrote into a shared argument."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Check all calls that `watcher` watches, not only the first of each function."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def called(
    function: Callable[..., Any], arguments: Mapping[str, Any], what: str, care: Care = Care.VERSIONS,
    totals: Sequence[Any] = (),
) -> Any:  # fmt: skip
    """Return `function(*totals, **arguments)`.

    `WrittenInPlaceError` if it wrote into an argument, even if it raised, and, with `Care.EVERYTHING`,
    `StateChangedError` if it keeps state. `care` decides how much is compared. `what` names the function in messages.
    """
    watcher = _watcher.get()
    if watcher and care == Care.VERSIONS and not watcher.watches(function):
        watcher = None
    care = Care.EVERYTHING if watcher else care
    given = {**({"total": list(totals)} if totals else {}), **arguments}
    before = {name: contents(value, care) for name, value in given.items()}
    # The weights of a live SAE belong to the user, so they are restored if the function wrote into them.
    weights = [t for x in given.values() if isinstance(x, Substitute) for t in weights_of(x)]
    copies = [(tensor, tensor.detach().clone()) for tensor in weights] if care == Care.EVERYTHING else []
    state_before = frozen_state(function) if care == Care.EVERYTHING else {}

    def check() -> None:
        for name, value in given.items():
            if contents(value, care) != before[name]:
                with torch.no_grad():
                    for tensor, copy in copies:
                        tensor.copy_(copy)
                fault = f"{what} writes in place into '{name}', which other metrics share"
                raise WrittenInPlaceError(f"{fault}; work on a copy, such as {_copy(name, value)}")
        if care == Care.EVERYTHING:
            state_now = state(function)
            for name in sorted(state_before.keys() | state_now.keys()):
                if state_before.get(name) != state_now.get(name):
                    raise StateChangedError(remedy(f"{what} changes '{name}', which outlives the call"))

    # Not in a `finally`: Ctrl-C must not be replaced by an error of the check.
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
    """Return the expression that copies an argument."""
    if is_tensor(value):
        return f"{name}.clone()"
    return f"{name}.copy()" if isinstance(value, np.ndarray) else f"copy.deepcopy({name}), or .clone() of its tensors"
