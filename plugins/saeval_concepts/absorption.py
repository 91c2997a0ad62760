"""`absorption`: do more specific features take over for the features of a concept, so that these are silent?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Float, Int8
from pydantic import Field

from saeval.plugin import Estimate, Evidence, Metric, PerRow, Ratio, Repeats, Scalar, Table, Undefined, Value, torch
from saeval_concepts.absorption_effects import Falls, Outcome
from saeval_concepts.absorption_scores import word_scores
from saeval_concepts.mains import Mains, WordProbe
from saeval_concepts.tasks import Task
from saeval_concepts.words import NOWHERE

if TYPE_CHECKING:
    from torch import Tensor

SCORES = {"saebench_full": "full", "saebench_fraction": "fraction", "saebench_fraction_v03": "fraction_v03"}
"""The values that are means over the words of each parent, and their columns."""
FALLS = ("interventional", "interventional_fall", "interventional_random", "exceeds_random", "exceeds_chance")
BY_PARENT = (*SCORES, "silent", "interventional")
"""The values in the table of parents, each with its standard error by document."""
SHOWN = 5
"""Number of absorbers of a parent in the table."""


class Absorption(Metric):
    """Absorption: the features of a concept are silent on some words that have it, and others stand in for them.

    A parent is a class of the labelled texts, such as a first letter. Its probe is a logistic regression on the
    activations at the last token with the label `at` (null: the last token), fitted on the fit split; C by
    cross-validation there. Its main features are those with the largest positive differences of class means on the fit
    split: the first, and the next, up to 10, while each adds more than `jump` to the best F1 on the validation texts of
    a balanced logistic regression of them. Parents whose probe has an F1 below `least_f1` there, or is right on fewer
    than `least_words` evaluated words, are left out. All values are over evaluated words that have the parent and whose
    probe says so.

    With the unit vector p along the probe and f_j cos(p, d_j) the projection of a feature: saebench_full is 1 if all
    mains are below 1e-8, and the largest projection has a cosine of at least 0.025 and at least 40% of x·p ≥ 0.
    saebench_fraction (SAEBench 0.4.1 on) has as absorbers the 3 largest positive projections of other features with a
    cosine of at least 0.1; it is 0 if the mains carry all of x·p or the absorbers less than 40% of it, 1 if the mains
    carry none, else a / (a + mains), a = min(absorbers, x·p − mains). saebench_fraction_v03 (0.3.0 to 0.4.0) is the
    part of Σ_j f_j cos_j, within 0 .. 1, that the mains do not carry; 0 if they carry all of x·p, or the sum is ≤ 0.
    Each is the mean over parents of the mean over words, as there. Probes, mains and words are chosen by the rules
    above, not by that package's.

    interventional ablates instead. Where the mains are silent, the putative absorber is the active feature that, on
    most fit words of the parent with silent mains, has the largest f_j ⟨p, d_j⟩ of all other features. x − f_j d_j at
    the word alone, the SAE's error kept, is run to the end. The fall is that of the model's own answer: the logit of
    the first token with the label `answer` minus the mean logit of the other answers. With `later_hook` it is that of
    the logit of a probe fitted there. A probe at the SAE's own hook is refused: its fall is what chose the absorber.
    The mean fall over up to `random` other active features, scaled to the same norm, is subtracted.

    Small models and small dictionaries show the mechanics only.

    Values:
        saebench_full: share of words with full absorption; share; 0 .. 1; lower is better.
        saebench_fraction: mean fraction of the projection that absorbers carry, as SAEBench from 0.4.1; share; 0 .. 1;
            lower is better.
        saebench_fraction_v03: the same as SAEBench 0.3.0 to 0.4.0; share; 0 .. 1; lower is better.
        interventional: interventional_fall − interventional_random; logits; −∞ .. ∞; lower is better.
        interventional_fall: mean fall without the putative absorber; logits; −∞ .. ∞; no better direction.
        interventional_random: mean fall without a random active feature of the same norm; logits; −∞ .. ∞; no better
            direction.
        exceeds_random: share of words on which the absorber's fall exceeds that of every random feature; share; 0 .. 1;
            lower is better.
        exceeds_chance: exceeds_random if the absorber were one of them, mean 1 / (features + 1); share; 0 .. 1; no
            better direction.
        silent: share of words on which all main features are silent; share; 0 .. 1; lower is better.
        with_absorber: share of those on which a putative absorber is active; share; 0 .. 1; no better direction.
        answered: share of words on which the model's answer is the likeliest of all answers, or the later probe is
            right; share; 0 .. 1; no better direction.
        mains: mean number of main features of a parent; features; ≥ 1; lower is better.
        splits: mains − 1; features; ≥ 0; lower is better.
        probe_f1, mains_f1: mean F1 on validation words of the parents' probes, and of probes of their mains; share;
            0 .. 1; no better direction.
        counted: number of parents that count; parents; ≥ 0; no better direction.
        parents: numbers, mains, scores and absorbers by parent, a table; share; −∞ .. ∞; no better direction.

    Claims:
        saebench_full, saebench_fraction, saebench_fraction_v03: this SAE scores lower or higher by this definition than
            another, or than an untrained one; null: a paired difference of 0 to another SAE or to the control random;
            needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a training method; not: that a
            feature stands in for the concept in the model's computation, since the scores are projections, or a
            comparison of two definitions.
        interventional, interventional_fall, interventional_random: where the main features are silent, the model uses
            the absorber for the concept, more than other active directions of the same norm; null: a difference of 0
            over words; needs: 20 effective documents; 1 SAE; 4 seeds each for a claim about a training method; not: how
            often absorption occurs, or that the model could not do without the absorber.
        exceeds_random, exceeds_chance: single absorbers matter more than every random feature on their word; null:
            exceeds_chance beside it; needs: 20 effective documents; 1 SAE; not: how large an effect is.
        silent, with_absorber: how often the main features miss words that the probe finds; null: none; needs: 20
            effective documents; 1 SAE; not: absorption, since features may be silent for other reasons.
        answered, probe_f1, counted: what the model and the activations know, beside which the other values are read;
            null: none; needs: 20 effective documents; 1 SAE; not: anything about the SAE.
        mains, splits, mains_f1: over how many features a parent is split; null: none; needs: 1 SAE; not: absorption.

    Source: Chanin et al. (2024, arXiv 2409.14507) for absorption and the spelling task; SAEBench 0.6 for the formulas.
    """

    name, version = "absorption", 2
    headline = ("saebench_full", "saebench_fraction", "interventional", "silent", "splits")
    value_names = (
        *SCORES, *FALLS, "silent", "with_absorber", "answered", "mains", "splits", "probe_f1", "mains_f1", "counted",
    )  # fmt: skip

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        at: str | None = "word",
        answer: str = "answer",
        later_hook: str | None = None,
        jump: Annotated[float, Field(ge=0, le=1)] = 0.03,
        least_f1: Annotated[float, Field(ge=0, le=1)] = 0.6,
        least_words: Annotated[int, Field(ge=2)] = 5,
        random: Repeats = 20,
        folds: Annotated[int, Field(ge=2, le=20)] = 3,
        seed: int = 0,
    ) -> None:
        if not tasks:
            raise ValueError(f"metric '{self.name}': 'tasks' needs at least one entry")
        if random < 1:
            raise ValueError(f"metric '{self.name}': 'random' must be at least 1, got {random}")
        self.tasks, self.at, self.answer, self.later_hook = tasks, at, answer, later_hook
        self.jump, self.least_f1, self.least_words = jump, least_f1, least_words
        self.random, self.folds, self.seed = random, folds, seed

    def observe(
        self,
        word_acts: Float[Tensor, "batch d_sae"],
        word_activations: Float[Tensor, "batch d"],
        word_labels: Int8[np.ndarray, "batch tasks"],
        parent_projections: Float[Tensor, "parents d_sae"],
        decoder_norms: Float[Tensor, "d_sae"],
        word_outcome: Outcome,
        absorber_falls: Falls,
        word_probes: tuple[WordProbe, ...],
        main_features: tuple[Mains, ...],
        probe_tasks: tuple[Task, ...],
    ) -> dict[str, Evidence]:
        tables: dict[str, Evidence] = {}
        norms = torch.where(decoder_norms > 0, decoder_norms, 1.0)
        for parent, (task, probe, mains) in enumerate(zip(probe_tasks, word_probes, main_features, strict=True)):
            counts = not probe.lacking and len(mains.features)
            rows = np.flatnonzero((word_labels[:, parent] == 1) & bool(counts))
            own = torch.from_numpy(rows)
            x = word_activations[own.to(word_activations.device)]
            p = torch.from_numpy(probe.direction).to(x.device)
            acts = word_acts[own.to(word_acts.device)]
            scores = word_scores(
                acts, (parent_projections[parent] / norms).to(acts.device), (x.double() @ p).to(acts.device),
                mains.features.tolist(),
            )  # fmt: skip
            columns: dict[str, Any] = {name: getattr(scores, column) for name, column in SCORES.items()}
            columns |= {"silent": scores.silent, "right": probe.scores(x) > 0}
            known = word_outcome.known[rows]
            answered = np.zeros(len(rows), dtype=bool)
            if known.any():
                answered[known] = word_outcome.right(rows[known], np.full(known.sum(), parent))
            tables[task.name] = PerRow.of(
                rows, **columns, known=known, answered=answered, **_falls_of(absorber_falls, parent, rows)
            )
        return tables

    def conclude(
        self,
        total: dict[str, PerRow],
        word_rows: PerRow,
        word_probes: tuple[WordProbe, ...],
        main_features: tuple[Mains, ...],
        probe_tasks: tuple[Task, ...],
    ) -> dict[str, Value]:
        reasons = [self._left_out(total[t.name], p, m) for t, p, m in zip(probe_tasks, word_probes, main_features)]
        counted = [number for number, reason in enumerate(reasons) if not reason]
        if not counted:
            first = f"'{probe_tasks[0].name}': {reasons[0]}"
            raise Undefined(
                f"none of {len(probe_tasks)} parents counts, such as {first}; add words, or use other tasks"
            )
        by_parent = [_right(total[probe_tasks[number].name]) for number in counted]
        values: dict[str, Value] = {
            name: Scalar(_over_parents(by_parent, name), unit="share", better="lower") for name in SCORES
        }
        words = _joined(by_parent)
        values["silent"] = _share(words, "silent", words["silent"] >= 0, better="lower")
        silent, active = words["silent"] == 1, np.isfinite(words["fall"])
        values["with_absorber"] = _share(
            words | {"active": active}, "active", silent, reason="the main features are silent on no word"
        )
        values |= self._falls(words, active, word_rows, int(silent.sum()))
        sizes = [float(len(main_features[number].features)) for number in counted]
        values["mains"] = Scalar(float(np.mean(sizes)), unit="features", better="lower")
        values["splits"] = Scalar(float(np.mean(sizes)) - 1, unit="features", better="lower")
        for name, kind in (("probe_f1", word_probes), ("mains_f1", main_features)):
            values[name] = Scalar(float(np.mean([kind[number].f1 for number in counted])), unit="share")
        values["counted"] = Scalar(float(len(counted)), unit="parents")
        values["parents"] = _table(probe_tasks, word_probes, main_features, total, reasons)
        return values

    def _left_out(self, rows: PerRow, probe: WordProbe, mains: Mains) -> str:
        """Return why a parent does not count; empty if it does."""
        if probe.lacking:
            return probe.lacking
        if not len(mains.features):
            return "no feature is more active on its fit words than on others"
        right = len(np.unique(rows.clusters[rows["right"]]))
        few = f"its probe is right on {right} evaluated words, fewer than 'least_words: {self.least_words}'"
        return few if right < self.least_words else ""

    def _falls(
        self, words: Mapping[str, np.ndarray[Any, Any]], active: np.ndarray[Any, Any], word_rows: PerRow, silent: int
    ) -> dict[str, Value]:
        reason = ""
        if self.later_hook is None and len(set(word_rows["answer"].tolist()) - {NOWHERE}) < 2:
            lack = f"the texts have no two answers labelled '{self.answer}'"
            reason = f"{lack}; use a source that labels them, such as 'spelling', or set 'later_hook'"
        answered = _share(words, "answered", words["known"] == 1, reason=reason or "no evaluated word has an answer")
        if not reason and not silent:
            reason = "the main features are silent on no word"
        elif not reason and not active.any():
            reason = "no feature that projected most on fit words with silent mains is active on an evaluated one"
        units = {name: "share" if name.startswith("exceeds") else "logits" for name in FALLS}
        better = {"interventional": "lower", "exceeds_random": "lower"}
        if reason:
            undefined = {name: Scalar.undefined(reason, unit=units[name], better=better.get(name)) for name in FALLS}  # type: ignore[arg-type]
            return {"answered": answered, **undefined}
        means = {name: _mean(words, name, active) for name in ("fall", "random", "exceeds", "chance")}
        found = (means["fall"] - means["random"], means["fall"], means["random"], means["exceeds"], means["chance"])
        return {
            "answered": answered,
            **{
                name: Scalar(value, unit=units[name], better=better.get(name), proportion=name == "exceeds_random")  # type: ignore[arg-type]
                for name, value in zip(FALLS, found, strict=True)
            },
        }


def _falls_of(falls: Falls, parent: int, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the falls of a parent's rows; NaN for rows without."""
    columns = {name: np.full(len(rows), np.nan) for name in ("fall", "random", "exceeds", "chance")}
    own = np.flatnonzero(falls.parents == parent)
    where = np.searchsorted(rows, falls.rows[own])
    drawn = falls.random[own]
    columns["fall"][where] = falls.fall[own]
    if len(own):
        columns["random"][where] = np.nanmean(drawn, 1)
        columns["exceeds"][where] = falls.fall[own] > np.nanmax(drawn, 1)
        columns["chance"][where] = 1 / (1 + np.isfinite(drawn).sum(1))
    return columns


