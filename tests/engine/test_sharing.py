"""Values that cells share: whoever writes into them fails alone, and nobody else sees a wrong number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeval import Mean, Metric, Scalar, evaluate
from saeval.interfaces.substitute import Encoding, Substitute
from saeval.registry.builtin_quantities import encoding, feature_acts, reconstruction
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every

OTHERS = ["l0", "reconstruction", {"ce": {"as": "ce"}}]


class Eraser(Metric):
    """Zeroes the activations it is shown."""

    name, version = "eraser", 1

    def observe(self, activations, mask):
        return Mean.of(activations.zero_().sum(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


class Raiser(Metric):
    """Writes, and then raises something else."""

    name, version = "raiser", 1

    def observe(self, mask, reconstruction):
        reconstruction.add_(1)
        raise ValueError("after the deed")

    def conclude(self, total):
        return Scalar(total.value)


class Normaliser(Metric):
    """Normalises the decoder's rows in place: a weights-only metric."""

    name, version = "normaliser", 1

    def conclude(self, W_dec):
        W_dec *= 2 / W_dec.norm(dim=1, keepdim=True)
        return Scalar(float(W_dec.norm(dim=1).mean()))


class DecoderNorm(Metric):
    """Mean norm of the decoder's rows."""

    name, version = "decoder_norm", 1

    def conclude(self, W_dec):
        return Scalar(float(W_dec.norm(dim=1).mean()))


def doubled(feature_acts):
    """Feature activations, doubled in place."""
    return feature_acts.mul_(2)


