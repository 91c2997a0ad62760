"""What other harnesses print, reproduced: against sae-lens itself, and against the peers' formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from compat_runs import BATCH, CONTEXT, EXCLUDED, HOOK, ROWS, Store, arrays, numbers, ours, plugins
from saeval.base.errors import SaevalError
from saeval.testing import TinyModel, TinySAE, evaluate, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some
from saeval_compat.token_rows import TokenRows
from saeval_fidelity.weights import directed, largest_cosines


@pytest.mark.parametrize("boundary", [None, 5, CONTEXT], ids=["one-document", "two-documents", "no-last-target"])
@pytest.mark.parametrize("excluded", EXCLUDED.values(), ids=EXCLUDED)
def test_every_field_of_sae_lens(model, sae, tokens, excluded, boundary):
    batches = -(-ROWS // BATCH)
    config = get_eval_everything_config(BATCH, batches, batches)
    theirs, features = run_evals(
        sae, Store(tokens[:, :CONTEXT]), model, ActivationScaler(), config,
        exclude_special_tokens=list(excluded) or False,
    )  # fmt: skip
    metrics = ["saelens_downstream", {"saelens_variance": {"batch_size": BATCH}}, "saelens_features", "saelens_weights"]
    results = ours(model, sae, tokens, metrics, excluded, boundary=boundary)
    found = numbers(results)
    expected = {k: v for section, part in theirs.items() if section != "token_stats" for k, v in part.items()}
    assert set(expected) == set(found)
    for name, value in some(expected.items()):
        assert found[name] == pytest.approx(value, rel=1e-4), name
    lists = arrays(results)
    assert set(features) == set(lists)
    for name, value in some(features.items()):
        assert lists[name] == pytest.approx(np.array(value, dtype=float), rel=1e-4, abs=1e-7, nan_ok=True), name


def passes(model, sae, tokens, mask):
    """Activations, reconstructions, features, and per-token losses and KL, straight from the model's hooks."""
    inputs = tokens[:, :CONTEXT]

    def run(change=None):
        hooks = [(HOOK, lambda x, hook: change(x))] if change else []
        return model.run_with_hooks(inputs, return_type="both", loss_per_token=True, fwd_hooks=hooks)

    with torch.no_grad():
        x = model.run_with_cache(inputs, names_filter=[HOOK])[1][HOOK]
        f = sae.encode(x)
        x_hat = sae.decode(f)
        clean, spliced, zeroed = run(), run(lambda a: torch.where(mask[..., None], x_hat, a)), run(torch.zeros_like)
    kl = [(clean[0].softmax(-1) * (clean[0].log_softmax(-1) - o[0].log_softmax(-1))).sum(-1) for o in (spliced, zeroed)]
    return x, x_hat, f, [clean[1], spliced[1], zeroed[1]], kl


