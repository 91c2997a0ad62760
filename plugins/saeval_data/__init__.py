"""Data sources: Python's standard library, text from files, datasets or memory, token ids, preference pairs."""

from __future__ import annotations

from saeval.plugin import Source, hookimpl


@hookimpl
def saeval_data() -> list[type[Source]]:
    from saeval_data.preferences import Preferences  # late: loading the plugin stays fast
    from saeval_data.stdlib import PythonStdlib
    from saeval_data.text import Text, Texts
    from saeval_data.tokens import Tokens

    return [Preferences, PythonStdlib, Text, Texts, Tokens]
