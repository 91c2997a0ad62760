"""Gathered quantities: one call for all values of a batch, of the parameter that the decorator names."""

from __future__ import annotations

import pytest

from saeval import Mean, Metric, Scalar
from saeval.interfaces.quantity import gathered
from saeval.testing import TinySAE, evaluate_tiny

CALLS = []


@gathered("reconstruction")
def gathered_norms(reconstruction, mask):
    """Norms of all reconstructions, whose parameter is not the last."""
    CALLS.append(len(reconstruction))
    return [given.norm(dim=-1) for given in reconstruction]


def norms(reconstruction):
    """The same, one by one."""
    return reconstruction.norm(dim=-1)


class Norms(Metric):
    name, version = "norms", 1

    def observe(self, gathered_norms, norms, mask):
        return {"together": Mean.of(gathered_norms, mask), "apart": Mean.of(norms, mask)}

    def conclude(self, total):
        return {name: Scalar(total[name].value) for name in ("together", "apart")}


def test_the_named_parameter_is_gathered_wherever_it_stands():
    CALLS.clear()
    saes = {f"sae-{seed}": TinySAE(seed=seed) for seed in range(3)}
    results = evaluate_tiny(["norms"], Norms, saes=saes, quantities=[gathered_norms, norms], batch_size=32)
    together, apart = ([r.values[name]["value"] for r in results] for name in ("together", "apart"))
    assert together == apart
    assert len(set(apart)) == 3
    assert CALLS == [3]


def test_a_parameter_that_the_function_does_not_have_is_refused():
    with pytest.raises(TypeError, match=r"@gathered\('final'\): 'norms' has no parameter of this name"):
        gathered("final")(norms)
