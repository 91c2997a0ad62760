"""`Guarded`: an object of a plugin's whose every call is answered for by that plugin."""

from __future__ import annotations

from typing import Any

from saeval.errors import blamed


class Guarded:
    """Stands for `thing`: what its methods and properties raise becomes one `SaevalError` that names the plugin."""

    def __init__(self, thing: Any, what: str, origin: object) -> None:
        vars(self).update(_thing=thing, _what=what, _origin=origin)

    @property
    def __class__(self) -> Any:
        """The class of what it stands for, so that `isinstance` says the same."""
        return type(self._thing)

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        raise TypeError("the class of a plugin's object cannot be changed")

    def __getattr__(self, name: str) -> Any:
        with blamed(self._what, self._origin):
            found = getattr(self._thing, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            with blamed(self._what, self._origin):
                return found(*arguments, **named)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._thing, name, value)
