"""Values that are NaN or infinite inside the mask: undefined, with their count; outside the mask they are nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeval import Mean, Metric, Scalar
from saeval.base.errors import SuiteError
from saeval.interfaces.data import PairBatch
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some
from saeval.text.tokens import TokenDataset

HOOK = "blocks.0.hook_resid_pre"
TOKEN = 7
"""The token whose values are spoilt: at the first block its activations are its embedding."""


def long_rows():
    return tiny_tokens(rows=40, documents=40)


def spoilt(rows, token=TOKEN):
    """How many tokens of the mask are the spoilt one, and how many there are."""
    batch = rows.batch(range(len(rows)), "cpu")
    return int(((batch.tokens == token) & batch.mask).sum()), int(batch.mask.sum())


class Spoilt(TinySAE):
    """An SAE whose reconstruction, or one feature, is `value` on one token."""

    def __init__(self, value=float("nan"), token=TOKEN, features=False, seed=3):
        super().__init__(HOOK, seed=seed)
        self.value, self.features = value, features
        self.wrong = TinyModel().embed[token]

    def encode(self, x):
        acts = super().encode(x)
        here = (x == self.wrong).all(-1)
        acts[..., 0] = torch.where(here, 1e6, acts[..., 0].clamp(max=1e3))
        if self.features:
            acts[..., 0] = torch.where(here, self.value, acts[..., 0])
        return acts

    def decode(self, acts):
        found = super().decode(acts.clamp(max=1e3))
        if not self.features:
            found[..., 0] = torch.where(acts[..., 0] == 1e6, self.value, found[..., 0])
        return found


OF_RECONSTRUCTIONS = [
    "reconstruction", "downstream_reconstruction", "ce", "kl",
    {"perturbation": {"draws": 1, "positions": 1, "nulls": []}},
    {"perturbation_curve": {"draws": 1, "cosines": [0.5]}},
]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reconstruction_that_is_not_finite_is_undefined_with_its_count(value):
    rows = long_rows()
    bad, tokens = spoilt(rows)
    results = evaluate_tiny(OF_RECONSTRUCTIONS, rows=rows, saes={"bad": Spoilt(value)}, batch_size=4)
    assert bad > 2
    assert [r.status for r in results] == ["undefined"] * 6
    assert {r.reason for r in results} == {f"NaN or infinite values in the reconstruction of {bad} of {tokens} tokens"}


def test_a_feature_that_is_not_finite_does_not_count_as_firing():
    rows = long_rows()
    bad, tokens = spoilt(rows)
    results = evaluate_tiny(
        ["l0", "density"], rows=rows, saes={"bad": Spoilt(features=True), "good": TinySAE(HOOK)}, batch_size=4
    )
    assert {(r.subject, r.status) for r in results} == {("bad", "undefined"), ("good", "ok")}
    reasons = {r.reason for r in results if r.subject == "bad"}
    assert reasons == {f"NaN or infinite values in the feature activations of {bad} of {tokens} tokens"}


def test_a_token_outside_the_mask_may_be_anything():
    rows = long_rows()
    batch = rows.batch(range(len(rows)), "cpu")
    without = TokenDataset.from_arrays(
        np.concatenate([batch.tokens.numpy(), batch.targets.numpy()[:, -1:]], 1),
        np.where(
            np.concatenate([batch.real.numpy(), batch.mask.numpy()[:, -1:]], 1), batch.clusters[:, None], -1
        ).astype(np.int32),
        batch.clusters,
        (TOKEN,),
    )
    assert spoilt(without)[0] == 0
    assert spoilt(rows)[0] > 0
    results = evaluate_tiny(["reconstruction", "ce", "l0"], rows=without, saes={"bad": Spoilt()})
    assert [r.status for r in results] == ["ok"] * 3


class Overflowing(TinyModel):
    """A model whose activations at the hook are infinite on one token, as float16 gives them."""

    def capture(self, batch, hooks, final, resumable=()):
        found = super().capture(batch, hooks, final, resumable)
        for hook, x in found.activations.items():
            found.activations[hook] = torch.where((batch.tokens == TOKEN)[..., None], torch.inf, x)
        return found


def test_activations_that_are_not_finite_say_so_and_not_the_sae():
    rows = long_rows()
    bad, tokens = spoilt(rows)
    results = evaluate_tiny(
        ["reconstruction", "l0", "ce"], rows=rows, model=Overflowing(), saes={"good": TinySAE(HOOK)},
        controls=["mean", "identity"], batch_size=4,
    )  # fmt: skip
    assert results
    for result in some(results):
        assert result.status == "undefined", (result.metric, result.subject)
        if result.metric != "l0" or result.subject == "good":  # controls have no features to speak of
            assert result.reason == f"NaN or infinite values in the activations at {HOOK} of {bad} of {tokens} tokens"


class Above(Metric):
    """A metric that compares, as a stranger writes one."""

    name, version = "above", 1

    def observe(self, reconstruction, mask):
        return Mean.of((reconstruction.norm(dim=-1) > 1).double(), mask)

    def conclude(self, total):
        return Scalar(total.value)


class Fussy(Above):
    """One that raises where it finds NaN."""

    name = "fussy"

    def observe(self, reconstruction, mask):
        if reconstruction.isnan().any():
            raise ValueError("NaN")
        return super().observe(reconstruction, mask)


def test_metrics_of_others_need_not_look_for_themselves():
    rows = long_rows()
    bad, tokens = spoilt(rows)
    for size in (1, 7, 40):
        results = evaluate_tiny(["above", "fussy"], Above, Fussy, rows=rows, saes={"bad": Spoilt()}, batch_size=size)
        assert [r.status for r in results] == ["undefined"] * 2
        expected = f"NaN or infinite values in the reconstruction of {bad} of {tokens} tokens"
        assert {r.reason for r in results} == {expected}


def test_what_is_fitted_on_other_documents_is_undefined_as_well():
    rows = long_rows()
    bad, tokens = spoilt(rows)
    metric = {"perturbation": {"draws": 1, "nulls": ["shuffled_error"]}}
    (result,) = evaluate_tiny([metric], rows=rows, saes={"bad": Spoilt()})
    expected = f"NaN or infinite values in the reconstruction of {bad} of {tokens} tokens of the fit split ('bad')"
    assert result.reason == expected
    saes = {"bad": Spoilt(features=True), "good": TinySAE(HOOK)}
    results = evaluate_tiny(["l0"], rows=rows, saes=saes, controls=["random", "shuffled_decoder"])
    found = {(r.cell["subjects"][0].get("of"), r.status) for r in results if r.cell["subjects"][0]["kind"] == "control"}
    assert found == {("bad", "undefined"), ("good", "ok")}


class Agreement(Metric):
    """A metric of a group."""

    name, version, subject = "agreement", 1, "group"

    def observe(self, reconstruction, mask):
        return Mean.of((reconstruction[0] > reconstruction[1]).double().mean(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


def test_a_group_names_the_member_whose_values_are_flawed():
    rows = long_rows()
    bad, tokens = spoilt(rows)
    results = evaluate_tiny(
        [{"agreement": {"over": "both", "controls": []}}], Agreement, rows=rows, saes={"good": TinySAE(HOOK), "bad": Spoilt()},
        groups={"both": ["*"]},
    )  # fmt: skip
    (result,) = results
    assert result.reason == f"NaN or infinite values in the reconstruction of {bad} of {tokens} tokens ('bad')"


class Interrupted(TinyModel):
    """Stops after some batches, once."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def capture(self, batch, hooks, final, resumable=()):
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt
        return super().capture(batch, hooks, final, resumable)