class Doubled(Metric):
    """Asks for a quantity that writes."""

    name, version = "doubled", 1

    def observe(self, doubled, mask):
        return Mean.of(doubled.sum(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


def values(results):
    return {(r.metric, r.subject, name): v.get("value") for r in results for name, v in r.values.items()}


class Through(Metric):
    """Writes past the tensors' version counters, in each way there is."""

    version = 1

    def conclude(self, total):
        return Scalar(total.value)


class ThroughNumpy(Through):
    name = "through_numpy"

    def observe(self, activations, mask):
        view = activations.numpy()
        view -= view.mean(-1, keepdims=True)
        return Mean.of(activations.norm(dim=-1), mask)


class ThroughData(Through):
    name = "through_data"

    def observe(self, feature_acts, mask):
        feature_acts.data[feature_acts.data < 1] = 0
        return Mean.of(feature_acts.sum(-1), mask)


class ThroughView(Through):
    name = "through_view"

    def observe(self, reconstruction, mask):
        reconstruction[:, 1:].mT.numpy()[:] = 0
        return Mean.of(reconstruction.sum(-1), mask)


class ThroughSet(Through):
    name = "through_set"

    def observe(self, mask, activations):
        mask.set_(torch.ones_like(mask))
        return Mean.of(activations.norm(dim=-1), mask)


class ThroughArray(Through):
    """Writes into an array."""

    name = "through_array"

    def observe(self, token_keys, activations, mask):
        token_keys += 1
        return Mean.of(activations.norm(dim=-1), mask)


class ThroughBatch(Through):
    """Writes into the batch: its arrays and its fields."""

    name = "through_batch"

    def observe(self, batch, activations, mask):
        batch.clusters[:] = 0
        batch.sequence_ids = batch.sequence_ids[::-1]
        return Mean.of(activations.norm(dim=-1), mask)


def emptied(spliced_scores):
    """Overwrites a field of a record that others share."""
    spliced_scores.kl.numpy()[:] = 0
    return spliced_scores.kl


class Emptied(Through):
    name = "emptied"

    def observe(self, emptied, mask):
        return Mean.of(emptied, mask)


THROUGH = [ThroughNumpy, ThroughData, ThroughView, ThroughSet, ThroughArray, ThroughBatch, Emptied]


@pytest.mark.parametrize("culprit", THROUGH)
def test_a_write_that_the_version_counters_do_not_see_is_seen(culprit):
    others = ["l0", "reconstruction", "ce", "kl", "perturbation"]
    options = {"controls": ["resample"], "batch_size": 7}
    honest = values(evaluate_tiny(others, **options))
    results = evaluate_tiny([culprit.name, *others], culprit, quantities=[emptied], **options)
    assert {r.metric for r in results.failed} == {culprit.name}
    assert every("writes in place into" in r.reason for r in results.failed)
    assert {k: v for k, v in values(results).items() if k[0] != culprit.name} == honest


class NumpyNormaliser(Metric):
    """Normalises the decoder's rows through numpy, and its own total."""

    name, version = "numpy_normaliser", 1

    def observe(self, mask):
        return Mean.of(mask.double())

    def conclude(self, total, W_dec):
        W_dec.numpy()[:] *= 2
        return Scalar(float(W_dec.norm(dim=1).mean()))


class Halver(Metric):
    name, version = "halver", 1

    def observe(self, mask):
        return Mean.of(mask.double())

    def conclude(self, total):
        total.numerator[:] /= 2
        return Scalar(total.value)


def test_conclude_may_not_write_through_numpy_either():
    results = evaluate_tiny(["numpy_normaliser", "halver", "decoder_norm"], NumpyNormaliser, Halver, DecoderNorm)
    assert [r.metric for r in results.failed] == ["numpy_normaliser", "halver"]
    assert results.value("decoder_norm.decoder_norm")["value"] == pytest.approx(1, abs=1e-6)


class Thresholding(TinySAE):
    """An SAE whose decode writes into the features it is given, through numpy."""

    def decode(self, feature_acts):
        feature_acts.numpy()[feature_acts.numpy() < 1] = 0
        return super().decode(feature_acts)


def test_a_live_sae_that_writes_into_its_features_through_numpy_fails_alone(honest):
    results = evaluate_tiny(OTHERS, saes={"tinysae": TinySAE(), "bad": Thresholding(seed=1)}, batch_size=7)
    assert {(r.subject, r.metric) for r in results.failed} == {("bad", "reconstruction"), ("bad", "ce")}
    assert "'bad', in 'reconstruction', writes in place into 'encoding'" in results.failed[0].reason
    found = values(results)
    assert {k: v for k, v in found.items() if k[1] == "tinysae"} == honest
    sound = values(evaluate_tiny(["l0"], saes={"bad": TinySAE(seed=1)}, batch_size=7))
    assert found["l0", "bad", "l0"] == sound["l0", "bad", "l0"]


class Quitting(Through):
    name = "quitting"

    def observe(self, mask):
        raise SystemExit(3)


def test_a_metric_that_calls_exit_costs_its_own_cell():
    results = evaluate_tiny(["quitting", "l0"], Quitting)
    assert [r.status for r in results] == ["failed", "ok"]
    assert "it calls sys.exit(3)" in results[0].reason


class Interrupted(Through):
    """Ctrl-C arrives while a metric has written half of its copy into an argument."""

    name = "interrupted"

    def observe(self, activations, mask):
        activations.zero_()
        raise KeyboardInterrupt


def test_ctrl_c_arrives_whatever_was_written_into():
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiny(["interrupted", "l0"], Interrupted)


@pytest.fixture(scope="module")
def honest():
    return values(evaluate_tiny(OTHERS, batch_size=7))


@pytest.mark.parametrize("culprit", [Eraser, Raiser, Doubled])
def test_a_metric_that_writes_in_place_fails_alone_and_changes_no_other_number(culprit, honest):
    quantities = [doubled] if culprit is Doubled else []
    results = evaluate_tiny([culprit.name, *OTHERS], culprit, quantities=quantities, batch_size=7)
    (failed,) = results.failed
    assert failed.metric == culprit.name
    assert "writes in place into" in failed.reason
    assert "clone()" in failed.reason
    assert {k: v for k, v in values(results).items() if k[0] != culprit.name} == honest


def test_weights_written_into_are_fresh_for_the_next_cell_and_the_users_object_is_untouched():
    sae = TinySAE()
    before = sae.W_dec.clone()
    results = evaluate_tiny(["normaliser", "decoder_norm"], Normaliser, DecoderNorm, saes=[sae])
    assert [r.metric for r in results.failed] == ["normaliser"]
    assert results.value("decoder_norm.decoder_norm")["value"] == pytest.approx(1, abs=1e-6)
    assert torch.equal(sae.W_dec, before)


class Centring(TinySAE):
    """An SAE that centres its input in place, as notebooks do."""

    def encode(self, x):
        x -= 1
        return super().encode(x)


def test_a_live_sae_may_write_into_its_own_copy_of_the_activations(honest):
    results = evaluate_tiny(OTHERS, saes={"tinysae": TinySAE(), "centring": Centring()}, batch_size=7)
    assert not results.failed
    found = {k: v for k, v in values(results).items() if k[1] == "tinysae"}
    assert found == honest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_live_sae_computes_in_its_own_dtype_whatever_the_models(dtype):
    results = evaluate_tiny(OTHERS, model=TinyModel(dtype=dtype), rows=tiny_tokens(), saes=[TinySAE()])
    assert [r.status for r in results] == ["ok"] * len(results)


class Elsewhere(Substitute):
    """Computes on the device that has no memory, and takes its results from elsewhere."""

    device = torch.device("meta")

    def encode(self, activations):
        assert activations.device == self.device
        return Encoding(torch.ones(2, 3, 5))

    def decode(self, encoding, activations):
        assert activations.device == self.device
        return torch.ones(2, 3, 4)


def test_an_sae_gets_its_inputs_on_its_own_device_and_gives_its_outputs_on_the_models():
    sae, x, mask = Elsewhere(), torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    keys = np.zeros((2, 3), dtype=np.uint64)
    found = encoding(sae, x, keys)
    assert feature_acts(sae, found, mask).device == reconstruction(sae, found, x, keys).device == x.device


def halved(held):
    held.numpy()[...] *= 0.5


class Halving(Metric):
    """Writes into the weights of the SAE that it asks for."""

    name, how = "halving", staticmethod(lambda sae: None)

    def observe(self, sae, activations, mask):
        type(self).how(sae)
        return Mean.of(activations.double().sum(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


@pytest.mark.parametrize(
    "how",
    [
        lambda sae: halved(sae.module.W_dec),
        lambda sae: sae.module.W_dec.mul_(0.5),
        lambda sae: halved(sae._weights["W_dec"]),
    ],
    ids=["numpy", "in place", "shown weights"],
)
def test_a_write_into_a_live_saes_weights_fails_alone_and_is_taken_back(how):
    class Writer(Halving):
        name = "writer"

    Writer.how = staticmethod(how)
    sae = TinySAE()
    before = sae.W_dec.clone()
    expected = evaluate_tiny(["reconstruction"], saes={"a": TinySAE()})[0].values
    writer, other = evaluate_tiny(["writer", "reconstruction"], Writer, saes={"a": sae})
    assert writer.status == "failed"
    assert "writes in place into 'sae'" in writer.reason
    assert other.values == expected
    assert torch.equal(sae.W_dec, before)


def test_a_write_into_a_loaded_saes_weights_fails_alone():
    class Writer(Halving):
        name = "writer"
        how = staticmethod(lambda sae: halved(sae.weights["W_dec"]))

    options = {
        "model": "testbed",
        "data": {"use": "python-stdlib", "context": 32, "sequences": 4},
        "saes": ["testbed/relu-5"],
    }
    (expected,) = evaluate(metrics=["reconstruction"], **options)
    writer, other = evaluate(metrics=[Writer, "reconstruction"], **options)
    assert (writer.status, other.values) == ("failed", expected.values)
