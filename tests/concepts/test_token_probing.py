"""Probing of planted labels of tokens: known AUCs, token types that were never fitted, errors by document."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planted import MARK, OTHER, VOCABULARY, YES, OneHot, Reader, marked_tokens, texts
from saeval import SaevalError
from saeval.testing import evaluate, evaluate_tiny, tiny_plugins
from saeval.testing.claims import every, some
from saeval_concepts.rows import held_out
from saeval_concepts.sparse_probing import SparseProbing


def is_mark(tokens, draw):
    return tokens == MARK


def either(tokens, draw):
    return (tokens == MARK) | (tokens == OTHER)


def at_random(tokens, draw):
    return draw.random(tokens.shape) < 0.3


def high(tokens, draw):
    return tokens >= VOCABULARY // 2


def marks(tokens):
    tokens[:, 3], tokens[:, 6] = MARK, OTHER


def probed(labels, saes=None, place=marks, model=None, batch_size=None, words=MARK, **options):
    """The results of SAEs on texts with these labels of tokens; the fit split has others."""
    metric = {"sparse_probing": {"k": (1, 2), "folds": 2, "pooling": "token", "held_out_types": 0.0, **options}}
    data, fit = (marked_tokens(labels, seed, place=place, words=words) for seed in (1, 2))
    given = {"batch_size": batch_size} if batch_size else {}
    return evaluate_tiny([metric], model=model or OneHot(), saes=saes or [Reader()], rows=data, fit=fit, **given)


def numbers(result):
    assert result.status == "ok", result.reason
    return {name: record["value"] for name, record in result.values.items() if "value" in record}


def test_a_feature_that_is_the_label():
    (result,) = probed({"mark": is_mark}, per_row=3)
    found = numbers(result)
    assert found["auc@1"] == found["accuracy@1"] == found["auc_tokens"] == found["auc_neurons@1"] == 1
    (line,) = result.values["tasks"]["rows"]
    # 60 rows with one mark each, and three of the other tokens
    assert line[:4] == ["mark", 240, 240, 60]
    reason = result.values["auc_unseen@1"]["reason"]
    assert reason.startswith("no task has 20 evaluated tokens of each class whose type no fitted token has")


def test_a_label_that_two_features_share():
    (result,) = probed({"either": either})
    found = numbers(result)
    assert (found["auc@1"], found["auc@2"]) == (pytest.approx(0.75), 1)


class Kind(Reader):
    """The first feature is any token of the upper half of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.W_enc[VOCABULARY // 2 :, 0] = 1.0


def test_token_types_that_no_fitted_token_has():
    """A feature of the kind knows them; probes of tokens, and of activations that are tokens, answer alike to all."""
    (result,) = probed({"high": high}, saes=[Kind()], place=None, words=VOCABULARY, held_out_types=0.3, per_row=2)
    found = numbers(result)
    assert found["auc@1"] == found["auc_unseen@1"] == found["auc_tokens"] == 1
    assert found["auc_unseen_tokens"] == 0.5
    # sums of equal numbers differ by rounding
    assert [found[f"auc_unseen_{name}"] for name in ("activations", "neurons@2")] == pytest.approx([0.5] * 2, abs=0.02)
    (line,) = result.values["tasks"]["rows"]
    columns = result.values["tasks"]["columns"]
    held = held_out(np.arange(1, VOCABULARY), 0.3, 0).mean()
    fitted, judged, unseen = (line[columns.index(name)] for name in ("fit tokens", "tokens", "unseen"))
    assert 0.1 < held < 0.5
    # two tokens of each class from each of the 60 rows, if it has them
    assert judged + unseen == pytest.approx(240, rel=0.03)
    assert [judged, fitted] == pytest.approx([240 * (1 - held)] * 2, rel=0.15)


def test_features_of_token_types_know_no_new_type():
    """Each feature is one type: those of fitted types are silent on all others, and what fires there was not chosen."""
    (result,) = probed({"high": high}, place=None, words=VOCABULARY, held_out_types=0.3, per_row=2)
    found = numbers(result)
    assert 0.5 < found["auc@1"] < found["auc@2"] < 1
    assert found["auc_unseen@1"] == found["auc_unseen@2"] == 0.5


def test_nothing_depends_on_batches_or_on_other_tasks():
    whole = probed({"mark": is_mark, "noise": at_random}, tasks=("noise",))
    batches = probed({"mark": is_mark, "noise": at_random}, tasks=("noise",), batch_size=7)
    assert numbers(whole[0]) == pytest.approx(numbers(batches[0]), abs=1e-9)
    of_both, alone = (result.values["tasks"] for (result,) in (probed({"mark": is_mark, "noise": at_random}), whole))
    (line,) = [row for row in of_both["rows"] if row[0] == "noise"]
    names = [name for name in alone["columns"] if "components" not in name]  # those of all rows of any task
    pick = {name: line[of_both["columns"].index(name)] for name in names}
    assert pick == pytest.approx({name: alone["rows"][0][alone["columns"].index(name)] for name in names}, abs=1e-9)


def test_no_task_and_no_sae_adds_a_pass():
    def passes(saes, labels):
        model = OneHot()
        for number, sae in enumerate(saes):
            sae.name = f"sae-{number}"
        probed(labels, saes, model=model, fit_rows=40)
        return dict(model.passes)

    several = {"mark": is_mark, "noise": at_random, "either": either}
    assert passes([Reader(), Reader()], several) == passes([Reader()], {"mark": is_mark})


@pytest.mark.parametrize(
    ("labels", "options", "fault"),
    [
        (
            {"rare": lambda tokens, draw: np.arange(tokens.size).reshape(tokens.shape) < 12},
            {},
            "the fit split has 11 tokens with the label 'rare'; 20 are needed: add texts, or leave it out of 'tasks'",
        ),
        ({"all": lambda tokens, draw: tokens > 0}, {}, "the fit split has 0 tokens without the label 'all'"),
        ({"mark": is_mark}, {"pooling": "mean"}, "labels of tokens need 'pooling: token'"),
    ],
)
def test_labels_that_cannot_be_probed(labels, options, fault):
    (result,) = probed(labels, **options)
    assert result.status == "undefined"
    assert fault in result.reason


def test_a_label_of_tokens_that_matches_nothing_is_refused_before_the_run():
    with pytest.raises(SaevalError, match="metric 'sparse_probing': no task matches 'mrk'; did you mean 'mark'"):
        probed({"mark": is_mark}, tasks=("mrk",))


def test_texts_without_labels_of_tokens():
    rows = texts(lambda row: [MARK] * (row % 2), columns=YES)
    model = OneHot()
    with pytest.raises(SaevalError, match=r"the data have no labels of tokens; use a source .* with 'spans'"):
        evaluate_tiny([{"sparse_probing": {"pooling": "token"}}], model=model, saes=[Reader()], rows=rows, fit=rows)
    assert not sum(model.passes.values())


def test_stretches_of_a_table_are_labels_of_its_tokens(tmp_path):
    """Each text names a city or a river; its name is marked, and the marked tokens are those of the name alone."""
    names = {"city": ["Rome", "Oslo", "Cairo"], "river": ["Rhine", "Nile", "Loire"]}
    records = []
    for number in range(120):
        kind = "city" if number % 2 else "river"
        name = names[kind][number // 2 % 3]
        start = len("They saw ")
        records.append({
            "text": f"They saw {name} at noon.",
            "spans": [{"start": start, "end": start + len(name), "label": kind}],
        })  # fmt: skip
    path = tmp_path / "places.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    results = evaluate(
        model="testbed", saes=["testbed/relu-1"], plugins=tiny_plugins(),
        data={"use": "labelled", "path": str(path), "spans": "spans", "context": 16},
        metrics=[{"sparse_probing": {"pooling": "token", "k": (1,), "folds": 2, "per_row": 16}}],
    )  # fmt: skip
    (result,) = results
    found = numbers(result)
    assert found["auc_tokens"] > 0.99
    lines = {line[0]: dict(zip(result.values["tasks"]["columns"], line)) for line in result.values["tasks"]["rows"]}
    assert set(lines) == {"city", "river"}
    # a text has a marked token at least, and every text belongs to both tasks
    assert lines["city"]["tokens"] == lines["river"]["tokens"]
    assert every(14 <= line["positive"] <= 4 * 16 for line in lines.values())


def test_values_are_declared():
    (result,) = probed({"mark": is_mark}, refits=2)
    scalars = {name for name, record in result.values.items() if "value" in record}
    assert set(SparseProbing(k=(1, 2), pooling="token", refits=2).value_names) == scalars


def test_features_of_token_classes_are_removed():
    """Each of two classes has a feature of its own: it takes its own probe's margin and nothing from the other's."""
    labels = {"mark": is_mark, "other": lambda tokens, draw: tokens == OTHER}
    data, fit = (marked_tokens(labels, seed, place=marks, validation=v) for seed, v in ((1, 0.0), (2, 0.4)))
    metric = {"tpp": {"n": (1,), "pooling": "token", "penalty": "l1"}}
    (result,) = evaluate_tiny([metric], model=OneHot(), saes=[Reader()], rows=data, fit=fit)
    found = numbers(result)
    assert found["intended@1"] == pytest.approx(1)
    assert abs(found["unintended@1"]) < 0.01
    assert [row[:3] for row in result.values["latents"]["rows"] if row[1] == 1] == [
        ["mark", 1, MARK],
        ["other", 1, OTHER],
    ]


def test_tokens_of_padding_and_of_excluded_types_are_no_rows():
    """Token 0 is excluded, and it has the label."""

    def zeros(tokens):
        tokens[:, :5] = 0
        tokens[:, 7] = MARK

    (result,) = probed({"mark": lambda tokens, draw: (tokens == MARK) | (tokens == 0)}, place=zeros)
    (line,) = result.values["tasks"]["rows"]
    assert line[3] == 60
    assert every(value == 1 for value in some([numbers(result)["auc@1"]]))
