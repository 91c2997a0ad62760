"""saeval evaluates sparse autoencoders and tests if their differences are real.

Names are imported on first use, so that `import saeval` and `saeval --help` are fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeval.api import evaluate, run
    from saeval.base.errors import SaevalError, Undefined
    from saeval.base.progress import Lines
    from saeval.base.run_options import RunOptions
    from saeval.collection import Results
    from saeval.interfaces.metric import Metric
    from saeval.interfaces.quantity import at_hooks, finite, fit_split, fold, paired, rebound
    from saeval.registry.discovery import Plugins
    from saeval.registry.hookspecs import hookimpl
    from saeval.stats.estimate import Estimate
    from saeval.stats.evidence import Ever, Evidence, Histogram, Mean, Moments, Ratio, Sample
    from saeval.stats.quantiles import Quantiles
    from saeval.stats.values import Array, Curve, Notes, Scalar, Table

_HOMES = {
    "Array": "stats.values",
    "Curve": "stats.values",
    "Estimate": "stats.estimate",
    "Ever": "stats.evidence",
    "Evidence": "stats.evidence",
    "Histogram": "stats.evidence",
    "Lines": "base.progress",
    "Mean": "stats.evidence",
    "Metric": "interfaces.metric",
    "Moments": "stats.evidence",
    "Notes": "stats.values",
    "Quantiles": "stats.quantiles",
    "Plugins": "registry.discovery",
    "Ratio": "stats.evidence",
    "Results": "collection",
    "RunOptions": "base.run_options",
    "SaevalError": "base.errors",
    "Sample": "stats.evidence",
    "Scalar": "stats.values",
    "Table": "stats.values",
    "Undefined": "base.errors",
    "at_hooks": "interfaces.quantity",
    "evaluate": "api",
    "finite": "interfaces.quantity",
    "fit_split": "interfaces.quantity",
    "fold": "interfaces.quantity",
    "paired": "interfaces.quantity",
    "hookimpl": "registry.hookspecs",
    "rebound": "interfaces.quantity",
    "run": "api",
}

__all__ = [
    "Array", "Curve", "Estimate", "Ever", "Evidence", "Histogram", "Lines", "Mean", "Metric", "Moments", "Notes",
    "Plugins", "Quantiles", "Ratio", "Results", "RunOptions", "SaevalError", "Sample", "Scalar", "Table", "Undefined",
    "at_hooks", "evaluate", "finite", "fit_split", "fold", "hookimpl", "paired", "rebound", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saeval' has no attribute '{name}'")
    return getattr(import_module(f"saeval.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
