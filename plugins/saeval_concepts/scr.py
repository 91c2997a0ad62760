"""`scr`: does removing the features of a spurious label repair a probe that learned it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int8
from pydantic import Field

from saeval.plugin import Estimate, Evidence, PerRow, Scalar, Table, Undefined, Value
from saeval_concepts.directions import FIT, TEST, VALIDATION, Direction, LeftOut, balanced, estimate, stands_out
from saeval_concepts.removals import CONTROLS, Counts, Draws, RemovalMetric, Removals, latents, removals_of
from saeval_concepts.rows import ChosenTokens, of_rows
from saeval_concepts.tasks import OUTSIDE, Task
from saeval_concepts.written import GroupSums, projections

if TYPE_CHECKING:
    from torch import Tensor

KEPT = ("first", "second")
MEASURES = {"": LeftOut.correlation, "accuracy_": LeftOut.accuracy}
"""Prefix of a value's name, and what it measures of logits."""
_UNIT = "share of the deficit"


def quadrants(task_labels: Int8[np.ndarray, "n tasks"], probe_tasks: tuple[Task, ...]) -> Int8[np.ndarray, "n"]:
    """Answers to the two tasks of each row: 0 no-no, 1 no-yes, 2 yes-no, 3 yes-yes; -1 for a row not in both."""
    if len(probe_tasks) != 2:
        names = ", ".join(repr(task.name) for task in probe_tasks)
        raise Undefined(f"'tasks' matches {len(probe_tasks)} tasks ({names}); name the two to use")
    both = (task_labels != OUTSIDE).all(1)
    return np.where(both, 2 * task_labels[:, 0] + task_labels[:, 1], OUTSIDE).astype(np.int8)


def fit_quadrants(
    quadrants: Int8[np.ndarray, "n"],
    validation: Bool[np.ndarray, "batch"],
    chosen_tokens: ChosenTokens | None = None,
) -> Int8[np.ndarray, "n"]:
    """The same, with the texts for validation outside."""
    return np.where(of_rows(validation, chosen_tokens), OUTSIDE, quadrants).astype(np.int8)


@dataclass(frozen=True)
class PairProbes:
    """The probes of two labels of the same texts."""

    biased: Direction
    """Fitted on texts whose labels coincide, so that it cannot tell which of them it is about."""
    balanced: tuple[Direction, Direction]
    """Of each label, fitted on texts with as many of each pair of answers."""


def pair_probes(
    fit_activation_rows: PerRow, validation_activation_rows: PerRow, probe_tasks: tuple[Task, ...], penalty: str,
    seed: int,
) -> PairProbes:  # fmt: skip
    """Linear probes of the pooled activations for two labels, fitted once for all SAEs of a hook."""
    name = _pair(probe_tasks)
    equal, apart = [], []
    for rows, split in ((fit_activation_rows, FIT), (validation_activation_rows, VALIDATION)):
        groups = quadrants(rows["y"], probe_tasks)
        coinciding = np.array([0, OUTSIDE, OUTSIDE, 1, OUTSIDE], dtype=np.int8)[groups]
        index = balanced(coinciding, 2, rows.clusters, seed, name, split)
        equal.append((rows["x"][index].astype(np.float64), coinciding[index] == 1))
        index = balanced(groups, 4, rows.clusters, seed, name, split)
        apart.append((rows["x"][index].astype(np.float64), rows["y"][index] == 1))
    (x, y), (x_validation, y_validation) = apart
    first, second = (
        Direction.fitted((x, y[:, label]), (x_validation, y_validation[:, label]), penalty) for label in (0, 1)
    )
    return PairProbes(Direction.fitted(equal[0], equal[1], penalty), (first, second))


def _pair(tasks: Sequence[Task]) -> str:
    return " and ".join(task.name for task in tasks)


def scr_removals(
    written_by_quadrant: GroupSums,
    pair_probes: PairProbes,
    probe_tasks: tuple[Task, ...],
    W_dec: Float[Tensor, "d_sae d"],
    n: Sequence[int],
    draws: int,
    seed: int,
) -> tuple[Removals, ...]:
    """For each label that is kept, the removal of the features with the largest |Δz ⟨w, d⟩| for the other one.

    Δz is the difference of class means on texts with as many of each pair of answers, w the label's own probe there.
    """
    probes = (pair_probes.biased, *pair_probes.balanced)
    products, norms = projections(W_dec, np.stack([probe.w for probe in probes]))
    no_no, no_yes, yes_no, yes_yes = written_by_quadrant.means
    differences = ((yes_no + yes_yes - no_no - no_yes) / 2, (no_yes + yes_yes - no_no - yes_no) / 2)
    return tuple(
        removals_of(
            np.abs(differences[other] * products[:, 1 + other]),
            max(n), products[:, :1], norms, written_by_quadrant, draws, seed, probe_tasks[other].name,
        )
        for other in (1, 0)
    )  # fmt: skip


