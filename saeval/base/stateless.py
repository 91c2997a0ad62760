"""`Stateless`: base class of objects that serve every batch and every SAE, and therefore keep no state."""

from __future__ import annotations

from typing import Any

FROZEN = "__saeval_frozen__"
"""Key in an object's `__dict__` of a snapshot of its attributes after `__init__`."""


class StateChangedError(RuntimeError):
    """An object kept state between calls, so that its numbers would depend on the order of batches or SAEs."""


def remedy(what: str) -> str:
    """Return a message: what happened, why state is wrong, and what to do instead."""
    return (
        f"{what}, but one object serves every batch and every SAE, so its numbers would depend on their order; "
        f"return what you count as evidence (Mean, Ratio, ...), and set constants in __init__"
    )


class Stateless:
    """An object that refuses changes of its attributes once the engine has frozen it, after `__init__`.

    A `functools.cached_property` still works, since it is a constant that is computed late.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if FROZEN in self.__dict__:
            raise StateChangedError(remedy(f"'{_name(self)}' sets its attribute '{name}' during a run"))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if FROZEN in self.__dict__:
            raise StateChangedError(remedy(f"'{_name(self)}' deletes its attribute '{name}' during a run"))
        super().__delattr__(name)


def _name(owner: Stateless) -> str:
    return str(getattr(owner, "name", type(owner).__qualname__))
