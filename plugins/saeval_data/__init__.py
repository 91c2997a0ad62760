"""Data sources: Python's standard library, text, labelled text, spelling prompts, token ids, pairs."""

from __future__ import annotations

from saeval.plugin import Source, hookimpl


@hookimpl
def saeval_data() -> list[type[Source]]:
    from saeval_data.labelled import LabelledTables  # late: loading the plugin stays fast
    from saeval_data.preferences import Preferences
    from saeval_data.python_names import PythonNames
    from saeval_data.python_tokens import PythonTokens
    from saeval_data.sae_probes import SaeProbes
    from saeval_data.spelling import Spelling
    from saeval_data.stdlib import PythonStdlib
    from saeval_data.text import Text, Texts
    from saeval_data.tokens import Tokens

    return [
        LabelledTables, Preferences, PythonNames, PythonStdlib, PythonTokens, SaeProbes, Spelling, Text, Texts, Tokens,
    ]  # fmt: skip
