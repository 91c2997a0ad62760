"""The loaders of files that `torch.save` wrote, each with a reference and the state dict that it takes."""

from __future__ import annotations

import apollo_files
import dictionary_learning_files
import openai_files
from saeval_formats.apollo import Apollo
from saeval_formats.dictionary_learning import DictionaryLearning
from saeval_formats.openai import OpenAI

LOADERS = {
    "dictionary_learning": (DictionaryLearning, {"class": "AutoEncoder"}, lambda: dictionary_learning_files.state_of("AutoEncoder")),
    "openai": (OpenAI, {}, lambda: dict(openai_files.state_of())),
    "apollo": (Apollo, {}, lambda: apollo_files.state_of("blocks.1.hook_resid_pre")),
}  # fmt: skip
