"""Live objects: new keys unless they are named, evaluation mode, and what their `encode` may return."""

from __future__ import annotations

import functools
import logging
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import saeval
from saeval import Mean, Metric, SaevalError, Scalar
from saeval.registry.discovery import Plugins
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_plugins, tiny_tokens
from saeval.testing.architectures import tiny_model
from saeval.testing.claims import every, none, numbers, some

HOOK = "blocks.1.hook_resid_pre"


def run(metrics=("l0",), saes=None, **options):
    saes = saes if saes is not None else [TinySAE()]
    results = evaluate_tiny(list(metrics), rows=tiny_tokens(), saes=saes, **options)
    assert len(results)
    return results


def value(results, name, subject=None):
    assert not results.failed, results.failed[0].traceback
    return results.value(name, subject)["value"]


# Keys


class Layer(nn.Linear):
    """A user's layer: what it computes depends on a plain attribute."""

    alpha = 1.0

    def forward(self, x):
        return super().forward(x) * self.alpha


class Settings:
    """Says less of itself than it holds."""

    alpha = 1.0

    def to_dict(self):
        return {}


class Scaled(TinySAE):
    """An SAE with such a layer, and state that no tensor shows."""

    def __init__(self):
        super().__init__()
        self.layer = Layer(16, 32, dtype=torch.float32)
        self.settings = Settings()

    def encode(self, x):
        return torch.relu(self.layer(x) + 0.4) * (self.layer.alpha > 0) + (self.settings.alpha > 1)


def test_a_live_saes_state_outside_its_tensors_is_never_taken_for_what_it_was(tmp_path):
    sae = Scaled()
    first = value(run(saes={"sae": sae}, out=tmp_path), "l0.l0")
    sae.layer.alpha = -1.0
    second = value(run(saes={"sae": sae}, out=tmp_path), "l0.l0")
    sae.settings.alpha = 2.0
    third = value(run(saes={"sae": sae}, out=tmp_path), "l0.l0")
    assert first > 0 == second < third == 32


