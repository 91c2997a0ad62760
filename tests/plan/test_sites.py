"""Hooks that are one tensor are one site: computed and listed once, under the spelling that was asked for."""

from __future__ import annotations

import pytest
import torch

import saeval
import saeval_testbed
from saeval import Metric, Scalar
from saeval.interfaces.quantity import at_hooks
from saeval.stats.evidence import Mean
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.architectures import FAMILIES, VOCABULARY, tiny_batch, tiny_folder, tiny_model
from saeval.testing.claims import some
from saeval_models.huggingface import HuggingFace

SAES = saeval_testbed.WEIGHTS / "saes"
BED_POST, BED_PRE = "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"
POST, PRE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"


def rows():
    return tiny_tokens(vocab=VOCABULARY)


def sae(hook_name, seed=0):
    return TinySAE(hook_name, d_in=32, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_a_block_is_what_enters_the_next(tmp_path, family):
    spec = HuggingFace().spec({"path": str(tiny_folder(tmp_path, family))})
    assert [spec.site(f"blocks.{b}.hook_resid_post") for b in range(3)] == [
        "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post",
    ]  # fmt: skip
    model = spec.load("cpu")
    names = [f"blocks.{b}.hook_resid_{end}" for b in range(3) for end in ("pre", "post")]
    captured = model.capture(tiny_batch(), names, final=True, resumable=names)
    sites = {name: spec.site(name) for name in names}
    assert len(set(sites.values())) == 4
    for name, site in some(sites.items()):
        assert torch.equal(captured.activations[name], captured.activations[site])
        new = torch.randn_like(captured.activations[name])
        resumed = [model.resume(tiny_batch(), captured, one, new) for one in (name, site)]
        assert torch.equal(*resumed)


def test_a_stream_that_changes_between_blocks_is_two_sites(tmp_path):
    spec = HuggingFace().spec({"path": str(tiny_folder(tmp_path, "gpt2"))})
    model = spec._empty
    assert len(model.twins()) == 2
    block = model.blocks[1]
    block.register_forward_pre_hook(lambda module, args: (args[0] / 2, *args[1:]))  # runs before the site is seen
    assert model.twins() == {"blocks.1.hook_resid_post": "blocks.2.hook_resid_pre"}
    block._forward_pre_hooks.clear()
    block.register_forward_pre_hook(lambda module, args: (args[0].mul_(2), *args[1:]))  # the same tensor, written into
    assert model.twins() == {"blocks.1.hook_resid_post": "blocks.2.hook_resid_pre"}


@pytest.fixture(scope="module")
def results():
    saes = {"post": sae(POST), "pre": sae(PRE, seed=1), "path": sae("transformer.h.0", seed=2)}
    return evaluate_tiny(
        ["ce", "l0"], model=tiny_model(), saes=saes, controls=["zero", "identity"], rows=rows(), batch_size=24
    )


def test_controls_and_ablations_of_one_site_are_computed_and_listed_once(results):
    assert not results.failed
    shown = {r.subject: r.cell["subjects"][0]["hook_name"] for r in results}
    assert shown == {"post": POST, "pre": PRE, "path": POST, "zero": POST, "identity": POST}
    assert len([r for r in results if r.metric == "ce"]) == 5
    # The mean, the clean pass, three SAEs, two controls, the mean ablation, and two proofs.
    assert results.forward_passes == 1 + 1 + 3 + 2 + 1 + 1 + 1
    assert {hook for r in results for hook in r.provenance.get("resumes", {})} == {PRE}


def test_rows_of_one_site_are_compared_whatever_their_spelling(results):
    assert results.compare("post", "pre", ["ce"]).rows
    assert results.compare(f"pre@{PRE}", f"zero@{PRE}", ["ce"]).rows
    assert results.compare(f"pre@{PRE}", f"zero@{POST}", ["ce"]).rows


def suite(saes, **more):
    entries = [
        {"use": "saelens", "path": str(SAES / folder), "name": name, "hook_name": hook} for name, folder, hook in saes
    ]
    data = {"use": "python-stdlib", "context": 32, "sequences": 8}
    return {"suite": "s", "model": "testbed", "data": data, "saes": entries, "metrics": ["reconstruction"], **more}


def test_another_spelling_of_the_hook_is_the_same_cell_and_the_row_shows_what_was_asked_for(tmp_path):
    once = saeval.run(suite([("x", "topk-8", BED_PRE)]), out=tmp_path)
    again = saeval.run(suite([("x", "topk-8", BED_POST)]), out=tmp_path)
    assert [r.key for r in once] == [r.key for r in again]
    assert once[0].values == again[0].values
    assert again.forward_passes == 0
    assert [r.cell["subjects"][0]["hook_name"] for r in (once[0], again[0])] == [BED_PRE, BED_POST]
    assert again[0].cell["subjects"][0]["site"] == BED_PRE
    assert "preflight" not in again[0].provenance  # the checkpoint declares the same site


def test_columns_against_a_control_find_it_at_the_site(tmp_path):
    value = "reconstruction.explained_variance"
    layout = {"columns": [value], "rank_by": value, "against": ["zero"]}
    two = [("a", "topk-8", BED_PRE), ("b", "topk-16", BED_POST)]
    board = saeval.run(suite(two, controls=["zero"], leaderboard=layout), out=tmp_path).leaderboard()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in board.splitlines() if line[:1] == "|"]
    shown = {line[1]: line[2] for line in lines[2:]}
    assert shown == {"a": BED_PRE, "b": BED_POST, "*zero*": BED_PRE}
    assert "no control" not in board


@at_hooks(lambda hook_name, hooks: [POST, PRE, "blocks.2.hook_resid_pre"])
def norms_there(activations):
    """How many hooks were chosen, and the activations at each."""
    return dict(activations)


class Chosen(Metric):
    name, version = "chosen", 1

    def observe(self, norms_there, mask):
        assert sorted(norms_there) == [PRE, "blocks.2.hook_resid_pre"]
        return Mean.of(norms_there[PRE].norm(dim=-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


def test_hooks_that_a_quantity_chooses_are_sites(tmp_path):
    results = evaluate_tiny(
        ["chosen"],
        Chosen,
        model=tiny_model(),
        saes=[sae("blocks.0.hook_resid_pre")],
        rows=rows(),
        quantities=[norms_there],
    )
    assert [r.status for r in results] == ["ok"], results[0].reason
