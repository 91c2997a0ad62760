"""Explanations: what a feature means in words or tokens, and how far these can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import hookimpl
from saeval_explanations.windows import feature_examples


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [feature_examples]
