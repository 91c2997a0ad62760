"""`Guarded`: a proxy of a plugin's object whose errors name the plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from saeval.base.errors import Problem, SaevalError, SuiteError, blamed


class Guarded:
    """A proxy of `inner`: errors of its methods and properties become a `SaevalError` that names the plugin.

    With `problem`, a function of the message, it is a `SuiteError` with the object's place in the suite.
    """

    def __init__(self, inner: Any, what: str, origin: object, problem: Callable[[str], Problem] | None = None) -> None:
        vars(self).update(_inner=inner, _what=what, _origin=origin, _problem=problem)

    @property
    def __class__(self) -> Any:
        """The class of the inner object, so that `isinstance` works."""
        return type(self._inner)

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        raise TypeError("the class of a plugin's object cannot be changed")

    def __getattr__(self, name: str) -> Any:
        with self._blaming():
            attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **named: Any) -> Any:
            with self._blaming():
                return attribute(*arguments, **named)

        return call

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            with blamed(self._what, self._origin):
                yield
        except SaevalError as error:
            if self._problem is None or isinstance(error, SuiteError):
                raise
            raise SuiteError([self._problem(str(error))]) from error

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)
