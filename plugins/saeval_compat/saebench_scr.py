"""SAEBench 0.6.0's spurious correlation removal (sae_bench/evals/scr_and_tpp/main.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int8

from saeval.plugin import Batch, Evidence, PerRow, Value, fit_split, fold
from saeval_compat.saebench_probes import (
    Answers,
    Draws,
    KeyedDraws,
    Rows,
    Training,
    Weights,
    accuracy,
    equal_groups,
    one_against_another,
)
from saeval_compat.saebench_removals import Chosen, SAEBenchRemoval, removals
from saeval_concepts.scr import quadrants
from saeval_concepts.tasks import Task
from saeval_concepts.written import GroupSums, projections

if TYPE_CHECKING:
    from torch import Tensor

PROBES = ("first", "second", "biased")
Sides = dict[str, tuple[Rows, Rows]]
"""By probe: the texts of its two sides."""


@dataclass(frozen=True)
class SCRSetup:
    """Texts and probes, fixed before the SAE is looked at."""

    probes: Sequence[Weights]
    """In the order of `PROBES`."""
    fit: Sides
    test: Sides


def sides(groups: Sequence[Rows]) -> Sides:
    """Return the texts of each probe from those of the answers no-no, no-yes, yes-no and yes-yes.

    `groups` has twice as many of the first and the last, all of which the biased probe uses, and the others half.
    """
    half = len(groups[1])
    no_no, no_yes, yes_no, yes_yes = (rows[:half] for rows in groups)
    first = np.concatenate([yes_yes, yes_no]), np.concatenate([no_yes, no_no])
    second = np.concatenate([yes_yes, no_yes]), np.concatenate([yes_no, no_no])
    return {"first": first, "second": second, "biased": (groups[3], groups[0])}


def scr_probes(
    x: Float[np.ndarray, "fit d"], held: Float[np.ndarray, "test d"], fit: Sides, test: Sides, draws: Draws,
    training: Training,
) -> list[Weights]:  # fmt: skip
    """Train SAEBench's probes, in the order of `PROBES`."""
    probes = []
    for name in PROBES:
        fitted, tested = one_against_another(*fit[name], draws), one_against_another(*test[name], draws)
        probes.append(training.probe(x, held, fitted, tested, draws).weights)
    return probes


