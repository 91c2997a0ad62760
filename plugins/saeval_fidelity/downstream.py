"""Change of the residual stream at later layers with the substitute spliced in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import (
    Better,
    Capture,
    Comparable,
    Curve,
    Evidence,
    Mean,
    Metric,
    Ratio,
    Scalar,
    Undefined,
    Value,
    at_hooks,
    finite,
)

if TYPE_CHECKING:
    from torch import Tensor

_PRE, _POST = "hook_resid_pre", "hook_resid_post"


def later_streams(hook_name: str, hooks: Sequence[str], layers: int | None = None) -> list[str]:
    """Return the hooks of the residual stream after a hook: the input of each later block, then the last one's output.

    `layers` keeps only the next so many. Empty for a hook that is not in a numbered block.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if match is None:
        return []
    depth = 1 + max((int(h.split(".")[1]) for h in hooks if h.endswith(f".{_PRE}")), default=-1)
    # The output of a block is the input of the next, which is therefore no later stream.
    first = int(match[1]) + (2 if match[2] == _POST else 1)
    later = [f"blocks.{block}.{_PRE}" for block in range(first, depth)]
    later += [f"blocks.{depth - 1}.{_POST}"] if first <= depth else []
    return [hook for hook in later if hook in hooks][:layers]


@at_hooks(later_streams)
def later_activations(
    activations: Mapping[str, Float[Tensor, "batch seq d_model"]],
) -> dict[str, Float[Tensor, "batch seq d_model"]]:
    """The clean residual streams after the hook (the next `layers`, if the metric sets it), by hook name."""
    return dict(activations)


@at_hooks(later_streams)
def later_means(activation_mean: Mapping[str, Float[Tensor, "d_model"]]) -> dict[str, Float[Tensor, "d_model"]]:
    """Mean over the planned tokens of each residual stream after the hook, by hook name."""
    return dict(activation_mean)


@finite("residual streams with the substitute spliced in")
def later_spliced_activations(
    spliced_pass: Capture, later_activations: Mapping[str, Float[Tensor, "batch seq d_model"]]
) -> dict[str, Float[Tensor, "batch seq d_model"]]:
    """The residual streams after the hook with the substitute spliced in, by hook name."""
    return {hook: spliced_pass.activations[hook] for hook in later_activations}


class DownstreamReconstruction(Metric):
    """Error of the residual stream after each later layer, with x̂ spliced in at the hook.

    y_l is the clean stream after l blocks (the input of block l, and finally the output of the last one),
    y'_l the spliced one and ν_l the mean of y_l over the mask. fvu has no upper bound; cosine is over nonzero norms.
    `layers` compares only the next so many streams. Undefined if there is no later stream. The standard errors of
    fvu are given ν_l: they treat it as fixed. After a hook on one layer's output, the stream also carries what was
    never encoded, so the error is a smaller share of it.
    Source of the idea: Braun et al. 2024, downstream reconstruction of end-to-end SAEs.

    Values:
        fvu_by_layer, fvu_last: Σ‖y_l − y'_l‖² / Σ‖y_l − ν_l‖², a curve over l and its last point; share of
            variance; ≥ 0; lower is better.
        mse_by_layer, mse_last: token mean of ‖y_l − y'_l‖²; squared activation; ≥ 0; lower is better.
        cosine_by_layer, cosine_last: token mean of y_l·y'_l / ‖y_l‖‖y'_l‖; cosine; -1 .. 1; higher is better.

    Claims:
        fvu_last, mse_last, cosine_last: this SAE's error leaves the model's last residual stream nearer to the clean
            one than another SAE's or control's error; null: a paired difference of 0 to another SAE or to a control of
            the same model; needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a training method;
            not: that the predictions are the same; with 'layers', a comparison of hooks, since the last stream compared
            then differs.
    """

    name, version = "downstream_reconstruction", 1
    value_names = ("fvu_last", "mse_last", "cosine_last")

    def __init__(self, layers: int | None = None) -> None:
        if layers is not None and layers < 1:
            raise ValueError(f"metric 'downstream_reconstruction': layers must be at least 1, got {layers}")
        self.layers = layers

    def observe(
        self,
        hook_name: str,
        later_activations: Mapping[str, Float[Tensor, "batch seq d_model"]],
        later_spliced_activations: Mapping[str, Float[Tensor, "batch seq d_model"]],
        later_means: Mapping[str, Float[Tensor, "d_model"]],
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        if not later_activations:
            raise Undefined(f"no residual stream is known to come after {hook_name}")
        evidence: dict[str, Evidence] = {}
        for hook, clean in later_activations.items():
            layer = int(hook.split(".")[1]) + hook.endswith(_POST)
            y, y_hat = clean.double(), later_spliced_activations[hook].double()
            squared = (y - y_hat).square().sum(-1)
            norms = y.norm(dim=-1) * y_hat.norm(dim=-1)
            evidence[f"fvu_{layer}"] = Ratio.of(squared, (y - later_means[hook].to(y)).square().sum(-1), mask)
            evidence[f"mse_{layer}"] = Mean.of(squared, mask)
            evidence[f"cosine_{layer}"] = Mean.of((y * y_hat).sum(-1) / norms, mask & (norms > 0))
        return evidence

    def conclude(self, total: dict[str, Ratio]) -> dict[str, Value]:
        layers = sorted(int(name.removeprefix("mse_")) for name in total if name.startswith("mse_"))
        if int(total[f"mse_{layers[0]}"].n.sum()) == 0:
            raise Undefined("no token is in the mask")
        measures: list[tuple[str, str, Better]] = [
            ("fvu", "share of variance", "lower"),
            ("mse", "squared activation", "lower"),
            ("cosine", "cosine", "higher"),
        ]
        last: Comparable = "hook" if self.layers else "model"  # without `layers`, every hook has the same last stream
        values: dict[str, Value] = {}
        for name, unit, better in measures:
            estimates = [total[f"{name}_{layer}"].value for layer in layers]
            values[f"{name}_last"] = Scalar(estimates[-1], unit=unit, better=better, comparable=last)
            values[f"{name}_by_layer"] = Curve(layers, estimates, "layer", unit, better)
        return values
