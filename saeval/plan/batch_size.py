"""How many sequences of a plan fit into memory: what `batch: auto` begins with."""

from __future__ import annotations

from saeval.base.memory import available
from saeval.interfaces.data import PairBatch
from saeval.plan.plan import Plan

MOST = 128
"""Sequences a batch beyond which a larger batch is hardly faster."""


def bytes_a_sequence(plan: Plan) -> int:
    """Rough bytes that one more sequence in a batch takes, generously: float32 throughout.

    For each token: six copies of the widest SAE's features, 64 vectors of the widest hook (a block's own
    activations and a metric's float64 ones), and two for every substitute whose final state waits to be scored.
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
    """The batch size that `auto` begins with: a power of two whose estimate takes half of the free memory at most.

    The SAEs' own device decides where it is another. An estimate may be wrong: a batch that does not fit is halved.
    """
    devices = {plan.options.device, plan.options.sae_device or plan.options.device}
    room = min(available(device) for device in devices) // 2 // bytes_a_sequence(plan)
    size = min(MOST, max(1, room), max(1, len(plan.streams.evaluation)))
    return 1 << (size.bit_length() - 1)
