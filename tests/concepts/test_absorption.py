"""Absorption in a planted hierarchy: the planted rate, the effect of absorbers, controls, passes and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hierarchy import CHILDREN, HOOK, LATER, PARENTS, Hierarchy, Speller, rows
from saeval import SaevalError
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every, some
from saeval_concepts.absorption import Absorption
from saeval_concepts.mains import MOST, WordProbe, candidate_rows
from saeval_concepts.tasks import Task

SETTINGS = {"tasks": ("kind=p*",), "random": 4, "jump": 1.0, "folds": 2}
"""With `jump: 1` the first candidate is the only main feature, also where an absorber would raise the F1."""


def absorbing(*children):
    return [(parent, child) for parent in range(PARENTS) for child in children]


class Scaled(Hierarchy):
    """The same SAE, whose features are in units that differ from token to token."""

    def encode(self, x):
        scale = 1 + x.abs().amax(-1, keepdim=True)
        return super().encode(x) / scale, scale

    def decode(self, f, scale):
        return super().decode(f) * scale


def results(saes, model=None, fit=None, data=None, controls=(), batch_size=None, **given):
    options = {"batch_size": batch_size} if batch_size else {}
    return evaluate_tiny(
        [{"absorption": {**SETTINGS, **given}}], model=model or Speller(), saes=saes, controls=controls,
        rows=data or rows(1), fit=fit or rows(2, 0.3), **options,
    )  # fmt: skip


def numbers(result):
    assert result.status == "ok", result.reason
    return {name: record["value"] for name, record in result.values.items() if "value" in record}


@pytest.fixture(scope="module")
def planted():
    saes = {
        "none": Hierarchy(),
        "one child": Hierarchy(absorbing(0)),
        "two children": Hierarchy(absorbing(0, 2)),
        "dropped": Hierarchy(absorbing(0), drop=True),
        "half": Hierarchy(absorbing(0), leak=0.5),
        "scaled": Scaled(absorbing(0, 2)),
    }
    found = results(saes, controls=[{"random": {"seeds": 1}}])
    return {result.subject: result for result in found}


def test_the_planted_rate(planted):
    for name, children in (("none", 0), ("one child", 1), ("two children", 2)):
        found = numbers(planted[name])
        assert (
            found["saebench_full"]
            == found["saebench_fraction"]
            == found["silent"]
            == pytest.approx(children / CHILDREN)
        )
        assert (found["mains"], found["splits"], found["counted"]) == (1, 0, PARENTS)
        assert found["probe_f1"] == found["answered"] == 1
    table = {name: planted[name].values["parents"] for name in ("one child", "two children")}
    mains = {row[table["one child"]["columns"].index("mains")] for row in table["one child"]["rows"]}
    assert mains == {str(parent) for parent in range(PARENTS)}
    for count, name in ((1, "one child"), (2, "two children")):
        absorbers = [row[table[name]["columns"].index("absorbers (fit words)")] for row in table[name]["rows"]]
        assert every(len(found.split(" (")) == count + 1 for found in absorbers)


def test_the_effect_of_absorbers(planted):
    """The model doubles what it reads of the parent, so its margin falls by 2 without the feature that writes it."""
    for name in ("one child", "two children", "scaled"):
        found = numbers(planted[name])
        assert found["interventional"] == pytest.approx(2, abs=1e-4)
        assert found["interventional_random"] == pytest.approx(0, abs=1e-4)
        assert (found["exceeds_random"], found["with_absorber"]) == (1, 1)
        assert 0.2 <= found["exceeds_chance"] <= 0.5


def test_silent_mains_without_an_absorber(planted):
    """The parent is in the SAE's error: scores of projections and effects are 0, though the main feature is silent."""
    found = numbers(planted["dropped"])
    assert found["silent"] == 1 / CHILDREN
    assert found["saebench_full"] == found["exceeds_random"] == 0
    assert found["interventional"] == pytest.approx(0, abs=1e-4)


def test_half_a_main_feature_is_no_silent_one(planted):
    found = numbers(planted["half"])
    assert found["saebench_full"] == found["silent"] == 0
    assert 0.3 / CHILDREN < found["saebench_fraction"] < 0.8 / CHILDREN
    record = planted["half"].values["interventional"]
    assert record["value"] is None
    assert record["reason"] == "the main features are silent on no word"


def test_untrained_features_are_no_absorbers(planted):
    controls = [result for name, result in planted.items() if name.startswith("random(none)")]
    for result in some(controls):
        found = numbers(result)
        assert found["saebench_full"] < 0.1
        assert found["interventional"] is None or abs(found["interventional"]) < 0.5


def test_nothing_depends_on_batches(planted):
    (small,) = results({"two children": Hierarchy(absorbing(0, 2))}, batch_size=5)
    assert numbers(small) == pytest.approx(numbers(planted["two children"]), abs=1e-5)


