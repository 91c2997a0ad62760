"""The apollo loader against `SAE` of e2e_sae, its formula written out here."""

from __future__ import annotations

import pytest
import torch
import yaml

from apollo_files import CONFIG, HOOKS, SHAPES, formula_of, published, state_of
from checkpoints import D, N, assert_same, assert_same_in_a_suite, random_tensors, suite
from saeval.base.errors import SaevalError
from saeval.testing.claims import some
from saeval_formats.apollo import Apollo


@pytest.fixture
def saved(tmp_path):
    def save(state, name="samples_400.pt", config=None):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, tmp_path / name)
        if config:
            (tmp_path / name).with_name("final_config.yaml").write_text(yaml.safe_dump(config))
        return {"path": str(tmp_path / name)}

    return save


def test_one_sae_of_a_run(saved):
    reference = saved(state_of(HOOKS[0]), config=CONFIG)
    assert_same(Apollo(), reference, formula_of())
    found = Apollo().info(reference)
    assert found.hook_name == HOOKS[0]
    assert {"model_name": "gpt2-small", "context_size": 1024, "seed": 4}.items() <= found.facts.items()


KL, ORIGINAL = {"logits_kl": {"coeff": 0.5}}, {"in_to_orig": {"hook_positions": [HOOKS[1]], "total_coeff": 2.5}}


