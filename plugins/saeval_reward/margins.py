"""The metric `reward_margin`: the margin between chosen and rejected, pooled and by subset, and its warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from saeval.plugin import (
    Array,
    Batch,
    Curve,
    Estimate,
    Metric,
    Notes,
    Null,
    Scalar,
    Table,
    Undefined,
    Value,
    fold,
    formatting,
    holm,
    paired,
    torch,
)
from saeval_reward.per_pair import PerPair, Top

if TYPE_CHECKING:
    from torch import Tensor

LABEL = "label "
TEXTS, CHARACTERS = 10, 600
MOST_LEVELS = 50
"""Most levels of a column in the table `by`."""
NO_PREFERENCE = Null(
    "no preference", above="more in favour of the chosen sides than", below="more in favour of the rejected sides than"
)
CHANCE = Null("chance", 0.5, above="more accurate on these pairs than", below="less accurate on these pairs than")
NAMED_LEVELS = 5
"""Most levels that a warning names."""
_WORSE = {
    True: "are chosen and rejected exchanged?",
    False: "this reward is a language model's log-likelihood (nats), summed over tokens, so shorter texts have more",
}
"""Likely cause of an accuracy below a half, by whether the reward is a reward model's."""


@fold
@paired
def margin_rows(
    clean_reward: Sequence[Float[Tensor, "batch"]], labels: Sequence[Mapping[str, np.ndarray]], batch: Sequence[Batch]
) -> PerPair:
    """Fold over pairs: rewards and lengths in tokens of both sides, and the pair's labels."""
    chosen, rejected = (reward.double() for reward in clean_reward)
    lengths = {name: side.real.sum(1) for name, side in zip(("chosen_length", "rejected_length"), batch, strict=True)}
    return PerPair.of(chosen=chosen, rejected=rejected, **lengths, **{LABEL + n: v for n, v in labels[0].items()})


@fold
@paired
def top_texts(
    clean_reward: Sequence[Float[Tensor, "batch"]],
    batch: Sequence[Batch],
    spelling: Sequence[Callable[[Sequence[int]], list[str]]],
) -> Top:
    """Fold over pairs: the texts of highest reward; they need no SAE."""
    scores = torch.stack([reward.double() for reward in clean_reward])
    best = scores.flatten().argsort(descending=True, stable=True)[:TEXTS].cpu()
    sides, rows = best // scores.shape[1], best % scores.shape[1]
    texts = [
        "".join(spelling[side](batch[side].tokens[row][batch[side].real[row]].tolist()))[-CHARACTERS:]
        for side, row in zip(sides.tolist(), rows.tolist(), strict=True)
    ]
    text = np.array(texts, dtype=f"<U{CHARACTERS}")
    return Top(scores.flatten().cpu().numpy()[best.numpy()], rows.numpy(), sides.numpy(), text, TEXTS)


def margin(rows: PerPair) -> Float[np.ndarray, "n"]:
    """r(chosen) − r(rejected) of each pair; `Undefined` if any is not finite."""
    margins = np.asarray(rows["chosen"] - rows["rejected"])
    if bad := int((~np.isfinite(margins)).sum()):
        raise Undefined(f"the margins of {bad} of {len(margins)} pairs are not finite")
    return margins


