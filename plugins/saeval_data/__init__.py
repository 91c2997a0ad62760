"""Data sources: the Python standard library, text files and datasets, and text tokenised before."""

from __future__ import annotations

from saeval.data import Source
from saeval.hookspecs import hookimpl


@hookimpl
def saeval_data() -> list[type[Source]]:
    from saeval_data.stdlib import PythonStdlib  # late: an entry point imports nothing it may not need
    from saeval_data.text import Text
    from saeval_data.tokens import Tokens

    return [PythonStdlib, Text, Tokens]