@pytest.mark.parametrize(
    ("loss", "end_to_end"),
    [
        ({**KL, "out_to_in": {"coeff": 0.0}, "in_to_orig": None}, True),
        ({**KL, **ORIGINAL, "out_to_in": None}, True),
        ({**KL, "out_to_in": {"coeff": 1.0}}, None),
        ({"out_to_in": {"coeff": 1.0}, "logits_kl": {"coeff": 0.0}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_what_a_run_was_trained_for(saved, loss, end_to_end):
    found = Apollo().info(saved(state_of(HOOKS[0]), config={**CONFIG, "loss": loss}))
    assert found.facts.get("end_to_end") is end_to_end


def test_several_saes_of_a_run(saved):
    reference = saved(state_of(*HOOKS))
    with pytest.raises(SaevalError, match=rf"has several SAEs; add 'sites:'.*: {HOOKS[0]}, {HOOKS[1]}"):
        Apollo().info(reference)
    found = Apollo().expand({**reference, "sites": "blocks.*"})
    assert list(found) == list(HOOKS)
    for i, (hook, one) in some(enumerate(found.items())):
        assert_same(Apollo(), one, formula_of(seed=i))
        assert Apollo().info(one).hook_name == hook
    assert len({Apollo().info(one).sha256 for one in found.values()}) == 2
    assert list(Apollo().expand({**reference, "sites": HOOKS[1]})) == [""]
    assert list(Apollo().expand({**reference, "sites": [HOOKS[1], "blocks.1.*"]})) == list(HOOKS)
    with pytest.raises(SaevalError, match=r"no SAE matches 'sites: blocks.1.hook_resid_per'; did you mean"):
        Apollo().expand({**reference, "sites": "blocks.1.hook_resid_per"})
    with pytest.raises(SaevalError, match="'hook_name' is one hook, but 'sites' matches 2"):
        Apollo().expand({**reference, "sites": "*", "hook_name": HOOKS[0]})


def test_published_files(saved, tmp_path):
    reference = saved(published(), "e2e_layer_6.pt")
    assert_same(Apollo(), reference, formula_of())
    assert Apollo().info(reference).hook_name is None
    (tmp_path / "e2e_layer_6.yaml").write_text(yaml.safe_dump(CONFIG))
    assert Apollo().info(reference).hook_name == "blocks.1.hook_resid_pre"
    vague = {**CONFIG, "saes": {"sae_positions": "hook_resid_pre"}}
    (tmp_path / "e2e_layer_6.yaml").write_text(yaml.safe_dump(vague))
    assert Apollo().info(reference).hook_name is None
    assert Apollo().info({**reference, "hook_name": "mine"}).hook_name == "mine"


def test_published_files_carry_gradients(saved):
    """The library publishes `dict_elements`, which is no leaf of its graph."""
    state = published()
    state["decoder.weight"] = torch.nn.Parameter(state["decoder.weight"])
    assert_same(Apollo(), saved(state), formula_of())


def test_a_module_alone(saved):
    assert_same(Apollo(), saved(random_tensors(SHAPES)), formula_of())


def test_a_run_is_its_last_file(saved, tmp_path):
    for samples, seed in ((9000, 1), (10000, 0), (500, 2)):
        saved(state_of(HOOKS[0], seed=seed), f"run/samples_{samples}.pt")
    assert_same(Apollo(), {"path": str(tmp_path / "run")}, formula_of(seed=0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaevalError, match=r"empty: expected a folder with samples_<number>.pt, found none"):
        Apollo().info({"path": str(tmp_path / "empty")})


def test_runs_and_sites_together(saved, tmp_path):
    for run in "ab":
        saved(state_of(*HOOKS), f"run-{run}/samples_1.pt")
    found = Apollo().expand({"path": str(tmp_path / "run-*"), "sites": "*"})
    assert list(found) == [f"{run}/{hook}" for run in "ab" for hook in HOOKS]


def test_in_a_suite(saved, tmp_path):
    entry = {"use": "apollo", **saved(state_of(*HOOKS))}
    assert_same_in_a_suite(tmp_path, {**entry, "sites": HOOKS[1]}, formula_of(seed=1), HOOKS[1])
    results = suite(tmp_path, [{**entry, "sites": "blocks.*"}], metrics=["l0"])
    assert {r.subject: r.cell["subjects"][0]["hook_name"] for r in results} == {f"samples_400.pt/{h}": h for h in HOOKS}


FIRST = "blocks-1-hook_resid_pre"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{FIRST}.encoder.0.weight": torch.zeros(D, N)}, rf"'{FIRST}.encoder.0.weight' is transposed: found \[32, 80\], expected \[80, 32\]"),
        ({f"{FIRST}.decoder.weight": torch.zeros(D + 1, N)}, rf"'{FIRST}.decoder.weight' is \[33, 80\], expected \[32, 80\]"),
        ({f"{FIRST}.decoder.bias": None}, rf"'{FIRST}.decoder.bias' is missing\); check 'use'"),
        ({f"{FIRST}.encoder.bias": torch.zeros(N)}, rf"unexpected tensor '{FIRST}.encoder.bias' \[80\]"),
        ({f"{FIRST}.codebook": torch.zeros(N, D)}, rf"unexpected key '{FIRST}.codebook', expected <hook>.encoder.0.weight"),
        ({f"{FIRST}.decoder.bias": torch.full((D,), torch.nan)}, r"decoder.bias' holds 32 NaN or infinite values of 32"),
        ({f"{FIRST}.decoder.bias": 3}, r"expected a tensor in 'blocks-1-hook_resid_pre.decoder.bias', found int"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, saved, changes, sentence):
    state = {key: value for key, value in {**state_of(HOOKS[0]), **changes}.items() if value is not None}
    with pytest.raises(SaevalError, match=sentence) as raised:
        Apollo().load(saved(state))
    assert str(tmp_path / "samples_400.pt") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_wrong_configs_and_references(saved, tmp_path):
    reference = saved(state_of(HOOKS[0]))
    config = tmp_path / "final_config.yaml"
    trace = tmp_path / "executed"
    payload = f"a: !!python/object/apply:os.mkdir ['{trace}']"
    yaml.unsafe_load(payload)
    trace.rmdir()  # the payload does work where it is executed
    for text, sentence in [
        ("a: [", "invalid YAML, or YAML with more than plain data"),
        ("- 1", "expected a YAML mapping, found list"),
        (payload, "invalid YAML, or YAML with more than plain data"),
    ]:
        config.write_text(text)
        with pytest.raises(SaevalError, match=sentence) as raised:
            Apollo().info(reference)
        assert str(config) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not trace.exists()
    with pytest.raises(SaevalError, match=r"unknown parameter 'site' of SAE format '\w+'; did you mean 'sites'\?"):
        Apollo().expand({"path": "x", "site": "y", "sites": "z"})
    with pytest.raises(SaevalError, match="needs the parameter 'path'"):
        Apollo().info({})
    with pytest.raises(SaevalError, match="has no tensors"):
        Apollo().info(saved({}))
