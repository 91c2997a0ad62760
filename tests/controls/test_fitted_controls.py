"""Controls that are hard to beat: a frozen decoder with a fitted encoder, principal components as features."""

from __future__ import annotations

import pytest

from saeval import evaluate
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import every


def evaluated(controls, name):
    data = register_rows(name, tiny_tokens(rows=24, documents=12), tiny_tokens(rows=24, documents=12, seed=1))
    results = evaluate(model=TinyModel(), data=data, saes=[TinySAE()], metrics=["reconstruction", "l0"], controls=controls,
                       plugins=tiny_plugins(), preflight="off")  # fmt: skip
    assert not results.failed, results.failed[0].traceback
    return results


def test_fitting_the_encoder_explains_more_than_its_start_at_the_same_l0():
    controls = [
        {"use": "frozen_decoder", "name": f"epochs-{n}", "seeds": 2, "epochs": n, "learning_rate": 0.01}
        for n in (0, 30)
    ]
    results = evaluated(controls, "frozen")
    explained = {r.subject: r.values["explained_variance"]["value"] for r in results if r.metric == "reconstruction"}
    sparsity = {r.subject: r.values["l0"]["value"] for r in results if r.metric == "l0"}
    pairs = [(f"epochs-0(tinysae){end}", f"epochs-30(tinysae){end}") for end in ("", "#1")]
    assert every(explained[fitted] > explained[start] + 0.02 for start, fitted in pairs)
    assert explained[pairs[0][1]] != explained[pairs[1][1]]  # two draws
    k = round(sparsity["tinysae"])
    assert every(value <= k for name, value in sparsity.items() if name != "tinysae")


def test_a_frozen_decoder_is_the_same_in_every_run():
    first, second = (evaluated([{"use": "frozen_decoder", "seeds": 1}], f"frozen-{i}") for i in range(2))
    assert [r.values for r in first] == [r.values for r in second]


def test_components_as_features_reconstruct_what_pca_does():
    results = evaluated(["pca", "best_k_dense"], "dense")
    values = {r.subject: r.values for r in results if r.metric == "reconstruction"}
    assert values["best_k_dense(tinysae)"]["fvu"]["value"] == pytest.approx(
        values["pca(tinysae)"]["fvu"]["value"], rel=1e-4
    )
    sparsity = {r.subject: r.values["l0"]["value"] for r in results if r.metric == "l0" and r.status == "ok"}
    assert sparsity["best_k_dense(tinysae)"] == round(sparsity["tinysae"])
