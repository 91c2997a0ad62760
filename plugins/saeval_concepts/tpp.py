"""`tpp`: does removing the features of one concept change its probe, and no other's?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int8
from pydantic import Field

from saeval.plugin import Curve, Evidence, PerRow, Scalar, Table, Undefined, Value
from saeval_concepts.directions import TEST, Direction, LeftOut, balanced, estimate, stands_out
from saeval_concepts.removals import CONTROLS, Counts, Draws, RemovalMetric, Removals, latents, removals_of
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.tasks import Task
from saeval_concepts.written import GroupSums, projections

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("total", "intended", "unintended")


def tpp_removals(
    written_by_class: GroupSums,
    task_directions: tuple[Direction, ...],
    probe_tasks: tuple[Task, ...],
    W_dec: Float[Tensor, "d_sae d"],
    n: Sequence[int],
    draws: int,
    seed: int,
) -> tuple[Removals, ...]:
    """For each task, the removal of the features with the largest max(0, E[z | yes] − E[z | no]) ⟨w, d⟩."""
    products, norms = projections(W_dec, np.stack([probe.w for probe in task_directions]))
    yes, no = np.split(written_by_class.means, 2)
    return tuple(
        removals_of(
            np.maximum(yes[number] - no[number], 0) * products[:, number],
            max(n), products, norms, written_by_class, draws, seed, task.name,
        )
        for number, task in enumerate(probe_tasks)
    )  # fmt: skip


class TPP(RemovalMetric):
    """Targeted perturbation of probes: removing the features of a class should lower its probe's margin and no other's.

    For each class, a logistic regression w·x + c of the pooled activations is fitted once, on as many texts of the
    class as of the others; the texts for validation choose its penalty. Features are ranked by
    max(0, E[z_j | class] − E[z_j | others]) ⟨w, d_j⟩ on the fit split, and the first N of those above 0 are removed
    from the activations, x' = x − Σ_j f_j d_j, with the SAE's error kept. A probe's margin is E[logit | class] −
    E[logit | others] on the evaluated texts, and its fall is the share of the margin that is lost. Accuracies also fall
    if features that are the same for all texts shift the logits; margins do not. Probes, and the texts of each class,
    are the same for every SAE of a hook. Margins below two standard errors cannot be divided by: the values are then
    undefined. No forward pass is added. With `pooling: token`, tokens take the place of texts, as in `sparse_probing`:
    each label of tokens is a class.

    Values:
        total@*: intended@* minus unintended@*; share of the margin; −∞ .. ∞; higher is better.
        intended@*: mean over classes of the fall of a class's margin as N of its features are removed; share of the
            margin; −∞ .. ∞; higher is better.
        unintended@*: mean over classes of the mean fall of the other classes' margins; share of the margin; −∞ .. ∞; no
            better direction.
        accuracy_total@*: accuracy_intended@* minus accuracy_unintended@*; accuracy; −1 .. 1; higher is better.
        accuracy_intended@*, accuracy_unintended@*: the same falls of the probes' accuracy; accuracy; −1 .. 1; no better
            direction.
        shuffled@*: total@* of the same features with the decoder rows of alive features exchanged; share of the margin;
            −∞ .. ∞; no better direction.
        random@*: total@* of random alive features, scaled to write as much; share of the margin; −∞ .. ∞; no better
            direction.
        lead_shuffled@*, lead_random@*: total@* minus these; share of the margin; −∞ .. ∞; higher is better.
        skyline, accuracy_skyline: total as the direction of the class's probe is projected out instead; share of the
            margin; −∞ .. ∞; no better direction.
        removed@*: mean number of features removed, at most N; features; ≥ 0; no better direction.
        total: total@* over N, a curve; share of the margin; −∞ .. ∞; higher is better.
        classes: margin, accuracy and falls by class, a table; logits; −∞ .. ∞; no better direction.
        latents: the first features of each class with their effects, a table; logits; ≥ 0; no better direction.

    Claims:
        total@*, lead_shuffled@*, lead_random@*: removing N features of a class takes more from its own probe than from
            those of other classes, than for another SAE or for the same features with other directions; null: a paired
            difference of 0; needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a training
            method; not: that the model uses the features, or that they are all of the concept.
        intended@*, unintended@*, accuracy_*, shuffled@*, random@*: the parts of the total, and its level without the
            right features; null: none; needs: 20 effective documents; 1 SAE; not: a ranking of SAEs.
        skyline, removed@*: the total of the probe's own direction, and how many features were there to remove; null:
            none; needs: 20 effective documents; 1 SAE; not: an upper bound.

    Source: Karvonen et al. (2025, arXiv 2503.09532) for the idea; here with fixed texts, a margin instead of accuracy,
        and probes that the evaluated texts do not choose.
    """

    name, version = "tpp", 1

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        n: Counts = (1, 2, 5, 10, 20, 50),
        pooling: Literal["mean", "last", "token"] = "mean",
        penalty: Literal["l2", "l1"] = "l2",
        draws: Draws = 5,
        seed: int = 0,
        per_row: Annotated[int, Field(ge=1, le=1024)] = 4,
    ) -> None:
        super().__init__(tasks, n, pooling, penalty, draws, seed)
        self.per_row = per_row
        self.headline = (f"total@{self.middle}", f"lead_shuffled@{self.middle}")
        kinds = [*PARTS, *(f"accuracy_{part}" for part in PARTS), *CONTROLS, *(f"lead_{name}" for name in CONTROLS)]
        counted = [f"{kind}@{count}" for kind in (*kinds, "removed") for count in self.n]
        self.value_names = (*counted, "skyline", "accuracy_skyline")

    def observe(
        self,
        pooled_written_acts: Float[Tensor, "n d_sae"],
        task_labels: Int8[np.ndarray, "n tasks"],
        tpp_removals: tuple[Removals, ...],
        chosen_tokens: ChosenTokens | None = None,
    ) -> Evidence:
        """How much leaves the logit of each probe, by removed class, N and probe; of controls the mean over draws."""
        return self.changes(pooled_written_acts, task_labels, tpp_removals, _mean, chosen_tokens)

    def conclude(
        self,
        total: PerRow,
        tpp_removals: tuple[Removals, ...],
        task_directions: tuple[Direction, ...],
        probe_tasks: tuple[Task, ...],
        test_activation_rows: PerRow,
    ) -> dict[str, Value]:
        if len(probe_tasks) < 2:
            raise Undefined(f"'tasks' matches '{probe_tasks[0].name}' alone; name two classes or more")
        falls = _Falls(total, test_activation_rows["x"].astype(np.float64), task_directions, probe_tasks, self.seed)
        margins, weak = falls.margins, falls.weak
        reason = (
            f"the margin of {', '.join(map(repr, weak))} is below two standard errors on the evaluated texts; leave it"
            " out of 'tasks', or use more texts"
        )  # fmt: skip

        def share(arrays: Float[np.ndarray, "c"], better: Any = None) -> Scalar:
            if weak:
                return Scalar.undefined(reason, unit="share of the margin", better=better)
            return Scalar(estimate(arrays, falls.sizes), unit="share of the margin", better=better)

        values: dict[str, Value] = {}
        parts = {name: _parts(fall) for name, fall in margins.items()}
        accuracies = _parts(falls.accuracies["features"])
        for place, count in enumerate(self.n):
            own = {part: array[:, place] for part, array in parts["features"].items()}
            for part in PARTS:
                values[f"{part}@{count}"] = share(own[part], None if part == "unintended" else "higher")
                fall = estimate(accuracies[part][:, place], falls.sizes)
                better: Any = "higher" if part == "total" else None
                values[f"accuracy_{part}@{count}"] = Scalar(fall, unit="accuracy", better=better)
            for name in CONTROLS:
                other = parts[name]["total"][:, place]
                values[f"{name}@{count}"] = share(other)
                values[f"lead_{name}@{count}"] = share(own["total"] - other, "higher")
            numbers = [min(count, len(removals.features.features)) for removals in tpp_removals]
            values[f"removed@{count}"] = Scalar(float(np.mean(numbers)), unit="features")
        values["skyline"] = share(parts["skyline"]["total"][:, 0])
        skyline = _parts(falls.accuracies["skyline"])["total"][:, 0]
        values["accuracy_skyline"] = Scalar(estimate(skyline, falls.sizes), unit="accuracy")
        if not weak:
            points = [estimate(parts["features"]["total"][:, place], falls.sizes) for place in range(len(self.n))]
            values["total"] = Curve(list(self.n), points, "features", "share of the margin", "higher")
        return values | {"classes": falls.table(self.n), "latents": latents(probe_tasks, tpp_removals)}


def _mean(changes: Sequence[Float[np.ndarray, "n counts probes"]]) -> Float[np.ndarray, "n counts probes"]:
    return np.asarray(np.mean(changes, axis=0))


class _Falls:
    """The margins and accuracies of all probes, and what each removal takes from them."""

    def __init__(
        self, total: PerRow, x: Float[np.ndarray, "n d"], probes: Sequence[Direction], tasks: Sequence[Task], seed: int
    ) -> None:
        y, self.tasks = total["y"], tasks
        logits = np.stack([probe.logits(x) for probe in probes], axis=1)
        w = np.stack([probe.w for probe in probes])
        overlap = w @ w.T
        with np.errstate(invalid="ignore", divide="ignore"):
            # x − ((w·x + c) / ‖w‖²) w: the logit of this class becomes 0, those of the others lose their overlap
            skyline = (logits[..., None] * (overlap / np.diag(overlap)[:, None]))[:, :, None]
        changes = {**{name: total[name] for name in ("features", *CONTROLS)}, "skyline": skyline}
        self.sizes = np.zeros(total.n_clusters)
        self.clean, self.accuracy, self.weak = [], [], []
        margins: dict[str, list[Any]] = {name: [] for name in changes}
        accuracies: dict[str, list[Any]] = {"features": [], "skyline": []}
        for number, task in enumerate(tasks):
            rows = balanced(y[:, number], 2, total.clusters, seed, task.name, TEST)
            left, yes, own = LeftOut(total.clusters[rows], total.n_clusters), y[rows, number] == 1, logits[rows, number]
            self.sizes += left.sizes
            clean, right = left.margin(own, yes), left.accuracy(own, yes)
            self.clean.append(estimate(clean, left.sizes))
            if not stands_out(self.clean[-1], float(np.abs(own).max())):
                self.weak.append(task.name)
            self.accuracy.append(estimate(right, left.sizes))
            for name, change in changes.items():
                lost = change[rows, :, :, number]
                with np.errstate(invalid="ignore", divide="ignore"):
                    margins[name].append(left.margin(lost, yes) / clean[:, None, None])
                if name in accuracies:
                    after = left.accuracy(own[:, None, None] - lost, yes)
                    accuracies[name].append(right[:, None, None] - after)
        # [documents + 1, removed class, N, probe]
        self.margins = {name: np.stack(parts, axis=-1) for name, parts in margins.items()}
        self.accuracies = {name: np.stack(parts, axis=-1) for name, parts in accuracies.items()}

    def table(self, n: Sequence[int]) -> Table:
        """Return each class with its margin in logits, its accuracy, and the falls of its margin."""
        kinds = [f"{part}@{count}" for part in ("intended", "unintended") for count in n]
        rows = []
        for number, (task, clean, right) in enumerate(zip(self.tasks, self.clean, self.accuracy, strict=True)):
            falls = self.margins["features"][-1, number]
            others = np.delete(falls, number, axis=-1)
            cells = [*falls[:, number], *(others.mean(-1) if others.size else np.full(len(n), np.nan))]
            rows.append([task.name, clean, clean.stderr, right, *map(float, cells)])
        return Table(["class", "margin", "± margin", "accuracy", *kinds], rows)


def _parts(falls: Float[np.ndarray, "c removed n probes"]) -> dict[str, Float[np.ndarray, "c n"]]:
    """Return the mean fall of the removed classes' own probes, of the others, and the difference."""
    count = falls.shape[1]
    own = np.stack([falls[:, number, :, number] for number in range(count)]).sum(0)
    others = (falls.sum(axis=(1, 3)) - own) / (count - 1)
    return {"total": (own - others) / count, "intended": own / count, "unintended": others / count}
