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
from saeval_reward.margins import in_unit, warnings
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import Ranking, set_names
from saeval_reward.totals import Attributions, in_fold_b

if TYPE_CHECKING:
    from torch import Tensor


class RewardAttribution(Metric):
    """Attribution of the reward margin to features, with its completeness, true effects and margin explained.

    a_{t,j} = f_{t,j} ⟨ḡ_t, D_{t,j}⟩. ḡ is the mean gradient of the reward at `steps` midpoints of the line
    from `baseline` (a control such as `mean`, `zero`) to x, at all positions t ≥ s together, where s is the
    first position at which the sides differ. D_{t,j} is what one unit of f_j adds to the reconstruction, with
    norms and scales frozen. Error, b_dec and baseline have separate rows; all rows sum to m(x) − m(baseline),
    up to the integration error: completeness_gap = mean |m(x) − m(b) − Σ rows| over sides, relative_gap =
    that / mean |m(x) − m(b)|. The cell is undefined if relative_gap is above `tolerance`. Positive raises
    the reward. `steps: 0` computes gradient × activation, which has no completeness.

    Features are ranked on fold A of the pairs by |mean of Σ_t a(chosen) − Σ_t a(rejected)|; all other values
    are computed on fold B. attributed_k = Σ over the top k of mean attribution; ablated_k = mean(Δr −
    Δr_after) with x − Σ_J f_j D_j spliced in at t ≥ s, the SAE's error kept: both in units of the reward, and
    as shares of the margin (undefined if it is less than two standard errors above 0, or from one document).
    *_random: mean over `random` groups matched on density and E[f_j]‖d_j‖; *_random_high: 97.5% quantile of
    their absolute values. *_kept: the top k without outliers and without features that fire on more than
    `frequent` of the tokens of prompts or completions. *_swapped: the top k when the labels of a random half
    of the pairs are swapped. sign_agreement and rank_correlation compare attribution with true effect over
    the `top` features and the single random ones whose |effect| exceeds 1e-6 of the rewards' root mean square.
    Standard errors of attributed values are over up to 64 blocks of documents.
    Sources: Sundararajan et al. 2017; Marks et al. 2024 (effects with the error kept).

    Values:
        completeness_gap: mean |m(x) − m(b) − Σ rows|; reward; ≥ 0; lower is better.
        relative_gap: completeness_gap / mean |m(x) − m(b)|; share of m(x) − m(baseline); ≥ 0; lower is better.
        attributed_share_*, ablated_share_*: attributed_k and ablated_k / the margin; share of margin; −∞ .. ∞;
            no better direction.
        *_random_high_*: 97.5% quantile of the absolute value over random groups; |reward|; ≥ 0; no better
            direction.
        attributed_*: Σ over the top k of mean attribution (kept, swapped, random: of those groups); reward; −∞
            .. ∞; no better direction.
        ablated_*: mean (Δr − Δr_after) with the top k removed (kept, random: of those groups); reward; −∞ .. ∞;
            no better direction.
        sign_agreement: share of features whose attribution and true effect have the same sign; share of
            features; 0 .. 1; higher is better.
        rank_correlation: Spearman's ρ of attribution and true effect; correlation; -1 .. 1; higher is better.
        margin, length_explained: mean Δr on fold B, and the part that a regression on length explains; reward;
            −∞ .. ∞; no better direction.
        cumulative, cumulative_kept, ablated, ablated_kept: margin explained by number of features, curves;
            reward; −∞ .. ∞; no better direction.
        attributed_random_low, attributed_random_high, ablated_random_low, ablated_random_high: 2.5% and 97.5%
            quantiles over random groups, curves; reward; −∞ .. ∞; no better direction.
        rows, features: the rows that sum to m(x) − m(baseline), and the top features with attribution and true
            effect, tables; reward; −∞ .. ∞; no better direction.
        contexts: tokens on which the top features fire most, a table; activation; −∞ .. ∞; no better direction.
        attribution: mean attribution of each feature, an array; reward; −∞ .. ∞; no better direction.
        density: share of the mask's tokens on which each feature fires, an array; share of tokens; 0 .. 1; no
            better direction.
        directions: decoder rows of the top features, an array; norm of weights; −∞ .. ∞; no better direction.
    """

    name, version, data = "reward_attribution", 2, "pair"

    def __init__(
        self,
        steps: Repeats = 16,
        baseline: str = "mean",
        top: Repeats = 20,
        groups: tuple[int, ...] = (1, 5, 20),
        random: Repeats = 20,
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
        sets += [f"{kind}_random{end}" for kind in ("attributed", "ablated") for end in ("", "_high")] if random else []
        self.value_names = (
            "completeness_gap", "relative_gap", *(f"{name}_{k}" for name in sets for k in groups), "sign_agreement",
            "rank_correlation", "margin", "length_explained",
        )  # fmt: skip
        self.headline = ("relative_gap", f"attributed_{most}", f"ablated_{most}", "sign_agreement")

    def substitutes(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        feature_ranking: Ranking,
    ) -> Ablations:
        return Ablations(sae, encoding, activations, token_keys, feature_ranking.members)

    def observe(
        self,
        substitute_reward: Sequence[Mapping[str, Float[Tensor, "batch"]]],
        clean_reward: Sequence[Float[Tensor, "batch"]],
        feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
        feature_ranking: Ranking,
        mask: Sequence[Bool[Tensor, "batch seq"]],
        batch: Sequence[Batch],
        spelling: Sequence[Callable[[Sequence[int]], list[str]]],
    ) -> dict[str, Evidence]:
        top = torch.from_numpy(feature_ranking.order[: self.top].copy()).to(mask[0].device)
        contexts = Contexts.of([f[..., top] for f in feature_acts], mask, batch, spelling, self.contexts)
        return {"effects": effects(self.interventions, substitute_reward, clean_reward, batch), "contexts": contexts}

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
        values = explained.completeness(self.steps, self.tolerance, self.baseline)
        for k in self.groups:
            values |= explained.group(k, self.random)
        values |= explained.agreement(self.top, self.random if 1 in self.groups else 0)
        values |= explained.curves(max(self.groups), self.groups, self.random)
        values |= explained.features(self.top, W_dec.double().cpu().numpy())
        values["contexts"] = total["contexts"].table(feature_ranking.order[: self.top].tolist())
        values["warnings"] = Notes(warnings(margin_rows, reward_unit))
        return in_unit(values, reward_unit)


def effects(
    names: Iterable[str],
    substitute_reward: Sequence[Mapping[str, Float[Tensor, "batch"]]],
    clean_reward: Sequence[Float[Tensor, "batch"]],
    batch: Sequence[Batch],
) -> Mean:
    """Mean of Δr − Δr_after over the pairs of fold B, one per set in `names`."""
    sides = []
    for after, before in zip(substitute_reward, clean_reward, strict=True):
        sides.append(torch.stack([before.double() - after[name].double() for name in names], -1))
    in_b = torch.from_numpy(in_fold_b(batch[0].sequence_ids)).to(sides[0].device)
    return Mean.of((sides[0] - sides[1])[:, None], in_b[:, None])
