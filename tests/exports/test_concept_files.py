"""Concept metrics as SAEBench's and sae-probes' files: exact keys, numbers of the metrics, valid by SAEBench's schemas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from saebench_schemas import schema
from saeval import cli
from saeval.results.store import stored_results
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset
from saeval_compat import saeprobes_regressions

REMOVAL = {"n": (2, 3, 500), "epochs": 2}
METRICS = [
    {"saebench_probing": {"tasks": ("kind=*",), "k": (1, 2, 3)}},
    {"saebench_tpp": {"tasks": ("kind=*",), **REMOVAL}},
    {"saebench_tpp": {"tasks": ("kind=a", "kind=b"), **REMOVAL, "as": "two"}},
    {"saebench_tpp": {"tasks": ("kind=*",), "n": (2,), "epochs": 1, "as": "other"}},
    {"saebench_scr": {"tasks": ("p", "q"), **REMOVAL}},
    {"absorption": {"tasks": ("kind=*",), "at": None, "least_f1": 0, "least_words": 2, "folds": 2}},
    {"saeprobes": {"tasks": ("p", "q"), "k": (1, 2)}},
    {"saeprobes": {"tasks": ("p",), "k": (2,), "train_size": 16, "as": "scarce"}},
    {"saeprobes": {"tasks": ("p",), "k": (2,), "frac": 0.25, "as": "rare"}},
    {"saeprobes": {"tasks": ("p",), "k": (2,), "corrupt_frac": 0.1, "as": "noisy"}},
]


def texts(seed, validation):
    """Rows of three classes in one column, and of two labels; a token of each class is in its rows."""
    rows = tiny_tokens(rows=72, seed=seed)
    number = np.arange(len(rows))
    tokens = rows.tokens.copy()
    tokens[:, 2] = 3 + number % 3
    labels = {"kind": np.array(["a", "b", "c"])[number % 3], "p": (number // 3 % 2).astype(str)}
    labels["q"] = (number // 6 % 2).astype(str)
    nothing = np.zeros(len(rows), np.uint64)
    held = (number // 12 % 3 == 0) & validation
    annotations = Annotations(labels, held, [], nothing, np.zeros(tokens.shape, np.uint64))
    return TokenDataset(tokens, rows.documents, rows.clusters, [0], annotations=annotations)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("concepts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saeprobes_regressions, "PENALTIES", np.array([1.0]))  # one, for speed
        evaluate_tiny(
            METRICS, saes={"a/b": TinySAE(seed=1)}, model=TinyModel(), rows=texts(1, False), fit=texts(2, True),
            out=out, name="bench",
        )  # fmt: skip
    return out / "bench"


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    to = tmp_path_factory.mktemp("files")
    assert cli.main(["export", "saebench", str(folder), "--to", str(to)]) == 0
    return to


def content(files, evaluation):
    (path,) = (files / evaluation).iterdir()
    return json.loads(path.read_text())


def values_of(folder, name):
    (result,) = [r for r in stored_results(folder) if r.metric == name and r.subject == "a/b"]
    return result.values


@pytest.mark.parametrize("evaluation", ["sparse_probing", "tpp", "scr", "absorption"])
def test_the_files_are_valid_and_have_no_other_keys(files, evaluation):
    reference, output = schema(evaluation), content(files, evaluation)
    assert list(Draft202012Validator(reference).iter_errors(output)) == []
    assert set(output) == set(reference["properties"])
    definitions = reference["$defs"]

    def known(part):
        return set(definitions[part["$ref"].rpartition("/")[2]]["properties"])

    assert set(output["eval_config"]) <= known(reference["properties"]["eval_config"])
    (categories,) = [d for name, d in definitions.items() if name.endswith("Categories")]
    assert set(output["eval_result_metrics"]) == set(categories["properties"])
    metrics = output["eval_result_metrics"]
    assert every(set(own) <= known(categories["properties"][name]) for name, own in metrics.items())
    assert every(len(own) > 0 for own in metrics.values())
    details = known(reference["properties"]["eval_result_details"]["items"])
    assert every(set(detail) <= details for detail in output["eval_result_details"])
    assert output["sae_lens_id"] == "a/b"


def test_probing(files, folder):
    output, values = content(files, "sparse_probing"), values_of(folder, "saebench_probing")
    numbers = {**output["eval_result_metrics"]["llm"], **output["eval_result_metrics"]["sae"]}
    assert set(numbers) == {
        f"{kind}_{part}test_accuracy" for kind in ("llm", "sae") for part in ("", "top_1_", "top_2_")
    }
    assert every(value == pytest.approx(values[name]["value"]) for name, value in numbers.items())
    (detail,) = output["eval_result_details"]
    assert detail["dataset_name"] == "kind_results"
    assert set(output["eval_result_unstructured"]["kind_results"]["sae_top_1_test_accuracy"]) == {"a", "b", "c"}
    assert output["eval_config"]["k_values"] == [1, 2, 3]


def test_choices_of_tasks_are_data_sets(files, folder, capsys):
    output = content(files, "tpp")
    names = [detail["dataset_name"] for detail in output["eval_result_details"]]
    assert names == ["in-memory_tpp_kind=*_results", "in-memory_tpp_kind=a_kind=b_results"]
    both = [values_of(folder, name)["tpp_threshold_2_total_metric"]["value"] for name in ("saebench_tpp", "two")]
    mean = output["eval_result_metrics"]["tpp_metrics"]["tpp_threshold_2_total_metric"]
    assert mean == pytest.approx(sum(both) / 2)
    assert "tpp_threshold_500_total_metric" not in output["eval_result_metrics"]["tpp_metrics"]
    assert cli.main(["export", "saebench", str(folder), "--to", str(files)]) == 0
    notes = capsys.readouterr().err
    assert "a/b: other: other parameters than saebench_tpp, not in the file" in notes
    assert "SAEBench has no fields for N = 3: not in the file" in notes
    assert "3 letters count; SAEBench has no result for fewer than 20" in notes


def test_absorption_by_letter(files, folder):
    output, values = content(files, "absorption"), values_of(folder, "absorption")
    details = output["eval_result_details"]
    assert [detail["first_letter"] for detail in details] == ["a", "b", "c"]
    means = output["eval_result_metrics"]["mean"]
    assert means["mean_full_absorption_score"] == pytest.approx(values["saebench_full"]["value"])
    assert means["mean_absorption_fraction_score"] == pytest.approx(values["saebench_fraction"]["value"])
    assert means["mean_num_split_features"] == pytest.approx(values["mains"]["value"])
    splits = [detail["num_split_features"] for detail in details]
    assert means["std_dev_num_split_features"] == pytest.approx(np.std(splits, ddof=1))


def test_the_files_are_read_again(files, capsys):
    assert cli.main(["import", "saebench", str(files), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    numbers = {name: value for row in rows for name, value in row.items() if value is not None}
    for evaluation in some(["sparse_probing", "tpp", "scr", "absorption"]):
        output = content(files, evaluation)
        flat = {field: value for own in output["eval_result_metrics"].values() for field, value in own.items()}
        read = {field: numbers[f"{output['eval_type_id']}.{field}"] for field in flat}
        assert read == flat


def test_sae_probes_files(folder, tmp_path, capsys):
    assert cli.main(["export", "saeprobes", str(folder), "--to", str(tmp_path)]) == 0
    found = {str(path.relative_to(tmp_path)): json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}
    start, hook = "a-b/sae_probes_tiny", "blocks.1.hook_resid_pre"
    assert set(found) == {
        f"{start}/normal_setting/p_{hook}_l2.json", f"{start}/normal_setting/q_{hook}_l2.json",
        f"{start}/scarcity_setting/p_{hook}_16_l2.json", f"{start}/imbalance_setting/p_{hook}_frac0.25_l2.json",
    }  # fmt: skip
    assert "a/b: noisy has wrong labels; sae-probes has no files of that for features" in capsys.readouterr().err
    one, two = found[f"{start}/normal_setting/p_{hook}_l2.json"]
    keys = {
        "test_f1",
        "test_acc",
        "test_auc",
        "val_auc",
        "k",
        "dataset",
        "hook_name",
        "reg_type",
        "binarize",
        "indices",
    }
    assert set(one) == keys
    assert (one["k"], one["dataset"], len(two["indices"])) == (1, "p", 2)
    assert two["indices"][:1] == one["indices"]
    (scarce,) = found[f"{start}/scarcity_setting/p_{hook}_16_l2.json"]
    assert set(scarce) == {*keys, "num_train"}
    assert scarce["num_train"] == 16
    (rare,) = found[f"{start}/imbalance_setting/p_{hook}_frac0.25_l2.json"]
    assert set(rare) == {*keys, "frac"}
    assert rare["frac"] == 0.25
    other = found[f"{start}/normal_setting/q_{hook}_l2.json"]
    mean = np.mean([own[0]["test_auc"] for own in (other, [one])])
    assert values_of(folder, "saeprobes")["test_auc@1"]["value"] == pytest.approx(mean)


def test_a_run_without_the_metric_is_told_which_to_add(tmp_path, capsys):
    evaluate_tiny(["l0"], out=tmp_path)
    assert cli.main(["export", "saeprobes", str(tmp_path / "evaluate"), "--to", str(tmp_path / "to")]) == 2
    assert "no SAE has a result of saeprobes; add them to the suite's 'metrics:'" in capsys.readouterr().err
