"""Results as SAEBench's files and back: exact keys, equal numbers, nothing in place of a missing one."""

from __future__ import annotations

import json
import math

import pytest
from jsonschema import Draft202012Validator

from saebench_schemas import schema as schema_of
from saeval import cli
from saeval.results.store import stored_results
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import every, none, some

METRICS = ["saebench_downstream", "saebench_variance", "saebench_features", "saebench_weights"]
HOSTILE = "<script>|`x`=cmd()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of all metrics on two SAEs, one of them with a name of somebody else's choice."""
    out = tmp_path_factory.mktemp("saebench")
    saes = {HOSTILE: TinySAE(seed=1), "b": TinySAE(seed=2)}
    evaluate_tiny([*METRICS, "l0"], saes=saes, controls=["mean"], out=out, name="bench")
    return out / "bench"


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    to = tmp_path_factory.mktemp("files")
    assert cli.main(["export", "saebench", str(folder), "--to", str(to)]) == 0
    return {json.loads(path.read_text())["sae_lens_id"]: json.loads(path.read_text()) for path in sorted(to.iterdir())}


def flat(metrics):
    return {field: value for category in metrics.values() for field, value in category.items()}


def test_the_files_are_valid_and_have_exactly_the_schemas_keys(files):
    schema = schema_of("core")
    validator = Draft202012Validator(schema)
    assert set(files) == {HOSTILE, "b"}  # no file of a control
    for output in some(files.values()):
        assert list(validator.iter_errors(output)) == []
        assert set(output) == set(schema["properties"])
        definitions = schema["$defs"]
        assert set(output["eval_config"]) == set(definitions["CoreEvalConfig"]["properties"])
        for category, fields in some(output["eval_result_metrics"].items()):
            reference = definitions["CoreMetricCategories"]["properties"][category]["$ref"].rpartition("/")[2]
            assert set(fields) == set(definitions[reference]["properties"])
        assert set(output["eval_result_metrics"]) == set(definitions["CoreMetricCategories"]["properties"])
        details = output["eval_result_details"]
        assert every(set(detail) == set(definitions["CoreFeatureMetric"]["properties"]) for detail in details)


def test_the_numbers_are_those_of_the_metrics(files, folder):
    own = {r.metric: r for r in stored_results(folder) if r.subject == "b"}
    numbers = flat(files["b"]["eval_result_metrics"])
    assert numbers["kl_div_score"] == own["saebench_downstream"].values["kl_div_score"]["value"]
    assert numbers["explained_variance_legacy"] == own["saebench_variance"].values["explained_variance_legacy"]["value"]
    assert numbers["frac_alive"] == own["saebench_features"].values["frac_alive"]["value"]
    details = {detail["index"]: detail for detail in files["b"]["eval_result_details"]}
    norms = own["saebench_weights"].array("encoder_norm")
    assert every(detail["encoder_norm"] == norms[index] for index, detail in details.items())


def test_a_missing_number_is_missing_and_never_minus_one(tmp_path, capsys):
    evaluate_tiny(["saebench_downstream"], saes={"a": TinySAE()}, out=tmp_path, name="part")
    assert cli.main(["export", "saebench", str(tmp_path / "part"), "--to", str(tmp_path / "to")]) == 0
    captured = capsys.readouterr()
    assert "a: saebench_variance has no explained_variance, " in captured.err
    (path,) = (tmp_path / "to").iterdir()
    output = json.loads(path.read_text())
    numbers = flat(output["eval_result_metrics"])
    assert "explained_variance" not in numbers
    assert none(value == -1 for value in numbers.values())
    assert every(math.isfinite(value) for value in numbers.values())


def test_names_that_files_cannot_tell_apart_get_files_of_their_own(tmp_path):
    evaluate_tiny(["saebench_downstream"], saes={"a/b": TinySAE(), "a:b": TinySAE(seed=2)}, out=tmp_path, name="two")
    assert cli.main(["export", "saebench", str(tmp_path / "two"), "--to", str(tmp_path / "to")]) == 0
    outputs = [json.loads(path.read_text()) for path in sorted((tmp_path / "to").iterdir())]
    assert {output["sae_lens_id"] for output in outputs} == {"a/b", "a:b"}


def test_a_run_without_the_metrics_is_told_which_to_add(tmp_path, capsys):
    evaluate_tiny(["l0"], out=tmp_path)
    assert cli.main(["export", "saebench", str(tmp_path / "evaluate"), "--to", str(tmp_path / "to")]) == 2
    assert "add them to the suite's 'metrics:'" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_importing_ones_own_export_gives_the_same_numbers(files, tmp_path, capsys):
    for place, output in enumerate(some(files.values())):
        (tmp_path / f"{place}_eval_results.json").write_text(json.dumps(output))
    assert cli.main(["import", "saebench", str(tmp_path), "--format", "json"]) == 0
    captured = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(captured.out)}
    assert set(rows) == {HOSTILE, "b"}
    for name, output in some(files.items()):
        numbers = flat(output["eval_result_metrics"])
        assert {f"core.{field}": rows[name][f"core.{field}"] for field in numbers} == {
            f"core.{field}": value for field, value in numbers.items()
        }
    assert every(row["core.kl_div_score.stderr"] is None and row["rank"] is None for row in rows.values())
    assert cli.main(["import", "saebench", str(tmp_path), "--format", "md"]) == 0
    assert "SAEBench's files have no errors: nothing is ranked or tested" in capsys.readouterr().out


def test_files_of_saebench_are_read_and_its_minus_one_is_no_number(tmp_path, capsys):
    base = {"eval_config": {"model_name": "pythia", "dataset": "pile", "context_size": 128}, "sae_lens_release_id": "r"}
    core = {**base, "eval_type_id": "core", "sae_lens_id": "s", "sae_cfg_dict": {"hook_name": "h"},
            "eval_result_metrics": {"sparsity": {"l0": 32.0, "l1": -1}}}  # fmt: skip
    probing = {**core, "eval_type_id": "sparse_probing", "eval_result_metrics": {"sae": {"sae_test_accuracy": 0.9}}}
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.json").write_text(json.dumps(core))
    (tmp_path / "probing.json").write_text(json.dumps(probing))
    assert cli.main(["import", "saebench", str(tmp_path), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["hook_name"], row["model"]) == ("r/s", "h", "pythia")
    assert (row["core.l0"], row["core.l1"], row["sparse_probing.sae_test_accuracy"]) == (32.0, None, 0.9)
    assert "SAEBench wrote -1" in row["missing"]["core.l1"]
    (tmp_path / "again.json").write_text(json.dumps(core))
    assert cli.main(["import", "saebench", str(tmp_path)]) == 2
    assert "a second result of core for 'r/s'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no JSON file in it"), ("[]", "no result file of SAEBench"), ("{", "broken JSON"),
        ('{"eval_result_metrics": {"a": 3}}', "'eval_result_metrics.a' is no mapping"),
    ],
)  # fmt: skip
def test_other_folders_are_one_sentence(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert cli.main(["import", "saebench", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["import", "saebench", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