Columns = dict[str, np.ndarray[Any, Any]]


def _right(rows: PerRow) -> Columns:
    """Return the columns of the words that the parent's probe gets right, with their documents."""
    right = rows["right"]
    columns: Columns = {name: rows[name][right].astype(np.float64) for name in rows.names}
    return columns | {"clusters": rows.clusters[right], "n_clusters": np.asarray(rows.n_clusters)}


def _joined(parents: Sequence[Columns]) -> Columns:
    """Return the words of all parents together."""
    names = [name for name in parents[0] if name != "n_clusters"]
    joined = {name: np.concatenate([columns[name] for columns in parents]) for name in names}
    return joined | {"n_clusters": parents[0]["n_clusters"]}


def _mean(words: Columns | Mapping[str, Any], name: str, inside: np.ndarray[Any, Any] | None = None) -> Estimate:
    """Return the mean of a column over some words, with its error by document."""
    inside = np.ones(len(words["clusters"]), dtype=bool) if inside is None else inside
    size, clusters = int(words["n_clusters"]), words["clusters"][inside]
    n = np.bincount(clusters, minlength=size)
    return Ratio(np.bincount(clusters, words[name][inside], minlength=size), n.astype(np.float64), n).value


def _over_parents(parents: Sequence[Columns], name: str) -> Estimate:
    """Return the mean over parents of their means over words, with its error by document.

    It is one estimate over all documents: each parent has few, and a sum of estimates has the support of the smallest.
    """
    means = [_mean(columns, name) for columns in parents]
    sizes = np.sum([mean.sizes for mean in means], axis=0)
    without = np.mean([mean.without for mean in means], axis=0)
    return Estimate(float(np.mean([mean.value for mean in means])), without, sizes, sum(mean.n for mean in means))


