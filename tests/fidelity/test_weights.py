"""Values of the weights alone: closed forms, invariances, and no d_sae x d_sae matrix."""

from __future__ import annotations

import pytest
import torch

from maps import Largest, Map, value
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny
from saeval.testing.claims import some
from saeval_fidelity import weights
from saeval_fidelity.weights import Weights


def evaluate(saes, **options):
    return evaluate_tiny(["weights"], saes=saes, **options)


def altered(change, **options):
    sae = TinySAE(**options)
    change(sae)
    return sae


def test_tied_weights_have_cosine_one_and_no_pass_is_made():
    model = TinyModel()
    results = evaluate({"tied": TinySAE()}, model=model)
    for name in ("encoder_decoder_cosine", "encoder_decoder_cosine_p5", "encoder_decoder_cosine_p95"):
        assert value(results, f"weights.{name}", "tied") == pytest.approx(1, abs=1e-6)
    assert value(results, "weights.decoder_norm", "tied") == pytest.approx(1, abs=1e-6)
    assert value(results, "weights.encoder_norm_p5", "tied") == pytest.approx(1, abs=1e-6)
    assert value(results, "weights.b_enc", "tied") == -0.5
    assert value(results, "weights.b_dec_norm", "tied") == 0
    assert model.passes == {"clean": 0, "cut": 0, "resumed": 0}


def test_the_largest_cosine_is_to_another_feature():
    def orthogonal(sae):
        sae.W_dec = torch.eye(4, 16)
        sae.W_dec[3] = torch.tensor([0.6, 0.8] + [0.0] * 14)

    results = evaluate({"known": altered(orthogonal, d_sae=4)})
    # Cosines: 0 has 0.6, 1 has 0.8, 2 has 0, 3 has 0.8.
    assert value(results, "weights.max_decoder_cosine", "known") == pytest.approx(2.2 / 4)
    assert value(results, "weights.max_decoder_cosine_p50", "known") == pytest.approx(0.6)


def test_opposite_directions_are_not_alike():
    def opposed(sae):
        sae.W_dec = torch.tensor([[1.0] + [0.0] * 15, [-2.0] + [0.0] * 15])

    results = evaluate({"opposed": altered(opposed, d_sae=2)})
    assert value(results, "weights.max_decoder_cosine", "opposed") == pytest.approx(-1)
    assert value(results, "weights.decoder_norm", "opposed") == 1.5


@pytest.mark.parametrize("elements", [1, 32, 100, 2**22])
def test_blocks_change_nothing_and_stay_small(elements, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", elements)
    sae = TinySAE(d_sae=300)
    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    expected = (unit @ unit.T - 2 * torch.eye(300)).amax(1).mean()
    with Largest() as seen:
        results = evaluate({"sae": sae})
    assert value(results, "weights.max_decoder_cosine", "sae") == pytest.approx(float(expected), abs=1e-6)
    if elements < 2**22:
        assert seen.elements < 300**2 / 4  # the weights, as bytes, are the largest


def test_rescaled_and_permuted_features_keep_their_angles():
    def rescaled(sae):
        generator = torch.Generator().manual_seed(1)
        order, scale = torch.randperm(32, generator=generator), torch.rand(32, generator=generator) + 0.5
        sae.W_enc, sae.W_dec = (sae.W_enc * scale)[:, order], (sae.W_dec / scale[:, None])[order]
        sae.b_enc = (sae.b_enc * scale)[order]

    def untied(sae):
        sae.W_enc = sae.W_enc + 0.3 * torch.randn(16, 32, generator=torch.Generator().manual_seed(2))

    results = evaluate({"base": altered(untied), "other": altered(lambda s: (untied(s), rescaled(s)))})
    base, other = results
    for name, record in some(base.values.items()):
        if "cosine" in name or name in ("b_dec_norm", "without_direction"):
            assert other.values[name]["value"] == pytest.approx(record["value"], abs=1e-6), name
    assert other.values["decoder_norm"]["value"] != pytest.approx(base.values["decoder_norm"]["value"], abs=1e-3)


def test_features_without_direction_are_left_out_and_counted():
    def emptied(sae):
        sae.W_dec = sae.W_dec.clone()
        sae.W_dec[:3] = 0
        sae.W_enc = sae.W_dec.T.clone()
        sae.W_enc[:, 3] = 0

    results = evaluate({"sae": altered(emptied)})
    record = results.value("weights.without_direction", "sae")
    assert (record["value"], record["n"]) == (4, 32)
    assert results.value("weights.encoder_decoder_cosine", "sae")["n"] == 28
    assert results.value("weights.max_decoder_cosine", "sae")["n"] == 29
    assert value(results, "weights.encoder_decoder_cosine", "sae") == pytest.approx(1, abs=1e-6)


def test_what_is_lacking_is_said():
    class Bare(Map):
        def __init__(self):
            super().__init__(lambda x: x)
            del self.W_enc, self.b_enc

    results = evaluate({"bare": Bare()}, controls=["identity"])
    record = results.value("weights.encoder_decoder_cosine", "bare")
    assert record["value"] is None
    assert "no encoder" in record["reason"]
    assert "no b_enc" in results.value("weights.b_enc", "bare")["reason"]
    assert value(results, "weights.max_decoder_cosine", "bare") is not None
    identity = next(r for r in results if r.subject == "identity")
    assert (identity.status, identity.reason) == ("undefined", "identity has no weights")


def test_shuffled_directions_break_the_tie_of_encoder_and_decoder():
    results = evaluate({"tied": TinySAE()}, controls=[{"use": "shuffled_decoder", "seeds": 1}])
    exchanged = "shuffled_decoder(tied)"
    assert abs(value(results, "weights.encoder_decoder_cosine", exchanged)) < 0.3
    mine, theirs = (value(results, "weights.max_decoder_cosine", name) for name in ("tied", exchanged))
    assert theirs == pytest.approx(mine)


def test_weights_do_not_depend_on_how_the_rows_were_cut_up():
    check_metric(Weights, controls=[{"use": "shuffled_decoder", "seeds": 1}])