def test_scales_do_not_matter(planted):
    (scaled,) = results({"sae": Hierarchy(absorbing(0, 2), scale=4.0)})
    names = ("interventional", "exceeds_random", "silent", "mains")
    expected = numbers(planted["two children"])
    assert [numbers(scaled)[name] for name in names] == pytest.approx([expected[name] for name in names], abs=1e-4)


def test_a_probe_at_a_later_hook():
    """Nothing is added to a word after block 0, so the probe there reads the parent as the own hook's does."""
    options = {"answers": False}
    saes = {"sae": Hierarchy(absorbing(0)), "dropped": Hierarchy(absorbing(0), drop=True)}
    found = results(saes, data=rows(1, **options), fit=rows(2, 0.3, **options), later_hook=LATER)
    absorbed, dropped = (numbers(result) for result in found)
    assert absorbed["interventional"] > 1
    assert absorbed["answered"] == absorbed["exceeds_random"] == 1
    assert abs(dropped["interventional"]) < 0.5 * absorbed["interventional"]
    with pytest.raises(
        SaevalError, match="is the SAE's own hook, where the fall of a probe is what chose the absorber"
    ):
        results(saes, later_hook=HOOK)


class Aliased(Speller):
    """A model in which a hook has two names."""

    def hooks(self):
        return {**super().hooks(), "embeddings": len(self.embed.T)}

    def site(self, hook_name):
        return HOOK if hook_name == "embeddings" else hook_name


def test_the_own_hook_under_another_name():
    with pytest.raises(SaevalError, match="'later_hook: embeddings' is the SAE's own hook"):
        results({"sae": Hierarchy(absorbing(0))}, model=Aliased(), later_hook="embeddings")
    with pytest.raises(SaevalError, match="which the model does not have"):
        results({"sae": Hierarchy(absorbing(0))}, later_hook="blocks.9.hook_resid_pre")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"at": "wort"}, "the data have no label of tokens 'wort'; did you mean 'word'?"),
        ({"fit": rows(2)}, "none of 3 parents counts, such as 'kind=p0': no validation word has it, or none lacks it"),
        ({"least_words": 200}, "its probe is right on 48 evaluated words, fewer than 'least_words: 200'"),
    ],
)
def test_data_that_allow_no_number(given, fault):
    (result,) = results({"sae": Hierarchy(absorbing(0))}, **given)
    assert result.status == "undefined"
    assert fault in result.reason


def test_without_answers_the_projections_remain():
    data, fit = rows(1, answers=False), rows(2, 0.3, answers=False)
    (result,) = results({"sae": Hierarchy(absorbing(0))}, data=data, fit=fit)
    assert numbers(result)["saebench_full"] == pytest.approx(1 / CHILDREN)
    reasons = {result.values[name]["reason"] for name in ("interventional", "exceeds_random", "answered")}
    assert reasons == {
        "the texts have no two answers labelled 'answer'; use a source that labels them, such as 'spelling', or set 'later_hook'"
    }


def test_one_stream_serves_all_parents_and_saes():
    """Two passes over the fit split and one over the words; ablations run the words with silent mains alone."""

    def passes(saes, **given):
        model = Speller()
        results(saes, model=model, batch_size=200, **given)
        return dict(model.passes)

    one = passes({"a": Hierarchy()}, tasks=("kind=p0",))
    many = passes({"a": Hierarchy(), "b": Hierarchy()})
    assert one == many
    ablated = passes({"a": Hierarchy(absorbing(0)), "b": Hierarchy(absorbing(1)), "c": Hierarchy()}, random=3)
    assert (ablated["clean"], ablated["cut"]) == (many["clean"], many["cut"])
    assert ablated["resumed"] - many["resumed"] == 2


def test_memory_holds_chosen_features_alone():
    d, d_sae, n = 4, 3000, 6
    draw = torch.Generator().manual_seed(0)
    acts, x = torch.rand(n, d_sae, generator=draw), torch.rand(n, d, generator=draw)
    probe = WordProbe(np.ones(d), 0.0, 1.0)
    labels = np.array([[1], [0], [1], [0], [1], [0]], dtype=np.int8)
    tables = candidate_rows(
        acts, x, labels, np.zeros(n, bool), torch.rand(1, d_sae, generator=draw), (probe,), (np.arange(MOST),),
        (Task("t", "t", "1"),),
    )  # fmt: skip
    sizes = [np.asarray(column).size for part in tables["t"].parts for column in part.values()]
    assert sum(some(sizes)) < n * (2 * MOST + 6)


def test_values_are_declared(planted):
    assert set(Absorption.value_names) == set(numbers(planted["two children"]))
