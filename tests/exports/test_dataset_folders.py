"""`saeval export hf` writes a dataset folder that the library `datasets` reads."""

from __future__ import annotations

import yaml
from datasets import load_dataset

from filled_folders import fill
from saeval import cli
from saeval.testing.claims import some


def test_datasets_reads_the_folder_with_its_types(tmp_path, capsys):
    folders = [str(fill(tmp_path / name, fingerprint=name)) for name in "ab"]
    to = tmp_path / "dataset"
    assert cli.main(["export", "hf", *folders, "--to", str(to)]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(to / "data" / "leaderboard.parquet"), str(to / "README.md")]
    rows = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 16
    assert set(rows["board"]) == {1, 2}
    declared = yaml.safe_load((to / "README.md").read_text().split("---\n")[1])
    features = {feature["name"]: feature["dtype"] for feature in declared["dataset_info"]["features"]}
    for name, feature in some(rows.features.items()):
        assert features[name] == feature.dtype
    assert rows.features["ce.loss"].dtype == "float64"
    assert rows.features["rank"].dtype == "int64"
    assert declared["dataset_info"]["splits"][0]["num_examples"] == 16
    card = (to / "README.md").read_text()
    assert "not ranked together with s" in card
    assert "standard error" in card