@pytest.fixture
def tokens(tmp_path):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (12, 17)))
    return {"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 16, "bos": False}


def changed_scaling(model):
    for block in model.model.layers:
        block.self_attn.scaling *= 3


def changed_forward(model):
    model.model.layers[0].mlp.forward = lambda x: x


def changed_attribute(model):
    model.model.layers[0].mlp.down_proj.alpha = 3.0


def changed_packed_weights(model):
    packed = model.model.layers[0].mlp.up_proj
    weight, bias = packed._weight_bias()
    packed.set_weight_bias(torch.quantize_per_tensor(weight.dequantize() * 0, 1.0, 0, torch.qint8), bias)


@pytest.mark.filterwarnings("ignore:.*quanti:DeprecationWarning", "ignore:.*quanti:UserWarning")
@pytest.mark.parametrize("change", [changed_scaling, changed_forward, changed_attribute, changed_packed_weights])
def test_a_live_models_state_outside_its_tensors_is_never_taken_for_what_it_was(tmp_path, tokens, change):
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.down_proj = Layer(48, 32, bias=False)
    mlp.up_proj = torch.ao.quantization.quantize_dynamic(nn.Sequential(mlp.up_proj), {nn.Linear})[0]

    def ce(**options):
        found = saeval.evaluate(
            model=model, data=tokens, saes={"sae": (TinySAE(d_in=32), HOOK)}, metrics=["ce"], allow=["*"], **options
        )
        return value(found, "ce.ce_clean")

    before = ce(out=tmp_path)
    change(model)
    assert ce(out=tmp_path) == ce() != before


def test_a_key_names_the_objects_of_a_call(tmp_path):
    model = TinyModel()
    first = run(["l0", "ce"], model=model, out=tmp_path, key="my-run-3")
    passes = dict(model.passes)
    again = run(["l0", "ce"], model=model, out=tmp_path, key="my-run-3")
    assert model.passes == passes
    assert again.forward_passes == 0
    assert [r.key for r in again] == [r.key for r in first]
    assert run(model=model, out=tmp_path, key="my-run-4").forward_passes > 0
    # Other names, widths and hooks under the same key are other objects.
    for other in ({"b": TinySAE()}, [TinySAE(d_sae=40)], [(TinySAE(), "blocks.2.hook_resid_pre")], [Scaled()]):
        assert run(saes=other, out=tmp_path, key="my-run-3").forward_passes > 0


@pytest.mark.parametrize("key", ["", "  ", 3, ["a"]])
def test_a_key_is_a_name(key):
    with pytest.raises(SaevalError, match="key is a name for the live objects, such as key='my-run-3'; got"):
        run(key=key)


class Fires(Metric):
    """Share of tokens on which more than some features fire."""

    name, version = "fires", 1
    more_than = 0

    def observe(self, feature_acts, mask):
        return Mean.of(((feature_acts > 0).sum(-1) > self.more_than).double(), mask)

    def conclude(self, total):
        return Scalar(total.value)


def test_a_metric_class_is_computed_anew_unless_it_is_named(tmp_path, monkeypatch):
    plugins = tiny_plugins()
    low = run([Fires], out=tmp_path)
    monkeypatch.setattr(Fires, "more_than", 8)
    high = run([Fires], out=tmp_path)
    assert value(low, "fires.fires") > value(high, "fires.fires")
    data = saeval.testing.register_rows("named", tiny_tokens())
    options = {"model": TinyModel(), "data": data, "out": tmp_path, "key": "k", "allow": ["*"], "plugins": plugins}
    named = [saeval.evaluate(saes=[TinySAE()], metrics=[Fires], **options) for _ in range(2)]
    assert [r.forward_passes > 0 for r in named] == [True, False]
    assert (
        "fires" not in saeval.registry.registry.Registry(plugins).metrics.names()
    )  # the caller's plugins stay as they are


def test_a_class_defined_again_is_the_one_that_runs():
    """As in a notebook, with one collection of plugins."""
    data, plugins = saeval.testing.register_rows("again", tiny_tokens()), tiny_plugins()

    def fires(threshold):
        again = type("Fires", (Fires,), {"more_than": threshold})
        found = saeval.evaluate(
            model=TinyModel(), saes=[TinySAE()], data=data, metrics=[again], plugins=plugins, allow=["*"]
        )
        return value(found, "fires.fires")

    assert fires(0) > fires(8) > fires(30) == 0


def test_equal_live_saes_are_each_their_own_also_in_groups_and_controls(tmp_path):
    sae = TinySAE()
    found = run(
        ["l0", {"functional_stability": {"over": "both"}}], saes={"a": sae, "b": sae, "c": TinySAE()}, out=tmp_path,
        groups={"both": ["a", "b", "c"]}, controls=["shuffled_decoder"],
    )  # fmt: skip
    assert not found.failed, found.failed[0].traceback
    keys = [r.key for r in found]
    assert {r.subject for r in found} >= {"a", "b", "c"}
    assert len(set(keys)) == len(keys)
    again = run(["l0"], saes={"a": sae}, controls=["shuffled_decoder"], out=tmp_path)
    assert not {r.key for r in again} & set(keys)


def test_folds_that_no_later_call_can_use_are_not_stored(tmp_path):
    folds = tmp_path / "evaluate" / "folds"
    metrics = ["reconstruction", "density"]
    run(metrics, out=tmp_path, controls=["mean"])
    of_model = sorted(folds.glob("*"))
    run(metrics, out=tmp_path, controls=["mean"])
    assert sorted(folds.glob("*")) == of_model  # a spec has an identity of its own, and so has the mean at its hook
    assert of_model


def test_a_live_models_folds_are_stored_where_it_is_named(tmp_path, tokens):
    def stored(**options):
        saeval.evaluate(
            model=tiny_model("gpt2"), data=tokens, saes={"sae": (TinySAE(d_in=32), HOOK)}, metrics=["reconstruction"],
            controls=["mean"], allow=["*"], out=tmp_path, **options,
        )  # fmt: skip
        return len(list((tmp_path / "evaluate" / "folds").glob("*")))

    assert stored() == stored() == 0
    assert stored(key="a") == stored(key="a") > 0


def test_it_is_said_once_that_nothing_is_reused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="saeval"):
        run(out=tmp_path)
        run(out=tmp_path)
        run(out=tmp_path / "named", key="k")
        run()
    said = [r.getMessage() for r in caplog.records if "key=" in r.getMessage()]
    assert len(said) == 1
    assert str(tmp_path) in said[0]


