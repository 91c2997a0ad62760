"""Reads the synthetic models that sae-lens saves."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from saeval.plugin import SaevalError, quoted_value, read_json, sha256_file, torch
from saeval_synthetic.world import Tree, World

CONFIG, WEIGHTS, HIERARCHY = "synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json"


def identity(folder: Path) -> list[str]:
    """Return the hashes of a model's files; `SaevalError` if one is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise SaevalError(f"{folder}: no file {name}; it is not a synthetic model saved by sae-lens")
    return [sha256_file(folder / name) for name in (CONFIG, WEIGHTS, HIERARCHY) if (folder / name).is_file()]


def load(folder: Path, seed: int = 0) -> World:
    """Return the world of a saved synthetic model; `SaevalError` for files that are not those of one."""
    from safetensors import SafetensorError  # late: as in other loaders
    from safetensors.torch import load_file

    identity(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise SaevalError(f"{folder / CONFIG}: a mapping was expected, got {quoted_value(config)}")
    try:
        weights = {name: tensor.float().numpy() for name, tensor in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise SaevalError(f"{folder / WEIGHTS}: {error}") from None
    for name in ("feature_vectors", "bias", "firing_probabilities"):
        if name not in weights:
            raise SaevalError(f"{folder / WEIGHTS}: no tensor '{name}'; it is not a synthetic model of sae-lens")
    vectors = weights["feature_vectors"]
    n, d = vectors.shape
    expected: dict[str, tuple[int, ...]] = {"bias": (d,), "firing_probabilities": (n,)}
    if "correlation_factor" in weights:
        expected |= {"correlation_factor": (n, weights["correlation_factor"].shape[-1]), "correlation_diag": (n,)}
    for name, shape in expected.items():
        if name not in weights or weights[name].shape != shape:
            found = list(weights[name].shape) if name in weights else "no tensor"
            raise SaevalError(f"{folder / WEIGHTS}: '{name}' has the shape {found}, expected {list(shape)}")
    base = config.get("seed")
    mean, std = (
        _magnitudes(config.get(f"{kind}_firing_magnitudes", default), n, base, offset, folder)
        for kind, default, offset in (("mean", 1.0, 2), ("std", 0.0, 1))
    )
    return World(
        vectors, weights["bias"], weights["firing_probabilities"].astype(np.float64), mean, std,
        weights.get("correlation_factor", np.zeros((n, 0), np.float32)),
        _tree(read_json(folder / HIERARCHY), n, folder) if (folder / HIERARCHY).is_file() else Tree.none(n),
        seed=seed,
        spread=np.sqrt(weights["correlation_diag"]) if "correlation_diag" in weights else None,
    )  # fmt: skip


def _magnitudes(entry: Any, n: int, seed: Any, offset: int, folder: Path) -> Float32[np.ndarray, "n"]:
    """Return the magnitudes that a config describes, by the rules of sae-lens."""
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return np.full(n, entry, np.float32)
    kind = entry.get("generator_name") if isinstance(entry, Mapping) else None
    place = torch.linspace(0, 1, n)
    try:
        if kind == "constant":
            return np.full(n, float(entry["value"]), np.float32)
        if kind == "linear":
            return torch.linspace(float(entry["start"]), float(entry["end"]), n).numpy()
        if kind == "exponential":
            start, end = float(entry["start"]), float(entry["end"])
            return (start * (end / start) ** place).numpy()
        if kind == "folded_normal":
            if not isinstance(seed, int):
                raise SaevalError(f"{folder / CONFIG}: random magnitudes without a seed are not saved with the model")
            generator = torch.Generator().manual_seed(seed + offset)
            drawn = (float(entry["mean"]) + torch.randn(n, generator=generator) * float(entry["std"])).abs()
            bounds = entry.get("min_value"), entry.get("max_value")
            return (drawn.clamp(*bounds) if bounds != (None, None) else drawn).numpy()
    except (KeyError, TypeError, ValueError) as error:
        raise SaevalError(f"{folder / CONFIG}: magnitudes of kind '{kind}' lack a number: {error}") from None
    raise SaevalError(
        f"{folder / CONFIG}: unknown magnitudes {quoted_value(entry)}; known are a number, "
        "constant, linear, exponential and folded_normal"
    )


def _tree(stored: Any, n: int, folder: Path) -> Tree:
    """Return the hierarchy of `hierarchy.json`; places without a feature pass on the parent above them."""
    tree, groups = Tree.none(n), 0
    try:
        waiting = deque((root, -1, False) for root in stored["roots"])
        while waiting:
            node, above, scaled = waiting.popleft()
            feature, children = node.get("feature_index"), node.get("children", [])
            if feature is not None:
                if not isinstance(feature, int) or not 0 <= feature < n:
                    raise SaevalError(f"{folder / HIERARCHY}: feature {quoted_value(feature)} of {n} does not exist")
                tree.parent[feature], tree.scaled[feature] = above, scaled
            own = [child["feature_index"] for child in children if child.get("feature_index") is not None]
            if node.get("mutually_exclusive_children") and len(own) >= 2:
                tree.group[own] = groups
                groups += 1
            passed = feature if feature is not None else above
            scales = bool(node.get("scale_children_by_parent"))
            waiting.extend((child, passed, scales) for child in children)
    except (KeyError, TypeError, AttributeError, IndexError):
        raise SaevalError(f"{folder / HIERARCHY}: not a hierarchy of sae-lens") from None
    return tree
