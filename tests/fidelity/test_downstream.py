"""Downstream reconstruction: the residual streams after a splice, at the cost of no pass of their own."""

from __future__ import annotations

import pytest
import torch

from maps import Map, value
from saeval import Mean, Metric, SaevalError, Scalar, at_hooks
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every
from saeval_fidelity.downstream import DownstreamReconstruction, later_streams

HOOKS = [f"blocks.{i}.{s}" for i in range(3) for s in ("hook_resid_pre", "hook_mlp_out", "hook_resid_post")]
NAME = "downstream_reconstruction"


@pytest.mark.parametrize(
    ("hook_name", "later"),
    [
        ("blocks.0.hook_resid_pre", ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]),
        ("blocks.1.hook_mlp_out", ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]),
        ("blocks.0.hook_resid_post", ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]),
        ("blocks.1.hook_resid_post", ["blocks.2.hook_resid_post"]),
        ("blocks.2.hook_mlp_out", ["blocks.2.hook_resid_post"]),
        ("blocks.2.hook_resid_post", []),
        ("transformer.wte", []),
    ],
)
def test_the_streams_after_a_hook(hook_name, later):
    assert later_streams(hook_name, HOOKS) == later
    assert later_streams(hook_name, HOOKS, layers=1) == later[:1]
    assert later_streams(hook_name, [h for h in HOOKS if "post" not in h]) == [h for h in later if "post" not in h]


def by_hand(model, rows, sae, hook_name):
    """The three values by layer from whole passes, in float64 over the mask."""
    batch = rows.batch(range(len(rows)), "cpu")
    start, found = int(hook_name.split(".")[1]), {}
    clean = model.embed[batch.tokens]
    for index in range(start):
        clean = model._block(index, clean)
    spliced = torch.where(batch.mask[..., None], sae.decode(sae.encode(clean)), clean)
    for layer in range(start + 1, len(model.blocks)):
        clean, spliced = model._block(layer - 1, clean), model._block(layer - 1, spliced)
        y, y_hat = clean[batch.mask].double(), spliced[batch.mask].double()
        squared = (y - y_hat).square().sum()
        found[layer] = {
            "fvu": float(squared / (y - y.mean(0)).square().sum()),
            "mse": float(squared / len(y)),
            "cosine": float(torch.cosine_similarity(y, y_hat, dim=-1).mean()),
        }
    return found


@pytest.mark.parametrize("layers", [None, 1, 2, 9])
def test_values_are_those_of_whole_passes(layers):
    model, rows, sae = TinyModel(layers=4), tiny_tokens(), TinySAE("blocks.0.hook_resid_pre")
    params = {} if layers is None else {"layers": layers}
    results = evaluate_tiny([{NAME: params}], model=model, rows=rows, saes={"s": sae}, batch_size=5)
    expected = dict(list(by_hand(model, rows, sae, sae.hook_name).items())[:layers])
    for kind in ("fvu", "mse", "cosine"):
        curve = results.value(f"{NAME}.{kind}_by_layer", "s")
        assert dict(zip(curve["x"], curve["y"], strict=True)) == pytest.approx(
            {layer: values[kind] for layer, values in expected.items()}, rel=1e-5
        )
        assert value(results, f"{NAME}.{kind}_last", "s") == curve["y"][-1]
        assert every(error > 0 for error in curve["stderr"])
    assert len(expected) == min(layers or 3, 3)


def test_a_perfect_substitute_moves_nothing_and_the_worst_are_finite():
    rows = tiny_tokens()
    results = evaluate_tiny(
        [NAME], rows=rows, saes={"nothing": Map(torch.zeros_like), "copy": Map(lambda x: x)}, controls=["identity"]
    )
    for subject in ("copy", "identity"):
        assert value(results, f"{NAME}.fvu_last", subject) == value(results, f"{NAME}.mse_last", subject) == 0
        assert value(results, f"{NAME}.cosine_last", subject) == pytest.approx(1)
    assert value(results, f"{NAME}.fvu_last", "nothing") > 0.5