def test_an_interrupted_call_resumes_where_its_objects_are_named(tmp_path):
    class Interrupted(TinyModel):
        stop = 8

        def capture(self, *arguments, **named):
            if sum(self.passes.values()) == self.stop:
                self.stop = -1
                raise KeyboardInterrupt
            return super().capture(*arguments, **named)

    model = Interrupted()
    options = {"model": model, "out": tmp_path, "key": "k", "batch_size": 2, "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    assert len(Store(tmp_path / "evaluate").checkpoints()) == 1
    found = run(**options)
    assert sum(model.passes.values()) == 12  # 24 rows, none of them twice
    assert value(found, "l0.l0") == value(run(), "l0.l0")


def test_results_without_a_folder_name_none(tmp_path):
    assert run().folder is None
    kept = run(out=tmp_path).folder
    assert kept == tmp_path / "evaluate"
    assert (kept / "manifest.json").is_file()


def test_code_of_a_plugin_is_its_own_file_and_not_its_decorators(tmp_path):
    """A decorated function, a partial and an object are known by the file that they are written in."""
    file = tmp_path / "plugin.py"

    def keys(body):
        file.write_text(
            "import functools, torch\nfrom saeval import Mean, Metric, Scalar, hookimpl\n"
            f"@torch.no_grad()\ndef decorated(mask):\n    return {body}\n"
            "def plain(mask, times=1):\n    return mask\n"
            "partly = functools.partial(plain, times=2)\npartly.__name__ = 'partly'\n"
            "@hookimpl\ndef saeval_quantities():\n    return [decorated, plain, partly]\n"
        )
        quantities = saeval.registry.registry.Registry(Plugins([file], discover=False)).quantities
        assert {"decorated", "plain", "partly"} <= set(quantities.names())
        saeval.base.identity._source_hash.cache_clear()
        return [quantities[name].identity for name in ("decorated", "plain", "partly")]

    before, after = keys("mask"), keys("~mask")
    assert len(set(before)) == 1
    assert every(a != b for a, b in zip(before, after, strict=True))


# Evaluation mode


class Dropping(nn.Module):
    """An SAE of torch modules that was left in training mode, one module of it in a plain list."""

    def __init__(self):
        super().__init__()
        tiny = TinySAE()
        self.W_enc, self.W_dec = nn.Parameter(tiny.W_enc), nn.Parameter(tiny.W_dec)
        self.inner = nn.Sequential(nn.Dropout(0.9))
        self.frozen = nn.Dropout(0.9).eval()
        self.held = [nn.Dropout(0.9)]
        self.seen = []

    def encode(self, x):
        self.seen.append((self.training, self.inner[0].training, self.held[0].training))
        return self.held[0](self.inner(torch.relu(x @ self.W_enc - 0.5)))

    def decode(self, acts):
        return self.frozen(self.inner(acts @ self.W_dec))


class Plain:
    """No module itself: it holds one."""

    def __init__(self):
        self.module = Dropping()
        self.W_dec = self.module.W_dec

    def encode(self, x):
        return self.module.encode(x)

    def decode(self, acts):
        return self.module.decode(acts)


class Failing(Dropping):
    def decode(self, acts):
        raise RuntimeError("planted")


def modes(module):
    return [part.training for part in [*module.modules(), *module.held]]


@pytest.mark.parametrize("kind", [Dropping, Plain])
def test_a_live_sae_runs_in_evaluation_mode_and_comes_back_as_it_was(kind):
    sae = kind()
    module = sae if kind is Dropping else sae.module
    before = modes(module)
    assert sum(before) == 4
    metrics = ["reconstruction", "l0", {"functional_stability": {"over": "pair"}}]
    found = run(metrics, saes={"sae": (sae, HOOK), "other": (kind(), HOOK)}, groups={"pair": ["*"]})
    assert not found.failed, found.failed[0].traceback
    expected = run(["reconstruction", "l0"])
    for name in ("reconstruction.explained_variance", "l0.l0"):
        assert value(found, name, "sae") == pytest.approx(value(expected, name), rel=1e-6)
    assert module.seen
    assert every(none(seen) for seen in module.seen)
    assert modes(module) == before


def test_a_live_sae_that_fails_comes_back_as_it_was():
    sae = Failing()
    before = modes(sae)
    found = run(["reconstruction"], saes={"sae": (sae, HOOK)})
    assert [r.status for r in found] == ["failed"]
    assert "planted" in found[0].reason
    assert modes(sae) == before


# What `encode` returns

Output = namedtuple("Output", "top_acts top_indices pre_acts")


class TopK(TinySAE):
    """Gives (values, indices) of its 4 largest activations."""

    form = "pair"

    def dense(self, x):
        acts = super().encode(x)
        return acts * (acts >= acts.topk(4, dim=-1).values[..., -1:])

    def encode(self, x):
        values, indices = self.dense(x).topk(4, dim=-1)
        more = {"named": Output(values, indices, x), "int32": (values, indices.int())}
        return more.get(self.form, (values, indices))


class SparseDecoder(TopK):
    """As sparsify's: `decode` takes what `encode` gives."""

    def decode(self, top_acts, top_indices):
        assert top_acts.shape == top_indices.shape
        return (self.W_dec[top_indices] * top_acts[..., None]).sum(-2) + self.b_dec


class Dense(TopK):
    def encode(self, x):
        return self.dense(x)


class SparseLayout(TopK):
    def encode(self, x):
        return self.dense(x).to_sparse()


def with_form(cls, form):
    sae = cls()
    sae.form = form
    return sae


METRICS = ["l0", "density", "reconstruction", "ce"]


@pytest.fixture(scope="module")
def dense():
    return run(METRICS, saes={"sae": Dense()})


@pytest.mark.parametrize("cls", [TopK, SparseDecoder, SparseLayout])
@pytest.mark.parametrize("form", ["pair", "named", "int32"])
def test_sparse_encodings_give_what_dense_ones_give(dense, cls, form):
    found = run(METRICS, saes={"sae": with_form(cls, form)})
    assert not found.failed, found.failed[0].traceback
    compared = numbers(dense, found)
    for name, (record, its) in some(compared):
        assert its["value"] == pytest.approx(record["value"], rel=1e-5, abs=1e-7), name
    assert len(compared) > 8
    assert value(found, "density.dead") < 32


class Returns(TinySAE):
    """Gives whatever it was told to."""

    def __init__(self, encoded=None, decoded=None):
        super().__init__()
        self.encoded = encoded or (lambda acts: acts)
        self.decoded = decoded or (lambda x: x)

    def encode(self, x):
        return self.encoded(super().encode(x))

    def decode(self, acts, context=None):
        return self.decoded(super().decode(acts))


class Unsized(Returns):
    """Nothing shows how many features it has."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.decoder = self.__dict__.pop("W_dec")

    def decode(self, acts):
        return acts @ self.decoder


def top(acts, k=4):
    return tuple(acts.topk(k, dim=-1))


@pytest.mark.parametrize(
    ("sae", "said"),
    [
        (Returns(lambda acts: acts[..., :7]), "a tensor [1, 12, 7] of float32; expected one tensor [1, 12, 32], d_sae"),
        (Returns(lambda acts: acts.flatten(0, 1)), "a tensor [12, 32] of float32; expected one tensor [1, 12, 32]"),
        (Returns(lambda acts: top(acts, 32)), "expected fewer values than features, or dense activations"),
        (Returns(lambda acts: (top(acts)[0], top(acts)[1] + 29)), "expected indices from 0 to 31; got indices from"),
        (Returns(lambda acts: top(acts)[::-1]), "a tuple of a tensor [1, 12, 4] of int64, a tensor [1, 12, 4] of"),
        (Returns(lambda acts: {"acts": acts}), "returned a dict; expected one tensor [1, 12, 32]"),
        (Returns(lambda acts: (acts, acts, acts)), "expected one tensor [1, 12, 32]"),
        (Returns(decoded=lambda x: (x, x)), "'decode' of Returns returned a tuple of a tensor [1, 12, 16] of float32"),
        (Returns(decoded=lambda x: x[0, 0]), "'decode' of Returns returned a tensor [16] of float32; expected one"),
        (Unsized(top), "expected an attribute 'd_sae' of the object"),
        (TinySAE(d_in=20), "the SAE takes 20 inputs, but blocks.1.hook_resid_pre of model 'tiny' is 16 wide"),
    ],
)  # fmt: skip
def test_what_is_not_feature_activations_is_refused_before_anything_is_streamed(sae, said):
    model = TinyModel()
    with pytest.raises(SaevalError) as raised:
        run(saes={"mine": sae}, model=model)
    assert said in str(raised.value)
    assert "mine: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sum(model.passes.values()) == 0


def test_a_width_that_only_a_pass_shows_is_refused_before_anything_is_streamed():
    class Hidden:
        """Nothing shows its widths."""

        def __init__(self):
            self.layers = nn.Linear(20, 32), nn.Linear(32, 20)

        def encode(self, x):
            return torch.relu(self.layers[0](x))

        def decode(self, acts):
            return self.layers[1](acts)

    model = TinyModel()
    with pytest.raises(SaevalError) as raised:
        run(saes={"mine": (Hidden(), HOOK)}, model=model)
    assert "mine: 'encode' of Hidden fails on activations [1, 12, 16] of blocks.1.hook_resid_pre" in str(raised.value)
    assert "check the hook and the SAE's width" in str(raised.value)
    assert sum(model.passes.values()) == 0


def test_a_context_is_given_back_to_decode():
    class Centred(TinySAE):
        def encode(self, x):
            mean = x.mean(-1, keepdim=True)
            return super().encode(x - mean), mean

        def decode(self, acts, mean):
            return super().decode(acts) + mean

    found = run(["reconstruction", "l0"], saes={"sae": Centred()})
    assert value(found, "l0.l0") > 0
    assert np.isfinite(value(found, "reconstruction.explained_variance"))


def test_unsized_saes_work_once_they_have_encoded():
    found = run(["l0", "density"], saes={"sae": Unsized(functional.relu)})
    assert value(found, "l0.l0") == value(run(["l0"]), "l0.l0")


def test_partials_and_bound_methods_lead_to_modules():
    class Indirect:
        def __init__(self, module):
            self.encode, self.decode = functools.partial(module.encode), module.decode

    module = Dropping()
    found = run(["reconstruction"], saes={"sae": (Indirect(module), HOOK)})
    expected = run(["reconstruction"])
    name = "reconstruction.explained_variance"
    assert value(found, name) == pytest.approx(value(expected, name), rel=1e-6)
    assert sum(modes(module)) == 4
