"""Worlds with known features, metrics that compare SAEs with the truth, and controls that know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import Control, Metric, Problem, RegisteredSAE, Source, hookimpl
from saeval_synthetic.absorption import TruthAbsorption
from saeval_synthetic.ground_truth import chance_matches, true_features, true_match, truth
from saeval_synthetic.hedging import TruthHedging
from saeval_synthetic.oracles import OracleDictionary, OracleFull
from saeval_synthetic.projection import DecoderProjection
from saeval_synthetic.recovery import TruthRecovery
from saeval_synthetic.source import SAELensSynthetic, Synthetic

if TYPE_CHECKING:
    from saeval.plugin import Plan

WEIGHTS = Path(__file__).parent / "weights"
NEEDS_TRUTH = (TruthRecovery, TruthAbsorption, TruthHedging)


@hookimpl
def saeval_data() -> list[type[Source]]:
    return [Synthetic, SAELensSynthetic]


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [TruthRecovery, TruthAbsorption, TruthHedging, DecoderProjection]


@hookimpl
def saeval_controls() -> list[type[Control]]:
    return [OracleFull, OracleDictionary]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [chance_matches, true_features, true_match, truth]


@hookimpl
def saeval_saes() -> list[RegisteredSAE]:
    """Return the SAEs below `weights`, which are trained on the preset `small`."""
    folders = sorted(file.parent for file in WEIGHTS.glob("*/cfg.json"))
    description = "TopK SAE trained on the world `synthetic`, preset `small`"
    return [RegisteredSAE(f"synthetic/{f.name}", "saelens", {"path": str(f)}, description) for f in folders]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Refuse metrics and oracles that need a ground truth on data that have none."""
    if "truth" in plan.streams.evaluation.supplies_once:
        return []
    fault = (
        f"needs a ground truth, and data '{plan.streams.source.name}' have none; use data such as {{use: synthetic}}"
    )
    entries = {cell.entry.location: cell.entry for cell in plan.cells if isinstance(cell.metric, NEEDS_TRUTH)}
    problems = [plan.suite.problem(f"metric '{e.name}' {fault}", *place) for place, e in entries.items()]
    for index, entry in enumerate(plan.suite.body.controls):
        name = entry if isinstance(entry, str) else entry.get("use", next(iter(entry), None))
        if name in (OracleFull.name, OracleDictionary.name):
            problems.append(plan.suite.problem(f"control '{name}' {fault}", "controls", index))
    return problems
