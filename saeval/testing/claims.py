"""Assertions about several things that fail if there are none: `all([])` is true, but proves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

T = TypeVar("T")
K = TypeVar("K")


def every(claims: Iterable[object]) -> bool:
    """Return `all(claims)`; `AssertionError` if there are no claims."""
    return all(some(claims))


def none(claims: Iterable[object]) -> bool:
    """Return `not any(claims)`; `AssertionError` if there are no claims."""
    return not any(some(claims))


@overload
def some(things: Mapping[K, T]) -> Mapping[K, T]: ...  # type: ignore[overload-overlap]  # mappings are iterable too
@overload
def some(things: Iterable[T]) -> list[T]: ...
def some(things: Mapping[K, T] | Iterable[T]) -> Mapping[K, T] | list[T]:
    """Return the things to loop over, a mapping or a list; `AssertionError` if there are none."""
    present: Mapping[K, T] | list[T] = things if isinstance(things, Mapping) else list(things)
    assert present, "there is nothing to check"
    return present


def numbers(*runs: Iterable[Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return each value that is a number in the first run: its `metric.value`, and its records in all runs.

    `AssertionError` if there is none, `ValueError` if the runs have different numbers of cells.
    """
    return some(
        (f"{cells[0].metric}.{name}", [cell.values[name] for cell in cells])
        for cells in zip(*runs, strict=True)
        for name, record in cells[0].values.items()
        if record.get("value") is not None
    )
