"""`Guarded`: an object of a plugin's whose every call is answered for by that plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from saeval.base.errors import Problem, SaevalError, SuiteError, blamed


class Guarded:
    """Stands for `thing`: what its methods and properties raise becomes one `SaevalError` that names the plugin.

    With `problem`, a function of the message, it is a `SuiteError` that also says where the suite names the thing.
    """

    def __init__(
        self, thing: Any, what: str, origin: object, problem: Callable[[str], Problem] | None = None
    ) -> None:  # fmt: skip
        vars(self).update(_thing=thing, _what=what, _origin=origin, _problem=problem)

    @property
    def __class__(self) -> Any:
        """The class of what it stands for, so that `isinstance` says the same."""
        return type(self._thing)

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        raise TypeError("the class of a plugin's object cannot be changed")

    def __getattr__(self, name: str) -> Any:
        with self._answered():
            found = getattr(self._thing, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            with self._answered():
                return found(*arguments, **named)

        return call

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            with blamed(self._what, self._origin):
                yield
        except SaevalError as error:
            if self._problem is None or isinstance(error, SuiteError):
                raise
            raise SuiteError([self._problem(str(error))]) from error

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._thing, name, value)
