"""KL against float64: never negative, and precise to 1% however small."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saeval.interfaces.data import Batch
from saeval.interfaces.token_scores import score_tokens
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some


class Nearby(TinySAE):
    """x̂ = x + ε‖x‖d, d a unit vector."""

    def __init__(self, size, d_model=16, hook="blocks.1.hook_resid_pre"):
        super().__init__(hook, d_in=d_model, d_sae=d_model)
        self.size = size
        direction = torch.randn(d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.direction = direction / direction.norm()

    def encode(self, x):
        return x

    def decode(self, x):
        return x + self.size * x.norm(dim=-1, keepdim=True) * self.direction.to(x)


def of_logits(clean, new):
    """KL(clean || new) of logits in float64, with the error of their log-probabilities 10⁻¹⁶."""
    logp, logq = clean.double().log_softmax(-1), new.double().log_softmax(-1)
    delta = logp - logq
    small = delta.abs() < 1e-3
    series = delta**2 / 2 - delta**3 / 6 + delta**4 / 24
    precise = (logp.exp() * torch.where(small, series, delta + torch.expm1(-delta))).sum(-1)
    plain = (logp.exp() * delta).sum(-1)
    return torch.where(plain > 0.1, plain, precise)


@pytest.fixture(params=["compiled", "torch"])
def sums(request, monkeypatch):
    """Sums over the vocabulary by each of the two implementations."""
    compiled_from = 0 if request.param == "compiled" else 10**9
    monkeypatch.setattr("saeval.interfaces.token_scores.COMPILED_FROM", compiled_from)


class Logits(TinyModel):
    """A model whose final states are its logits."""

    def unembed(self, hidden):
        return hidden.clone()


def scores(clean, *new):
    """Scores of logits `[n, vocab]`; the target is symbol 1."""
    tokens = torch.ones(1, len(clean), dtype=torch.long)
    ones = torch.ones_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, tokens, ones, ones, np.zeros(1, int), np.zeros(1, int))
    return score_tokens(Logits(), batch, clean[None], [x[None] for x in new])


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("shift", [0.0, 7.0, 50.0, -95.0, -300.0])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_kl_of_float32_logits_is_that_of_float64(scale, shift):
    generator = torch.Generator().manual_seed(0)
    clean = (scale * torch.randn(40, 1000, generator=generator)).float()
    found = []
    for size in (2e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0):
        new = clean + (size * torch.randn(40, 1000, generator=generator)).float() + shift
        truth = of_logits(clean, new)
        kl = scores(clean, new)[0].kl[0].double()
        assert (kl >= 0).all()
        above = truth > 1e-10
        assert not above.any() or (kl[above] / truth[above] - 1).abs().max() < 0.01
        assert (kl - truth).abs().max() < 1e-5 * max(1, float(truth.max()))
        found += truth[above].tolist()
    assert min(found) < 1e-9
    assert max(found) > 1


@pytest.mark.usefixtures("sums")
def test_nll_is_that_of_float64_whatever_the_change():
    clean = 5 * torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    for size in (0.0, 1e-6, 0.01, 3.0, 100.0, 1e4):
        new = clean + size * torch.randn(20, 300, generator=torch.Generator().manual_seed(1))
        truth = -new.double().log_softmax(-1)[:, 1]
        assert torch.allclose(scores(clean, new)[0].nll[0].double(), truth, rtol=1e-6, atol=1e-6), size


@pytest.mark.usefixtures("sums")
def test_few_that_change_much_and_the_many_that_do_not():
    """One unlikely symbol becomes likely, one loses all: p rounds to 0 where q does not."""
    clean = torch.zeros(4, 50)
    clean[:, 3] = torch.tensor([-30.0, -90.0, -130.0, -1e4])
    new = clean.clone()
    new[:, 3] = 1.0
    new[:, 4] = -1e4
    truth = of_logits(clean, new)
    assert torch.allclose(scores(clean, new)[0].kl[0].double(), truth, rtol=1e-4)
    tail = clean.clone()
    tail[:, 3] += 25
    assert torch.allclose(scores(clean, tail)[0].kl[0].double(), of_logits(clean, tail), rtol=0.01, atol=1e-14)


@pytest.mark.usefixtures("sums")
def test_impossible_symbols():
    clean = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    clean[:, 7] = -math.inf
    new = clean + 1e-4 * torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    without = [torch.cat([x[:, :7], x[:, 8:]], 1) for x in (clean, new)]
    assert torch.allclose(scores(clean, new)[0].kl[0].double(), of_logits(*without), rtol=0.01, atol=0)
    back = new.clone()
    back[:, 7] = 0.0  # possible again
    logp, logq = without[0].double().log_softmax(-1), back.double().log_softmax(-1)
    expected = (logp.exp() * (logp - torch.cat([logq[:, :7], logq[:, 8:]], 1))).sum(-1)
    assert torch.allclose(scores(clean, back)[0].kl[0].double(), expected, rtol=1e-5)
    gone = new.clone()
    gone[:, 2] = -math.inf  # possible no more
    assert torch.isinf(scores(clean, gone)[0].kl).all()


@pytest.mark.usefixtures("sums")
def test_the_same_logits_have_no_kl():
    clean = 20 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    same, shifted = scores(clean, clean.clone(), clean + 4.0)
    assert (same.kl == 0).all()
    assert (shifted.kl < 1e-12).all()


@pytest.mark.usefixtures("sums")
def test_undefined_logits_leave_the_other_tokens_alone():
    clean = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))
    new = clean + torch.randn(6, 3000, generator=torch.Generator().manual_seed(1))
    expected = scores(clean, new)[0]
    bad = new.clone()
    bad[1, 5], bad[2, 2000], bad[3, 7] = math.nan, math.inf, -math.inf
    undefined = scores(clean, bad)[0]
    good = torch.tensor([0, 4, 5])
    for name in ("nll", "kl", "top1_agreement"):
        assert torch.equal(getattr(undefined, name)[0, good], getattr(expected, name)[0, good])
    assert undefined.nll[0].isnan().tolist() == [False, True, True, False, False, False]
    assert undefined.kl[0].isnan().tolist() == [False, True, True, False, False, False]
    assert undefined.kl[0, 3] == math.inf


@pytest.mark.usefixtures("sums")
def test_of_equal_logits_the_first_is_the_most_likely():
    clean = -50 - torch.rand(4, 5000, generator=torch.Generator().manual_seed(0))
    new = clean.clone()
    clean[:, 4000] = -40.0
    new[0, [1023, 1024, 4999]] = -30.0
    new[1, [4000, 4001]] = -40.0
    new[2, [2, 4000]] = -40.0
    new[3, [0, 4000]] = torch.tensor([-39.999996, -40.0])
    assert scores(clean, new)[0].top1_agreement[0].tolist() == [False, True, False, False]


def test_both_implementations_agree(monkeypatch):
    clean = 4 * torch.randn(10, 9000, generator=torch.Generator().manual_seed(0))
    new = [
        clean + size * torch.randn(10, 9000, generator=torch.Generator().manual_seed(1)) for size in (1e-4, 0.1, 3, 40)
    ]
    by_numba = scores(clean, *new)
    monkeypatch.setattr("saeval.interfaces.token_scores.COMPILED_FROM", 10**9)
    for compiled, plain in some(zip(by_numba, scores(clean, *new), strict=True)):
        torch.testing.assert_close(compiled.kl, plain.kl, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(compiled.nll, plain.nll, rtol=1e-6, atol=1e-6)
        assert torch.equal(compiled.top1_agreement, plain.top1_agreement)


def test_compiled_scores_depend_on_no_other_token_and_no_number_of_threads(monkeypatch):
    clean = torch.randn(7, 9000, generator=torch.Generator().manual_seed(0))
    new = clean + torch.randn(7, 9000, generator=torch.Generator().manual_seed(1))
    expected = scores(clean, new)[0]
    monkeypatch.setattr("saeval.interfaces.token_scores.TILE_ELEMENTS", 9000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threaded, alone = scores(clean, new)[0], scores(clean[4:5], new[4:5])[0]
    for name in ("nll", "kl", "top1_agreement", "top1_correct"):
        assert torch.equal(getattr(threaded, name), getattr(expected, name))
        assert torch.equal(getattr(alone, name)[0, 0], getattr(expected, name)[0, 4])


def test_equal_states_have_no_kl_however_their_products_round():
    class Uneven(Logits):
        def unembed(self, hidden):
            return hidden + 1e-6 * torch.arange(len(hidden))[:, None] * torch.arange(hidden.shape[-1])

    tokens = torch.ones(1, 5, dtype=torch.long)
    ones = torch.ones_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, tokens, ones, ones, np.zeros(1, int), np.zeros(1, int))
    clean = torch.randn(1, 5, 100, generator=torch.Generator().manual_seed(0))
    other = clean.clone()
    other[0, 3] += torch.arange(100) / 100
    itself, same, changed = score_tokens(Uneven(), batch, clean, [clean, clean.clone(), other])
    assert torch.equal(same.nll, itself.nll)
    assert (same.kl == 0).all()
    assert (changed.kl[0] > 0).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("size", [1e-5, 3e-5, 1e-4, 1e-2])
def test_a_substitute_near_the_activations_has_the_kl_of_float64(size):
    rows = tiny_tokens(rows=30)
    found = {}
    for dtype in (torch.float32, torch.float64):
        results = evaluate_tiny(
            ["kl", {"perturbation": {"draws": 2, "nulls": []}}], model=TinyModel(dtype=dtype), rows=rows,
            saes={"near": Nearby(size)},
        )  # fmt: skip
        found[dtype] = [results.value(n)["value"] for n in ("kl.kl_sae", "perturbation.ratio", "kl.kl_p50")]
    (kl, ratio, half), (true_kl, true_ratio, true_half) = found[torch.float32], found[torch.float64]
    assert 0 < true_kl < 1e-2
    assert kl == pytest.approx(true_kl, rel=0.05 if size == 1e-5 else 0.02)  # the model's own rounding is of this size
    assert ratio == pytest.approx(true_ratio, rel=0.1 if size == 1e-5 else 0.02)
    assert half == pytest.approx(true_half, rel=0.1)
