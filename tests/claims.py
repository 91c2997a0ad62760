"""Claims about several things that cannot hold because there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

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


def numbers(*runs: Iterable[Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Every value that is a number in the first run: its metric and name, and its records in all runs.

    Fails where there is none, or where the runs have not the same cells.
    """
    return some(
        (f"{cells[0].metric}.{name}", [cell.values[name] for cell in cells])
        for cells in zip(*runs, strict=True)
        for name, record in cells[0].values.items()
        if record.get("value") is not None
    )
