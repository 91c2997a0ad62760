"""sae-probes 0.4's probes of SAE features (sae_probes/run_sae_evals.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from saeval.plugin import (
    Array,
    Batch,
    Evidence,
    Metric,
    PerRow,
    Scalar,
    Table,
    Undefined,
    Value,
    fit_split,
    fold,
    torch,
)
from saeval_compat.saebench_probes import Answers
from saeval_compat.saeprobes_regressions import Scores, best_regression
from saeval_concepts.directions import FIT, TEST, balanced, drawn
from saeval_concepts.tasks import OUTSIDE, Task

if TYPE_CHECKING:
    from torch import Tensor

K = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NORMAL = 1024
"""Number of texts to fit of sae-probes' normal setting; any other is one of its setting of scarcity."""
LEAST_FRAC, MOST_FRAC = 0.05, 0.95
"""Smallest and largest share of positives of its setting of imbalance."""
SCORES = Scores._fields


class Texts(NamedTuple):
    """The texts of one task, by their place among those with labels, in the order in which they are fitted."""

    fitted: Answers
    tested: Answers


def sizes(no: int, yes: int, most: int | None, frac: float | None) -> tuple[int, int]:
    """Return how many texts of each class to take: at most `most`, as many of each, or the share `frac` of positives.

    With `frac`, the total is one that allows every share from `LEAST_FRAC` to `MOST_FRAC`, so that it is the same for
    all of them.
    """
    total = 2 * min(no, yes) if frac is None else int(min(no / (1 - LEAST_FRAC), yes / MOST_FRAC))
    total = total if most is None else min(total, most)
    positive = math.ceil((0.5 if frac is None else frac) * total)
    return total - positive, positive


def corrupted(y: Bool[np.ndarray, "n"], frac: float, seed: int) -> Bool[np.ndarray, "n"]:
    """Return labels of which the share `frac`, drawn by numpy, are reversed."""
    wrong = np.random.RandomState(seed).choice(len(y), size=int(len(y) * frac), replace=False)
    y = y.copy()
    y[wrong] = ~y[wrong]
    return y


def saeprobes_texts(
    fit_label_rows: PerRow,
    test_label_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    train_size: int,
    seed: int,
    frac: float | None,
    corrupt_frac: float | None,
) -> tuple[Texts, ...]:
    """For each task the texts of each class, in an order drawn by hash; `train_size` at most to fit.

    As many of each class, or the share `frac` of positives. The share `corrupt_frac` of the labels to fit is wrong.
    """
    made = []
    for number, task in enumerate(probe_tasks):
        sides = []
        for rows, split, most in ((fit_label_rows, FIT, train_size), (test_label_rows, TEST, None)):
            y = rows["y"][:, number]
            equal = balanced(y, 2, rows.clusters, seed, task.name, split)
            pool = equal if frac is None else np.flatnonzero(y != OUTSIDE)
            counts = sizes(int((y == 0).sum()), int((y == 1).sum()), most, frac)
            if not all(counts):
                raise Undefined(f"the {split} too few texts of task '{task.name}' for a share of {frac}; add texts")
            chosen = drawn(pool, seed, "sae-probes", task.name)
            places = np.concatenate([chosen[y[chosen] == side][:count] for side, count in enumerate(counts)])
            places = drawn(places, seed, "sae-probes order", task.name)
            sides.append((places, y[places] == 1))
        fitted, tested = sides
        if corrupt_frac:
            fitted = fitted[0], corrupted(fitted[1], corrupt_frac, seed)
        made.append(Texts(fitted, tested))
    return tuple(made)


@dataclass(frozen=True, eq=False)
class TaskSums(Evidence):
    """Sums of features over the texts of each task."""

    sums: Float[np.ndarray, "tasks 2 d"]
    """Σ z of each class."""
    sizes: Float[np.ndarray, "tasks d"]
    """Σ |z|."""
    active: Int[np.ndarray, "tasks d"]
    """Number of texts with z ≠ 0."""
    n: Int[np.ndarray, "tasks 2"]
    """Number of texts of each class."""

    @classmethod
    def of(cls, z: Float[np.ndarray, "batch d"], member: Int[np.ndarray, "tasks 2 batch"]) -> TaskSums:
        """Return the sums of one batch; `member` is 1 for texts of a class, else 0."""
        values, inside = z.astype(np.float64), member.astype(np.float64)
        either = inside.sum(1)
        sums = (inside.reshape(-1, len(z)) @ values).reshape(*inside.shape[:2], -1)
        return cls(sums, either @ np.abs(values), np.rint(either @ (values != 0)).astype(np.int64), member.sum(2))

    @property
    def scores(self) -> Float[np.ndarray, "tasks d"]:
        """|E[z | yes] − E[z | no]| divided by the mean of |z| where it is not 0; 0 for silent features."""
        means = self.sums / np.maximum(self.n, 1)[..., None]
        return np.asarray(np.abs(means[:, 1] - means[:, 0]) / (self.sizes / (self.active + 1e-6) + 1e-6))


