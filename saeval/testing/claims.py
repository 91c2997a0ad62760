"""Claims about several things, which fail where there are none: `all([])` is true, and so proves nothing."""

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
def some(things: Mapping[K, T]) -> Mapping[K, T]: ...  # type: ignore[overload-overlap]  # mappings are iterable too
@overload
def some(things: Iterable[T]) -> list[T]: ...
def some(things: Mapping[K, T] | Iterable[T]) -> Mapping[K, T] | list[T]:
    """The things to loop over, failing where there are none."""
    present: Mapping[K, T] | list[T] = things if isinstance(things, Mapping) else list(things)
    assert present, "there is nothing to look at"
    return present


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
