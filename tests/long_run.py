"""A run that takes a few seconds, to be killed."""

from __future__ import annotations

import time

import torch

import saeval
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


def work_elsewhere(out, engine):
    """A run of a few seconds by the workers of an engine."""
    suite = {
        "suite": "elsewhere", "model": {"use": "testbed"}, "data": {"use": "python-stdlib", "sequences": 200, "context": 32},
        "saes": ["testbed/relu-3", "testbed/relu-5"], "controls": ["mean"], "metrics": ["l0", "ce", "reconstruction", "weights"],
        "batch": 4,
    }  # fmt: skip
    torch.set_num_threads(1)
    results = saeval.run(suite, out=out, engine=engine, block=8)
    assert not results.failed, results.failed[0].traceback