def right(margins: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Accuracy of each pair: 1 for a positive margin, ½ for 0, else 0."""
    return np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))


def too_small(mean: Estimate) -> str | None:
    """The reason why shares of this mean margin are undefined; None if it is two standard errors or more above 0."""
    error = mean.stderr
    if error is None and mean.value > 0:
        return "one document gives no standard error, so the mean margin may not differ from 0"
    if error is not None and mean.value > 0 and mean.value >= 2 * error:
        return None
    return f"the mean margin is {shown(mean)}, less than two standard errors above 0"


def shown(value: Estimate) -> str:
    """An estimate as text, with its standard error."""
    return formatting.with_error(value.value, value.stderr)


def share(part: Estimate, whole: Estimate, **options: Any) -> Scalar:
    """part / whole as a share of the margin; undefined if the margin is not clearly positive."""
    reason = too_small(whole)
    if reason:
        return Scalar.undefined(reason, unit="share of margin")
    return Scalar(part / whole, unit="share of margin", **options)


def columns(rows: PerPair) -> dict[str, np.ndarray]:
    """The labels of the pairs, by column."""
    return {name.removeprefix(LABEL): rows[name] for name in rows.names if name.startswith(LABEL)}


def warnings(rows: PerPair, reward_unit: str) -> list[str]:
    """Warnings that apply to every number computed from these pairs."""
    margins = margin(rows)
    pooled, accuracy = rows.mean(margins), rows.mean(right(margins))
    messages = []
    interval = accuracy.ci95 or (accuracy.value - 0.05, accuracy.value + 0.05)
    if interval[0] <= 0.5 <= interval[1]:
        messages.append(
            f"accuracy is {shown(accuracy)}, which cannot be told from chance: is there a preference to explain?"
        )
    elif accuracy.value < 0.5:
        messages.append(f"accuracy is {shown(accuracy)}, worse than chance: {_WORSE[reward_unit == REWARD]}")
    for name, values in columns(rows).items():
        levels = np.unique(values).tolist()
        means = [rows.mean(margins, values == level) for level in levels]
        signed: dict[bool, list[str]] = {True: [], False: []}
        for level, mean, p in zip(levels, means, holm([mean.p_value for mean in means]), strict=True):
            if p is not None and p < 0.05:
                share = f"{mean.n} of {len(margins)} pairs"
                signed[mean.value > 0].append(f"{level} ({shown(mean)}, {share})")
        if signed[True] and signed[False]:
            messages.append(
                f"subsets of '{name}' disagree in sign, so the pooled margin {shown(pooled)} does not describe each: "
                f"positive in {_shortened(signed[True])}; negative in {_shortened(signed[False])} (5% level, Holm's "
                f"correction over {len(levels)} levels)"
            )
        if name == "trained_on" and (values == "yes").any():
            count = f"{int((values == 'yes').sum())} of {len(values)} pairs"
            messages.append(f"{count} were trained on: see the margins by 'trained_on'")
    return messages


def _shortened(levels: Sequence[str]) -> str:
    rest = len(levels) - NAMED_LEVELS
    return ", ".join(levels[:NAMED_LEVELS]) + (f" and {rest} more" if rest > 0 else "")


class RewardMargin(Metric):
    """Margin Δr = r(chosen) − r(rejected) of preference pairs, pooled and by every column of the data.

    margin = mean Δr and margin_sd = its standard deviation over pairs, in units of the reward; accuracy =
    share of pairs with Δr > 0, ties as half. length_accuracy is the accuracy of preferring the longer side and
    length_correlation the correlation of Δr with the difference of lengths in tokens: baselines that use only
    length. The reward is the output of a reward model's head. For a causal model it is the log-likelihood of
    the tokens from the first difference of the sides on, in `reward, nats`. `by` has a row per level of each
    column, with the number of documents, 95% intervals (t, and Wilson's for accuracies), and the reason if there are
    fewer than 20 effective documents. If accuracy is near a half or subsets differ in sign, every report shows a
    warning. `top_texts` has the texts of highest reward. No SAE is involved.

    Values:
        margin: mean Δr; reward; −∞ .. ∞; higher is better.
        accuracy: share of pairs with Δr > 0, ties as half; share of pairs; 0 .. 1; higher is better.
        margin_sd: standard deviation of Δr over pairs; reward; ≥ 0; no better direction.
        ties: #{Δr = 0}; pairs; ≥ 0; no better direction.
        reward_chosen, reward_rejected: mean r of each side; reward; −∞ .. ∞; no better direction.
        length_accuracy: share of pairs whose chosen side is longer, ties as half; share of pairs; 0 .. 1; no
            better direction.
        length_correlation: correlation of Δr with the difference of lengths; correlation; -1 .. 1; no better
            direction.
        by: margin and accuracy per level of each column, a table; reward, share of pairs; as above; no better
            direction.
        top_texts: the texts of the highest reward, a table; reward; −∞ .. ∞; no better direction.

    Claims:
        margin, accuracy: the model prefers the chosen (or the rejected) sides of pairs like these; null: no
            preference, a margin of 0 and an accuracy of ½; needs: 20 documents, 0 SAEs, 0 seeds at least; not:
            that it does so in each subset (see `by`), nor why.
        length_accuracy, length_correlation: how far length alone orders the sides, or goes with the margin; null:
            ½ and 0, untested; needs: 20 documents at least; not: that length causes the margin, or that it plays
            no part.
        margin_sd, ties, reward_chosen, reward_rejected: a description of these pairs; null: none; needs: 20
            documents at least; not: a preference; rewards of different models have different units.

    Source: the accuracy as in RewardBench (Lambert et al. 2024).
    """

    name, version, data, subject = "reward_margin", 3, "pair", "none"
    headline = ("margin", "accuracy", "length_accuracy")
    value_names = (
        "margin", "accuracy", "margin_sd", "ties", "reward_chosen", "reward_rejected", "length_accuracy",
        "length_correlation",
    )  # fmt: skip

    def conclude(self, margin_rows: PerPair, top_texts: Top, reward_unit: str) -> dict[str, Value]:
        margins = margin(margin_rows)
        accuracy = margin_rows.mean(right(margins))
        values: dict[str, Value] = {
            "margin": Scalar(margin_rows.mean(margins), unit=REWARD, better="higher", null=NO_PREFERENCE),
            "accuracy": Scalar(accuracy, unit="share of pairs", better="higher", proportion=True, null=CHANCE),
            "margin_sd": _spread(margins),
            "ties": Scalar(float((margins == 0).sum()), unit="pairs", n=len(margins)),
            "reward_chosen": Scalar(margin_rows.mean(margin_rows["chosen"]), unit=REWARD),
            "reward_rejected": Scalar(margin_rows.mean(margin_rows["rejected"]), unit=REWARD),
            **_length(margin_rows, margins),
            "by": _by(margin_rows, margins),
            "top_texts": Table(
                ["reward", "pair", "side", "text"],
                [[s, i, ("chosen", "rejected")[k], t] for s, i, k, t in _texts(top_texts) if t],
            ),
            "warnings": Notes(warnings(margin_rows, reward_unit)),
        }
        return in_unit(values, reward_unit)


def _texts(top: Top) -> list[tuple[float, int, int, str]]:
    return list(zip(top.score.tolist(), top.ids.tolist(), top.side.tolist(), top.text.tolist(), strict=True))


def _spread(margins: np.ndarray) -> Scalar:
    if len(margins) < 2:
        return Scalar.undefined("fewer than two pairs", unit=REWARD)
    return Scalar(float(margins.std(ddof=1)), unit=REWARD, n=len(margins))


def _length(rows: PerPair, margins: np.ndarray) -> dict[str, Value]:
    excess = (rows["chosen_length"] - rows["rejected_length"]).astype(np.float64)
    if not (rows["chosen_length"].any() or rows["rejected_length"].any()):
        reason = "no text was read, so lengths are unknown"
    elif not excess.any():
        reason = "the sides of every pair have the same length"
    else:
        equal = "margins" if margins.std() == 0 else "differences of lengths" if excess.std() == 0 else None
        correlation = float("nan") if equal else float(np.corrcoef(margins, excess)[0, 1])
        return {
            "length_accuracy": Scalar(rows.mean(right(excess)), unit="share of pairs", proportion=True),
            "length_correlation": Scalar(
                correlation, unit="correlation", reason=f"all {equal} are equal" if equal else None
            ),
        }
    return {
        "length_accuracy": Scalar.undefined(reason, unit="share of pairs"),
        "length_correlation": Scalar.undefined(reason, unit="correlation"),
    }


def _by(rows: PerPair, margins: np.ndarray) -> Table:
    lines = []
    for name, values in columns(rows).items():
        levels, counts = np.unique(values, return_counts=True)
        for level in levels[np.argsort(-counts, kind="stable")][:MOST_LEVELS]:
            at_level = values == level
            mean, accuracy = rows.mean(margins, at_level), rows.mean(right(margins), at_level)
            spread = float(margins[at_level].std(ddof=1)) if at_level.sum() > 1 else None
            line = [name, str(level), int(at_level.sum()), mean.clusters, mean.value, *(mean.ci95 or (None, None))]
            line += [spread, accuracy.value, *(accuracy.proportion_ci95 or (None, None))]
            lines.append([*line, mean.support.doubt if mean.clusters > 1 else "one document"])
    names = ["column", "level", "pairs", "documents", "margin", "margin_low", "margin_high", "margin_sd"]
    return Table([*names, "accuracy", "accuracy_low", "accuracy_high", "unreliable"], lines)


V = TypeVar("V", bound=Value)

REWARD = "reward"


def in_unit(values: dict[str, V], reward_unit: str) -> dict[str, V]:
    """The values, with the reward's unit set where they are in it: `reward, nats` for a log-likelihood."""
    if reward_unit != REWARD:
        for value in values.values():
            if isinstance(value, Scalar | Curve | Array) and value.unit.strip("|") == REWARD:
                value.unit = f"{value.unit}, {reward_unit}"
    return values
