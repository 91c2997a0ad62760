"""What each worker of a run must hold in memory."""

from __future__ import annotations

from saeval.interfaces.engine import Needs
from saeval.plan.batch_size import bytes_a_sequence, fitting
from saeval.plan.plan import Plan

_BYTES = {"float64": 8, "bfloat16": 2, "float16": 2}
_PROCESS = 2**30
"""Python, torch and the libraries of models."""


def model_bytes(plan: Plan) -> int:
    """Return the bytes of the model's weights; 0 if their number is unknown."""
    parameters = plan.spec.parameters if plan.spec is not None else None
    return (parameters or 0) * _BYTES.get(plan.options.dtype or "", 4)


def sae_bytes(plan: Plan) -> int:
    """Return the bytes of all SAEs together."""
    return sum(8 * (s.d_in or 0) * (s.d_sae or 0) for s in plan.subjects if s.kind == "sae")


def batch_bytes(plan: Plan) -> int:
    """Return a generous estimate of the bytes of a batch."""
    size = fitting(plan) if plan.options.batch_size == "auto" else int(plan.options.batch_size or 1)
    return size * bytes_a_sequence(plan)


def needs_of(plan: Plan, device: str | None = None) -> Needs:
    """Return what each worker of a plan must hold, on the run's device or another one."""
    memory = _PROCESS + model_bytes(plan) + sae_bytes(plan) + batch_bytes(plan)
    return Needs(memory, int((device or plan.options.device).startswith("cuda")))
