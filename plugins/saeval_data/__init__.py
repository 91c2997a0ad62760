"""Data sources: the standard library, text from files, datasets or memory, text tokenised before, preference pairs."""

from __future__ import annotations

from saeval.plugin import Source, hookimpl


@hookimpl
def saeval_data() -> list[type[Source]]:
    from saeval_data.preferences import Preferences  # late: an entry point imports nothing it may not need
    from saeval_data.stdlib import PythonStdlib
    from saeval_data.text import Text, Texts
    from saeval_data.tokens import Tokens

    return [Preferences, PythonStdlib, Text, Texts, Tokens]