@fold
@fit_split
def saeprobes_sums(
    pooled_acts: Float[Tensor, "batch d_sae"], saeprobes_texts: tuple[Texts, ...], fit_label_rows: PerRow, batch: Batch
) -> TaskSums:
    """Fold over the fit split: sums of each feature over the texts of each task and class."""
    ids = fit_label_rows.ids
    member = [
        [np.isin(batch.sequence_ids, ids[rows[y == side]]) for side in (False, True)]
        for (rows, y), _ in saeprobes_texts
    ]
    return TaskSums.of(pooled_acts.detach().double().cpu().numpy(), np.array(member, dtype=np.int64))


def saeprobes_features(saeprobes_sums: TaskSums, k: Sequence[int]) -> tuple[Int[np.ndarray, "k"], ...]:
    """For each task the features with the largest scores, the best first, as torch breaks ties."""
    scores = torch.from_numpy(saeprobes_sums.scores.astype(np.float32))
    return tuple(torch.argsort(own, descending=True)[: max(k)].numpy() for own in scores)


@fold
@fit_split
def saeprobes_fit(
    pooled_acts: Float[Tensor, "batch d_sae"],
    saeprobes_texts: tuple[Texts, ...],
    saeprobes_features: tuple[Int[np.ndarray, "k"], ...],
    fit_label_rows: PerRow,
    batch: Batch,
) -> dict[str, Evidence]:
    """Fold over the fit split: the texts of each task with the values of its best features."""
    texts = [fit_label_rows.ids[own.fitted[0]] for own in saeprobes_texts]
    return _kept(pooled_acts, texts, saeprobes_features, batch)


def _kept(
    pooled_acts: Tensor, texts: Sequence[Int[np.ndarray, "n"]], features: Sequence[Int[np.ndarray, "k"]], batch: Batch
) -> dict[str, Evidence]:
    tables: dict[str, Evidence] = {}
    for number, (ids, columns) in enumerate(zip(texts, features, strict=True)):
        rows = np.flatnonzero(np.isin(batch.sequence_ids, ids))
        z = pooled_acts[torch.from_numpy(rows).to(pooled_acts.device)]
        tables[str(number)] = PerRow.of(rows, x=z[:, torch.from_numpy(columns).to(z.device)].float())
    return tables


def saeprobes_baseline(
    saeprobes_texts: tuple[Texts, ...], fit_activation_rows: PerRow, test_activation_rows: PerRow, seed: int
) -> tuple[Scores, ...]:
    """Scores of sae-probes' regression of the activations, with an L2 penalty, for each task."""
    x, held = fit_activation_rows["x"], test_activation_rows["x"]
    return tuple(
        best_regression(x[rows], y.astype(np.int64), held[tests], answers.astype(np.int64), "l2", seed)
        for (rows, y), (tests, answers) in saeprobes_texts
    )