class SCR(RemovalMetric):
    """Removal of a spurious correlation: without the features of one label, a biased probe should follow the other.

    Texts have two labels. A biased probe is fitted on texts whose labels coincide, and a probe of each label on texts
    with as many of each pair of answers; the texts for validation choose the penalties. To keep one label, features
    are ranked by |Δz_j ⟨w, d_j⟩|, Δz_j the difference of class means of the other label and w its own probe, and the
    first N of those above 0 are removed from the activations, with the SAE's error kept. How well logits follow the
    kept label is their correlation with it on evaluated texts with as many of each pair of answers: half of
    E[logit | yes] − E[logit | no] in standard deviations of the logits. A value is the biased probe's gain as a share
    of what it lacks: (after − before) / (the kept label's own probe − before). It is undefined where that denominator
    is below two standard errors. Both labels are kept in turn; `first` and `second` follow the order of the tasks'
    names. No forward pass is added. With `pooling: token`, tokens take the place of texts: of every row of text, up to
    `per_quadrant` of each pair of answers, chosen by a hash that is the same for every SAE.

    Values:
        first@*, second@*: the gain as N features of the other label are removed and this one is kept; share of the
            deficit; −∞ .. ∞; higher is better.
        accuracy_first@*, accuracy_second@*: the same by accuracy; share of the deficit; −∞ .. ∞; higher is better.
        shuffled_first@*, shuffled_second@*: the gain of the same features with the decoder rows of alive features
            exchanged; share of the deficit; −∞ .. ∞; no better direction.
        random_first@*, random_second@*: that of random alive features, scaled to write as much; share of the deficit;
            −∞ .. ∞; no better direction.
        lead_shuffled_first@*, lead_shuffled_second@*, lead_random_first@*, lead_random_second@*: the gain minus these;
            share of the deficit; −∞ .. ∞; higher is better.
        skyline_first, skyline_second: the gain as the direction of the other label's probe is projected out instead;
            share of the deficit; −∞ .. ∞; no better direction.
        removed_first@*, removed_second@*: number of features removed, at most N; features; ≥ 0; no better direction.
        probes: correlation with each label, and accuracy, of each probe, a table; correlation; −1 .. 1; no better
            direction.
        latents: the first features of each removed label with their effects, a table; logits; ≥ 0; no better direction.

    Claims:
        first@*, second@*, accuracy_first@*, accuracy_second@*, lead_*: removing N features of one label repairs a
            biased probe of the other more than for another SAE, or than the same features with other directions; null:
            a paired difference of 0; needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a
            training method; not: that the model uses the features, or anything about labels that are not in the texts.
        shuffled_*, random_*, skyline_*, removed_*: the gain without the right features, that of the probe's own
            direction, and how many features were there to remove; null: none; needs: 20 effective documents; 1 SAE;
            not: bounds, since trained SAEs can exceed the skyline.

    Source: Karvonen et al. (2025, arXiv 2503.09532), after Marks et al. (2024, arXiv 2403.19647), for the idea; here
        with fixed texts, a correlation instead of accuracy, and probes that the evaluated texts do not choose.
    """

    name, version = "scr", 1
    most_tasks = 2

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        n: Counts = (1, 2, 5, 10, 20, 50),
        pooling: Literal["mean", "last", "token"] = "mean",
        penalty: Literal["l2", "l1"] = "l2",
        draws: Draws = 5,
        seed: int = 0,
        per_quadrant: Annotated[int, Field(ge=1, le=1024)] = 4,
    ) -> None:
        super().__init__(tasks, n, pooling, penalty, draws, seed)
        self.per_quadrant = per_quadrant
        self.headline = tuple(f"{kept}@{self.middle}" for kept in KEPT)
        kinds = ["", "accuracy_", *(f"{name}_" for name in CONTROLS), *(f"lead_{name}_" for name in CONTROLS)]
        counted = [f"{kind}{kept}@{count}" for kind in (*kinds, "removed_") for kept in KEPT for count in self.n]
        self.value_names = (*counted, *(f"skyline_{kept}" for kept in KEPT))

    def observe(
        self,
        pooled_written_acts: Float[Tensor, "n d_sae"],
        task_labels: Int8[np.ndarray, "n tasks"],
        scr_removals: tuple[Removals, ...],
        chosen_tokens: ChosenTokens | None = None,
    ) -> Evidence:
        """How much leaves the logit of the biased probe, by kept label and N, of controls also by draw."""
        joined = partial(np.concatenate, axis=2)
        return self.changes(pooled_written_acts, task_labels, scr_removals, joined, chosen_tokens)

    def conclude(
        self,
        total: PerRow,
        scr_removals: tuple[Removals, ...],
        pair_probes: PairProbes,
        probe_tasks: tuple[Task, ...],
        test_activation_rows: PerRow,
    ) -> dict[str, Value]:
        rows = balanced(quadrants(total["y"], probe_tasks), 4, total.clusters, self.seed, _pair(probe_tasks), TEST)
        left = LeftOut(total.clusters[rows], total.n_clusters)
        x, y = test_activation_rows["x"][rows].astype(np.float64), total["y"][rows] == 1
        before = pair_probes.biased.logits(x)
        values: dict[str, Value] = {}
        table = []
        for number, kept in enumerate(KEPT):
            own, other = pair_probes.balanced[number], pair_probes.balanced[1 - number]
            with np.errstate(invalid="ignore", divide="ignore"):
                overlap = (other.w @ pair_probes.biased.w) / (other.w @ other.w)
            after = {name: before[:, None, None] - total[name][rows, number] for name in ("features", *CONTROLS)}
            after["skyline"] = (before - other.logits(x) * overlap)[:, None, None]
            for prefix, measure in MEASURES.items():
                gains = _Gains(left, y[:, number], before, own.logits(x), measure, probe_tasks[number].name)
                values |= self._values(prefix, kept, gains, after)
            for count in self.n:
                removed = min(count, len(scr_removals[number].features.features))
                values[f"removed_{kept}@{count}"] = Scalar(float(removed), unit="features")
            for label, task in enumerate(probe_tasks):
                for probe, logits in (("biased", before), (probe_tasks[number].name, own.logits(x))):
                    if probe != "biased" or number == 0:
                        measured = [estimate(m(left, logits, y[:, label]), left.sizes) for m in MEASURES.values()]
                        table.append([probe, task.name, measured[0], measured[0].stderr, measured[1]])
        removed_tasks = (probe_tasks[1], probe_tasks[0])
        columns = ["probe", "label", "correlation", "± correlation", "accuracy"]
        return values | {"probes": Table(columns, table), "latents": latents(removed_tasks, scr_removals)}

    def _values(
        self, prefix: str, kept: str, gains: _Gains, after: Mapping[str, Float[np.ndarray, "n counts draws"]]
    ) -> dict[str, Value]:
        found: dict[str, Value] = {}
        own = gains.of(after["features"])
        for place, count in enumerate(self.n):
            found[f"{prefix}{kept}@{count}"] = gains.scalar(own[:, place], "higher")
        if prefix:
            return found
        for name in CONTROLS:
            other = gains.of(after[name])
            for place, count in enumerate(self.n):
                found[f"{name}_{kept}@{count}"] = gains.scalar(other[:, place])
                found[f"lead_{name}_{kept}@{count}"] = gains.scalar(own[:, place] - other[:, place], "higher")
        return {**found, f"skyline_{kept}": gains.scalar(gains.of(after["skyline"])[:, 0])}


