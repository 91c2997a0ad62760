"""Values of dictionary_learning's `evaluate` (dictionary_learning/evaluation.py, 0.1.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Batch, Comparable, Evidence, Metric, Scalar, TokenScores, Undefined, Value, torch
from saeval.plugin import included as included_tokens
from saeval_compat.batches import PerBatch, columns
from saeval_compat.splices import predicting

if TYPE_CHECKING:
    from torch import Tensor

_TOKEN = ("l2_loss", "l1_loss", "l0", "cossim", "l2_ratio", "norm_hat_squared", "dot", "squared", "norm_squared")
_LOSSES = ("loss_original", "loss_reconstructed", "loss_zero")
_UNITS = {
    "l2_loss": "activation", "l1_loss": "activation", "l0": "features", "cossim": "cosine", "l2_ratio": "ratio",
    "relative_reconstruction_bias": "ratio", "frac_variance_explained": "share of variance",
    **dict.fromkeys(_LOSSES, "nats"), "frac_recovered": "share", "frac_alive": "share of features",
}  # fmt: skip


class DictionaryLearningEvaluate(Metric):
    """dictionary_learning's `evaluate`, for comparison with numbers that it returned.

    Every field but frac_alive is the mean of its values in batches of `batch_size` sequences. A constant offset of
    the reconstruction costs frac_variance_explained nothing. No token is excluded: the reconstruction and the zeros
    are spliced in everywhere, so the values are undefined without `exclude: []` in the data.
    `ignored_target` is the id of the padding token, which the library's loss ignores as a target; nnsight sets it
    to EOS. Differs: the library computes its losses and its activations on different texts, and draws a batch
    of activations (8,192 by default) from a shuffled buffer, from which `remove_bos` may drop the first of each
    text; here all fields come from the same sequences. `normalize_batch` is not reproduced.
    Source: dictionary_learning 0.1.0, evaluation.py.

    Values:
        l2_loss: mean ‖e‖; activation; ≥ 0; no better direction.
        l1_loss: mean Σ_j |f_j|; activation; ≥ 0; no better direction.
        l0: mean #{j : f_j ≠ 0}; features; 0 .. d_sae; no better direction.
        cossim: mean x·x̂ / ‖x‖‖x̂‖; cosine; -1 .. 1; no better direction.
        l2_ratio: mean ‖x̂‖ / ‖x‖; ratio; ≥ 0; no better direction.
        relative_reconstruction_bias: mean ‖x̂‖² / mean x·x̂; ratio; −∞ .. ∞; no better direction.
        frac_variance_explained: 1 − var(e) / var(x), both centred; share of variance; −∞ .. 1; no better
            direction.
        loss_original, loss_reconstructed, loss_zero: mean loss: clean, with x̂, with zeros; nats; ≥ 0; no
            better direction.
        frac_recovered: (loss_reconstructed − loss_zero) / (loss_original − loss_zero); share; −∞ .. ∞; no
            better direction.
        frac_alive: share of features whose activations do not sum to 0; share of features; 0 .. 1; no better
            direction, depends on the number of tokens: a feature counts as alive if it fires on one of them.

    Claims:
        *: the number that dictionary_learning computes for these tokens in these batches, beside one that it printed;
            null: none, since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an
            SAE is good or better than another; use saeval's own values for that.
    """

    name, version = "dictionary_learning_evaluate", 1
    value_names = (
        "l2_loss", "l1_loss", "l0", "cossim", "l2_ratio", "frac_variance_explained", "relative_reconstruction_bias",
        *_LOSSES, "frac_recovered", "frac_alive",
    )  # fmt: skip

    def __init__(self, batch_size: int = 128, ignored_target: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"metric 'dictionary_learning_evaluate': batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.ignored_target = ignored_target

    def observe(
        self,
        activations: Float[Tensor, "batch seq d"],
        reconstruction: Float[Tensor, "batch seq d"],
        feature_acts: Float[Tensor, "batch seq d_sae"],
        included_clean_scores: TokenScores,
        everywhere_scores: TokenScores,
        zeroed_scores: TokenScores,
        batch: Batch,
    ) -> dict[str, Evidence]:
        real, scored = batch.real, predicting(batch.real, batch.real)
        if not torch.equal(included_tokens(batch), real):
            raise Undefined("dictionary_learning excludes no token: set 'exclude: []' in the suite's data")
        if self.ignored_target is not None:
            scored = scored & (batch.targets != self.ignored_target)
        x, x_hat = activations.double(), reconstruction.double()
        e, norm, norm_hat, dot = x - x_hat, x.norm(dim=-1), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        values = (
            e.norm(dim=-1), feature_acts.abs().sum(-1), (feature_acts != 0).sum(-1), dot / (norm * norm_hat),
            norm_hat / norm, norm_hat.square(), dot, e.square().sum(-1), norm.square(),
        )  # fmt: skip
        sums = torch.where(real[..., None], feature_acts, 0).sum(1, keepdim=True)
        losses = (scores.nll for scores in (included_clean_scores, everywhere_scores, zeroed_scores))
        return {
            "tokens": PerBatch.of(columns(*values), real, self.batch_size),
            "x": PerBatch.of(x, real, self.batch_size),
            "e": PerBatch.of(e, real, self.batch_size),
            "losses": PerBatch.of(columns(*losses), scored, self.batch_size),
            "acts": PerBatch.of(sums, torch.ones_like(real[:, :1]), 2**62),
        }

    def conclude(self, total: dict[str, PerBatch]) -> dict[str, Value]:
        by_batch = dict(zip(_TOKEN, total["tokens"].means.T, strict=True))
        losses = dict(zip(_LOSSES, total["losses"].means.T, strict=True))
        residual = by_batch.pop("squared") - (total["e"].means ** 2).sum(1)
        variance = by_batch.pop("norm_squared") - (total["x"].means ** 2).sum(1)
        by_batch["frac_variance_explained"] = 1 - residual / variance
        by_batch["relative_reconstruction_bias"] = by_batch.pop("norm_hat_squared") / by_batch.pop("dot")
        fall = losses["loss_original"] - losses["loss_zero"]
        losses["frac_recovered"] = (losses["loss_reconstructed"] - losses["loss_zero"]) / fall
        means = {name: float(values.mean()) for name, values in {**by_batch, **losses}.items()}
        scopes: dict[str, Comparable] = {**dict.fromkeys(_LOSSES, "model"), "l0": "everywhere"}
        frac_alive = float((total["acts"].sums[0] != 0).mean())
        alive = Scalar(frac_alive, unit=_UNITS["frac_alive"], proportion=True, comparable="everywhere")
        scalars = {name: Scalar(x, unit=_UNITS[name], comparable=scopes.get(name, "hook")) for name, x in means.items()}
        return {**scalars, "frac_alive": alive}
