"""saeval: how good is a sparse autoencoder, and is a difference real?

Names are imported when first used, so that `import saeval` and `saeval --help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeval.api import evaluate, run
    from saeval.errors import SaevalError, Undefined
    from saeval.estimate import Estimate
    from saeval.evidence import Ever, Evidence, Histogram, Mean, Moments, Ratio, Sample
    from saeval.hookspecs import hookimpl
    from saeval.metric import Metric
    from saeval.quantiles import Quantiles
    from saeval.quantities import at_hooks, finite, fit_split, paired, rebound
    from saeval.results import Results
    from saeval.values import Array, Curve, Notes, Scalar, Table

_HOMES = {
    "Array": "values",
    "Curve": "values",
    "Estimate": "estimate",
    "Ever": "evidence",
    "Evidence": "evidence",
    "Histogram": "evidence",
    "Mean": "evidence",
    "Metric": "metric",
    "Moments": "evidence",
    "Notes": "values",
    "Quantiles": "quantiles",
    "Ratio": "evidence",
    "Results": "results",
    "SaevalError": "errors",
    "Sample": "evidence",
    "Scalar": "values",
    "Table": "values",
    "Undefined": "errors",
    "at_hooks": "quantities",
    "evaluate": "api",
    "finite": "quantities",
    "fit_split": "quantities",
    "paired": "quantities",
    "hookimpl": "hookspecs",
    "rebound": "quantities",
    "run": "api",
}

__all__ = [
    "Array", "Curve", "Estimate", "Ever", "Evidence", "Histogram", "Mean", "Metric", "Moments", "Notes", "Quantiles",
    "Ratio", "Results", "SaevalError", "Sample", "Scalar", "Table", "Undefined", "at_hooks", "evaluate", "finite",
    "fit_split", "hookimpl", "paired",
    "rebound", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saeval' has no attribute '{name}'")
    return getattr(import_module(f"saeval.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
