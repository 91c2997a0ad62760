"""`detection` and `fuzzing`: how far a judge can tell by the words where a feature fires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saeval.plugin import Metric, Scalar, Table, Value
from saeval_explanations.given import WordsPath
from saeval_explanations.means import by_density, errors_note, mean_over_features
from saeval_explanations.passages import NEAR, SILENT
from saeval_explanations.prompts import LARGEST
from saeval_explanations.sampling import SampledFeatures
from saeval_explanations.tokens import auc
from saeval_explanations.verdicts import OWN, SHUFFLED, TOKENS, Verdicts
from saeval_explanations.words import Words

Beside = Literal["shuffled", "tokens"]


class _Judged(Metric):
    """What `detection` and `fuzzing` share."""

    kinds: Sequence[str] = ()
    """Kinds of false cases that have an AUC of their own."""

    def __init__(
        self,
        features: Annotated[int, Field(ge=1, le=10_000)] = 50,
        windows: Annotated[int, Field(ge=4, le=1000)] = 20,
        shown: Annotated[int, Field(ge=1, le=100)] = 10,
        per_prompt: Annotated[int, Field(ge=1, le=100)] = 10,
        beside: tuple[Beside, ...] = ("shuffled", "tokens"),
        list_length: Annotated[int, Field(ge=1, le=1000)] = 10,
        repeats: Annotated[int, Field(ge=0, le=100)] = 0,
        least_rows: Annotated[int, Field(ge=1)] = 10,
        seed: int = 0,
        path: WordsPath | None = None,
    ) -> None:
        self.features, self.windows, self.shown, self.per_prompt = features, windows, shown, per_prompt
        self.beside, self.list_length, self.repeats = tuple(dict.fromkeys(beside)), list_length, repeats
        self.least_rows, self.seed, self.path = least_rows, seed, path
        self.headline = ("auc", *(f"lead_{whose}" for whose in self.beside), "unread")
        names = ["auc", "balanced_accuracy", "unread", "unexplained", *(f"auc_{kind}" for kind in self.kinds)]
        names += [f"{name}_{whose}" for whose in self.beside for name in ("auc", "lead")]
        self.value_names = (*names, *(("repeat_deviation",) if repeats else ()))

    def _values(self, verdicts: Verdicts, sampled: SampledFeatures, words: Words) -> dict[str, Value]:
        aucs = {whose: _aucs(verdicts, whose) for whose in verdicts.scores}
        own = aucs[OWN]
        values: dict[str, Value] = {
            "auc": mean_over_features(own, "share"),
            "balanced_accuracy": mean_over_features(_accuracies(verdicts), "share"),
        }
        values |= {f"auc_{kind}": mean_over_features(_aucs(verdicts, OWN, kind), "share") for kind in self.kinds}
        for whose in self.beside:
            values[f"auc_{whose}"] = mean_over_features(aucs[whose], "share", None)
            values[f"lead_{whose}"] = mean_over_features(own - aucs[whose], "AUC")
        explained = [said is not None for said in words.words]
        asked = np.concatenate([s[: len(s) * has] for s, has in zip(verdicts.scores[OWN], explained, strict=True)])
        values["unread"] = _share(np.isnan(asked), "the judge was asked nothing")
        values["unexplained"] = _share(~np.array(explained), "there are no features")
        if self.repeats:
            again = np.stack([own, *(aucs[f"{OWN} {repeat}"] for repeat in range(1, self.repeats + 1))])
            spread = np.sqrt(np.nanmean(again.var(0, ddof=1))) if np.isfinite(again).all(0).any() else np.nan
            values["repeat_deviation"] = Scalar(float(spread), unit="AUC", better="lower", n=self.repeats + 1)
        values["by_density"] = by_density(own, sampled, "higher")
        values["features"] = _table(verdicts, sampled, words, aucs)
        values["cases"] = _cases(verdicts, sampled)
        values["about"] = errors_note(self.name, own)
        return values


def _aucs(verdicts: Verdicts, whose: str, kind: str | None = None) -> Float[np.ndarray, "n"]:
    """Return the AUC of each feature over the cases that were read, of one kind of false ones; NaN without a pair."""
    found = []
    for feature, scores in enumerate(verdicts.scores[whose]):
        y, kinds = verdicts.truths(feature), np.array(verdicts.kinds(feature), dtype=str)
        read = np.isfinite(scores) & (y | (kinds == kind) if kind else True)
        found.append(auc(scores[read], y[read]))
    return np.array(found)


def _accuracies(verdicts: Verdicts) -> Float[np.ndarray, "n"]:
    """Return the balanced accuracy of each feature: a number above 5 is a yes, 5 is half a yes."""
    found = []
    for feature, scores in enumerate(verdicts.scores[OWN]):
        y = verdicts.truths(feature)
        yes = np.where(scores * 2 == LARGEST, 0.5, scores * 2 > LARGEST).astype(np.float64)
        sides = [right[here & np.isfinite(scores)] for here, right in ((y, yes), (~y, 1 - yes))]
        found.append(float(np.mean([side.mean() for side in sides])) if all(len(s) for s in sides) else np.nan)
    return np.array(found)


def _share(flags: Float[np.ndarray, "n"], reason: str) -> Scalar:
    if not len(flags):
        return Scalar.undefined(reason, unit="share")
    return Scalar(float(np.mean(flags)), unit="share", n=len(flags), proportion=True)


def _table(
    verdicts: Verdicts, sampled: SampledFeatures, words: Words, aucs: dict[str, Float[np.ndarray, "n"]]
) -> Table:
    whose = [name for name in (OWN, SHUFFLED, TOKENS) if name in aucs]
    columns = ["feature", "density", "tenth", "words", *(f"auc {name}" for name in whose), "cases", "read"]
    read = [int(np.isfinite(scores).sum()) for scores in verdicts.scores[OWN]]
    parts: list[Sequence[Any]] = [sampled.features.tolist(), sampled.densities.tolist(), sampled.deciles.tolist()]
    parts += [words.words, *(aucs[name].tolist() for name in whose), [len(own) for own in verdicts.cases], read]
    return Table(columns, list(zip(*parts, strict=True)))


def _cases(verdicts: Verdicts, sampled: SampledFeatures) -> Table:
    rows = [
        [int(feature), case.kind, case.window.row, case.text, None if np.isnan(score) else int(score)]
        for feature, cases, scores in zip(sampled.features, verdicts.cases, verdicts.scores[OWN], strict=True)
        for case, score in zip(cases, scores, strict=True)
    ]
    return Table(["feature", "kind", "row", "text", "judge"], rows)


class Detection(_Judged):
    """By the words for a feature, in which windows of text does a judge say that it fires?

    Features are sampled from all densities. The words are the judge's, from `shown` windows of the fit split, or those
    of the file `path`. The windows of the test are from the evaluated rows, which are of other documents: half around
    random tokens on which the feature fires, and half in which it is silent; of these half around random tokens and
    half around a token on which the feature with the nearest decoder direction fires. The judge gives each a number
    from 0 to 10. A reply that cannot be read is asked for once more, and then left out and counted.

    The same is asked with the words of another feature of the same tenth by density (`shuffled`), and with the
    feature's list of tokens (`tokens`). Errors are over features: those of an SAE are not those of another.

    Values:
        auc: share of pairs of a window in which the feature fires and one in which it does not that the judge's
            numbers order rightly, ties half; the mean over features; share; 0 .. 1; higher is better.
        balanced_accuracy: mean over both classes of the share of right answers, a number above 5 being a yes and 5
            half of one; the mean over features; share; 0 .. 1; higher is better.
        auc_silent, auc_near: auc with random silent windows alone, and with those near the feature alone; share;
            0 .. 1; higher is better.
        auc_shuffled, auc_tokens: auc by the words of another feature of the same tenth by density, and by the list of
            tokens; share; 0 .. 1; no better direction.
        lead_shuffled, lead_tokens: auc minus that, by feature; AUC; −1 .. 1; higher is better.
        unread: share of the windows of features with words for which no answer could be read; share; 0 .. 1; no better
            direction.
        unexplained: share of the features for which there are no words; share; 0 .. 1; no better direction.
        repeat_deviation: standard deviation of a feature's auc when the judge is asked again, pooled over features;
            AUC; ≥ 0; lower is better.
        by_density: auc by tenth of density, the rarest first, a curve; share; 0 .. 1; higher is better.
        features: words and AUCs of each sampled feature, a table; share; 0 .. 1; no better direction.
        cases: each window with its kind and the judge's number, a table; 0 to 10; 0 .. 10; no better direction.

    Claims:
        auc, balanced_accuracy, auc_silent, auc_near: the words tell this judge where the feature fires; null:
            auc_shuffled; needs: 20 features; 1 SAE; not: that the feature means what the words say, or a comparison
            by another judge.
        lead_shuffled: the words are this feature's own; null: 0; needs: 20 features; 1 SAE; not: that they are
            complete.
        lead_tokens: the words say more than a list of tokens; null: 0; needs: 20 features; 1 SAE; not: that a feature
            of tokens is worse.
        auc_shuffled, auc_tokens: what words of another feature, or a list of tokens, tell; null: 0.5; needs: 20
            features; 1 SAE; not: a property of the SAE alone.
        unread, unexplained, repeat_deviation: how far this judge can be relied on; null: none; needs: 1 SAE; not: a
            property of the SAE.

    Source: Paulo et al. (2024, arXiv 2410.13928) for detection; Bills et al. (2023) for words from windows; the
        controls are of saeval.
    """

    name = "detection"
    kinds = (SILENT, NEAR)

    def conclude(
        self, detection_verdicts: Verdicts, sampled_features: SampledFeatures, tested_words: Words
    ) -> dict[str, Value]:
        return self._values(detection_verdicts, sampled_features, tested_words)


class Fuzzing(_Judged):
    """By the words for a feature, does a judge tell its tokens from others of the same windows?

    As in `detection`, but all windows are ones in which the feature fires: in half of them the tokens are marked on
    which it does, in the others as many of those on which it does not.

    Values:
        auc: share of pairs of a window with the right and one with wrong tokens marked that the judge's numbers order
            rightly, ties half; the mean over features; share; 0 .. 1; higher is better.
        balanced_accuracy: mean over both classes of the share of right answers, a number above 5 being a yes and 5
            half of one; the mean over features; share; 0 .. 1; higher is better.
        auc_shuffled, auc_tokens: auc by the words of another feature of the same tenth by density, and by the list of
            tokens; share; 0 .. 1; no better direction.
        lead_shuffled, lead_tokens: auc minus that, by feature; AUC; −1 .. 1; higher is better.
        unread: share of the windows of features with words for which no answer could be read; share; 0 .. 1; no better
            direction.
        unexplained: share of the features for which there are no words; share; 0 .. 1; no better direction.
        repeat_deviation: standard deviation of a feature's auc when the judge is asked again, pooled over features;
            AUC; ≥ 0; lower is better.
        by_density: auc by tenth of density, the rarest first, a curve; share; 0 .. 1; higher is better.
        features: words and AUCs of each sampled feature, a table; share; 0 .. 1; no better direction.
        cases: each window with its kind and the judge's number, a table; 0 to 10; 0 .. 10; no better direction.

    Claims:
        auc, balanced_accuracy: the words tell this judge the feature's tokens; null: auc_shuffled; needs: 20 features;
            1 SAE; not: that the feature means what the words say, or a comparison by another judge.
        lead_shuffled: the words are this feature's own; null: 0; needs: 20 features; 1 SAE; not: that they are
            complete.
        lead_tokens: the words say more than a list of tokens; null: 0; needs: 20 features; 1 SAE; not: that a feature
            of tokens is worse.
        auc_shuffled, auc_tokens: what words of another feature, or a list of tokens, tell; null: 0.5; needs: 20
            features; 1 SAE; not: a property of the SAE alone.
        unread, unexplained, repeat_deviation: how far this judge can be relied on; null: none; needs: 1 SAE; not: a
            property of the SAE.

    Source: Paulo et al. (2024, arXiv 2410.13928).
    """

    name = "fuzzing"

    def conclude(
        self, fuzzing_verdicts: Verdicts, sampled_features: SampledFeatures, tested_words: Words
    ) -> dict[str, Value]:
        return self._values(fuzzing_verdicts, sampled_features, tested_words)
