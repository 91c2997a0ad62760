"""Judges: language models behind an HTTP endpoint or on this machine, and files of recorded answers."""

from __future__ import annotations

from saeval.plugin import Judge, hookimpl
from saeval_judges.chat_completions import ChatCompletions
from saeval_judges.local_model import LocalModel
from saeval_judges.recorded import Recorded


@hookimpl
def saeval_judges() -> list[type[Judge]]:
    return [ChatCompletions, LocalModel, Recorded]
