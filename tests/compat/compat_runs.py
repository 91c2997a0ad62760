"""The sizes of a small model's rows, sae-lens' store of them, and what a run gave."""

from __future__ import annotations

import numpy as np

import saeval_compat
from saeval.registry.discovery import Plugins
from saeval.testing import evaluate, register_rows, tiny_plugins
from saeval.text.tokens import TokenDataset

HOOK, ROWS, CONTEXT, BATCH, VOCAB = "blocks.1.hook_resid_pre", 10, 9, 4, 30
EXCLUDED = {"none": (), "some": (3, 4)}


def plugins() -> Plugins:
    found = tiny_plugins()
    if "saeval:compat" not in found.origins:
        found.add(saeval_compat, "compat")
    return found


class Store:
    """What `run_evals` asks of an activations store."""

    store_batch_size_prompts, context_size = BATCH, CONTEXT

    def __init__(self, tokens):
        self.batches = iter(tokens.split(BATCH) * 2)

    def get_batch_tokens(self, batch_size):
        return next(self.batches)

    def reset_input_dataset(self):
        pass


def ours(model, sae, tokens, metrics, excluded=(), batch_size=3, boundary=None):
    """Each row is a document of its own; from position `boundary` on it is another one, and no target crosses."""
    owner = np.repeat(np.arange(ROWS, dtype=np.int32)[:, None], CONTEXT + 1, axis=1)
    if boundary is not None:
        owner[:, boundary:] += ROWS
    rows = TokenDataset.from_arrays(
        tokens.numpy().astype(np.int32), owner, np.arange(ROWS, dtype=np.int32), excluded=tuple(excluded)
    )
    results = evaluate(
        model=model, saes={"sae": sae}, data=register_rows(f"compat-{excluded}-{boundary}", rows), metrics=metrics,
        plugins=plugins(), batch_size=batch_size, allow=["*"],
    )  # fmt: skip
    assert not results.failed, results.failed[0].traceback
    return results


def numbers(results):
    return {name: record["value"] for result in results for name, record in result.values.items() if "value" in record}


def arrays(results):
    return {
        name: result.array(name) for result in results for name in result.values if f"value/{name}" in result.arrays
    }
