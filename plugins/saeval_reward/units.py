"""In which unit a reward is: a reward model's own, or nats where it is a causal model's log-likelihood."""

from __future__ import annotations

from typing import TypeVar

from saeval.plugin import Array, Curve, Scalar, Value

V = TypeVar("V", bound=Value)

REWARD = "reward"


def in_unit(values: dict[str, V], reward_unit: str) -> dict[str, V]:
    """The values, those in units of the reward with what these are: `reward, nats` of a log-likelihood."""
    if reward_unit != REWARD:
        for value in values.values():
            if isinstance(value, Scalar | Curve | Array) and value.unit.strip("|") == REWARD:
                value.unit = f"{value.unit}, {reward_unit}"
    return values
