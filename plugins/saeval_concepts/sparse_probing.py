"""`sparse_probing`: can k features answer a question about a text or token, and better than neurons or components?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int8
from pydantic import Field

from saeval.plugin import Array, Curve, Estimate, Evidence, Metric, PerRow, Scalar, Table, Value
from saeval_concepts.baselines import Qualities
from saeval_concepts.examples import EXAMPLE_COLUMNS, LATENTS, example_cells
from saeval_concepts.probes import LEAST_UNSEEN, Probes, Quality
from saeval_concepts.rows import ChosenTokens
from saeval_concepts.tasks import Task
from saeval_concepts.texts import Chosen, of_tasks
from saeval_explanations.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = ("auc", "accuracy", "balanced_accuracy", "f1")
AGAINST = ("neurons", "components", "random")
"""Baselines with as many columns as the probe has features."""
SHOWN = 10
"""Number of features of a task in the table `latents`."""


class SparseProbing(Metric):
    """Logistic regressions on the k features that best separate the classes of labelled texts.

    For each task, features are pooled over a text's tokens, and k are chosen by the difference of class means on the
    fit split; a logistic regression is fitted to them there, with an L2 or L1 penalty that cross-validation by document
    chooses, features being chosen anew in each of its parts. All values are those of the evaluated texts, averaged
    over tasks. The same is done with other columns: all activations, the k best neurons (coordinates of the
    activations), the k largest principal components, k random features that are active, and the tokens of the text.
    A task of two classes is one question, a task of more is one question for each class. Validation texts are not used.

    With `pooling: token`, rows are tokens in place of texts, and each label of tokens is a task: of every row of text,
    up to `per_row` tokens of each class, chosen by a hash that is the same for every SAE. With `held_out_types`, that
    share of token types, by hash, is never fitted. Values are those of tokens of the other types; `auc_unseen...` are
    those of tokens whose type no fitted token has, held out or not.

    `fit_rows` is the largest number of fitted rows of a task, `positive_share` their share of positives, and of
    `label_noise` of them, the label is reversed. Hashes of (seed, task, row) choose them. The evaluated rows and their
    labels stay as they are.

    Probes read encoders, so the decoder is not tested: an SAE with a shuffled decoder has the same values.

    Values:
        auc@*: share of pairs of texts, one of each class, that the probe of k features orders rightly; share; 0 .. 1;
            higher is better.
        accuracy@*, balanced_accuracy@*, f1@*: of its yes-or-no answers: those that are right, their mean over the two
            classes, F1 of the positive class; share; 0 .. 1; higher is better.
        auc_activations, auc_tokens: AUC of probes of all activations, and of which tokens the text has, or which token
            it is; share; 0 .. 1; higher is better.
        auc_neurons@*, auc_components@*, auc_random@*: AUC of probes of the k best neurons, the k largest principal
            components, k random features; share; 0 .. 1; higher is better.
        accuracy_majority: accuracy of always giving the fit split's larger class; share; 0 .. 1; no better direction.
        lead_activations@*, lead_tokens@*, lead_neurons@*, lead_components@*, lead_random@*: auc@* minus the AUC of that
            probe on the same texts; AUC; −1 .. 1; higher is better.
        auc_unseen@*, auc_unseen_activations, auc_unseen_tokens, auc_unseen_neurons@*, auc_unseen_components@*,
            auc_unseen_random@*: with `pooling: token`, AUC of these probes on tokens of types that no fitted token has,
            averaged over the tasks with 20 or more such tokens of each class; that of tokens is 0.5 by construction;
            share; 0 .. 1; higher is better.
        refit_deviation@*: standard deviation of auc@* over refits to resampled fit documents; AUC; ≥ 0; lower is
            better.
        auc: auc@* over k, a curve; share; 0 .. 1; higher is better.
        tasks: numbers of texts and the AUC of every probe by task, a table; share; 0 .. 1; no better direction.
        task_aucs: AUC without each document of a task, in the order of `tasks`, of its probes of features and of
            neurons at the middle k, and the document's number of texts, an array; share; 0 .. 1; no better direction.
        latents: the best features of each task with their differences of class means, a table; by `scale`; ≥ 0; no
            better direction.
        examples: the windows of the task's evaluated texts in which its first 5 features fire most, at most one of a
            row, a table; activation; −∞ .. ∞; no better direction.

    Claims:
        auc@*, accuracy@*, balanced_accuracy@*, f1@*: k features answer the tasks better than another SAE's; null: a
            paired difference of 0 to another SAE or to a control of the same model; needs: 20 effective documents; 1
            SAE each; 4 seeds each for a claim about a training method; not: that the features stand for the concepts,
            or anything about the decoder.
        auc_activations, auc_tokens, auc_neurons@*, auc_components@*, auc_random@*, accuracy_majority: how hard the
            tasks are without the SAE, beside which the other values are read; null: none; needs: 20 effective
            documents; 1 SAE; not: a comparison of SAEs.
        lead_neurons@*, lead_components@*, lead_random@*: k features answer the tasks better than as many neurons,
            components or random features; null: a difference of 0 on the same texts; needs: 20 effective documents;
            1 SAE; 4 seeds each for a claim about a training method; not: that the model uses the features.
        lead_activations@*, lead_tokens@*: what k features lose against all activations or gain over the words of the
            text; null: a difference of 0 on the same texts; needs: 20 effective documents; 1 SAE; not: that the
            model uses the features.
        auc_unseen@*, auc_unseen_activations, auc_unseen_tokens, auc_unseen_neurons@*, auc_unseen_components@*,
            auc_unseen_random@*: probes answer for tokens that they were not fitted to; null: none; needs: 20 effective
            documents; 1 SAE; not: that no token of the same meaning was fitted.
        refit_deviation@*: how far auc@* depends on the sample of fit documents; null: none; needs: 2 refits; 1 SAE;
            not: a part of the standard errors, which are those of the evaluated documents.

    Source: Gurnee et al. (2023, arXiv 2305.01610) for sparse probing; Kantamneni et al. (2025, arXiv 2502.16681) for
        the comparison with probes of activations.
    """

    name, version = "sparse_probing", 2

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        k: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 5, 16, 128),
        pooling: Literal["mean", "max", "last", "token"] = "mean",
        scale: Literal["none", "mean_active"] = "mean_active",
        penalty: Literal["l2", "l1"] = "l2",
        folds: Annotated[int, Field(ge=2, le=20)] = 3,
        refits: Annotated[int, Field(ge=0, le=1000)] = 0,
        examples: Annotated[int, Field(ge=0, le=50)] = 4,
        seed: int = 0,
        per_row: Annotated[int, Field(ge=1, le=1024)] = 4,
        held_out_types: Annotated[float, Field(ge=0, le=0.9)] = 0.0,
        fit_rows: Annotated[int, Field(ge=2)] | None = None,
        positive_share: Annotated[float, Field(gt=0, lt=1)] | None = None,
        label_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ) -> None:
        if not k or not tasks:
            raise ValueError(f"metric '{self.name}': 'k' and 'tasks' need at least one entry each")
        self.tasks, self.k = tasks, tuple(sorted(set(k)))
        self.pooling, self.scale, self.penalty, self.folds, self.refits, self.examples, self.seed = (
            pooling, scale, penalty, folds, refits, examples, seed,
        )  # fmt: skip
        self.per_row, self.held_out_types = per_row, held_out_types
        self.fit_rows, self.positive_share, self.label_noise = fit_rows, positive_share, label_noise
        middle, self._of_tokens = self.middle, pooling == "token"
        self.headline = (f"auc@{middle}", f"lead_neurons@{middle}", f"lead_activations@{middle}")
        counted = [f"{name}@{count}" for name in MEASURES for count in self.k]
        counted += [f"auc_{name}@{count}" for name in AGAINST for count in self.k]
        counted += [f"lead_{name}@{count}" for name in (*AGAINST, "activations", "tokens") for count in self.k]
        counted += [f"refit_deviation@{count}" for count in self.k] if refits > 1 else []
        if self._of_tokens:
            self.headline += (f"auc_unseen@{middle}",) if held_out_types else ()
            counted += [f"auc_unseen{name}@{count}" for name in ("", *(f"_{n}" for n in AGAINST)) for count in self.k]
            counted += ["auc_unseen_activations", "auc_unseen_tokens"]
        self.value_names = (*counted, "auc_activations", "auc_tokens", "accuracy_majority")

    @property
    def middle(self) -> int:
        """The k of the headline."""
        return self.k[len(self.k) // 2]

    def observe(
        self,
        pooled_acts: Float[Tensor, "n d_sae"],
        task_labels: Int8[np.ndarray, "n tasks"],
        chosen_features: tuple[Chosen, ...],
        probe_tasks: tuple[Task, ...],
        chosen_tokens: ChosenTokens | None,
    ) -> dict[str, Evidence]:
        return of_tasks(pooled_acts, task_labels, chosen_features, probe_tasks, chosen_tokens)

    def conclude(
        self,
        total: dict[str, PerRow],
        fit_features_of_tasks: dict[str, PerRow],
        chosen_features: tuple[Chosen, ...],
        probe_tasks: tuple[Task, ...],
        activation_probes: Qualities,
        token_probes: Qualities,
        probed_examples: Windows,
        token_text: Callable[[Sequence[int]], list[str]],
    ) -> dict[str, Value]:
        found: dict[str, list[Quality]] = {}
        deviations: dict[int, list[float]] = {count: [] for count in self.k}
        sizes = []
        for task, choice in zip(probe_tasks, chosen_features, strict=True):
            fit, test = fit_features_of_tasks[task.name], total[task.name]
            options: dict[str, Any] = {"folds": self.folds, "penalty": self.penalty, "seed": self.seed}
            options |= {"refits": self.refits, "held_out_types": self.held_out_types}
            probes = Probes.of(task.name, fit, fit["y"], test, test["y"], **options)
            x, tests = fit["x"].astype(np.float64), test["x"].astype(np.float64)
            counted = probes.answers[probes.judging]
            sizes.append((len(fit), len(counted), int(counted.sum()), int(probes.unseen.sum())))
            for count in self.k:
                best, random = partial(_best, x, choice, count), partial(_random, x, choice, count)
                judged, deviation = probes.judged(best, _best(tests, choice, count, None))
                by_chance, _ = probes.judged(random, _random(tests, choice, count, None))
                found.setdefault(f"features@{count}", []).append(judged)
                found.setdefault(f"random@{count}", []).append(by_chance)
                deviations[count].append(deviation)
        everything = {**found, **activation_probes, **token_probes}
        tables: dict[str, Value] = {
            "tasks": self._tasks(everything, probe_tasks, sizes),
            "task_aucs": _without(everything[f"features@{self.middle}"], everything[f"neurons@{self.middle}"]),
            "latents": _latents(probe_tasks, chosen_features),
            "examples": _examples(probe_tasks, chosen_features, probed_examples, token_text),
        }
        return self._values(everything, deviations) | tables

    def _values(
        self, found: Mapping[str, Sequence[Quality]], deviations: Mapping[int, list[float]]
    ) -> dict[str, Value]:
        means = {name: {m: _mean([getattr(q, m) for q in own]) for m in MEASURES} for name, own in found.items()}

        def share(value: Estimate, **options: Any) -> Scalar:
            return Scalar(value, unit="share", **options)

        values: dict[str, Value] = {}
        for measure in MEASURES:
            for count in self.k:
                values[f"{measure}@{count}"] = share(means[f"features@{count}"][measure], better="higher")
        for name in ("activations", "tokens"):
            values[f"auc_{name}"] = share(means[name]["auc"], better="higher")
        values["accuracy_majority"] = share(means["majority"]["accuracy"])
        for count in self.k:
            own = means[f"features@{count}"]["auc"]
            others = {name: means[f"{name}@{count}"]["auc"] for name in AGAINST}
            values |= {f"auc_{name}@{count}": share(other, better="higher") for name, other in others.items()}
            others |= {name: means[name]["auc"] for name in ("activations", "tokens")}
            for name, other in others.items():
                values[f"lead_{name}@{count}"] = Scalar(own - other, unit="AUC", better="higher")
            if self.refits > 1:
                spread = float(np.sqrt(np.mean(np.square(deviations[count])) / len(deviations[count])))
                values[f"refit_deviation@{count}"] = Scalar(spread, unit="AUC", better="lower", n=self.refits)
        if self._of_tokens:
            values |= {_unseen(name): _on_unseen(own) for name, own in found.items() if name != "majority"}
        curve = [means[f"features@{count}"]["auc"] for count in self.k]
        values["auc"] = Curve(list(self.k), curve, x_unit="features", unit="share", better="higher")
        return values

    def _tasks(self, found: Qualities, tasks: Sequence[Task], sizes: Sequence[tuple[int, int, int, int]]) -> Table:
        rows, names = "tokens" if self._of_tokens else "texts", [name for name in found if name != "majority"]
        columns = ["task", f"fit {rows}", rows, "positive", "documents", *(f"auc {name}" for name in names)]
        columns += [f"± {name}" for name in names]
        columns += ["unseen", *(f"unseen {name}" for name in names)] if self._of_tokens else []
        table = []
        for number, (task, (*counts, new)) in enumerate(zip(tasks, sizes, strict=True)):
            own = [found[name][number] for name in names]
            documents = int((own[0].auc.sizes > 0).sum())
            line = [task.name, *counts, documents, *(q.auc.value for q in own), *(q.auc.stderr for q in own)]
            unseen = [new, *(q.unseen.value if q.unseen else None for q in own)] if self._of_tokens else []
            table.append([*line, *unseen])
        return Table(columns, table)


def _unseen(name: str) -> str:
    """Return the name of a probe's value on unseen tokens: `auc_unseen@K` for features, `auc_unseen_...` for others."""
    return f"auc_unseen{name.removeprefix('features')}" if name.startswith("features") else f"auc_unseen_{name}"


