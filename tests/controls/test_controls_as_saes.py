"""Controls named in `saes:`: untrained SAEs, and SAEs whose error is noise, evaluated like trained ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeval import evaluate
from saeval.base.errors import SuiteError
from saeval.interfaces.live_objects import LiveSAE
from saeval.plugin import SAEInfo, SAELoader, hookimpl
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import every, some
from saeval_perturbation.geometry import cosines
from saeval_perturbation.noisy import MatchedNoise

PARENT = {"use": "tiny-sae", "name": "tiny"}


class TinyLoader(SAELoader):
    """A format without files."""

    name = "tiny-sae"

    def info(self, reference):
        sae = LiveSAE(TinySAE())
        return SAEInfo(hook_name=sae.hook_name, d_in=sae.d_in, d_sae=sae.d_sae, sha256="tiny")

    def load(self, reference, device, dtype):
        return LiveSAE(TinySAE())


class Formats:
    @hookimpl
    def saeval_sae_loaders(self):
        return [TinyLoader]


def run(saes, metrics=("reconstruction",), **options):
    plugins = tiny_plugins()
    plugins.add(Formats(), "formats")
    data = register_rows("controls-as-saes", tiny_tokens())
    return evaluate(
        model=TinyModel(), data=data, saes=saes, metrics=list(metrics), plugins=plugins, allow=["*"], **options
    )


def test_draws_of_a_control_are_saes_with_seeds_in_a_group_with_a_twin():
    untrained = {"use": "random", "of": PARENT, "name": "untrained", "seeds": 4, "seed": 1}
    noise = {"use": "matched_noise", "of": "untrained/0", "name": "noise"}  # of an entry above
    stability = {"seed_stability": {"over": "all", "draws": 0, "alive_firings": 1, "modes": ["signed"]}}
    found = run([untrained, noise], ["reconstruction", stability], groups={"all": ["untrained/*"]})
    assert every(result.status == "ok" for result in found)
    facts = {s["name"]: s for result in found if result.metric == "reconstruction" for s in result.cell["subjects"]}
    assert sorted(facts) == ["noise", *(f"untrained/{copy}" for copy in range(4))]
    assert {fact["kind"] for fact in some(facts.values())} == {"sae"}
    assert [facts[f"untrained/{copy}"]["seed"] for copy in range(4)] == [10_000, 10_001, 10_002, 10_003]
    groups = {result.cell["over"]: result.values for result in found if result.metric == "seed_stability"}
    own, twin = (groups[name]["decoder_matched"] for name in ("all", "random(all)"))
    assert own["stderr"] > 0  # four known seeds
    assert own["value"] != twin["value"]
    assert abs(own["value"] - twin["value"]) < 4 * (own["stderr"] + twin["stderr"])


def test_a_control_as_an_sae_has_other_draws_than_the_rows_of_controls():
    draw = {"use": "random", "seeds": 2, "seed": 3}
    found = run([PARENT, {**draw, "of": "tiny"}], controls=[{**draw, "of": "tiny"}])
    values = {result.subject: result.values["mse"]["value"] for result in found}
    assert sorted(values) == ["random(tiny)", "random(tiny)#1", "random/0", "random/1", "tiny"]
    assert len(set(values.values())) == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use": "random"}, "control 'random' as an SAE needs 'of', the SAE that it is built from"),
        ({"use": "random", "of": [PARENT]}, "needs 'of', the SAE that it is built from, got ["),
        ({"use": "random", "of": "testbed/topk-17"}, "unknown SAE 'testbed/topk-17'; did you mean 'testbed/topk-1"),
        ({"use": "random", "of": PARENT, "sed": 1}, "unknown parameter 'sed' of control 'random'; did you mean 'seed'"),
        ({"use": "zero", "of": PARENT}, "saes: 'zero' is not built from an SAE; use one of "),
        ({"use": "randon", "of": PARENT}, "randon"),
        ({"use": "random", "of": PARENT, "seeds": 0}, "control 'random': seeds must be at least 1, got 0"),
        ({"use": "matched_noise", "of": PARENT, "seeds": -2}, "seeds must be at least 1, got -2"),
    ],
)
def test_wrong_entries_are_refused(entry, message):
    with pytest.raises(SuiteError) as refused:
        run([entry])
    assert message in str(refused.value)


def test_one_draw_cannot_be_two_saes():
    draw = {"use": "random", "of": PARENT}
    with pytest.raises(SuiteError, match="this draw is already the SAE 'first/0'; set another 'seed:'"):
        run([{**draw, "name": "first"}, {**draw, "name": "second"}])


def test_noise_has_the_cosine_and_norm_of_the_error_that_it_replaces():
    parent, x = LiveSAE(TinySAE()), torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
    keys = np.arange(120, dtype=np.uint64).reshape(3, 40) * 977
    x_hat = parent.decode(parent.encode(x), x)
    draws = []
    for copy in (0, 1):
        noisy = MatchedNoise().build(parent, parent.hook_name, copy=copy).at(keys)
        encoding = noisy.encode(x)
        assert torch.equal(encoding.feature_acts, parent.encode(x).feature_acts)
        draws.append(noisy.decode(encoding, x))
        torch.testing.assert_close(cosines(x, draws[-1]), cosines(x, x_hat), rtol=0, atol=1e-4)
        torch.testing.assert_close(draws[-1].norm(dim=-1), x_hat.norm(dim=-1), rtol=1e-3, atol=1e-4)
        part = MatchedNoise().build(parent, parent.hook_name, copy=copy).at(keys[1:, 7:])
        again = part.decode(part.encode(x[1:, 7:]), x[1:, 7:])
        torch.testing.assert_close(again, draws[-1][1:, 7:])  # no draw depends on the batch
    assert float((draws[0] - draws[1]).norm(dim=-1).min()) > 0
    with pytest.raises(ValueError, match="token_keys"):
        MatchedNoise().build(parent, parent.hook_name, copy=0).decode(parent.encode(x), x)