@pytest.mark.parametrize("spliced_everywhere", [False, True])
@pytest.mark.parametrize("excluded", EXCLUDED.values(), ids=EXCLUDED)
def test_saebench_as_its_formulas_stand(model, sae, tokens, excluded, spliced_everywhere):
    mask = ~torch.isin(tokens[:, :CONTEXT], torch.tensor(excluded, dtype=torch.long))
    where = torch.ones_like(mask) if spliced_everywhere else mask
    x, x_hat, f, (clean, with_sae, zero), (kl, kl_zero) = passes(model, sae, tokens, where)
    squares, per_dim, residuals, mse, bias = [], [], [], [], []
    for rows in torch.arange(ROWS).split(BATCH):
        a, b = x[rows][mask[rows]], x_hat[rows][mask[rows]]
        e = (a - b).pow(2).sum(-1)
        squares.append(a.pow(2).sum(-1).mean())
        per_dim.append(a.pow(2).mean(0))
        residuals.append(e.mean())
        mse.append(e / mask[rows].sum())
        bias.append((b.norm(dim=-1) ** 2).mean() / (a * b).sum(-1).mean())
    variance = torch.stack(squares).mean() - torch.cat(per_dim).mean() ** 2
    fewer = mask[:, :-1]
    expected = {
        "explained_variance": 1 - torch.stack(residuals).mean() / variance,
        "mse": torch.cat(mse).mean(),
        "relative_reconstruction_bias": torch.stack(bias).mean(),
        "l1": f[mask].sum(-1).mean(),
        "ce_loss_without_sae": clean[fewer].mean(),
        "ce_loss_with_sae": with_sae[fewer].mean(),
        "ce_loss_with_ablation": zero[fewer].mean(),
        "kl_div_with_sae": kl[mask].mean(),
        "kl_div_with_ablation": kl_zero[mask].mean(),
    }
    metrics = [
        {"saebench_downstream": {"exclude_special_tokens_from_reconstruction": not spliced_everywhere}},
        {"saebench_variance": {"batch_size": BATCH}}, "saebench_features",
    ]  # fmt: skip
    results = ours(model, sae, tokens, metrics, excluded, boundary=5)
    found = numbers(results)
    for name, value in some(expected.items()):
        assert found[name] == pytest.approx(float(value), rel=1e-4), name
    density = (f[mask] > 0).double().mean(0)
    assert arrays(results)["feature_density"] == pytest.approx(density.numpy(), rel=1e-6)
    for percent in (1, 10):
        above = density > percent / 100
        assert found[f"freq_over_{percent}_percent"] == pytest.approx(float(above.double().mean()))
        share = float(density[above].sum() / density.sum())
        assert found[f"normalized_freq_over_{percent}_percent"] == pytest.approx(share)
    assert found["frac_alive"] == pytest.approx(float((density > 0).double().mean()))


def test_saebench_weights_as_their_formulas_stand(model, sae, tokens):
    results = ours(model, sae, tokens, ["saebench_weights"])
    lists = arrays(results)
    for name, rows in (("encoder", sae.W_enc.T.detach()), ("decoder", sae.W_dec.detach())):
        unit = rows / rows.norm(dim=1, keepdim=True)
        nearest = (unit @ unit.T - 3 * torch.eye(len(unit))).max(1).values
        assert lists[f"max_{name}_cosine_sim"] == pytest.approx(nearest.numpy(), abs=1e-6)
        assert numbers(results)[f"average_max_{name}_cosine_sim"] == pytest.approx(float(nearest.mean()))
    assert lists["encoder_norm"] == pytest.approx(sae.W_enc.detach().norm(dim=0).numpy(), rel=1e-6)
    assert lists["encoder_bias"] == pytest.approx(sae.b_enc.detach().numpy(), rel=1e-6)


def test_rows_of_cosines_are_taken_in_blocks():
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    rows[4] = 0
    whole = largest_cosines(directed(rows), 9)
    assert torch.allclose(largest_cosines(directed(rows), 2), whole)
    assert whole[4] == 0


@pytest.mark.parametrize("ignored", [None, 7], ids=["all-targets", "one-target-ignored"])
def test_dictionary_learning_as_its_formulas_stand(model, sae, tokens, ignored):
    everywhere = torch.ones(ROWS, CONTEXT, dtype=torch.bool)
    x, x_hat, f, losses, _ = passes(model, sae, tokens, everywhere)
    entry = {"dictionary_learning_evaluate": {"batch_size": BATCH, "ignored_target": ignored}}
    found = numbers(ours(model, sae, tokens, [entry], boundary=5))
    kept = tokens[:, 1:CONTEXT] != (-1 if ignored is None else ignored)
    assert bool(kept.all()) == (ignored is None)
    expected: dict[str, list[float]] = {}
    for rows in torch.arange(ROWS).split(BATCH):
        a, b, g = x[rows].flatten(0, 1), x_hat[rows].flatten(0, 1), f[rows].flatten(0, 1)
        clean, with_sae, zero = (loss[rows][kept[rows]].mean() for loss in losses)
        batch = {
            "l2_loss": (a - b).norm(dim=-1).mean(),
            "l1_loss": g.norm(p=1, dim=-1).mean(),
            "l0": (g != 0).float().sum(-1).mean(),
            "cossim": torch.cosine_similarity(a, b, dim=-1).mean(),
            "l2_ratio": (b.norm(dim=-1) / a.norm(dim=-1)).mean(),
            "frac_variance_explained": 1 - torch.var(a - b, dim=0).sum() / torch.var(a, dim=0).sum(),
            "relative_reconstruction_bias": (b.norm(dim=-1) ** 2).mean() / (a * b).sum(-1).mean(),
            "loss_original": clean,
            "loss_reconstructed": with_sae,
            "loss_zero": zero,
            "frac_recovered": (with_sae - zero) / (clean - zero),
        }
        for name, value in batch.items():
            expected.setdefault(name, []).append(float(value))
    means = {name: float(np.mean(values)) for name, values in expected.items()}
    means["frac_alive"] = float((f.flatten(0, 1).sum(0) != 0).float().mean())
    assert set(means) == set(found)
    for name, value in some(means.items()):
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_dictionary_learning_excludes_nothing_and_says_so(model, sae, tokens):
    (result,) = ours(model, sae, tokens, ["dictionary_learning_evaluate"], (3, 4))
    assert result.status == "undefined"
    assert "set 'exclude: []'" in result.reason


