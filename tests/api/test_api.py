"""saeval from Python: live objects, classes as metrics, and mistakes that are one sentence."""

from __future__ import annotations

import pytest

from saeval import Mean, Metric, SaevalError, Scalar
from saeval.testing import TinyModel, TinySAE, evaluate, register_rows, tiny_plugins, tiny_tokens


class Fires(Metric):
    """Share of tokens on which any feature fires."""

    name, version = "fires", 1

    def observe(self, feature_acts, mask):
        return Mean.of((feature_acts > 0).any(-1).double(), mask)

    def conclude(self, total):
        return Scalar(total.value)


def run(**changed):
    data = register_rows("api", tiny_tokens())
    options = {
        "model": TinyModel(),
        "saes": [TinySAE()],
        "data": data,
        "metrics": ["l0"],
        "plugins": tiny_plugins(),
        "allow": ["*"],
    }
    return evaluate(**{**options, **changed})


def test_a_metric_class_is_a_metric():
    results = run(metrics=["l0", Fires])
    assert results.value("fires.fires")["value"] > 0.5
    assert results.value("l0.l0")["value"] > 0
    assert "fires.fires" in results.leaderboard()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metrics": "l0"}, "metrics is a list"),
        ({"metrics": [3]}, "a metric is a name, a mapping or a Metric class; got 3"),
        ({"metrics": []}, "the list is empty"),
        ({"saes": "testbed/relu-1"}, "saes is a list or a mapping by name"),
        ({"saes": [(TinySAE(), "blocks.1.hook_resid_pre", 3)]}, "a pair"),
        ({"saes": [object()]}, "needs the method 'encode'"),
        ({"batchsize": 3}, "unknown option 'batchsize'; did you mean 'batch_size'"),
        ({"model": object()}, "no adapter accepts an object of type object"),
        ({"metrics": ["l00"]}, "unknown metric 'l00'; did you mean 'l0'"),
        ({"device": "cuda:77"}, "device 'cuda:77': torch cannot use it here"),
    ],
)
def test_a_mistake_is_one_sentence(changed, said):
    with pytest.raises(SaevalError) as raised:
        run(**changed)
    assert said in str(raised.value)
