"""A run that takes a few seconds, to be killed."""

from __future__ import annotations

import time

import torch

from saeval import Mean, Metric, Scalar
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens


def work(out, log):
    """A run of a few seconds, of which `log` counts the batches that its metric saw."""

    class Slow(Metric):
        """Counts the batches it sees in a file."""

        name, version = "slow", 1

        def observe(self, activations, mask):
            with open(log, "a") as file:
                file.write("x")
            time.sleep(0.003)
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total):
            return Scalar(total.value)

    torch.set_num_threads(1)
    results = evaluate_tiny(
        ["slow", "l0", "reconstruction", "ce", "kl"], Slow, rows=tiny_tokens(rows=100),
        saes={"a": TinySAE(seed=1), "b": TinySAE(seed=2)}, controls=["mean"], batch_size=2, out=out,
        checkpoint_seconds=0.05, key="these",
    )  # fmt: skip
    assert not results.failed, results.failed[0].traceback
