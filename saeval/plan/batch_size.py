"""The batch size that `batch: auto` starts with: an estimate of how many sequences of a plan fit into memory."""

from __future__ import annotations

from saeval.base.memory import available
from saeval.interfaces.data import PairBatch
from saeval.plan.plan import Plan

MOST = 128
"""Sequences per batch above which a larger batch is hardly faster."""


def bytes_a_sequence(plan: Plan) -> int:
    """Return a generous estimate of the bytes per sequence in a batch, with float32 throughout.

    Each token takes six copies of the widest SAE's features, 64 vectors as wide as the widest hook (activations inside
    a block, float64 ones of a metric), and two more for each substitute whose final state waits to be scored.
    """
    rows = plan.streams.evaluation
    if len(rows) == 0:
        return 1
    with plan.streams.answered_for():
        batch = rows.batch([0], "cpu")
    sides = batch.sides if isinstance(batch, PairBatch) else (batch,)
    tokens = sum(side.tokens.shape[1] for side in sides)
    width = max((max(s.d_in or 0, s.d_out or 0) for s in plan.subjects), default=0)
    features = max((s.d_sae or 0 for s in plan.subjects), default=0)
    return max(1, 4 * tokens * (6 * features + (64 + 2 * len(plan.subjects)) * width))


def fitting(plan: Plan) -> int:
    """Return the batch size that `auto` starts with: a power of two estimated to take at most half of the free memory.

    If the SAEs have a device of their own, the one with less free memory counts. The estimate may be wrong: a batch
    that does not fit is halved.
    """
    devices = {plan.options.device, plan.options.sae_device or plan.options.device}
    room = min(available(device) for device in devices) // 2 // bytes_a_sequence(plan)
    size = min(MOST, max(1, room), max(1, len(plan.streams.evaluation)))
    return 1 << (size.bit_length() - 1)
