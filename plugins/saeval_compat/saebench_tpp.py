"""SAEBench 0.6.0's targeted probe perturbation (sae_bench/evals/scr_and_tpp/main.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Int8

from saeval.plugin import Batch, Better, Evidence, PerRow, Undefined, Value, fit_split, fold
from saeval_compat.saebench_probes import (
    Answers,
    Draws,
    KeyedDraws,
    Rows,
    Training,
    Weights,
    accuracy,
    equal_groups,
    one_against_others,
)
from saeval_compat.saebench_removals import Chosen, SAEBenchRemoval, removals
from saeval_concepts.tasks import Task
from saeval_concepts.written import GroupSums, projections

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("total_metric", "intended_diff_only", "unintended_diff_only")


@dataclass(frozen=True)
class TPPSetup:
    """Everything that is drawn and fitted before the SAE is looked at."""

    probes: Sequence[Weights]
    clean: Sequence[float]
    """Accuracy of each probe."""
    effects: Sequence[Answers]
    """Texts of the fit split by which the features of each class are ranked."""
    ablated: Sequence[Sequence[Sequence[Answers]]]
    """Evaluated texts, by removed class, N and probe."""


def tpp_setup(
    x: Float[np.ndarray, "fit d"], held: Float[np.ndarray, "test d"], fit: Sequence[Rows], test: Sequence[Rows],
    n: int, draws: Draws, training: Training,
) -> TPPSetup:  # fmt: skip
    """Draw texts and train probes, in SAEBench's order; `fit` and `test` have the texts of each class."""
    classes = range(len(fit))
    probes = []
    for number in classes:
        fitted, tested = one_against_others(fit, number, draws), one_against_others(test, number, draws)
        probes.append(training.probe(x, held, fitted, tested, draws).weights)
    clean = [accuracy(held @ w + c, one_against_others(test, number, draws)) for number, (w, c) in enumerate(probes)]
    effects = [one_against_others(fit, number, draws) for number in classes]
    ablated = [[[one_against_others(test, number, draws) for number in classes] for _ in range(n)] for _ in classes]
    return TPPSetup(probes, clean, effects, ablated)