def _on_unseen(qualities: Sequence[Quality]) -> Scalar:
    if estimates := [quality.unseen for quality in qualities if quality.unseen]:
        return Scalar(_mean(estimates), unit="share", better="higher")
    reason = (
        f"no task has {LEAST_UNSEEN} evaluated tokens of each class whose type no fitted token has; add texts, or "
        "raise 'held_out_types'"
    )  # fmt: skip
    return Scalar.undefined(reason, unit="share", better="higher")


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over tasks, whose documents may differ."""
    total = estimates[0]
    for estimate in estimates[1:]:
        total = total + estimate
    return total / len(estimates)


def _best(
    x: Float[np.ndarray, "n columns"], choice: Chosen, count: int, part: int | None
) -> Float[np.ndarray, "n count"]:
    features = choice.whole if part is None else choice.parts[part]
    return x[:, choice.places(features[:count])]


def _random(
    x: Float[np.ndarray, "n columns"], choice: Chosen, count: int, part: int | None
) -> Float[np.ndarray, "n count"]:
    return x[:, choice.places(choice.random[:count])]


def _without(features: Sequence[Quality], neurons: Sequence[Quality]) -> Array:
    """Return rows of AUC without each document, of two probes, and of the document's number of texts."""
    parts = [
        np.stack([one.auc.without, other.auc.without, one.auc.sizes])[:, one.auc.sizes > 0]
        for one, other in zip(features, neurons, strict=True)
    ]
    return Array(np.concatenate(parts, axis=1), unit="share")


def _latents(tasks: Sequence[Task], chosen: Sequence[Chosen]) -> Table:
    rows = [
        [task.name, rank, int(feature), float(score), task.positive if rises else f"not {task.positive}"]
        for task, choice in zip(tasks, chosen, strict=True)
        for rank, (feature, score, rises) in enumerate(
            zip(choice.whole, choice.scores, choice.rises, strict=True), start=1
        )
        if rank <= SHOWN
    ]
    return Table(["task", "rank", "feature", "score", "larger in"], rows)


def _examples(
    tasks: Sequence[Task], chosen: Sequence[Chosen], examples: Windows,
    token_text: Callable[[Sequence[int]], list[str]],
) -> Table:  # fmt: skip
    ranked = [
        (task, rank, int(feature))
        for task, choice in zip(tasks, chosen, strict=True)
        for rank, feature in enumerate(choice.whole[:LATENTS], start=1)
    ]
    rows = [
        [task.name, rank, *example_cells(feature, task.positive, window)]
        for number, (task, rank, feature) in enumerate(ranked[: len(examples.order)])
        for window in examples.windows(number, token_text)
    ]
    return Table(["task", "rank", *EXAMPLE_COLUMNS], rows)
