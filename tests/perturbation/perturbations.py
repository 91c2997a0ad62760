"""The perturbation metrics as tests run them, whether or not their entry point is installed yet."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import torch

import saeval_perturbation
from saeval.interfaces.substitute import Control, Encoding, Substitute
from saeval.testing import TinyModel, evaluate_tiny, tiny_tokens
from saeval_perturbation.baselines import Perturbation
from saeval_perturbation.curve import PerturbationCurve

DISCOVERED = any(entry.name == "perturbation" for entry in entry_points(group="saeval"))
QUANTITIES = [] if DISCOVERED else saeval_perturbation.saeval_quantities()
PLUGIN = [] if DISCOVERED else ["--plugin", str(Path(saeval_perturbation.__file__))]


def run(metrics, **options):
    """Results on the tiny model; 60 rows of some 40 documents."""
    options.setdefault("rows", tiny_tokens(rows=60, documents=40))
    return evaluate_tiny(metrics, Perturbation, PerturbationCurve, quantities=QUANTITIES, **options)


def values(results, metric, subject):
    """Numbers of one cell by name."""
    (result,) = [r for r in results if (r.metric, r.subject) == (metric, subject)]
    assert result.status == "ok", result.traceback or result.reason
    return {name: record.get("value") for name, record in result.values.items()}


class Readout(TinyModel):
    """Logits linear in the activations at its one hook, in float64; the head ignores the last dimension."""

    def __init__(self, loud=1.0):
        super().__init__(layers=1, dtype=torch.float64)
        self.head_weight = self.head_weight.clone()
        self.head_weight[-1] = 0
        self.head_weight[0] *= loud

    def _block(self, index, x, real=None):
        return x

    def _finish(self, x, batch):
        return x


class Along(Substitute):
    def __init__(self, dimension, size):
        self.dimension, self.size = dimension, size

    def decode(self, encoding: Encoding | None, activations):
        moved = activations.clone()
        moved[..., self.dimension] += self.size
        return moved


class Planted(Control):
    """An error of one size along one dimension."""

    name = "planted"

    def __init__(self, dimension: int = 0, size: float = 0.1):
        self.dimension, self.size = dimension, size

    def build(self):
        return Along(self.dimension, self.size)
