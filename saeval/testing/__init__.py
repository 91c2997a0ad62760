"""For tests of plugins: a tiny model, SAE and data that need no download, and a check for each kind of plugin.

Names are imported on first use, so that the pytest plugin costs nothing where it is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.base.lazy_names import on_first_use

if TYPE_CHECKING:
    from saeval.api import evaluate
    from saeval.testing.chart_checks import check_chart
    from saeval.testing.conformance import check_metric
    from saeval.testing.control_checks import check_control
    from saeval.testing.fixtures import InMemory, TinyPlugin, evaluate_tiny, register_rows, tiny_plugins
    from saeval.testing.labelled import tiny_labelled
    from saeval.testing.loader_checks import check_loader
    from saeval.testing.source_checks import check_source
    from saeval.testing.tiny import TinyModel, TinyPairs, TinySAE, tiny_tokens

__all__ = [
    "InMemory", "TinyModel", "TinyPairs", "TinyPlugin", "TinySAE", "check_chart", "check_control",
    "check_loader", "check_metric", "check_source", "evaluate", "evaluate_tiny", "register_rows", "tiny_labelled",
    "tiny_plugins", "tiny_tokens",
]  # fmt: skip
__getattr__, __dir__ = on_first_use(__name__)