def test_rows_come_as_they_are(model, sae, tokens, tmp_path):
    """Without targets after them, in the order of the file, and so in the same batches."""
    np.save(tmp_path / "rows.npy", tokens[:, :CONTEXT].numpy())
    metrics = METRICS[:-1]
    results = evaluate(
        model=model, saes={"sae": sae}, metrics=metrics, plugins=plugins(), batch_size=3, allow=["*"],
        data={"use": "rows", "path": str(tmp_path / "rows.npy"), "exclude": [3, 4]},
    )  # fmt: skip
    assert numbers(results) == pytest.approx(numbers(ours(model, sae, tokens, metrics, (3, 4))), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (np.zeros((2, 3)), r"expected token ids \[sequences, context\], found float64 \[2, 3\]"),
        (np.zeros(3, dtype=int), r"expected token ids \[sequences, context\], found int64 \[3\]"),
        (np.full((2, 3), -1), "expected token ids from 0, found -1 to -1"),
    ],
)
def test_rows_that_are_none_are_refused(tmp_path, rows, complaint):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(SaevalError, match=complaint):
        TokenRows(str(tmp_path / "rows.npy")).dataset("evaluation")


def test_rows_need_a_file_and_have_no_fit_split(tmp_path):
    with pytest.raises(SaevalError, match="no such file"):
        TokenRows(str(tmp_path / "none.npy"))
    (tmp_path / "text.npy").write_text("no array")
    broken = TokenRows(str(tmp_path / "text.npy"))
    with pytest.raises(SaevalError, match=r"expected an array in a \.npy file"):
        broken.dataset("evaluation")
    with pytest.raises(SaevalError, match="no fit split"):
        broken.dataset("fit")


METRICS = [
    "saelens_downstream", {"saelens_variance": {"batch_size": BATCH}}, "saelens_features", "saebench_downstream",
    {"saebench_variance": {"batch_size": BATCH}}, {"dictionary_learning_evaluate": {"batch_size": BATCH}},
]  # fmt: skip


def test_our_own_batches_change_nothing(model, sae, tokens):
    first, *others = (numbers(ours(model, sae, tokens, METRICS, batch_size=size)) for size in (1, 3, 16))
    for other in some(others):
        assert other == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("metric", ["saelens_variance", "saebench_variance", "dictionary_learning_evaluate"])
def test_a_batch_of_no_sequences_is_refused(model, sae, tokens, metric):
    with pytest.raises(Exception, match="batch_size must be at least 1, got 0"):
        ours(model, sae, tokens, [{metric: {"batch_size": 0}}])


def test_a_splice_that_is_not_printed_is_not_run():
    """One resume per batch and SAE, wherever the reconstruction goes in."""

    def resumed(saes, *everywhere):
        model = TinyModel()
        name = "exclude_special_tokens_from_reconstruction"
        metrics = [{"saebench_downstream": {name: not each, "as": f"downstream-{each}"}} for each in everywhere]
        evaluate_tiny(metrics, model=model, saes=[TinySAE(seed=seed) for seed in range(saes)], batch_size=6)
        return model.passes["resumed"]

    batches = len(tiny_tokens()) // 6
    for choice in some([(True,), (False,), (True, False)]):
        assert resumed(2, *choice) - resumed(1, *choice) == batches * len(choice)
