"""SAEBench 0.6.0's sparse probing (sae_bench/evals/sparse_probing/main.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8
from pydantic import Field

from saeval.plugin import Batch, Evidence, Metric, PerRow, Scalar, Table, Undefined, Value, fit_split, fold, torch
from saeval_compat.saebench_probes import Answers, Draws, KeyedDraws, Rows, Training, equal_groups, one_against_others
from saeval_compat.saebench_probes import Table as Numbers
from saeval_compat.sparse_rows import SparseRows
from saeval_concepts.tasks import ClassCounts, Task, classes_of
from saeval_concepts.texts import all_rows
from saeval_concepts.written import GroupSums

if TYPE_CHECKING:
    from torch import Tensor

TRAINING = Training(epochs=100, batch_size=250, lr=1e-2, l1=0.0, patience=10)
"""Of the probes of all activations and of all features."""
ALL = "all"
"""The key of all features in tables of texts."""


class Asked(NamedTuple):
    """One training of a probe: texts to fit and to evaluate, by their place among those with labels."""

    fitted: Answers
    tested: Answers


@dataclass(frozen=True)
class Classes:
    """The classes of one column of labels, which is a data set of SAEBench."""

    column: str
    names: tuple[str, ...]
    fit: Sequence[Rows]
    """Texts of each class, as many of each."""
    test: Sequence[Rows]

    def asked(self, draws: Draws) -> list[Asked]:
        """Draw a training for each class, in SAEBench's order."""
        return [
            Asked(one_against_others(self.fit, number, draws), one_against_others(self.test, number, draws))
            for number in range(len(self.names))
        ]

    def dense(self, fit: Numbers, test: Numbers, draws: Draws, training: Training = TRAINING) -> list[float]:
        """Return the accuracy of a probe of all columns for each class; texts are drawn between trainings."""
        accuracies = []
        for number in range(len(self.names)):
            fitted = one_against_others(self.fit, number, draws)
            tested = one_against_others(self.test, number, draws)
            accuracies.append(training.probe(fit, test, fitted, tested, draws).accuracy)
        return accuracies


@fold
@fit_split
def fit_label_rows(fit_labels: Int8[np.ndarray, "batch tasks"]) -> PerRow:
    """Fold over the fit split: each text's labels."""
    return all_rows(fit_labels)


@fold
def test_label_rows(task_labels: Int8[np.ndarray, "batch tasks"]) -> PerRow:
    """Fold: each evaluated text's labels."""
    return all_rows(task_labels)


