"""Near-duplicates between SAEs: planted copies by decoder and by co-firing."""

from __future__ import annotations

import pytest
import torch

from saeval import SaevalError
from saeval.testing import TinySAE, check_metric, evaluate_tiny
from saeval_connections.duplicates import NearDuplicates

FEW = {"alive_firings": 1, "fit_tokens": 1000}


def half_copied(seed):
    """An SAE whose first half of features is that of `TinySAE(seed=0)`, and whose second half is new."""
    copy, original = TinySAE(seed=seed), TinySAE(seed=0)
    copy.W_dec = torch.cat([original.W_dec[:16], copy.W_dec[16:]])
    copy.W_enc = torch.cat([original.W_enc[:, :16], copy.W_enc[:, 16:]], 1)
    return copy


def duplicates(*saes, **params):
    named = {f"sae-{i}": sae for i, sae in enumerate(saes)}
    entry = {"near_duplicates": {**FEW, **params, "over": "g", "controls": []}}
    (result,) = evaluate_tiny([entry], saes=named, groups={"g": list(named)})
    assert result.status == "ok", (result.reason, result.traceback)
    return result


def test_planted_copies_are_found_by_decoder_and_by_co_firing():
    result = duplicates(TinySAE(seed=0), half_copied(3))
    partners, jaccards = result.array("partners_0_1"), result.array("jaccards_0_1")
    alive = partners >= 0
    assert alive[:16].sum() > 8
    copies = alive[:16].sum() / alive.sum()
    for name in ("decoder_share", "both_share"):
        assert result.values[name]["value"] == pytest.approx(copies)
    assert (partners[:16][alive[:16]] == torch.arange(16).numpy()[alive[:16]]).all()
    assert (jaccards[:16][alive[:16]] == 1).all()
    assert result.values["cofiring_share"]["value"] >= copies
    assert result.values["decoder_floor"]["value"] == 0
    assert result.values["cofiring_floor"]["value"] < copies


def test_both_needs_the_same_partner_and_a_limit_is_reached_by_equality():
    swapped = TinySAE(seed=0)
    swapped.W_dec = swapped.W_dec.roll(1, 0)  # each feature fires like one feature, and writes like another
    values = duplicates(TinySAE(seed=0), swapped, jaccard=1).values
    assert values["cofiring_share"]["value"] == 1
    assert values["decoder_share"]["value"] > 0.5
    assert values["both_share"]["value"] == 0


def test_numbers_do_not_depend_on_batches_order_or_padding():
    check_metric(NearDuplicates, FEW, by_document=["cofiring_floor", "pairs*"])


def test_a_group_of_one_is_refused():
    with pytest.raises(SaevalError, match=r"group 'g' has one SAE, 'sae-0'; add at least one more"):
        duplicates(TinySAE())
