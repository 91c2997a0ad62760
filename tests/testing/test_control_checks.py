"""`check_control` on controls that are wrong, each in its own way, and on sound ones."""

from __future__ import annotations

import copy as copies

import numpy as np
import pytest
import torch

from saeval.plugin import Control, Encoding, Substitute, hashed, normal
from saeval.testing import check_control
from saeval_controls.damaged import NoisyReconstruction
from saeval_controls.shuffled import ShuffledFeatures


class Noisy(Substitute):
    """The activations with noise that belongs to the token."""

    name, keys = "planted", None

    def __init__(self, seed=0, copy=0, scale=1.0):
        self.seed, self.copy, self.scale = seed, copy, scale

    def at(self, token_keys):
        bound = copies.copy(self)
        bound.keys = token_keys
        return bound

    def drawn(self, activations):
        return normal(hashed(self.seed, self.copy, self.keys), activations.shape[-1])

    def decode(self, encoding, activations):
        return activations + self.scale * self.drawn(activations).to(activations)


class Planted(Control):
    """Noise, which each planted control spoils."""

    name, substitute, copies = "planted", Noisy, 1

    def build(self):
        return self.substitute()


def undocumented():
    own = {name: member for name, member in vars(Planted).items() if name == "__init__" or not name.startswith("_")}
    return type("Made", (Control,), own)


def planted(**members):
    """A control that differs from the sound one in these members."""
    return type("Made", (Planted,), {"__doc__": "A control.", **members})


def spoiled(**members):
    """A control whose substitute differs from the sound one in these members."""
    return planted(substitute=type("Spoiled", (Noisy,), members))


class Seeded(Planted):
    """Ignores its seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed


class Dosed(Planted):
    """The larger the share, the smaller the noise."""

    dose = "share"

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def build(self):
        return Noisy(scale=1 - 0.9 * self.share)


def counted(self, encoding, activations):
    self.count = getattr(self, "count", 0) + 1
    return activations * self.count


def by_place(self, encoding, activations):
    return activations * torch.arange(1, len(activations) + 1).view(-1, 1, 1)


def by_batch(self, encoding, activations):
    return activations - activations.mean((0, 1))


def by_row(self, encoding, activations):
    return activations - activations.mean(1, keepdim=True)


def in_place(self, encoding, activations):
    activations.numpy()[:] = 0
    return activations


def unseeded(self, encoding, activations):
    return activations + torch.as_tensor(np.random.default_rng().normal(size=activations.shape)).to(activations)


def globally(self, encoding, activations):
    return activations + torch.randn_like(activations)


class Half(Noisy):
    """Features that are not those of its weights."""

    d_sae, hook_name = 16, "blocks.1.hook_resid_pre"
    weights = property(lambda self: {"W_dec": torch.eye(16).flip(0)})

    def encode(self, activations):
        return Encoding(activations.clone())

    def decode(self, encoding, activations):
        return encoding.feature_acts.to(activations.dtype) / 2


class Remembering(Planted):
    """A control."""

    def build(self, d_in):
        self.width = d_in
        return Noisy()


WRONG = {
    "no docstring": (undocumented(), "has no docstring"),
    "name with a space": (planted(name="my noise"), "name is 'my noise'; it is written in suites"),
    "no build": (planted(build=None), "it has no method 'build'"),
    "per layer": (planted(per="layer"), "'per' is 'layer'; it must be 'hook' or 'sae'"),
    "version 0": (planted(version=0), "version is 0; expected a whole number"),
    "a word for a place": (planted(standing="first"), "standing is 'first'; expected an int or None"),
    "a dose that is no parameter": (planted(dose="share"), "dose is 'share', which is no parameter of __init__"),
    "no draws": (planted(copies=0), "copies is 0; return the number of draws"),
    "nothing built": (planted(build=lambda self: None), "failed .*build has to return a Substitute"),
    "an unknown request": (planted(build=lambda self, activation_mode: Noisy()), "activation_mode"),
    "state": (Remembering, "sets its attribute 'width'"),
    "a column less": (spoiled(decode=lambda self, e, x: x[..., 1:]), "failed|returned the shape"),
    "another dtype": (spoiled(decode=lambda self, e, x: x.half()), "float16"),
    "not finite": (spoiled(decode=lambda self, e, x: x / 0), "undefined|inf"),
    "in place": (spoiled(decode=in_place), "writes in place|changed its argument"),
    "a counter": (spoiled(decode=counted, at=lambda self, keys: self), "keeps state between calls"),
    "unseeded": (spoiled(decode=unseeded), "draws random numbers without a key; .*token_keys"),
    "a global generator": (spoiled(decode=globally), "draws random numbers without a key; .*token_keys"),
    "by place in the batch": (spoiled(decode=by_place), "the other rows of its batch|how rows are split into batches"),
    "mean of the batch": (spoiled(decode=by_batch), "the other rows of its batch"),
    "mean of the row": (spoiled(decode=by_row), "the other tokens of its row; .*reads_earlier = True"),
    "no keys": (spoiled(at=lambda self, keys: None), "failed|at.token_keys. returned"),
    "a seed without effect": (Seeded, "another seed changes nothing; draw from hashed"),
    "draws that are equal": (planted(copies=2), "draws 0 and 1 put the same in place of every token; request 'copy'"),
    "a dose that repairs": (Dosed, "with share 0.2, .* with 1.0; a larger dose has to damage more"),
    "other weights": (planted(substitute=Half), r"feature 0 alone moves x̂ in a direction whose cosine with weights\['W_dec'\]\[0\]"),
}  # fmt: skip


@pytest.mark.parametrize(("control", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_control_is_caught_with_its_cause(control, said):
    with pytest.raises(Exception, match=f"(?s){said}"):
        check_control(control)


def test_the_table_is_long_enough():
    assert len(WRONG) >= 15


@pytest.mark.parametrize("control", [Planted, ShuffledFeatures, NoisyReconstruction])
def test_a_sound_control_passes(control):
    params = {"share": 0.5} if control is NoisyReconstruction else {"seeds": 2} if control is ShuffledFeatures else {}
    assert len(check_control(control, params)) == (2 if control is ShuffledFeatures else 1)
