"""The windows of text in which the features that probes chose fire most."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int, Int8

from saeval.plugin import rebound
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.texts import Chosen
from saeval_explanations.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

LATENTS = 5
"""Number of features of a task that have examples."""
OF_TOKENS = 2
"""The label of a text whose tokens have labels, and not it."""


def probed_features(chosen_features: tuple[Chosen, ...]) -> Int[np.ndarray, "n"]:
    """The first features of each task, the tasks in turn."""
    return np.concatenate([choice.whole[:LATENTS] for choice in chosen_features])


def probed_labels(
    task_labels: Int8[np.ndarray, "n tasks"],
    chosen_features: tuple[Chosen, ...],
    chosen_tokens: ChosenTokens | None,
    mask: Bool[Tensor, "batch seq"],
) -> Int8[np.ndarray, "batch n"]:
    """The label of each text in the task of each of `probed_features`; `OF_TOKENS` if its tokens are labelled."""
    sizes = [len(choice.whole[:LATENTS]) for choice in chosen_features]
    if chosen_tokens is not None:
        return np.full((len(mask), sum(sizes)), OF_TOKENS, dtype=np.int8)
    return np.repeat(task_labels, sizes, axis=1)


@rebound(example_features="probed_features", example_labels="probed_labels")
def probed_examples(feature_examples: Any) -> Any:  # a function annotated with evidence would be a fold
    """The windows in which the first features of each task fire most, among the texts of the task."""
    return feature_examples


EXAMPLE_COLUMNS = ("feature", "class", "activation", "row", "tokens", "activations")


def example_cells(feature: int, positive: str, window: Window) -> list[Any]:
    """Return the cells of a table for a window, by `EXAMPLE_COLUMNS`; tokens and activations as JSON lists."""
    label = {0: f"not {positive}", 1: positive}.get(window.label, "")
    texts = [text for text, _ in window.tokens]
    acts = [float(f"{act:.4g}") for _, act in window.tokens]
    lists = (json.dumps(texts, ensure_ascii=False, separators=(",", ":")), json.dumps(acts, separators=(",", ":")))
    return [feature, label, window.activation, window.row, *lists]
