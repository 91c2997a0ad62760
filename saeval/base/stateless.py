"""`Stateless`: base of the objects of which one serves every batch and every SAE, so that they may keep nothing."""

from __future__ import annotations

from typing import Any

FROZEN = "__saeval_frozen__"
"""Key of an object's `__dict__`: what its attributes were when it was made."""


class StateChangedError(RuntimeError):
    """Something kept state between calls, so that its numbers would depend on the order of batches or SAEs."""


def remedy(what: str) -> str:
    """The sentence that says what is wrong with state and what to do instead."""
    return (
        f"{what}, but one object serves every batch and every SAE, so its numbers would depend on their order; "
        f"return what you count as evidence (Mean, Ratio, ...), and set constants in __init__"
    )


class Stateless:
    """Refuses new attributes once it is frozen, which the engine does after `__init__`.

    A `functools.cached_property` still works: it is a constant that is computed late.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if FROZEN in self.__dict__:
            raise StateChangedError(remedy(f"'{_name(self)}' sets its attribute '{name}' during a run"))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if FROZEN in self.__dict__:
            raise StateChangedError(remedy(f"'{_name(self)}' deletes its attribute '{name}' during a run"))
        super().__delattr__(name)


def _name(thing: Stateless) -> str:
    return str(getattr(thing, "name", type(thing).__qualname__))