def _sides(rows: PerRow, tasks: tuple[Task, ...], most: int, seed: int) -> Sides:
    groups = quadrants(rows["y"], tasks)
    words = [f"'{name}'" for name in (task.name for task in tasks)]
    names = [f"{a}{words[0]} and {b}{words[1]}" for a in ("not ", "") for b in ("not ", "")]
    found = {name: np.flatnonzero(groups == number) for number, name in enumerate(names)}
    halves = {name: own[: max(len(own) // 2, 1)] for name, own in list(found.items())[::3]}
    size = min(most // 4, *(len(own) for own in found.values()), *(len(own) for own in halves.values()))
    chosen = []
    for number, (name, own) in enumerate(found.items()):
        (mine,) = equal_groups({name: own}, 2 * size if number in (0, 3) else size, rows.clusters, seed)
        chosen.append(mine)
    return sides(chosen)


def saebench_scr_setup(
    fit_activation_rows: PerRow,
    test_activation_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    train_size: int,
    test_size: int,
    epochs: int,
    seed: int,
) -> SCRSetup:
    """SAEBench's probes and texts for SCR, the same for every SAE of a hook."""
    fit = _sides(fit_activation_rows, probe_tasks, train_size, seed)
    test = _sides(test_activation_rows, probe_tasks, test_size, seed)
    x, held = fit_activation_rows["x"], test_activation_rows["x"]
    return SCRSetup(scr_probes(x, held, fit, test, KeyedDraws(seed), Training(epochs)), fit, test)


@fold
@fit_split
def saebench_scr_sums(
    pooled_written_acts: Float[Tensor, "batch d_sae"],
    saebench_scr_setup: SCRSetup,
    fit_activation_rows: PerRow,
    batch: Batch,
) -> GroupSums:
    """Fold over the fit split: sums over the texts with the first label, with the second, without each."""
    ids = fit_activation_rows.ids
    member = [
        np.isin(batch.sequence_ids, ids[saebench_scr_setup.fit[name][side]])
        for side in (0, 1)
        for name in ("first", "second")
    ]
    return GroupSums.of(pooled_written_acts, np.array(member))


def saebench_scr_removals(
    saebench_scr_sums: GroupSums, saebench_scr_setup: SCRSetup, W_dec: Float[Tensor, "d_sae d"], n: Sequence[int]
) -> Chosen:
    """The features that SAEBench removes to keep the first label, and to keep the second."""
    products, _ = projections(W_dec, np.stack([w.astype(np.float64) for w, _ in saebench_scr_setup.probes]))
    yes, no = np.split(saebench_scr_sums.means, 2)
    effects = np.abs((yes - no) * products[:, :2].T)
    return tuple(removals(effects[other], n, products[:, 2:]) for other in (1, 0))


class SAEBenchSCR(SAEBenchRemoval):
    """SAEBench's spurious correlation removal, for comparison with numbers that it printed.

    dir1 keeps the first task and removes the features of the second, dir2 the other way round; in SAEBench the first is
    the profession or product. Defects, kept: a score is 0 where the denominator is below 0.001;
    `scr_metric_threshold_*` is the direction in which the biased probe is worse, and missing on a tie; the epoch of a
    probe is the best on the evaluated texts; padding is changed as in `saebench_tpp`. Differs: texts are drawn by a
    hash from the suite's fit split and evaluated texts, a quarter of `train_size` and `test_size` at most for each pair
    of answers. SAEBench excludes BOS, EOS and padding: set `exclude` so. Source: SAEBench 0.6.0, scr_and_tpp.

    Values:
        scr_metric_threshold_*: the score of the direction in which the biased probe is less accurate; share; −∞ .. ∞;
            higher is better.
        scr_dir1_threshold_*, scr_dir2_threshold_*: (accuracy after − before) / (the kept label's own probe − before);
            share; −∞ .. ∞; higher is better.

    Claims:
        *: the number that SAEBench computes for these texts and draws, beside one that it printed; null: none, since it
            is not tested; needs: the same texts; 1 SAE; not: that an SAE is good or better than another; use `scr` for
            that.
    """

    name, version = "saebench_scr", 1
    forms = ("scr_metric_threshold_{}", "scr_dir1_threshold_{}", "scr_dir2_threshold_{}")
    unit = "share"

    def observe(
        self,
        padded_acts: Float[Tensor, "batch d_sae"],
        task_labels: Int8[np.ndarray, "batch tasks"],
        saebench_scr_removals: Chosen,
    ) -> Evidence:
        """How much leaves the logit of the biased probe, by kept label and N."""
        return self.removed(saebench_scr_removals, padded_acts, task_labels)

    def conclude(
        self,
        total: PerRow,
        saebench_scr_setup: SCRSetup,
        test_activation_rows: PerRow,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> dict[str, Value]:
        found = scr_values(saebench_scr_setup, test_activation_rows["x"], total["change"][..., 0], self.n)
        missing = "the biased probe is as accurate for both labels; SAEBench leaves the number out"
        return self.values(found, len(W_dec), missing)


def scr_values(
    setup: SCRSetup, x: Float[np.ndarray, "n d"], change: Float[np.ndarray, "n kept counts"], n: Sequence[int]
) -> dict[str, float]:
    """Return SAEBench's values by its names."""
    logits = {name: x @ w + c for name, (w, c) in zip(PROBES, setup.probes, strict=True)}
    kept: list[tuple[str, Answers]] = []
    for name in ("first", "second"):
        yes, no = setup.test[name]
        kept.append((name, (np.concatenate([yes, no]), np.arange(len(yes) + len(no)) < len(yes))))
    before = [accuracy(logits["biased"], answers) for _, answers in kept]
    values = {}
    for number, (name, answers) in enumerate(kept):
        lacking = accuracy(logits[name], answers) - before[number]
        for place, count in enumerate(n):
            gained = accuracy(logits["biased"] - change[:, number, place], answers) - before[number]
            score = gained / lacking if lacking >= 0.001 else 0.0
            values[f"scr_dir{number + 1}_threshold_{count}"] = score
            if before[number] < before[1 - number]:
                values[f"scr_metric_threshold_{count}"] = score
    return values
