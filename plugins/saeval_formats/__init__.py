"""Loaders for the SAE checkpoint formats of the field."""

from __future__ import annotations

from saeval.plugin import SAELoader, hookimpl
from saeval_formats.apollo import Apollo
from saeval_formats.circuit_tracer import CircuitTracer
from saeval_formats.dictionary_learning import DictionaryLearning
from saeval_formats.gemma_scope import GemmaScope
from saeval_formats.llama_scope import LlamaScope
from saeval_formats.llamascopium import Llamascopium
from saeval_formats.mapping import MappingFile
from saeval_formats.openai import OpenAI
from saeval_formats.qwen_scope import QwenScope
from saeval_formats.saelens import SAELens
from saeval_formats.sparsify import Sparsify


@hookimpl
def saeval_sae_loaders() -> list[type[SAELoader]]:
    return [
        Apollo, CircuitTracer, DictionaryLearning, GemmaScope, LlamaScope, Llamascopium, MappingFile, OpenAI, QwenScope,
        SAELens, Sparsify,
    ]  # fmt: skip