def class_rows(
    labels: Int8[np.ndarray, "rows tasks"], clusters: Int[np.ndarray, "rows"], tasks: Sequence[Task], most: int,
    seed: int,
) -> list[Rows]:  # fmt: skip
    """Return as many texts of each class; `Undefined` if a text has two, or there are fewer than two classes."""
    if len(tasks) < 2:
        raise Undefined(f"'tasks' matches '{tasks[0].name}' alone; name two classes or more")
    if int((labels == 1).sum(1).max(initial=0)) > 1:
        raise Undefined("SAEBench's classes exclude each other, but a text is in two; name classes of one column")
    members = {f"in '{task.name}'": np.flatnonzero(labels[:, number] == 1) for number, task in enumerate(tasks)}
    return equal_groups(members, most // 2, clusters, seed)


def saebench_tpp_setup(
    fit_activation_rows: PerRow,
    test_activation_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    n: Sequence[int],
    train_size: int,
    test_size: int,
    epochs: int,
    seed: int,
) -> TPPSetup:
    """SAEBench's probes and drawn texts for TPP, the same for every SAE of a hook."""
    sizes = ((fit_activation_rows, train_size), (test_activation_rows, test_size))
    fit, test = (class_rows(rows["y"], rows.clusters, probe_tasks, most, seed) for rows, most in sizes)
    x, held = fit_activation_rows["x"], test_activation_rows["x"]
    return tpp_setup(x, held, fit, test, len(n), KeyedDraws(seed), Training(epochs))


@fold
@fit_split
def saebench_tpp_sums(
    pooled_written_acts: Float[Tensor, "batch d_sae"],
    saebench_tpp_setup: TPPSetup,
    fit_activation_rows: PerRow,
    batch: Batch,
) -> GroupSums:
    """Fold over the fit split: sums over the texts that rank each class's features, those of the class first."""
    ids = fit_activation_rows.ids
    member = [
        np.isin(batch.sequence_ids, ids[rows[answers == side]])
        for side in (True, False)
        for rows, answers in saebench_tpp_setup.effects
    ]
    return GroupSums.of(pooled_written_acts, np.array(member))


def saebench_tpp_removals(
    saebench_tpp_sums: GroupSums, saebench_tpp_setup: TPPSetup, W_dec: Float[Tensor, "d_sae d"], n: Sequence[int]
) -> Chosen:
    """The features that SAEBench removes for each class and N."""
    products, _ = projections(W_dec, np.stack([w.astype(np.float64) for w, _ in saebench_tpp_setup.probes]))
    yes, no = np.split(saebench_tpp_sums.means, 2)
    effects = np.maximum(yes - no, 0) * products.T
    return tuple(removals(own, n, products) for own in effects)


class SAEBenchTPP(SAEBenchRemoval):
    """SAEBench's targeted probe perturbation, for comparison with numbers that it printed.

    Defects, kept: negatives are drawn anew for each accuracy, so that clean and ablated ones are of different texts;
    the epoch of a probe is the best on the evaluated texts; of the features with the largest effects, some may have
    effects of 0 or below; removing features also changes padded positions, by their activations at x = 0, and the sum
    is divided by the tokens that are not padding. `context_length` is SAEBench's, to which it pads every text. Differs:
    texts are drawn by a hash, and are those of the suite's fit split and evaluated texts, `train_size` and `test_size`
    at most for each probe, of which half are in its class; an SAE that scales its input is not refused. SAEBench
    excludes BOS, EOS and padding: set `exclude` so. Its own N are the default; it fails if one is above d_sae, where
    the value is undefined here. Source: SAEBench 0.6.0, scr_and_tpp.

    Values:
        tpp_threshold_*_total_metric: intended minus unintended difference; accuracy; −1 .. 1; higher is better.
        tpp_threshold_*_intended_diff_only: mean over classes of the fall of a class's accuracy as N of its features are
            removed; accuracy; −1 .. 1; no better direction.
        tpp_threshold_*_unintended_diff_only: mean over classes of the mean fall of the others; accuracy; −1 .. 1; no
            better direction.

    Claims:
        *: the number that SAEBench computes for these texts and draws, beside one that it printed; null: none, since it
            is not tested; needs: the same texts; 1 SAE; not: that an SAE is good or better than another; use `tpp` for
            that.
    """

    name, version = "saebench_tpp", 1
    forms = tuple(f"tpp_threshold_{{}}_{part}" for part in PARTS)
    unit = "accuracy"

    def better(self, form: str) -> Better:
        return "higher" if form.endswith("total_metric") else None

    def observe(
        self,
        padded_acts: Float[Tensor, "batch d_sae"],
        task_labels: Int8[np.ndarray, "batch tasks"],
        saebench_tpp_removals: Chosen,
    ) -> Evidence:
        """How much leaves the logit of each probe, by removed class, N and probe."""
        return self.removed(saebench_tpp_removals, padded_acts, task_labels)

    def conclude(
        self,
        total: PerRow,
        saebench_tpp_setup: TPPSetup,
        test_activation_rows: PerRow,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> dict[str, Value]:
        found = tpp_values(saebench_tpp_setup, test_activation_rows["x"], total["change"], self.n)
        return self.values(found, len(W_dec), missing="")


def tpp_values(
    setup: TPPSetup, x: Float[np.ndarray, "n d"], change: Float[np.ndarray, "n removed counts probes"], n: Sequence[int]
) -> dict[str, float]:
    """Return SAEBench's values by its names, the means over removed classes."""
    logits = np.stack([x @ w + c for w, c in setup.probes], axis=1)
    classes = range(len(setup.probes))
    values: dict[str, float] = {}
    for place, count in enumerate(n):
        own, other = [], []
        for removed in classes:
            falls = [
                setup.clean[probe]
                - accuracy(logits[:, probe] - change[:, removed, place, probe], setup.ablated[removed][place][probe])
                for probe in classes
            ]
            own.append(falls.pop(removed))
            other.append(sum(falls) / len(falls))
        parts = (np.mean(own) - np.mean(other), np.mean(own), np.mean(other))
        values |= {f"tpp_threshold_{count}_{part}": float(value) for part, value in zip(PARTS, parts, strict=True)}
    return values