def saebench_classes(
    fit_label_rows: PerRow,
    test_label_rows: PerRow,
    probe_tasks: tuple[Task, ...],
    class_counts: ClassCounts,
    train_size: int,
    test_size: int,
    seed: int,
) -> tuple[Classes, ...]:
    """The classes of each column of labels, with as many texts of each."""
    made = []
    for column in dict.fromkeys(task.column for task in probe_tasks):
        numbers = [number for number, task in enumerate(probe_tasks) if task.column == column]
        tasks = [probe_tasks[number] for number in numbers]
        binary = tasks[0].name == column
        if len(tasks) < 2 and not binary:
            raise Undefined(f"'tasks' matches '{tasks[0].name}' alone; name two classes of '{column}' or more")
        names = tuple(classes_of(class_counts)[column]) if binary else tuple(task.positive for task in tasks)
        sides = []
        for rows, most in ((fit_label_rows, train_size), (test_label_rows, test_size)):
            y = rows["y"][:, numbers]
            places = [y[:, 0] == 0, y[:, 0] == 1] if binary else [y[:, place] == 1 for place in range(len(tasks))]
            members = {f"in '{column}={name}'": np.flatnonzero(own) for name, own in zip(names, places, strict=True)}
            sides.append(equal_groups(members, most // 2, rows.clusters, seed))
        made.append(Classes(column, names, *sides))
    return tuple(made)


def saebench_sparse_probes(
    saebench_classes: tuple[Classes, ...], k: Sequence[int], seed: int
) -> tuple[tuple[tuple[Asked, ...], ...], ...]:
    """The trainings of probes of k features, by column, k and class; the same for every SAE."""
    return tuple(
        tuple(tuple(classes.asked(KeyedDraws(seed, "features", classes.column, count))) for count in k)
        for classes in saebench_classes
    )


def best_columns(differences: Float[np.ndarray, "d"], count: int) -> Int[np.ndarray, "count"]:
    """Return the columns whose class means differ most, ascending, as torch breaks ties."""
    sizes = torch.from_numpy(np.abs(differences).astype(np.float32))
    return np.sort(torch.argsort(sizes, descending=True)[:count].numpy())


def sparse_accuracy(fit: Float[np.ndarray, "fit k"], y: Any, test: Float[np.ndarray, "test k"], answers: Any) -> float:
    """Return the accuracy of scikit-learn's logistic regression with its defaults, and 1,000 iterations."""
    from sklearn.linear_model import LogisticRegression  # late: slow to import

    model = LogisticRegression(C=1.0, max_iter=1000).fit(fit, y.astype(np.int32))
    return float((model.predict(test) == answers).mean())


def saebench_activation_probes(
    saebench_classes: tuple[Classes, ...],
    fit_activation_rows: PerRow,
    test_activation_rows: PerRow,
    k: Sequence[int],
    seed: int,
) -> Mapping[str, Sequence[Sequence[float]]]:
    """Accuracies of SAEBench's probes of the activations, and of k coordinates of them, by column and class."""
    x, held = fit_activation_rows["x"], test_activation_rows["x"]
    found: dict[str, list[list[float]]] = {}
    for classes in saebench_classes:
        draws = KeyedDraws(seed, "activations", classes.column)
        found.setdefault("llm_test_accuracy", []).append(classes.dense(x, held, draws))
        for count in k:
            found.setdefault(f"llm_top_{count}_test_accuracy", []).append(
                coordinates(classes.asked(draws), x, held, count)
            )
    return found


def coordinates(
    asked: Sequence[Asked], x: Float[np.ndarray, "fit d"], held: Float[np.ndarray, "test d"], count: int
) -> list[float]:
    """Return the accuracies of probes of the `count` columns whose class means differ most."""
    accuracies = []
    for (rows, y), (tests, answers) in asked:
        own = x[rows]
        columns = best_columns(own[y].mean(0, dtype=np.float64) - own[~y].mean(0, dtype=np.float64), count)
        accuracies.append(sparse_accuracy(own[:, columns], y, held[tests][:, columns], answers))
    return accuracies


@fold
@fit_split
def saebench_probing_sums(
    pooled_acts: Float[Tensor, "batch d_sae"],
    saebench_sparse_probes: tuple[tuple[tuple[Asked, ...], ...], ...],
    fit_label_rows: PerRow,
    batch: Batch,
) -> GroupSums:
    """Fold over the fit split: sums over the texts of each training, those of its class and those of others."""
    ids = fit_label_rows.ids
    member = [
        np.isin(batch.sequence_ids, ids[rows[y == side]])
        for by_k in saebench_sparse_probes
        for asked in by_k
        for (rows, y), _ in asked
        for side in (True, False)
    ]
    return GroupSums.of(pooled_acts, np.array(member))


@dataclass(frozen=True)
class Features:
    """The features of one column's probes."""

    columns: Int[np.ndarray, "columns"]
    """All of them, ascending."""
    chosen: Sequence[Sequence[Int[np.ndarray, "k"]]]
    """Those of each probe, by k and class."""

    def places(self, count: int, number: int) -> Int[np.ndarray, "k"]:
        """Return where the features of a probe are among all of them, by the place of its k and of its class."""
        return np.searchsorted(self.columns, self.chosen[count][number])


def saebench_probing_features(
    saebench_probing_sums: GroupSums,
    saebench_sparse_probes: tuple[tuple[tuple[Asked, ...], ...], ...],
    k: Sequence[int],
) -> tuple[Features, ...]:
    """The features whose means over the texts of each training differ most, by column of labels."""
    means = saebench_probing_sums.means
    differences = iter(means[0::2] - means[1::2])
    made = []
    for by_k in saebench_sparse_probes:
        chosen = [[best_columns(next(differences), count) for _ in asked] for count, asked in zip(k, by_k, strict=True)]
        made.append(Features(np.unique(np.concatenate([own for row in chosen for own in row])), chosen))
    return tuple(made)


@fold
@fit_split
def saebench_probing_fit(
    pooled_acts: Float[Tensor, "batch d_sae"],
    saebench_classes: tuple[Classes, ...],
    saebench_probing_features: tuple[Features, ...],
    fit_label_rows: PerRow,
    batch: Batch,
    lower_vram_usage: bool,
) -> dict[str, Evidence]:
    """Fold over the fit split: the texts of each column of labels with the features of its probes, or all features."""
    texts = [fit_label_rows.ids[np.concatenate(classes.fit)] for classes in saebench_classes]
    return _kept(pooled_acts, texts, saebench_probing_features, batch, lower_vram_usage)


def _kept(
    pooled_acts: Tensor, texts: Sequence[Rows], features: Sequence[Features], batch: Batch, lower_vram_usage: bool
) -> dict[str, Evidence]:
    """Return the batch's rows that are among the texts of each column; all features without their zeros."""
    tables: dict[str, Evidence] = {}
    wanted = [np.isin(batch.sequence_ids, ids) for ids in texts]
    for number, (own, inside) in enumerate(zip(features, wanted, strict=True)):
        rows = np.flatnonzero(inside)
        z = pooled_acts[torch.from_numpy(rows).to(pooled_acts.device)]
        tables[str(number)] = PerRow.of(rows, x=z[:, torch.from_numpy(own.columns).to(z.device)].float())
    if not lower_vram_usage:
        rows = np.flatnonzero(np.any(wanted, axis=0))
        tables[ALL] = SparseRows.of(rows, pooled_acts[torch.from_numpy(rows).to(pooled_acts.device)])
    return tables


class ByPlace:
    """All features of texts by their place among those with labels."""

    def __init__(self, rows: SparseRows, ids: Int[np.ndarray, "n"]) -> None:
        self._rows, self._ids = rows, ids

    def __getitem__(self, places: Rows) -> Float[np.ndarray, "rows d"]:
        return self._rows[self._ids[places]]


class SAEBenchProbing(Metric):
    """SAEBench's sparse probing, for comparison with numbers that it printed.

    A column of labels is a data set of SAEBench; each of its classes is asked for, with as many texts drawn from the
    others, and the numbers are means over classes, then over columns. Features are means over the text's tokens.
    Defects, kept: negatives are drawn anew for every probe, so that k = 1 and k = 2 are of different texts; features
    are chosen by the difference of class means without a scale, which depends on the unit of each feature; the epoch of
    the probes of all activations and all features is the best on the evaluated texts; C = 1 whatever the scale of the
    features. Differs: texts are drawn by a hash from the suite's fit split and evaluated texts, `train_size` and
    `test_size` at most for each probe, of which half are in its class; decoder norms are not multiplied into features,
    as SAEBench does for SAEs that it loads by id. SAEBench cuts texts to 128 tokens and excludes BOS, EOS and padding:
    set `context` and `exclude` so.

    The features of probes are chosen before they are stored, so that memory grows with texts times chosen features. The
    probe of all features needs all features of a text that are not 0; `lower_vram_usage`, SAEBench's flag, leaves it
    out. Source: SAEBench 0.6.0, sparse_probing.

    Values:
        llm_test_accuracy, sae_test_accuracy: accuracy of probes of all activations, and of all features; share; 0 .. 1;
            higher is better.
        llm_top_*_test_accuracy, sae_top_*_test_accuracy: accuracy of probes of k coordinates of the activations, and of
            k features; share; 0 .. 1; higher is better.
        classes: the same by column and class, a table; share; 0 .. 1; no better direction.

    Claims:
        *: the number that SAEBench computes for these texts and draws, beside one that it printed; null: none, since it
            is not tested; needs: the same texts; 1 SAE; not: that an SAE is good or better than another; use
            `sparse_probing` for that.
    """

    name, version = "saebench_probing", 1

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        k: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 5),
        train_size: Annotated[int, Field(ge=4)] = 4000,
        test_size: Annotated[int, Field(ge=4)] = 1000,
        lower_vram_usage: bool = False,
        pooling: Literal["mean"] = "mean",
        seed: int = 42,
    ) -> None:
        if not k or not tasks:
            raise ValueError(f"metric '{self.name}': 'k' and 'tasks' need at least one entry each")
        self.tasks, self.k = tasks, tuple(sorted(set(k)))
        self.train_size, self.test_size, self.lower_vram_usage = train_size, test_size, lower_vram_usage
        self.pooling, self.seed = pooling, seed
        self.value_names = tuple(
            f"{kind}_{part}test_accuracy" for kind in ("llm", "sae") for part in ("", *(f"top_{n}_" for n in self.k))
        )

    def observe(
        self,
        pooled_acts: Float[Tensor, "batch d_sae"],
        saebench_classes: tuple[Classes, ...],
        saebench_probing_features: tuple[Features, ...],
        test_label_rows: PerRow,
        batch: Batch,
    ) -> dict[str, Evidence]:
        texts = [test_label_rows.ids[np.concatenate(classes.test)] for classes in saebench_classes]
        return _kept(pooled_acts, texts, saebench_probing_features, batch, self.lower_vram_usage)

    def conclude(
        self,
        total: dict[str, Any],
        saebench_probing_fit: dict[str, Any],
        saebench_classes: tuple[Classes, ...],
        saebench_sparse_probes: tuple[tuple[tuple[Asked, ...], ...], ...],
        saebench_probing_features: tuple[Features, ...],
        saebench_activation_probes: Mapping[str, Sequence[Sequence[float]]],
        fit_label_rows: PerRow,
        test_label_rows: PerRow,
    ) -> dict[str, Value]:
        found: dict[str, list[Sequence[float]]] = {key: list(own) for key, own in saebench_activation_probes.items()}
        ids, test_ids = fit_label_rows.ids, test_label_rows.ids
        for number, classes in enumerate(saebench_classes):
            fit, test = saebench_probing_fit[str(number)], total[str(number)]
            for place, count in enumerate(self.k):
                accuracies = []
                for own, ((rows, y), (tests, answers)) in enumerate(saebench_sparse_probes[number][place]):
                    columns = saebench_probing_features[number].places(place, own)
                    x = fit["x"][np.searchsorted(fit.ids, ids[rows])][:, columns]
                    held = test["x"][np.searchsorted(test.ids, test_ids[tests])][:, columns]
                    accuracies.append(sparse_accuracy(x, y, held, answers))
                found.setdefault(f"sae_top_{count}_test_accuracy", []).append(accuracies)
            if not self.lower_vram_usage:
                every = ByPlace(saebench_probing_fit[ALL], ids), ByPlace(total[ALL], test_ids)
                draws = KeyedDraws(self.seed, "all features", classes.column)
                found.setdefault("sae_test_accuracy", []).append(classes.dense(*every, draws))
        values: dict[str, Value] = {}
        for name in self.value_names or ():
            if name in found:
                mean = float(np.mean([np.mean(own) for own in found[name]]))
                values[name] = Scalar(mean, unit="share", better="higher")
            else:
                reason = "SAEBench leaves it out with 'lower_vram_usage'"
                values[name] = Scalar.undefined(reason, unit="share", better="higher")
        return values | {"classes": _table(saebench_classes, found)}


def _table(sets: Sequence[Classes], found: Mapping[str, Sequence[Sequence[float]]]) -> Table:
    rows = [
        [classes.column, name, len(classes.fit[place]), len(classes.test[place]),
         *(own[number][place] for own in found.values())]
        for number, classes in enumerate(sets)
        for place, name in enumerate(classes.names)
    ]  # fmt: skip
    return Table(["dataset", "class", "fit texts", "texts", *found], rows)
