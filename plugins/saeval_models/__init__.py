"""Model adapters `huggingface` and `transformer_lens`. Importing this package imports neither library, nor torch."""

from __future__ import annotations

from saeval.plugin import ModelAdapter, hookimpl
from saeval_models.huggingface import HuggingFace
from saeval_models.transformer_lens import TransformerLens


@hookimpl
def saeval_models() -> list[type[ModelAdapter]]:
    return [HuggingFace, TransformerLens]