def _share(
    words: Mapping[str, Any], name: str, inside: np.ndarray[Any, Any], reason: str = "", **options: Any
) -> Scalar:
    if not inside.any():
        return Scalar.undefined(reason, unit="share", **options)
    return Scalar(_mean(words, name, inside), unit="share", proportion=True, **options)


def _table(
    tasks: Sequence[Task],
    probes: Sequence[WordProbe],
    mains: Sequence[Mains],
    total: Mapping[str, PerRow],
    reasons: Sequence[str],
) -> Table:
    rows: list[list[Any]] = []
    for task, probe, main, reason in zip(tasks, probes, mains, reasons, strict=True):
        words = total[task.name]
        right = words["right"]
        own = _right(words)
        active = np.isfinite(own["fall"])
        means = {name: _mean(own, name) for name in (*SCORES, "silent")} if right.any() else {}
        if active.any():
            means["interventional"] = _mean(own | {"excess": own["fall"] - own["random"]}, "excess", active)
        ranked = sorted(main.absorbers.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        rows.append([
            task.name, len(words), int(right.sum()), len(np.unique(own["clusters"])), probe.f1, main.f1,
            " ".join(map(str, main.features.tolist())), *map(means.get, BY_PARENT),
            " ".join(f"{feature} ({count})" for feature, count in ranked), reason,
            *(means[name].stderr if name in means else None for name in BY_PARENT),
        ])  # fmt: skip
    return Table(
        ["parent", "words", "right", "documents", "probe F1", "mains F1", "mains", *BY_PARENT, "absorbers (fit words)",
         "left out", *(f"± {name}" for name in BY_PARENT)],
        rows,
    )  # fmt: skip
