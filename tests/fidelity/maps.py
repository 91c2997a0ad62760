"""SAEs that are known maps, rows that can be predicted, a model that predicts, and a metric's value."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saeval.testing import TinyModel, TinySAE
from saeval.text.tokens import TokenDataset


class Map(TinySAE):
    """A substitute given by a function of the activations, with no features of interest."""

    def __init__(self, function, seed=0):
        super().__init__(d_sae=16, seed=seed)  # what it encodes are the activations themselves
        self.function = function

    def encode(self, x):
        return x

    def decode(self, x):
        return self.function(x)


def strong_model(**options):
    """A tiny model whose loss truly depends on its activations: its tokens are its own most likely ones."""
    return TinyModel(**options)


def predictable_rows(model, rows=24, context=12, documents=8, seed=0):
    """Rows that the model itself predicts well, so that ablating it hurts."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 50, (rows, context + 1))
    from saeval.interfaces.data import Batch

    for position in range(context):
        inputs = torch.from_numpy(tokens[:, : position + 1])
        ones = torch.ones(inputs.shape, dtype=torch.bool)
        logits = model.logits(Batch(inputs, inputs, ones, ones, np.arange(rows), np.arange(rows)))
        tokens[:, position + 1] = logits[:, -1].argmax(-1).numpy()
    clusters = np.sort(random.integers(0, documents, rows))
    clusters = np.unique(clusters, return_inverse=True)[1].astype(np.int32)
    owner = np.repeat(clusters[:, None], context + 1, axis=1).astype(np.int32)
    return TokenDataset.from_arrays(tokens.astype(np.int32), owner, clusters)


def value(results, name, subject):
    return results.value(name, subject)["value"]


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out
