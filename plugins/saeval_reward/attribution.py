"""The metric `reward_attribution`: attribution of a reward margin to features, and their true effects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import Batch, Encoding, Evidence, Mean, Metric, Notes, Repeats, Substitute, Value, torch
from saeval_reward.ablation import Ablations
from saeval_reward.contexts import Contexts
from saeval_reward.explained import Explained
from saeval_reward.integration import Reference
from saeval_reward.margins import in_unit, warnings
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import Ranking, set_names
from saeval_reward.totals import Attributions, in_fold_b

if TYPE_CHECKING:
    from torch import Tensor


class RewardAttribution(Metric):
    """Attribution of the reward margin to features, with its completeness, true effects and margin explained.

    a_{t,j} = (f_{t,j} − f̄_j) ⟨ḡ_t, D_{t,j}⟩. ḡ is the mean gradient of the reward at `steps` midpoints of the line
    from `baseline` (a control such as `mean`, `zero`) to x, at all positions t ≥ s together, where s is the
    first position at which the sides differ. D_{t,j} is what one unit of f_j adds to the reconstruction, with
    norms and scales frozen. f̄_j is the mean of f_j over the tokens t ≥ s of the fit split, and 0 for `baseline:
    zero`, so a feature that is constant gets 0 from `mean`. The error and b_dec are deviations from their means
    too. The row of the baseline is its part that these means do not reproduce. All rows sum to m(x) −
    m(baseline), up to the integration error: completeness_gap = mean |m(x) − m(b) − Σ rows| over sides,
    relative_gap = that / mean |m(x) − m(b)|. The cell is undefined if relative_gap is above `tolerance`.
    `steps: 0` computes gradient × activation, which has no completeness. Completeness checks the integration
    only; agreement with true effects checks the attribution.

    A true effect is mean(Δr − Δr_after) with x − Σ_J (f_j − f̄_j) D_j spliced in at t ≥ s, the SAE's error kept:
    mean ablation, or zero ablation for `baseline: zero`. sign_agreement and rank_correlation compare attribution
    with true effect over the `top` features and as many others, the nearest in density and E[f_j]‖d_j‖, whose
    |effect| exceeds 1e-6 of the rewards' root mean square. The error of rank_correlation is from leaving out each block
    of documents, that of sign_agreement, which has steps, from 1,999 bootstraps of them.

    Features are ranked on fold A of the documents by |mean of Σ_t a(chosen) − Σ_t a(rejected)|; attributions, effects
    and rows are means over fold B of chosen − rejected: positive raises the margin. attributed_k = Σ over the top k of
    mean attribution, ablated_k = true effect of the top k: in units of the reward, and as shares of the margin
    (undefined if it is less than two standard errors above 0, or from one document).
    *_kept: the top k without flags, that is without outliers and without features that fire on more than `frequent`
    of the tokens of prompts or completions. *_random: mean over `random` groups of features, matched one by one with
    the kept top k on density and E[f_j]‖d_j‖, and drawn from all that fire, have no flag and are not among the first
    max(`top`, `groups`) of the ranking, with or without flags. *_random_max: the largest group. unmatched =
    number of the kept top k whose matches have a median density of more than twice or less than half their own.
    ablated_excess_kept = ablated_kept − ablated_random; its p value is the larger of (r + 1)/(n + 1), with r of n
    random groups at least as large, and that of the t test over documents. Flagged features have few equals, so the
    top k with them is not tested. *_swapped: the top k when the labels of a random half of the pairs are swapped.
    Standard errors of attributed values and of agreements are over up to 64 blocks of documents.
    Sources: Sundararajan et al. 2017; Marks et al. 2024 (effects with the error kept).

    Values:
        sign_agreement: share of features whose attribution and true effect have the same sign; share of features;
            0 .. 1; higher is better.
        rank_correlation: Spearman's ρ of attribution and true effect; correlation; -1 .. 1; higher is better.
        completeness_gap: mean |m(x) − m(b) − Σ rows|; reward; ≥ 0; lower is better.
        relative_gap: completeness_gap / mean |m(x) − m(b)|; share of m(x) − m(baseline); ≥ 0; lower is better.
        attributed_share_*, ablated_share_*: attributed_k and ablated_k / the margin; share of margin; −∞ .. ∞; no
            better direction.
        ablated_excess_kept_*: ablated_kept_k − ablated_random_k; reward; −∞ .. ∞; no better direction.
        unmatched_*: number of features of the kept top k that are not matched in density; features; 0 .. k; no better
            direction.
        *_random_max_*: the largest value of the random groups; reward; −∞ .. ∞; no better direction.
        attributed_*: Σ over the top k of mean attribution (kept, swapped, random: of those groups); reward; −∞ ..
            ∞; no better direction.
        ablated_*: mean (Δr − Δr_after) with the top k removed (kept, random: of those groups); reward; −∞ .. ∞;
            no better direction.
        margin, length_explained: mean Δr on fold B, and the part that a regression on length explains; reward; −∞
            .. ∞; no better direction.
        cumulative, cumulative_kept, ablated, ablated_kept: margin explained by number of features, curves;
            reward; −∞ .. ∞; no better direction.
        attributed_random_min, attributed_random_max, ablated_random_min, ablated_random_max: smallest and largest
            value of the random groups, curves; reward; −∞ .. ∞; no better direction.
        rows, features: the rows that sum to m(x) − m(baseline), and the top features with attribution and true
            effect, tables; reward; −∞ .. ∞; no better direction.
        contexts: tokens on which the top features fire most, a table; activation; −∞ .. ∞; no better direction.
        attribution: mean attribution of each feature on fold B, an array; reward; −∞ .. ∞; no better direction.
        density: share of the mask's tokens on which each feature fires, an array; share of tokens; 0 .. 1; no
            better direction.
        directions: decoder rows of the top features, an array; norm of weights; −∞ .. ∞; no better direction.

    Claims:
        ablated_excess_kept_*: the reward model's margin depends on the top k unflagged features, as a group, more than
            on matched random groups; null: groups of unflagged features that fire but are not at the top of the
            ranking, by the rank and by the t test; needs: 20 documents in fold B, 1 SAE, 1 seed, and `random` of 20 ×
            SAEs in the table × (sizes + 2 agreements) at least; not: that single members matter, that these are the k
            features that matter most, that the text they fire on is the cause, or anything about flagged features; if
            unmatched_* is above 0, that density plays no part.
        unmatched_*: how many features the random groups do not match; null: none; needs: 1 SAE; not: anything about the
            reward.
        sign_agreement, rank_correlation: attributions predict true effects on these pairs; null: chance, by a test
            over documents and by attributions assigned to features at random; needs: 20 documents in fold B,
            1 SAE, 1 seed, 10 features at least; not: that an attribution is the size of an effect, or that
            features outside these lists are attributed correctly.
        completeness_gap, relative_gap: the integration is accurate; null: none; needs: 1 document, 1 SAE, 1 seed
            at least; not: that attributions are effects.
        ablated_[0-9]*, ablated_share_*, ablated_kept_*: the part of the margin that is lost without these
            features; null: none of its own, see ablated_excess_kept_*; needs: 20 documents in fold B, 1 SAE, 1 seed at
            least; not: that they explain the margin better than others do, or that shares of disjoint groups add
            up.
        attributed_*: the part of m(x) − m(baseline) in these rows; null: *_random_* and *_swapped_* beside it,
            untested; needs: 20 documents in fold B, 1 SAE, 1 seed at least; not: that the features cause it.
        ablated_random_*: the null of ablated_excess_kept_*; null: is one itself; needs: 20 draws at least; not:
            anything about the SAE.
        margin, length_explained: the margin on fold B, and its part predicted from lengths; null: 0, see
            `reward_margin`; needs: 20 documents in fold B at least; not: a cause, since length goes with other
            properties.
    """

    name, version, data = "reward_attribution", 4, "pair"

    def __init__(
        self,
        steps: Repeats = 16,
        baseline: str = "mean",
        top: Repeats = 20,
        groups: tuple[int, ...] = (1, 5, 20),
        random: Repeats = 100,
        frequent: float = 0.1,
        tolerance: float = 0.05,
        contexts: Repeats = 5,
        seed: int = 0,
    ) -> None:
        if min(steps, random, contexts) < 0 or top < 1 or not groups or min(groups) < 1:
            raise ValueError(
                "metric 'reward_attribution': 'top' and 'groups' must be at least 1, 'steps', 'random' and 'contexts' "
                "at least 0"
            )
        self.steps, self.baseline, self.top, self.tolerance = steps, baseline, top, tolerance
        self.groups, self.random, self.contexts = groups, random, contexts
        self.interventions = set_names(top, groups, random)
        most = max(groups)
        sets = ["attributed", "attributed_share", "ablated", "ablated_share", "attributed_kept", "ablated_kept"]
        sets += ["attributed_swapped"]
        if random:
            sets += [f"{kind}_random{end}" for kind in ("attributed", "ablated") for end in ("", "_max")]
            sets += ["ablated_excess_kept", "unmatched"]
        self.value_names = (
            "sign_agreement", "rank_correlation", "completeness_gap", "relative_gap",
            *(f"{name}_{k}" for name in sets for k in groups), "margin", "length_explained",
        )  # fmt: skip
        excess = [f"ablated_excess_kept_{most}"] if random else []
        self.headline = ("sign_agreement", "rank_correlation", "relative_gap", f"ablated_{most}", *excess)

    def substitutes(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        feature_ranking: Ranking,
        baseline_reference: Reference,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> Ablations:
        return Ablations(sae, encoding, activations, token_keys, feature_ranking.members, baseline_reference, W_dec)

    def observe(
        self,
        substitute_reward_on_b: Sequence[Mapping[str, Float[Tensor, "batch"]]],
        clean_reward: Sequence[Float[Tensor, "batch"]],
        feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
        feature_ranking: Ranking,
        mask: Sequence[Bool[Tensor, "batch seq"]],
        batch: Sequence[Batch],
        spelling: Sequence[Callable[[Sequence[int]], list[str]]],
    ) -> dict[str, Evidence]:
        top = torch.from_numpy(feature_ranking.order[: self.top].copy()).to(mask[0].device)
        contexts = Contexts.of([f[..., top] for f in feature_acts], mask, batch, spelling, self.contexts)
        return {
            "effects": effects(self.interventions, substitute_reward_on_b, clean_reward, batch),
            "contexts": contexts,
        }

    def conclude(
        self,
        total: dict[str, Any],
        attribution_totals: Attributions,
        feature_ranking: Ranking,
        margin_rows: PerPair,
        W_dec: Float[Tensor, "d_sae d"],
        reward_unit: str,
    ) -> dict[str, Value]:
        explained = Explained(
            attribution_totals, feature_ranking, margin_rows,
            dict(zip(self.interventions, range(len(self.interventions)), strict=True)), total["effects"],
        )  # fmt: skip
        complete = explained.completeness(self.steps, self.tolerance, self.baseline)
        values = explained.agreement(self.top, self.random) | complete
        for k in self.groups:
            values |= explained.group(k, self.random)
        values |= explained.curves(max(self.groups), self.groups, self.random)
        values |= explained.features(self.top, W_dec.double().cpu().numpy())
        values["contexts"] = total["contexts"].table(feature_ranking.order[: self.top].tolist())
        values["warnings"] = Notes(warnings(margin_rows, reward_unit))
        return in_unit(values, reward_unit)


def effects(
    names: Iterable[str],
    substitute_reward_on_b: Sequence[Mapping[str, Float[Tensor, "batch"]]],
    clean_reward: Sequence[Float[Tensor, "batch"]],
    batch: Sequence[Batch],
) -> Mean:
    """Mean of Δr − Δr_after over the pairs of fold B, which have rewards after, one per set in `names`."""
    sides = []
    for after, before in zip(substitute_reward_on_b, clean_reward, strict=True):
        sides.append(torch.stack([before.double() - after[name].double() for name in names], -1))
    in_b = torch.from_numpy(in_fold_b(batch[0].clusters)).to(sides[0].device)
    return Mean.of((sides[0] - sides[1])[:, None], in_b[:, None])