def test_it_costs_no_pass_beyond_those_of_ce_and_kl():
    def passes(metrics):
        model = TinyModel(layers=4)
        saes = {"a": TinySAE(), "b": TinySAE(seed=1), "c": TinySAE("blocks.2.hook_resid_pre")}
        results = evaluate_tiny(
            metrics, model=model, rows=tiny_tokens(rows=20), saes=saes, controls=["zero", "mean"], batch_size=4
        )
        assert not results.failed
        return model.passes, model.blocks_run

    without, blocks = passes(["reconstruction", "ce", "kl"])
    with_it, more = passes(["reconstruction", "ce", "kl", NAME])
    # Three SAEs, two ablations at each of two hooks; one cut pass for the means, whose first
    # batch is a clean one of the preflight's; two hooks to prove, and the model.
    assert without == with_it == {"clean": 5 + 2, "cut": 5 - 1, "resumed": 5 * (3 + 4) + 2}
    assert [b - a for a, b in zip(blocks, more, strict=True)] == [0, 0, 4, 0]  # the last mean lies one block deeper
    assert passes([NAME])[0] == {"clean": 2, "cut": 9, "resumed": 5 * 7 + 2}
    assert passes([{NAME: {"layers": 1}}, {NAME: {"as": "all"}}])[0]["resumed"] == 5 * 7 + 2


def test_passes_keep_later_streams_only_where_they_are_asked_for():
    kept = []

    class Watched(TinyModel):
        def resumed(self, *args, **options):
            found = super().resumed(*args, **options)
            kept.append(sorted(found.activations))
            return found

    evaluate_tiny(["ce"], model=Watched(layers=4), batch_size=24)
    assert kept == [[], [], []]  # the proof, the SAE, the ablation
    kept.clear()
    evaluate_tiny(["ce", {NAME: {"layers": 1}}], model=Watched(layers=4), batch_size=24)
    assert kept == [[], *[["blocks.2.hook_resid_pre"]] * 2]


def test_where_no_stream_is_later_it_is_undefined():
    (result,) = evaluate_tiny([NAME], saes=[TinySAE("blocks.2.hook_resid_pre")])
    assert result.status == "undefined"
    assert result.reason == "no residual stream is known to come after blocks.2.hook_resid_pre"


def test_layers_are_at_least_one():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        DownstreamReconstruction(0)


def test_it_does_not_depend_on_how_the_rows_were_cut_up():
    numbers = check_metric(DownstreamReconstruction, model=TinyModel(layers=4))
    assert len(numbers) == 2 * 3 * (1 + 2)


def every_other(hook_name, hooks, step=2):
    return [h for h in hooks if h != hook_name][::step]


@at_hooks(every_other)
def norms_elsewhere(activations, hook_name, mask):
    """Mean norm at the chosen hooks, by hook name."""
    assert list(activations) == list(hook_name.values())
    return {hook: float(x[mask[hook]].norm(dim=-1).mean()) for hook, x in activations.items()}


class Elsewhere(Metric):
    """Mean norm at hooks that its parameter picks."""

    name, version = "elsewhere", 1

    def __init__(self, step: int = 2) -> None:
        self.step = step

    def observe(self, norms_elsewhere, mask):
        ones = torch.ones(mask.shape)
        return {hook: Mean.of(ones * x, mask) for hook, x in norms_elsewhere.items()}

    def conclude(self, total):
        return {hook.split(".")[1]: Scalar(mean.value) for hook, mean in total.items()}


@pytest.mark.parametrize(("step", "blocks"), [(1, ["0", "2", "3"]), (2, ["0", "3"]), (9, ["0"])])
def test_a_quantity_may_look_at_hooks_picked_by_a_parameter_of_the_metric(step, blocks):
    model, rows = TinyModel(layers=4), tiny_tokens()
    (result,) = evaluate_tiny(
        [{"elsewhere": {"step": step}}], Elsewhere, quantities=[norms_elsewhere], model=model, rows=rows, batch_size=24
    )
    assert result.status == "ok", result.traceback
    batch = rows.batch(range(len(rows)), "cpu")
    hooks = [f"blocks.{b}.hook_resid_pre" for b in blocks]
    found = model.capture(batch, hooks, False).activations
    assert {b: r["value"] for b, r in result.values.items()} == pytest.approx(
        {b: float(found[h][batch.mask].norm(dim=-1).mean()) for b, h in zip(blocks, hooks, strict=True)}
    )


def test_a_quantity_at_other_hooks_knows_no_sae():
    @at_hooks(every_other)
    def elsewhere_features(feature_acts):
        return feature_acts

    class Lost(Metric):
        """Asks for the features of an SAE at hooks where there is none."""

        name, version = "lost", 1

        def observe(self, elsewhere_features, mask):
            return Mean.of(mask.double(), mask)

        def conclude(self, total):
            return total.value

    with pytest.raises(SaevalError, match="needs an SAE, and this request has none"):
        evaluate_tiny(["lost"], Lost, quantities=[elsewhere_features])
