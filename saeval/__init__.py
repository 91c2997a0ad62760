"""saeval evaluates sparse autoencoders and tests if their differences are real.

Names are imported on first use, so that `import saeval` and `saeval --help` are fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.base.lazy_names import on_first_use

if TYPE_CHECKING:
    from saeval.api import evaluate, run
    from saeval.base.errors import SaevalError, Undefined
    from saeval.base.progress import Lines
    from saeval.base.run_options import RunOptions
    from saeval.certification import certify
    from saeval.collection import Results
    from saeval.engine.kept_passes import KeptPasses
    from saeval.interfaces.metric import Metric
    from saeval.interfaces.quantity import at_hooks, finite, fit_split, fold, paired, rebound
    from saeval.registry.discovery import Plugins
    from saeval.registry.hookspecs import hookimpl
    from saeval.stats.estimate import Estimate
    from saeval.stats.evidence import Ever, Evidence, Histogram, Mean, Moments, Ratio, Sample
    from saeval.stats.quantiles import Quantiles
    from saeval.stats.values import Array, Curve, Notes, Scalar, Table

__all__ = [
    "Array", "Curve", "Estimate", "Ever", "Evidence", "Histogram", "KeptPasses", "Lines", "Mean", "Metric", "Moments",
    "Notes", "Plugins", "Quantiles", "Ratio", "Results", "RunOptions", "SaevalError", "Sample", "Scalar", "Table",
    "Undefined", "at_hooks", "certify", "evaluate", "finite", "fit_split", "fold", "hookimpl", "paired", "rebound",
    "run",
]  # fmt: skip
__getattr__, __dir__ = on_first_use(__name__)
