"""The metric `margin_recovered`: the reward margin with the SAE's reconstruction in place of the activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Mean, Metric, Notes, Scalar, Value
from saeval_reward.margins import in_unit, share, warnings
from saeval_reward.per_pair import PerPair

if TYPE_CHECKING:
    from torch import Tensor


class MarginRecovered(Metric):
    """The reward margin with the substitute spliced in from the first position at which the sides of a pair differ.

    margin_sae = mean Δr with x̂ in place of the activations at all positions t ≥ s; lost = mean(Δr − Δr_sae)
    and change = mean |Δr − Δr_sae|, in units of the reward; recovered = Σ Δr_sae / Σ Δr, undefined if mean Δr
    is less than two standard errors above 0, or comes from one document; same_sign = share of pairs whose margin
    keeps its sign. recovered may exceed 1, and it can be 1 although single pairs change a lot: see change.

    Values:
        margin_clean: mean Δr; reward; −∞ .. ∞; no better direction.
        margin_sae: mean Δr_sae; reward; −∞ .. ∞; no better direction.
        lost: mean (Δr − Δr_sae); reward; −∞ .. ∞; no better direction.
        change: mean |Δr − Δr_sae|; reward; ≥ 0; lower is better.
        recovered: Σ Δr_sae / Σ Δr; share of margin; −∞ .. ∞, 1 is the whole margin; higher is better.
        same_sign: share of pairs with sign Δr_sae = sign Δr; share of pairs; 0 .. 1; higher is better.
        accuracy_sae: share of pairs with Δr_sae > 0, ties as half; share of pairs; 0 .. 1; higher is better.

    Claims:
        recovered, lost, margin_sae: how much of the margin the reconstruction keeps; null: the controls at the
            same hook (`mean`, `random`), by the paired difference; needs: 20 documents, 1 SAE, 1 seed at least;
            not: that single pairs keep their margins, or that features explain the preference: the SAE's output
            need not be sparse for it.
        change, same_sign, accuracy_sae: how far single pairs keep their margins; null: the controls at the same
            hook, by the paired difference; needs: 20 documents, 1 SAE, 1 seed at least; not: that the same
            features decide.
        margin_clean: the margin without the SAE; null: see margin of `reward_margin`; needs: 20 documents at
            least; not: anything about the SAE.

    Source: saeval's own definition, by analogy with the loss recovered in `ce`.
    """

    name, version, data = "margin_recovered", 2, "pair"
    headline = ("recovered", "change", "same_sign")
    value_names = ("margin_clean", "margin_sae", "lost", "change", "recovered", "same_sign", "accuracy_sae")

    def observe(
        self, clean_reward: Sequence[Float[Tensor, "batch"]], spliced_reward: Sequence[Float[Tensor, "batch"]]
    ) -> dict[str, Mean]:
        before, after = (chosen.double() - rejected.double() for chosen, rejected in (clean_reward, spliced_reward))
        return {
            "clean": Mean.of(before),
            "sae": Mean.of(after),
            "change": Mean.of((before - after).abs()),
            "same_sign": Mean.of((before.sign() == after.sign()).double()),
            "accuracy": Mean.of((after > 0).double() + (after == 0).double() / 2),
        }

    def conclude(self, total: dict[str, Mean], margin_rows: PerPair, reward_unit: str) -> dict[str, Value]:
        clean, sae = total["clean"].value, total["sae"].value
        values: dict[str, Value] = {
            "margin_clean": Scalar(clean, unit="reward"),
            "margin_sae": Scalar(sae, unit="reward"),
            "lost": Scalar(clean - sae, unit="reward"),
            "change": Scalar(total["change"].value, unit="reward", better="lower"),
            "recovered": share(sae, clean, better="higher"),
            "same_sign": Scalar(total["same_sign"].value, unit="share of pairs", better="higher", proportion=True),
            "accuracy_sae": Scalar(total["accuracy"].value, unit="share of pairs", better="higher", proportion=True),
            "warnings": Notes(warnings(margin_rows, reward_unit)),
        }
        return in_unit(values, reward_unit)