class _Gains:
    """What a biased probe gains, as a share of what it lacks."""

    def __init__(
        self,
        left: LeftOut,
        y: Bool[np.ndarray, "n"],
        before: Float[np.ndarray, "n"],
        own: Float[np.ndarray, "n"],
        measure: Callable[..., Float[np.ndarray, "c *k"]],
        task: str,
    ) -> None:
        self.left, self.y, self.measure, self.task = left, y, measure, task
        self.before = measure(left, before, y)
        self.deficit = measure(left, own, y) - self.before

    def of(self, logits: Float[np.ndarray, "n counts draws"]) -> Float[np.ndarray, "c counts"]:
        """Return the gain of the probe with these logits, the mean over draws."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gained = self.measure(self.left, logits, self.y).mean(-1) - self.before[:, None]
            return np.asarray(gained / self.deficit[:, None])

    def scalar(self, gains: Float[np.ndarray, "c"], better: Any = None) -> Scalar:
        """Return the value, undefined where the deficit is below two standard errors."""
        deficit: Estimate = estimate(self.deficit, self.left.sizes)
        if not stands_out(deficit):
            reason = (
                f"the biased probe follows {self.task!r} as well as its own probe, within two standard errors: there is"
                " nothing to repair"
            )  # fmt: skip
            return Scalar.undefined(reason, unit=_UNIT, better=better)
        return Scalar(estimate(gains, self.left.sizes), unit=_UNIT, better=better)
