"""The metric `truth_recovery`: how many true features an SAE has found, and how well its latents fire with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from saeval.plugin import Array, Metric, Repeats, Scalar, Table, Value, torch
from saeval_synthetic.firings import PairFirings, known_mean
from saeval_synthetic.ground_truth import TrueMatch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Fired, Subject
    from saeval_synthetic.world import TrueFeatures, World

Share = Annotated[float, Field(ge=0, le=1)]
_DECILES = 10


class TruthRecovery(Metric):
    """True features that an SAE has found, by directions and by firing.

    Latents and true features are matched one-to-one, so that the sum of the signed cosines between decoder rows and
    true directions is as large as possible (exact, with the solver of `seed_stability`). Firing is that of the matched
    pairs: a latent that never fires has a precision, recall and F1 of 0. True features that fire on no evaluated token
        are
    left out of the values on firing. *_floor is the same value of a randomly rotated decoder, a mean over `draws`, or
    of latents that fire as often as the SAE's, independently of the true features: precision p, recall q, F1
    2pq / (p + q) for a true feature that fires on a share p of the tokens and a latent that fires on q.

    Values:
        mcc: sum of the matched cosines over max(true features, latents), so that missed features and spare latents
            count as 0; cosine; -1 .. 1; higher is better.
        cosine: mean of the matched cosines; cosine; -1 .. 1; higher is better.
        share_above: share of the true features whose latent has a cosine above `above`; share of features; 0 .. 1;
            higher is better.
        uniqueness: share of the latents that are each the first for which a true feature is the nearest one: different
            nearest features over latents; share of latents; 0 .. 1; higher is better.
        split: share of the true features to which at least two latents have a cosine of `split_cosine` or more and
            are nearest; share of features; 0 .. 1; lower is better.
        dead: share of the latents that fire on no token; share of latents; 0 .. 1; lower is better, depends on the
            number of tokens.
        precision: mean over pairs of the share of the latent's tokens on which the true feature fires; share of tokens;
            0 .. 1; higher is better.
        recall: mean over pairs of the share of the true feature's tokens on which the latent fires; share of tokens;
            0 .. 1; higher is better.
        f1: mean over pairs of 2 · tokens with both / (tokens of one + tokens of the other); share of tokens; 0 .. 1;
            higher is better.
        auc: mean over pairs of the probability that the latent's activation is larger on a token with the true feature
            than on one without; probability; 0 .. 1, 0.5 for unrelated ones; higher is better.
        recall_all, f1_all: recall and f1 with 0 for each true feature without a latent; share of tokens; 0 .. 1;
            higher is better.
        saelens_mcc: mean of the absolute cosines of a matching for these, over the smaller number of features and
            latents, as in sae-lens; cosine; 0 .. 1; higher is better.
        mcc_floor, cosine_floor, share_above_floor, uniqueness_floor: after a random rotation of the decoder; as above;
            as above; no better direction.
        precision_floor, recall_floor, f1_floor: for independent firing; share of tokens; 0 .. 1; no better direction.
        deciles: the values by frequency of the true features, a table; as above; as above; no better direction.
        latents, cosines: the latent of each true feature and their cosine, arrays; latent number, cosine; -1 .. d_sae;
            no better direction.

    Claims:
        mcc, cosine, share_above, uniqueness, split, saelens_mcc: the dictionary has these true directions; null: none
            is tested; the floor is beside it; needs: data with a ground truth; not: that its latents fire with the
            features, or that an SAE of a language model would find as many.
        dead, precision, recall, f1, auc, recall_all, f1_all: the latents fire with the true features; null: none is
            tested; the floor is beside it; needs: 20 documents; not: the same for features that are too rare to fire
            here.
        mcc_floor, cosine_floor, share_above_floor, uniqueness_floor, precision_floor, recall_floor, f1_floor: nothing
            on its own; null: is one itself; needs: data with a ground truth; not: a comparison of floors at different
            widths.

    Source: MCC after Song et al. 2025; the cells of sae-lens' `eval_sae_on_synthetic_data`, with one-to-one pairs.
    """

    name, version, truth = "truth_recovery", 1, True
    headline = ("mcc", "mcc_floor", "share_above", "f1", "f1_floor", "f1_all", "dead")
    main = ("mcc", "f1")
    value_names = (
        "mcc", "cosine", "share_above", "uniqueness", "split", "dead", "precision", "recall", "f1", "auc", "recall_all",
        "f1_all", "saelens_mcc", "mcc_floor", "cosine_floor", "share_above_floor", "uniqueness_floor",
        "precision_floor", "recall_floor", "f1_floor",
    )  # fmt: skip

    def __init__(
        self, above: Share = 0.9, split_cosine: Share = 0.7, draws: Annotated[Repeats, Field(ge=1)] = 1, seed: int = 0
    ) -> None:
        self.above, self.split_cosine, self.draws, self.seed = above, split_cosine, draws, seed

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        from saeval_stability.group import matching_operations  # late: it imports torch

        each = [(s.d_sae or 0, s.d_out or s.d_in or 0) for s in subjects]
        return sum((2 + self.draws) * matching_operations(m, m, d) for m, d in each)

    def observe(
        self, feature_acts: Float[Tensor, "batch seq d_sae"], fired: Fired, true_features: TrueFeatures,
        true_match: TrueMatch, mask: Bool[Tensor, "batch seq"],
    ) -> PairFirings:  # fmt: skip
        return PairFirings.of(feature_acts, fired, true_features, true_match, mask)

    def conclude(
        self, total: PairFirings, W_dec: Float[Tensor, "d_sae d_out"], truth: World, true_match: TrueMatch,
        chance_matches: list[tuple[Any, TrueMatch]],
    ) -> dict[str, Value]:  # fmt: skip
        from saeval_stability import match  # late: it loads numba, which only a run needs

        by_direction = self._directions(true_match)
        chance = [self._directions(turned) for _, turned in chance_matches]
        values: dict[str, Value] = {}
        for name, number in by_direction.items():
            better = "lower" if name == "split" else "higher"
            values[name] = Scalar(number, unit="cosine" if name in ("mcc", "cosine") else "share", better=better)  # type: ignore[arg-type]
        absolute = match(torch.from_numpy(truth.directions).to(W_dec.device), W_dec, mode="abs")
        values["saelens_mcc"] = Scalar(absolute.over_smaller, unit="cosine", better="higher")
        values |= self._firing(total)
        for name in ("mcc", "cosine", "share_above", "uniqueness"):
            unit = "cosine" if name in ("mcc", "cosine") else "share"
            values[f"{name}_floor"] = Scalar(float(np.mean([draw[name] for draw in chance])), unit=unit)
        values["deciles"] = self._deciles(total, true_match)
        values["latents"], values["cosines"] = Array(true_match.latent), Array(true_match.cosine, "cosine")
        return values

    def _directions(self, found: TrueMatch) -> dict[str, float]:
        cosines, n = found.cosine[found.matched], len(found.latent)
        close = found.nearest[found.nearest_cosine >= self.split_cosine]
        return {
            "mcc": found.mcc,
            "cosine": float(cosines.mean()),
            "share_above": float((cosines > self.above).sum()) / n,
            "uniqueness": len(np.unique(found.nearest)) / found.latents,
            "split": float((np.bincount(close, minlength=n) >= 2).sum()) / n,
        }

    def _firing(self, total: PairFirings) -> dict[str, Value]:
        firing, features = total.firing, max(int((total.all_true > 0).sum()), 1)
        if not firing.any():
            reason = "no true feature with a latent fires on the evaluated tokens"
            names = ("precision", "recall", "f1", "auc", "recall_all", "f1_all")
            undefined: dict[str, Value] = {name: Scalar.undefined(reason, better="higher") for name in names}
            floors = {f"{name}_floor": Scalar.undefined(reason) for name in ("precision", "recall", "f1")}
            return {**undefined, **floors, "dead": self._dead(total)}

        def over(share: Any, denominator: float | None = None) -> Any:
            def function(together: Any, true: Any, latent: Any, tokens: Any) -> float:
                with np.errstate(invalid="ignore", divide="ignore"):
                    shares = share(together, true, latent, max(int(tokens), 1))[firing]
                return known_mean(shares) if denominator is None else float(np.nansum(shares)) / denominator

            return total.estimate(function)

        shares = {
            "precision": lambda both, true, latent, tokens: np.where(latent > 0, both / latent, 0.0),
            "recall": lambda both, true, latent, tokens: both / true,
            "f1": lambda both, true, latent, tokens: 2 * both / (true + latent),
        }
        independent = {
            "precision": lambda both, true, latent, tokens: np.where(latent > 0, true / tokens, 0.0),
            "recall": lambda both, true, latent, tokens: latent / tokens,
            "f1": lambda both, true, latent, tokens: 2 * true * latent / (tokens * (true + latent)),
        }
        values: dict[str, Value] = {}
        for name, share in shares.items():
            values[name] = Scalar(over(share), unit="share", better="higher")
        with np.errstate(invalid="ignore"):
            auc = total.auc()[firing]
        known = auc[np.isfinite(auc)]
        values["auc"] = (
            Scalar(float(known.mean()), better="higher")
            if len(known)
            else Scalar.undefined("each true feature fires on all tokens", better="higher")
        )
        for name in ("recall", "f1"):
            values[f"{name}_all"] = Scalar(over(shares[name], features), unit="share", better="higher")
        values["dead"] = self._dead(total)
        for name, share in independent.items():
            values[f"{name}_floor"] = Scalar(over(share), unit="share")
        return values

    @staticmethod
    def _dead(total: PairFirings) -> Scalar:
        return Scalar(float((total.all_latents == 0).mean()), unit="share", better="lower")

    def _deciles(self, total: PairFirings, found: TrueMatch) -> Table:
        """Return the values by decile of the frequency of true features, the most frequent first."""
        order = np.argsort(-total.all_true, kind="stable")
        order = order[total.all_true[order] > 0]
        place = np.full(len(found.latent), -1, np.int64)
        place[found.matched] = np.arange(len(found.matched))
        both, true, latent = (counts.sum(0) for counts in (total.together, total.true, total.latent))
        auc, tokens, lines = total.auc(), int(total.tokens.sum()), []
        for decile, features in enumerate(np.array_split(order, _DECILES), 1):
            if not len(features):
                continue
            frequency = total.all_true[features] / tokens
            pairs = place[features]
            pairs = pairs[pairs >= 0]
            line: list[Any] = [decile, float(frequency.min()), float(frequency.max()), len(features)]
            line += [len(pairs) / len(features), float((found.cosine[features] > self.above).mean())]
            if len(pairs):
                with np.errstate(invalid="ignore", divide="ignore"):
                    line += [
                        float(found.cosine[found.matched[pairs]].mean()),
                        float(np.where(latent[pairs] > 0, both[pairs] / latent[pairs], 0.0).mean()),
                        float((both[pairs] / true[pairs]).mean()),
                        float((2 * both[pairs] / (true[pairs] + latent[pairs])).mean()),
                    ]
                known = auc[pairs][np.isfinite(auc[pairs])]
                line.append(float(known.mean()) if len(known) else None)
            else:
                line += [None] * 5
            lines.append(line)
        columns = ["decile", "least_frequency", "most_frequency", "features", "matched", "share_above", "cosine"]
        return Table([*columns, "precision", "recall", "f1", "auc"], lines)
