"""Claims about several things that cannot hold because there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, overload

T = TypeVar("T")
K = TypeVar("K")


def every(claims: Iterable[object]) -> bool:
    """`all`, failing where there is nothing to claim."""
    return all(some(claims))


def none(claims: Iterable[object]) -> bool:
    """`not any`, failing where there is nothing to deny."""
    return not any(some(claims))


@overload
def some(things: Mapping[K, T]) -> Mapping[K, T]: ...
@overload
def some(things: Iterable[T]) -> list[T]: ...
def some(things):
    """The things to loop over, failing where there are none."""
    found = things if isinstance(things, Mapping) else list(things)
    assert found, "there is nothing to look at"
    return found
