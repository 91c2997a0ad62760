"""SAEBench's result files as boards: a row per SAE, a column per number, no errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import Board, Column, Entry, Row, SaevalError, read_json

HIGHER = {
    "kl_div_score", "ce_loss_score", "explained_variance", "explained_variance_legacy", "autointerp_score",
    "disentangle_score", "unlearning_score",
}  # fmt: skip
HIGHER_FORMS = re.compile(
    r"(llm|sae)_(top_\d+_)?test_(accuracy|auc|f1)|tpp_threshold_\d+_total_metric|scr_(metric|dir1|dir2)_threshold_\d+"
)
LOWER = {"mse", "kl_div_with_sae", "ce_loss_with_sae", "mean_absorption_fraction_score", "mean_full_absorption_score"}
MISSING = -1
"""What SAEBench writes in place of a number that does not exist."""
NO_ERRORS = "SAEBench's files have no errors: nothing is ranked or tested"


def boards(folder: Path) -> list[Board]:
    """Return a board for each model and data set of the result files in a folder and those below it.

    `SaevalError` if there are none, or if a file is no result of SAEBench.
    """
    if not folder.is_dir():
        raise SaevalError(f"{folder}: no such folder; name a folder of SAEBench's result files")
    made: dict[tuple[str, ...], Board] = {}
    rows: dict[tuple[tuple[str, ...], str, str], Row] = {}
    for path in sorted(folder.rglob("*.json")):
        output = _read(path)
        config = output.get("eval_config")
        config = config if isinstance(config, dict) else {}
        cfg = output.get("sae_cfg_dict")
        cfg = cfg if isinstance(cfg, dict) else {}
        model = str(config.get("model_name") or cfg.get("model_name") or "")
        names = config.get("dataset_names")
        dataset = str(config.get("dataset") or (", ".join(map(str, names)) if isinstance(names, list) else ""))
        dataset = dataset or "unknown data"
        data = {"use": dataset, "context": config.get("context_size") or config.get("context_length")}
        evaluation = str(output.get("eval_type_id") or "core")
        place = (model, dataset, str(data["context"]))
        board = made.setdefault(place, _board(folder, model, data))
        release, name = output.get("sae_lens_release_id"), str(output.get("sae_lens_id") or path.stem)
        name = f"{release}/{name}" if release else name
        hook_name = str(cfg.get("hook_name") or "")
        row = rows.get((place, name, hook_name))
        if row is None:
            row = rows[place, name, hook_name] = Row(name, hook_name, "sae", site=hook_name)
            board.rows.append(row)
        for field, value in _numbers(output["eval_result_metrics"], path):
            column = f"{evaluation}.{field}"
            if column in row.entries:
                raise SaevalError(f"{path}: a second result of {evaluation} for '{name}'; keep one of the files")
            row.entries[column] = _entry(value)
            if column not in {known.name for known in board.columns}:
                board.columns.append(_column(column, field))
    if not made:
        raise SaevalError(f"{folder}: no JSON file in it; name a folder of SAEBench's result files")
    return list(made.values())


def _board(folder: Path, model: str, data: Mapping[str, Any]) -> Board:
    return Board(f"SAEBench {folder.name}", model, data, [], [], None, warnings=[NO_ERRORS])


def _read(path: Path) -> dict[str, Any]:
    try:
        output = read_json(path)
    except (OSError, ValueError) as error:
        raise SaevalError(f"{path}: cannot be read ({error}); remove it, or fetch it again") from None
    if not isinstance(output, dict) or not isinstance(output.get("eval_result_metrics"), dict):
        fault = f"{path}: no result file of SAEBench, since it has no 'eval_result_metrics'"
        raise SaevalError(f"{fault}; name a folder that holds only SAEBench's result files")
    return output


def _numbers(metrics: Mapping[str, Any], path: Path) -> Iterator[tuple[str, float]]:
    """Yield the numbers of all categories; other values are left out."""
    for category, fields in metrics.items():
        if not isinstance(fields, dict):
            raise SaevalError(f"{path}: 'eval_result_metrics.{category}' is no mapping; fetch the file again")
        for field, value in fields.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield field, float(value)


def _entry(value: float) -> Entry:
    if value == MISSING:
        return Entry(status="missing", reason="SAEBench wrote -1, its mark of a number that does not exist")
    return Entry(value, status="ok", reason="SAEBench's files have no errors")


def _column(name: str, field: str) -> Column:
    higher = field in HIGHER or HIGHER_FORMS.fullmatch(field) is not None
    return Column(name, better="higher" if higher else "lower" if field in LOWER else None)