def test_the_count_survives_an_interruption(tmp_path):
    rows = long_rows()
    bad, tokens = spoilt(rows)
    options = {"rows": rows, "saes": {"bad": Spoilt()}, "batch_size": 4, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiny(["above"], Above, model=Interrupted(8), **options)
    (result,) = evaluate_tiny(["above"], Above, model=Interrupted(0), **options)
    assert result.reason == f"NaN or infinite values in the reconstruction of {bad} of {tokens} tokens"


def test_an_sae_that_is_undefined_does_not_keep_the_others_from_stopping():
    rows = tiny_tokens(rows=600, documents=600, seed=2)
    results = evaluate_tiny(
        ["reconstruction"], rows=rows, saes={"bad": Spoilt(), "good": TinySAE(HOOK)}, batch_size=50,
        precision={"reconstruction.mse": 100.0},
    )  # fmt: skip
    bad, good = results
    assert bad.status == "undefined"
    assert good.status == "ok"
    assert results.sample["stopped_adaptively"]
    assert bad.reason.endswith(f"of {results.sample['tokens']} tokens")


class Doubtful(TinyModel):
    """A reward model that gives NaN for texts that end in a certain token."""

    def _finish(self, x, batch):
        rewards = super()._finish(x, batch)
        last = batch.tokens[torch.arange(len(x)), batch.real.sum(1) - 1]
        return torch.where(last % 5 == 0, torch.nan, rewards)


def test_rewards_that_are_not_finite_are_counted_by_text():
    pairs = TinyPairs(40)
    batch = pairs.batch(range(40), "cpu")
    assert isinstance(batch, PairBatch)
    last = torch.stack([s.tokens[torch.arange(40), s.real.sum(1) - 1] for s in batch.sides])
    bad = int((last % 5 == 0).sum())
    assert 0 < bad < 80
    results = evaluate_tiny(
        ["reward_margin", "margin_recovered"], rows=pairs, model=Doubtful(kind="reward"), batch_size=7
    )
    assert [r.reason for r in results] == [f"NaN or infinite values in the reward of {bad} of 80 texts"] * 2


def test_weights_that_are_not_finite_are_undefined():
    sae = TinySAE(HOOK)
    sae.W_dec[3, :2] = torch.nan
    (result,) = evaluate_tiny(["weights"], saes={"bad": sae})
    assert result.status == "undefined"
    assert result.reason == "W_dec of 'bad' holds 2 NaN or infinite values of 512"


def test_the_preflight_does_not_blame_an_sae_for_activations_that_are_not_finite():
    rows = long_rows()
    with pytest.raises(SuiteError) as stopped:  # a random SAE is stopped all the same, for what it is
        evaluate_tiny(["l0"], rows=rows, model=Overflowing(), saes={"random": TinySAE(HOOK)}, allow=())
    assert "barely better than after a random rotation" in str(stopped.value)
    assert "NaN" not in str(stopped.value)


def test_infinities_of_either_sign_are_no_value_and_no_warning():
    class Both(Metric):
        name, version = "both", 1

        def observe(self, activations, mask):
            sign = activations.sum((1, 2)) > 0  # rows of one sign, which only sums over rows mix
            return Mean.of(torch.where(sign[:, None], torch.inf, -torch.inf).expand(mask.shape), mask)

        def conclude(self, total):
            return Scalar(total.value)

    for size in (1, 16):  # warnings are errors here
        (result,) = evaluate_tiny(["both"], Both, batch_size=size)
        assert result.values["both"]["value"] is None
        assert result.values["both"]["reason"]
