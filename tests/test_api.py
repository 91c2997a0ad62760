"""saeval from Python: live objects, classes as metrics, and mistakes that are one sentence."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from saeval import Mean, Metric, SaevalError, Scalar
from saeval.sae import LiveSAE
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
        ({"model": object()}, "no adapter takes an object of type object"),
        ({"metrics": ["l00"]}, "unknown metric 'l00'; did you mean 'l0'"),
        ({"device": "cuda:77"}, "--device cuda:77"),
    ],
)
def test_a_mistake_is_one_sentence(changed, said):
    with pytest.raises(SaevalError) as raised:
        run(**changed)
    assert said in str(raised.value)


def pruned(kept):
    """An SAE whose class closes over how many features it keeps."""

    class Pruned(TinySAE):
        def encode(self, x):
            acts = super().encode(x)
            return acts * (acts >= acts.topk(kept, dim=-1).values[..., -1:])

    return Pruned()


def test_two_saes_of_one_class_made_differently_are_two(tmp_path):
    both = run(saes={"two": pruned(2), "six": pruned(6)}, out=tmp_path)
    alone = run(saes={"six": pruned(6)}, out=tmp_path / "alone")
    assert both[0].key != both[1].key
    assert both[1].key == alone[0].key
    assert both.value("l0.l0", "two")["value"] == 2
    assert both.value("l0.l0", "six")["value"] == alone.value("l0.l0")["value"] > 5


def counting(k):
    """A metric class that closes over its threshold."""

    class AtLeast(Metric):
        """Share of tokens on which k features fire."""

        name, version = "at_least", 1

        def observe(self, feature_acts, mask):
            return Mean.of(((feature_acts > 0).sum(-1) >= k).double(), mask)

        def conclude(self, total):
            return Scalar(total.value)

    return AtLeast


def test_two_metrics_of_one_class_made_differently_are_two(tmp_path):
    low, high, again = (run(metrics=[counting(k)], out=tmp_path, plugins=tiny_plugins())[0] for k in (1, 9, 1))
    assert low.values["at_least"]["value"] > high.values["at_least"]["value"]
    assert again.key == low.key != high.key


SCALE, TABLE = 1.0, {"scale": 1.0}


def half(acts):
    return acts * TABLE["scale"]


class Rich(TinySAE):
    """Its features depend on all that an object may read."""

    factor = 1.0

    def __init__(self, act=torch.relu, **options):
        super().__init__(**options)
        self.act = act

    @property
    def scale(self):
        return 1.0

    @staticmethod
    def plus(acts, *, more=0.0):
        return acts + more

    def encode(self, x):
        return half(self.plus(self.act(super().encode(x)) * self.scale * self.factor * SCALE))


def key(sae):
    return LiveSAE(sae, "blocks.1.hook_resid_pre").fingerprint()


CHANGES = {
    "property": lambda patch: patch.setattr(Rich, "scale", property(lambda self: 5.0)),
    "class constant": lambda patch: patch.setattr(Rich, "factor", 2.0),
    "keyword default": lambda patch: patch.setattr(Rich.plus, "__kwdefaults__", {"more": 1.0}),
    "global": lambda patch: patch.setitem(globals(), "SCALE", 3.0),
    "what a global function reads": lambda patch: patch.setitem(TABLE, "scale", 3.0),
    "global function": lambda patch: patch.setitem(globals(), "half", lambda acts: acts / 2),
    "inherited method": lambda patch: patch.setattr(TinySAE, "encode", lambda self, x: x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_live_saes_code_reads_is_in_its_key(change, monkeypatch):
    before = key(Rich())
    assert key(Rich()) == before
    CHANGES[change](monkeypatch)
    assert key(Rich()) != before


def test_what_cannot_be_read_makes_a_key_that_never_comes_again():
    assert key(Rich(functools.partial(torch.clamp, min=0.0))) == key(Rich(functools.partial(torch.clamp, min=0.0)))
    assert key(Rich(functools.partial(torch.clamp, min=0.0))) != key(Rich(functools.partial(torch.clamp, min=1.0)))

    class Opaque:
        def __call__(self, x):
            return x

    sae = Rich(Opaque())
    assert key(sae) != key(sae)


class Torch(nn.Module):
    """An SAE of torch modules, with a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(16, 32), nn.Linear(32, 16)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def encode(self, x):
        return torch.relu(self.encoder(x)) * self.scale

    def decode(self, acts):
        return self.decoder(acts)


def test_hooks_and_buffers_of_a_live_sae_are_in_its_key():
    plain, kept = key(Torch()), []
    assert key(Torch()) == plain
    for few in (8, 9):
        sae = Torch()
        sae.encoder.register_forward_hook(lambda m, args, out, few=few: out * (torch.arange(32) < few))
        kept.append(key(sae))
    before = Torch()
    before.encoder.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    scaled = Torch()
    scaled.scale *= 2
    assert len({plain, *kept, key(before), key(scaled)}) == 5
