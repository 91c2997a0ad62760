"""Leaves of the graph: requests that saeval itself answers."""

from __future__ import annotations

import pytest

from saeval import Mean, Metric, SaevalError, Scalar
from saeval.plan.leaves import LEAVES
from saeval.testing import evaluate_tiny


def seven():
    """A quantity without requests is no leaf."""
    return 7.0


class Everything(Metric):
    """Looks at every leaf of a stream."""

    name, version = "everything", 1

    def observe(
        self, model, batch, hook_name, d_in, sae, subject_name, activations, sae_input, clean_final, resume, seven
    ):
        assert hook_name == "blocks.1.hook_resid_pre"
        assert (d_in, sae.d_in, activations.shape[-1]) == (16, 16, 16)
        assert sae_input is activations
        assert sae.name == subject_name
        assert (resume(activations) - clean_final).norm() < 1e-4 * clean_final.norm()
        assert model.kind == "causal"
        return Mean.of(activations.new_full(batch.mask.shape, seven), batch.mask)

    def conclude(self, total, reward_unit, token_text):
        assert token_text([3, 1]) == ["<3>", "<1>"]
        return Scalar(total.value, unit=reward_unit)


def test_a_metric_is_given_every_leaf():
    (result,) = evaluate_tiny(["everything"], Everything, quantities=[seven])
    assert result.status == "ok", result.reason
    assert result.values["everything"]["value"] == pytest.approx(7)
    assert result.values["everything"]["unit"] == "nats"


ALONE = {
    "subject_name": lambda self, subject_name: None,
    "sae": lambda self, sae: None,
    "hook_name": lambda self, hook_name: None,
    "activations": lambda self, activations: None,
}


@pytest.mark.parametrize("name", ALONE)
def test_a_leaf_of_an_sae_or_its_hook_is_refused_where_there_is_none(name):
    methods = {"observe": ALONE[name], "conclude": Everything.conclude}
    alone = type("Alone", (Metric,), {"name": "alone", "subject": "none", **methods})
    with pytest.raises(SaevalError, match=f"'{name}' needs a hook, and this request has none"):
        evaluate_tiny(["alone"], alone)


def test_each_leaf_says_what_it_is():
    assert len(LEAVES) == 17
    assert not [leaf.name for leaf in LEAVES.values() if not leaf.doc.endswith(".")]
    assert not [leaf.name for leaf in LEAVES.values() if leaf.roots - {"model", "batch", "hook", "subject"}]
