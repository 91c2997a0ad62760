"""Metrics of sparsity: how many features fire per token, and how often each one fires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from saeval.plugin import Better, Curve, Evidence, Fired, Mean, Metric, Moments, Quantiles, Scalar, Table, Value, torch

if TYPE_CHECKING:
    from torch import Tensor


class L0(Metric):
    """Number of features that fire per token.

    A bootstrap of documents gives the errors of its quantiles over tokens. Quantiles of a count move in steps, so the
    difference between two is not tested. Undefined for substitutes without features.

    Values:
        l0: mean over the mask of #{j : f_j ≠ 0}; features; 0 .. d_sae; no better direction.
        l0_p5, l0_p50, l0_p95: quantiles of that count over tokens, exact; features; 0 .. d_sae; no better
            direction.
        by_position: mean of that count at each position of the context, a curve; features; 0 .. d_sae; no better
            direction.

    Claims:
        l0: this SAE uses more or fewer features per token than another; null: a paired difference of 0 to another SAE;
            needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a training method; not: that fewer
            features are more interpretable.
        l0_p5, l0_p50, l0_p95: how the number of features per token varies over tokens; null: none, since quantiles of
            counts move in steps and are not tested; needs: 20 effective documents; 1 SAE; not: that two SAEs differ,
            from these quantiles alone.

    Source: Bricken et al. 2023.
    """

    name, version = "l0", 2
    headline = ("l0",)
    value_names = ("l0", "l0_p5", "l0_p50", "l0_p95")

    def observe(self, fired: Fired, mask: Bool[Tensor, "batch seq"]) -> dict[str, Evidence]:
        counts = fired.per_token().to(mask.device)
        rows = torch.ones(len(mask), 1, dtype=torch.bool, device=mask.device)
        return {
            "l0": Mean.of(counts, mask),
            "counts": Quantiles.of(counts, mask),
            "by_position": Moments.of((counts * mask)[:, None, :], rows),
            "tokens": Moments.of(mask[:, None, :], rows),
        }

    def conclude(self, total: dict[str, Any]) -> dict[str, Value]:
        unit = "features"
        quantiles = {
            f"l0_p{q}": total["counts"].scalar(q / 100, unit=unit, comparable="everywhere") for q in (5, 50, 95)
        }
        tokens = total["tokens"].sum
        seen = np.flatnonzero(tokens)
        curve = Curve(seen.tolist(), (total["by_position"].sum[seen] / tokens[seen]).tolist(), "position", unit)
        return {"l0": Scalar(total["l0"].value, unit=unit, comparable="everywhere"), **quantiles, "by_position": curve}


class Density(Metric):
    """Share of tokens on which each feature fires.

    density_j = share of the mask's N tokens with f_j != 0. N is recorded with every value; densities at
    different N are not comparable. No error bars: these are counts of features, not token means.

    Values:
        dead: #{j : f_j = 0 on all N tokens of the mask}; features; 0 .. d_sae; lower is better, depends on the number
            of tokens: a feature counts as dead if it fires on none of them.
        frac_dead: dead / d_sae; share of features; 0 .. 1; lower is better, depends on the number of tokens: a feature
            counts as dead if it fires on none of them.
        frac_above_1pct, frac_above_10pct: share of features with density_j above 0.01, above 0.1; share of
            features; 0 .. 1; no better direction.
        histogram: features by log10 density_j in bins of 0.5 from -8, dead ones left out, a table; features; 0 ..
            d_sae; no better direction, depends on the number of tokens: no density lies below one token in all.

    Claims:
        dead, frac_dead: these features did not fire on N tokens of this text; null: none, since features are not a
            sample; needs: 1 SAE; the same N for two SAEs, and N large against 1 / the density that matters; not: that
            they never fire; a standard error over features, which are not independent.
        frac_above_1pct, frac_above_10pct: the share of this SAE's features that are dense on this text; null: none,
            since features are not a sample; needs: 1 SAE; the same N for two SAEs; not: that dense features are
            uninterpretable.

    Source: Bricken et al. 2023 (feature density).
    """

    name, version = "density", 1
    headline = ("frac_dead",)
    main = ()
    value_names = ("dead", "frac_dead", "frac_above_1pct", "frac_above_10pct")

    def observe(self, fired: Fired, mask: Bool[Tensor, "batch seq"]) -> Moments:
        return Moments(int(mask.sum()), fired.per_feature(mask).double().cpu().numpy())

    def conclude(self, total: Moments) -> dict[str, Value]:
        density, n = total.mean, total.n
        edges = np.arange(-8, 0.5, 0.5)
        alive = density[density > 0]
        counts, _ = np.histogram(np.log10(alive).clip(edges[0], edges[-1]), bins=edges)
        histogram = Table(
            ["log10_density_from", "log10_density_to", "features"],
            [[float(a), float(b), int(c)] for a, b, c in zip(edges, edges[1:], counts, strict=False)],
        )

        def share(features: np.ndarray, better: Better = None) -> Scalar:
            return Scalar(
                float(features.mean()),
                unit="share of features",
                better=better,
                n=n,
                proportion=True,
                comparable="everywhere",
            )

        return {
            "dead": Scalar(float((density == 0).sum()), unit="features", better="lower", n=n, comparable="everywhere"),
            "frac_dead": share(density == 0, "lower"),
            "frac_above_1pct": share(density > 0.01),
            "frac_above_10pct": share(density > 0.1),
            "histogram": histogram,
        }