class SAEProbes(Metric):
    """sae-probes' probes of k features at the last token, for comparison with numbers that it printed.

    Features are ranked by |E[f | yes] − E[f | no]| in units of their mean |f| where they are active; a logistic
    regression of the first k, whose C the largest mean AUC over folds chooses, is fitted for each k and scored on the
    evaluated texts; values are means over tasks. Also the same regression of the activations, which always has an L2
    penalty. Defects, kept: from 128 texts on, one fold of at most 100 texts chooses C; an AUC that all C reach chooses
    the largest, which is 100,000; features were ranked on the texts of that fold, too; columns are not scaled, so that
    one C means another penalty for each SAE; test_f1 is weighted over both classes. `binarize` probes which features
    are active.

    Differs: sae-probes takes the first 5,000 rows of a data set, and draws 1,024 balanced ones with numpy's generator
    (all but 100 if there are fewer); these here are those of the suite's fit split, `train_size` at most, and evaluated
    texts, balanced and in an order drawn by hash. It has tasks of two classes alone. It cuts texts to their last 1,024
    tokens: set `context: 1024` and `keep: end`, and `exclude: []`.

    Its settings, of which one is used at a time: scarcity, a `train_size` other than 1,024 (there 2 to 1,024 in 20
    steps); imbalance, a share `frac` of positives among the texts to fit and the evaluated ones (0.05 to 0.95), of as
    many texts as allow each of these shares; label noise, a share `corrupt_frac` of wrong labels among the texts to fit
    (0 to 0.5), which sae-probes has for activations alone: the values of features with the same wrong labels are not
    its. k is 16 and 128 there in the first two. Source: sae-probes 0.4.2, `run_sae_eval`, `find_best_reg`,
    `get_train_test_indices`, `get_classimabalance_num_train`, `corrupt_ytrain`.

    Values:
        test_f1@*: F1 of both classes, weighted by their numbers of texts; share; 0 .. 1; higher is better.
        test_acc@*: share of right answers; share; 0 .. 1; higher is better.
        test_auc@*: area under the ROC curve; share; 0 .. 1; higher is better.
        val_auc@*: mean AUC over folds of the C that was chosen; share; 0 .. 1; higher is better.
        baseline_test_f1, baseline_test_acc, baseline_test_auc, baseline_val_auc: the same of all activations; share; 0
            .. 1; higher is better.
        tasks: the same by task and k, a table; share; 0 .. 1; no better direction.
        indices: the ranked features of each task, an array; features; ≥ 0; no better direction.

    Claims:
        *: the number that sae-probes computes for these texts, beside one that it printed; null: none, since it is not
            tested; needs: the same texts; 1 SAE; not: that an SAE is good or better than another; use `sparse_probing`
            for that.
    """

    name, version = "saeprobes", 2

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        k: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = K,
        penalty: Literal["l2", "l1"] = "l2",
        binarize: bool = False,
        train_size: Annotated[int, Field(ge=2)] = NORMAL,
        frac: Annotated[float, Field(ge=LEAST_FRAC, le=MOST_FRAC)] | None = None,
        corrupt_frac: Annotated[float, Field(ge=0, le=0.5)] | None = None,
        pooling: Literal["last"] = "last",
        seed: int = 42,
    ) -> None:
        if not k or not tasks:
            raise ValueError(f"metric '{self.name}': 'k' and 'tasks' need at least one entry each")
        given = {"train_size": train_size != NORMAL, "frac": frac is not None, "corrupt_frac": corrupt_frac is not None}
        settings = [name for name, is_given in given.items() if is_given]
        if len(settings) > 1 or (settings and binarize):
            both = " and ".join(f"'{name}'" for name in [*settings, "binarize"][:2])
            raise ValueError(f"metric '{self.name}': sae-probes has no setting with both {both}; leave one out")
        self.tasks, self.k = tasks, tuple(sorted(set(k)))
        self.penalty, self.binarize, self.train_size = penalty, binarize, train_size
        self.frac, self.corrupt_frac = frac, corrupt_frac
        self.pooling, self.seed = pooling, seed
        self.value_names = (
            *(f"{score}@{count}" for score in SCORES for count in self.k), *(f"baseline_{score}" for score in SCORES),
        )  # fmt: skip

    def observe(
        self,
        pooled_acts: Float[Tensor, "batch d_sae"],
        saeprobes_texts: tuple[Texts, ...],
        saeprobes_features: tuple[Int[np.ndarray, "k"], ...],
        test_label_rows: PerRow,
        batch: Batch,
    ) -> dict[str, Evidence]:
        texts = [test_label_rows.ids[own.tested[0]] for own in saeprobes_texts]
        return _kept(pooled_acts, texts, saeprobes_features, batch)

    def conclude(
        self,
        total: dict[str, PerRow],
        saeprobes_fit: dict[str, PerRow],
        saeprobes_texts: tuple[Texts, ...],
        saeprobes_features: tuple[Int[np.ndarray, "k"], ...],
        saeprobes_baseline: tuple[Scores, ...],
        fit_label_rows: PerRow,
        test_label_rows: PerRow,
        probe_tasks: tuple[Task, ...],
    ) -> dict[str, Value]:
        rows: list[list[object]] = []
        by_k: dict[int, list[Scores]] = {count: [] for count in self.k}
        for number, (task, (fitted, tested)) in enumerate(zip(probe_tasks, saeprobes_texts, strict=True)):
            x = _at(saeprobes_fit[str(number)], fit_label_rows.ids[fitted[0]])
            held = _at(total[str(number)], test_label_rows.ids[tested[0]])
            if self.binarize:
                x, held = x != 0, held != 0
            for count in self.k:
                y, answers = fitted[1].astype(np.int64), tested[1].astype(np.int64)
                scores = best_regression(x[:, :count], y, held[:, :count], answers, self.penalty, self.seed)
                by_k[count].append(scores)
                rows.append([task.name, len(y), len(answers), count, *scores])
        values: dict[str, Value] = {}
        for count, found in by_k.items():
            values |= {f"{name}@{count}": _mean(found, name) for name in SCORES}
        values |= {f"baseline_{name}": _mean(saeprobes_baseline, name) for name in SCORES}
        values["tasks"] = Table(["task", "fit texts", "texts", "k", *SCORES], rows)
        values["indices"] = Array(np.stack(saeprobes_features), unit="features")
        return values


def _at(rows: PerRow, ids: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
    """Return the columns of the texts with these ids, in their order."""
    return np.asarray(rows["x"][np.searchsorted(rows.ids, ids)])


def _mean(scores: Sequence[Scores], name: str) -> Scalar:
    return Scalar(float(np.mean([getattr(own, name) for own in scores])), unit="share", better="higher")
