"""Leaderboards as a Hugging Face dataset folder: Parquet files, and a card that declares them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import yaml

from saeval.plugin import Board, escapes
from saeval_reports import tables
from saeval_reports.files import parquet

FILE = "data/leaderboard.parquet"


def files(boards: Sequence[Board]) -> dict[str, bytes]:
    """Return the content of the folder's files by name: the rows of the boards, and `README.md`."""
    content = parquet(boards)
    return {FILE: content, "README.md": f"---\n{_metadata(content)}---\n\n{_card(boards)}\n".encode()}


def _metadata(content: bytes) -> str:
    """Return the card's YAML: which files are which split, and the type of each column."""
    import pyarrow.parquet as pq  # late: slow to import

    schema, rows = pq.read_schema(io.BytesIO(content)), pq.read_metadata(io.BytesIO(content)).num_rows
    features = [{"name": field.name, "dtype": _dtype(str(field.type))} for field in schema]
    metadata: dict[str, Any] = {
        "pretty_name": "Evaluation of sparse autoencoders by saeval",
        "tags": ["sparse-autoencoders", "interpretability", "evaluation", "saeval"],
        "size_categories": [_size(rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": FILE}]}],
        "dataset_info": {
            "config_name": "default",
            "features": features,
            "splits": [{"name": "train", "num_bytes": len(content), "num_examples": rows}],
            "download_size": len(content),
            "dataset_size": len(content),
        },
    }
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _dtype(arrow: str) -> str:
    return {"double": "float64", "float": "float32"}.get(arrow, arrow)


def _size(rows: int) -> str:
    return "n<1K" if rows < 1000 else "1K<n<10K" if rows < 10_000 else "10K<n<100K"


def _card(boards: Sequence[Board]) -> str:
    titles = ", ".join(escapes.markdown(board.title) for board in boards)
    columns = (
        "A row is an SAE, a control, a group or a model. `METRIC.VALUE` is a number, `METRIC.VALUE.stderr` its "
        "standard error with the document as the unit, and `.ci95.low` and `.ci95.high` its 95% interval. `rank` to "
        "`rank_high` are the places that paired tests leave open; rows of different `board`s are not comparable. "
        "`missing` says why a number does not exist, and `unreliable` which errors to doubt. `limited` rows are of "
        "trial runs."
    )
    return "\n\n".join([f"# Leaderboard: {titles}", columns, tables.markdown(boards)])
