"""For tests of plugins: a tiny model, SAE and data that need no download, `check_metric` and `check_chart`."""

from __future__ import annotations

from saeval.api import evaluate
from saeval.testing.chart_checks import check_chart
from saeval.testing.conformance import check_metric
from saeval.testing.fixtures import InMemory, TinyPlugin, evaluate_tiny, register_rows, tiny_plugins
from saeval.testing.tiny import TinyModel, TinyPairs, TinySAE, tiny_tokens

__all__ = [
    "InMemory", "TinyModel", "TinyPairs", "TinyPlugin", "TinySAE", "check_chart", "check_metric", "evaluate",
    "evaluate_tiny", "register_rows", "tiny_plugins", "tiny_tokens",
]  # fmt: skip
