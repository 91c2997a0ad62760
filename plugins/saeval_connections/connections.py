"""The metric `feature_connections`: the features of a later SAE that a feature of an earlier SAE feeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from pydantic import Field

from saeval.plugin import (
    Array,
    Batch,
    Curve,
    Encoding,
    Evidence,
    Metric,
    Notes,
    Null,
    Ratio,
    Repeats,
    Resume,
    Scalar,
    Substitute,
    Table,
    Value,
    torch,
)
from saeval_connections.edges import WAYS, Edges
from saeval_connections.effects import Effects
from saeval_connections.maps import Maps, predicted
from saeval_reward.contexts import Contexts

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject

HELD_OUT = 10
"""Firings on the evaluated tokens below which a feature has no FVU of its own."""
AGREEMENTS = (*((way, "intervention") for way in WAYS), ("direct", "data"), ("block", "data"))
"""Pairs of ways whose edges are compared."""
Some = Annotated[int, Field(ge=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut(Evidence):
    """Squared errors of all maps, per later feature."""

    error: Float[np.ndarray, "maps d_sae_2"]
    around: Float[np.ndarray, "d_sae_2"]
    """Σ (f2 − its mean on the fit split)²."""
    fired: Int[np.ndarray, "d_sae_2"]
    n: int

    def components(self) -> dict[str, Any]:
        return {"n": self.n}


class FeatureConnections(Metric):
    """Features of a later SAE that features of an earlier SAE feed: by weights, by fitted maps and by intervention.

    The group has two SAEs of one model, the earlier first. An edge is the change of a later feature per unit of an
    earlier one. direct: decoder row · encoder column. block: the same with the least-squares linear map between the
    activations of the two hooks in between, fitted on the fit split. data: the coefficient of the sparse linear map
    F2 ≈ W·F1 + b with the most sources. intervention: the feature is removed from the activations wherever it fires,
    the SAE's error kept, the model is run to the later hook and no further, and the later SAE encodes the result:
    Σ (f2 − f2 after) / Σ f1 over the tokens on which it fires. One resume per batch and ablated feature. It includes
    effects of earlier tokens at which the same feature is ablated.

    Maps are fitted on the first `fit_tokens` tokens of the fit split, for features that fire on at least
    `alive_firings` of them. Sources are chosen one by one (orthogonal matching pursuit) up to each of `levels`, while
    each explains `least_gain` of the variance. fvu_* are over the evaluated tokens, relative to the mean on the fit
    split; a feature's own FVU is undefined with fewer than 10 firings there.

    Ablated are the `ablated` features with the strongest edges by direct, block and data in turn. Strength = |edge| ·
    mean activation of the earlier feature / mean activation of the later one, where they fire. Agreement compares two
    ways over all later features, source by source: Spearman's ρ of signed strengths, and the share of the `top`
    strongest edges by one way that are among the `top` by the other. Its errors are over the ablated features. Its null
    is the same agreement between one feature's edges and those of the other ablated features, since features with many
    strong edges make any two sources alike. The twin `random(GROUP)` has untrained SAEs.

    Values:
        fvu_linear_*, fvu_relu_*: Σ_j SSE_j / v_j / Σ_j SST_j / v_j over the fitted later features j with the variance
            v_j on the fit split; share of variance; ≥ 0; lower is better.
        median_fvu_linear, median_fvu_relu: median of the features' own FVU, most sources; share of variance; ≥ 0;
            lower is better.
        rank_correlation_*: Spearman's ρ of an ablated feature's edges by two ways, mean; correlation; -1 .. 1;
            higher is better.
        precision_*: share of the top edges by the first way that are top by the second, mean; share of edges; 0 .. 1;
            higher is better.
        resumes: number of resumed passes to the later hook; passes; ≥ 0; no better direction.
        fvu_by_sources_linear, fvu_by_sources_relu: FVU by mean number of sources, curves; share of variance; ≥ 0;
            lower is better.
        edges: the tested edges by all ways, a table; later activation per earlier; −∞ .. ∞; no better direction.
        contexts: tokens on which the features of the strongest edges fire most, a table; activation; −∞ .. ∞; no
            better direction.
        fvu_linear, fvu_relu: FVU of each later feature, arrays; share of variance; ≥ 0; lower is better.
        W_sources, W_weights: earlier features and coefficients of each later feature, arrays; feature number, or later
            activation per earlier; -1 .. ∞; no better direction.

    Claims:
        fvu_linear_*, fvu_relu_*: the later features are predicted better than by a constant; null: 1, the FVU of the
            mean on the fit split; needs: 20 documents, 2 SAEs, 1 seed; not: that the earlier features cause them, or
            that the block computes this map; that trained SAEs are connected more than others, for which compare the
            twin.
        median_fvu_linear, median_fvu_relu: how well a typical feature is predicted; null: none, since features are not
            a sample; needs: 10 firings of each counted feature, 2 SAEs, 1 seed; not: that a median below 1 is beyond
            chance, or a comparison of two groups.
        precision_*: two ways agree on the strongest edges of an ablated feature; null: edges of other ablated features,
            by a t test over them; needs: 20 documents, 2 SAEs, 8 ablated features; not: agreement over all features,
            since those with strong edges were chosen; that single edges are real; with data, that its edges are causes,
            since an ablation moves most the features that fire together with the ablated one.
        rank_correlation_*: two ways order the edges of an ablated feature alike; null: edges of other ablated features,
            by a t test over them; needs: 20 documents, 2 SAEs, 8 ablated features; not: agreement over all features, or
            that single edges are real.
        resumes: the cost of the interventions; null: none, since it is a count; needs: 2 SAEs; not: anything about the
            SAEs.

    Source: Marks et al. 2024 (effects of features with the error kept); Pati et al. 1993 (orthogonal matching pursuit).
    """

    name, version, subject = "feature_connections", 1, "group"

    def __init__(
        self, levels: tuple[Some, ...] = (1, 2, 4, 8, 16), fit_tokens: Some = 200_000, alive_firings: Some = 10,
        least_gain: Annotated[float, Field(ge=0, lt=1)] = 0.001, ablated: Annotated[Repeats, Field(ge=1)] = 16,
        edges: Some = 3, top: Some = 10, contexts: Annotated[int, Field(ge=0)] = 3,
    ) -> None:  # fmt: skip
        if not levels:
            raise ValueError("'levels' is empty: expected numbers of sources such as [1, 4, 16]")
        self.levels = tuple(sorted(set(levels)))
        self.fit_tokens, self.alive_firings, self.least_gain = fit_tokens, alive_firings, least_gain
        self.ablated, self.edges, self.top, self.contexts = ablated, edges, top, contexts
        most = self.levels[-1]
        self.headline = (
            f"fvu_linear_{most}", f"fvu_relu_{most}", "precision_direct", "precision_block", "precision_data",
            "rank_correlation_block",
        )  # fmt: skip
        fvus = [f"fvu_{kind}_{level}" for level in self.levels for kind in ("linear", "relu")]
        agreements = [f"{name}_{_pair(*pair)}" for name in ("rank_correlation", "precision") for pair in AGREEMENTS]
        self.value_names = (*fvus, "median_fvu_linear", "median_fvu_relu", *agreements, "resumes")

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        first, second = (s.d_sae or 0 for s in subjects[:2])
        return 4.0 * first * second * self.levels[-1] ** 2

    def observe(
        self,
        sae: list[Substitute],
        encoding: list[Encoding | None],
        feature_acts: list[Float[Tensor, "batch seq d_sae"]],
        activations: list[Float[Tensor, "batch seq d"]],
        hook_name: list[str],
        input_hook: list[str],
        mask: Bool[Tensor, "batch seq"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        feature_maps: Maps,
        strongest_edges: Edges,
        earlier_resume: Resume,
        earlier_decoder: Float[Tensor, "d_sae_1 d_x"],
        batch: Batch,
        spelling: Callable[[Sequence[int]], list[str]],
    ) -> dict[str, Evidence]:
        observed: dict[str, Evidence] = {
            **_held_out(feature_maps, feature_acts, mask),
            "effects": Effects.of(
                strongest_edges, sae, encoding[0], feature_acts, activations[0], mask, token_keys, earlier_resume,
                (hook_name[0], input_hook[1]), earlier_decoder,
            ),
        }  # fmt: skip
        if self.contexts:
            for side, shown in enumerate(_shown(strongest_edges)):
                acts = feature_acts[side][..., torch.from_numpy(shown).to(mask.device)]
                observed[f"contexts_{side}"] = Contexts.of([acts], [mask], [batch], [spelling], self.contexts)
        return observed

    def conclude(self, total: dict[str, Any], feature_maps: Maps, strongest_edges: Edges) -> dict[str, Value]:
        effects: Effects = total["effects"]
        values = self._fvu(total["fvu"], total["held_out"], feature_maps)
        values |= self._agreement(effects, strongest_edges)
        values["resumes"] = Scalar(float(effects.resumes), unit="passes", comparable="everywhere")
        values["edges"] = _edge_table(effects, strongest_edges)
        if self.contexts:
            lines = []
            for side, shown in enumerate(_shown(strongest_edges)):
                table = total[f"contexts_{side}"].table(shown.tolist())
                lines += [[("earlier", "later")[side], f, a, row, *t] for f, a, row, _, *t in table.rows]
            values["contexts"] = Table(["sae", "feature", "activation", "row", "tokens", "activations"], lines)
        return values

    def _fvu(self, fvu: Ratio, held_out: HeldOut, maps: Maps) -> dict[str, Value]:
        unit, values = "share of variance", dict[str, Value]()
        null = Null("the mean on the fit split", 1.0, below="better predicted than by")
        defined = (held_out.fired >= HELD_OUT) & (held_out.around > 0) & maps.alive[1]
        curves: dict[str, tuple[list[float], list[Any]]] = {"linear": ([], []), "relu": ([], [])}
        for m, map_ in enumerate(maps.maps):
            kind = "relu" if map_.relu else "linear"
            if not defined.any():
                reason = f"no fitted feature of the later SAE fires on {HELD_OUT} evaluated tokens; use more tokens"
                values[f"fvu_{map_.name}"] = Scalar.undefined(reason, unit=unit, better="lower")
            else:
                estimate = fvu[m].value
                values[f"fvu_{map_.name}"] = Scalar(estimate, unit=unit, better="lower", comparable="hook", null=null)
                curves[kind][0].append(map_.W.nnz / max(int(maps.alive[1].sum()), 1))
                curves[kind][1].append(estimate)
            if map_.level == self.levels[-1]:
                own = np.where(defined, held_out.error[m] / np.where(defined, held_out.around, 1.0), np.nan)
                median = float(np.median(own[defined])) if defined.any() else None
                why = None if defined.any() else "no feature has a FVU of its own"
                values[f"median_fvu_{kind}"] = Scalar(
                    median, unit=unit, better="lower", n=int(defined.sum()), reason=why, comparable="hook"
                )
                values[f"fvu_{kind}"] = Array(own, unit)
        for kind, (x, y) in curves.items():
            if x:
                values[f"fvu_by_sources_{kind}"] = Curve(x, y, "sources per feature", unit, "lower")
        W = maps.widest().W
        counts = np.diff(W.indptr)
        at = np.arange(self.levels[-1])[None] < counts[:, None]
        sources, weights = np.full(at.shape, -1, np.int64), np.zeros(at.shape)
        sources[at], weights[at] = W.indices, W.data
        return {**values, "W_sources": Array(sources), "W_weights": Array(weights)}

    def _agreement(self, effects: Effects, edges: Edges) -> dict[str, Value]:
        alive = edges.scale.any(0)
        intervention = effects.per_unit
        ran = np.isfinite(intervention[:, 0])
        strengths = {"intervention": (intervention * edges.scale)[ran][:, alive]}
        strengths |= {way: (rows * edges.scale)[ran][:, alive] for way, rows in edges.values.items()}
        values: dict[str, Value] = {}
        for pair in AGREEMENTS:
            for name, unit, above in (
                ("rank_correlation", "correlation", "ordered more alike than"),
                ("precision", "share of edges", "more precise than"),
            ):
                title = f"{name}_{_pair(*pair)}"
                if pair[0] not in strengths:
                    reason = "the decoder and the encoder have different widths, so there is no direct edge"
                    values[title] = Scalar.undefined(reason, unit=unit, better="higher")
                    continue
                first, second = (strengths[way] for way in pair)
                alike = _rank_correlations(first, second) if name == "rank_correlation" else self._shared(first, second)
                values[title] = _over_features(alike, unit, above)
        names = "rank_correlation_* and precision_*"
        values["errors"] = Notes([f"errors of {self.name}.{names} are over the {int(ran.sum())} ablated features"])
        return values

    def _shared(self, first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
        """The share of each source's `top` strongest edges by one way that are among each one's by another."""
        tops = [_strongest(rows, self.top) for rows in (first, second)]
        counts = [top.sum(1) for top in tops]
        defined = (counts[0][:, None] > 0) & (counts[1] > 0)
        return np.where(defined, tops[0].astype(float) @ tops[1].T / np.maximum(counts[0], 1)[:, None], np.nan)


def _held_out(
    maps: Maps, feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]], mask: Bool[Tensor, "batch seq"]
) -> dict[str, Evidence]:
    f1, f2 = (acts.detach()[mask] for acts in feature_acts)
    mean = torch.from_numpy(maps.mean).to(f2)
    weight = np.where(maps.alive[1] & (maps.variance > 0), 1 / np.maximum(maps.variance, 1e-300), 0.0)
    weights = torch.from_numpy(weight).to(f2.device)
    around = (f2 - mean).square()
    errors, weighted = [], []
    for map_ in maps.maps:
        error = (f2 - predicted(map_, f1)).square()
        errors.append(error.sum(0, dtype=torch.float64).cpu().numpy())
        weighted.append(error.double() @ weights)

    def spread(rows: Tensor) -> Tensor:
        """Rows of the mask's tokens at their places `[batch, seq, maps]`."""
        whole = rows.new_zeros((*mask.shape, rows.shape[-1]))
        whole[mask] = rows
        return whole

    below = (around.double() @ weights)[:, None].expand(-1, len(maps.maps))
    summed = around.sum(0, dtype=torch.float64).cpu().numpy()
    fired = (f2 != 0).sum(0).cpu().numpy()
    return {
        "fvu": Ratio.of(spread(torch.stack(weighted, -1)), spread(below), mask),
        "held_out": HeldOut(np.stack(errors), summed, fired, len(f2)),
    }


def _pair(first: str, second: str) -> str:
    """The name of a comparison; that with interventions is the usual one."""
    return first if second == "intervention" else f"{first}_{second}"


def _shown(edges: Edges) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """The features of both SAEs whose contexts are shown: those of the strongest edges."""
    first = edges.pairs[np.flatnonzero(edges.first)]
    return edges.sources[np.unique(first[:, 0])], np.unique(first[:, 1])


def _strongest(strengths: Float[np.ndarray, "n d"], top: int) -> Bool[np.ndarray, "n d"]:
    """True for the `top` strongest edges of each row that are not 0."""
    ranks = (-np.abs(strengths)).argsort(1, kind="stable").argsort(1, kind="stable")
    return np.asarray((ranks < top) & (strengths != 0))


def _rank_correlations(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Spearman's ρ of each row with each; NaN for a row of equal numbers."""
    from scipy.stats import rankdata  # late: listings do not need it

    ranks = [rankdata(rows, axis=1) for rows in (first, second)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    norms = [np.linalg.norm(rank, axis=1) for rank in centred]
    below = norms[0][:, None] * norms[1]
    return np.where(below > 0, centred[0] @ centred[1].T / np.where(below > 0, below, 1.0), np.nan)


def _over_features(alike: Float[np.ndarray, "n n"], unit: str, above: str) -> Scalar:
    """The mean agreement of a source with itself, its error over sources, and its null, that with other sources."""
    from scipy.stats import ttest_1samp  # late: as above

    defined = np.flatnonzero(np.isfinite(np.diag(alike)))
    n, own = len(defined), np.diag(alike)[defined]
    if not n:
        return Scalar.undefined("no ablated feature has edges by both ways", unit=unit, better="higher")
    if n == 1:
        return Scalar(float(own[0]), unit=unit, better="higher", n=1, reason="one feature", comparable="hook")
    between = alike[np.ix_(defined, defined)]
    others = (between.sum(0) + between.sum(1) - 2 * own) / (2 * (n - 1))
    differs = np.ptp(own - others) > 0
    p = float(ttest_1samp(own - others, 0.0, alternative="greater").pvalue) if differs else 1.0
    null = Null("edges of other features", float(others.mean()), above=above, p=p)
    record: dict[str, Any] = {"reason": "the same for all ablated features"}
    if np.ptp(own) > 0:
        low, high = ttest_1samp(own, 0.0).confidence_interval(0.95)
        record = {"stderr": float(np.std(own, ddof=1)) / math.sqrt(n), "ci95": (float(low), float(high))}
    return Scalar(float(own.mean()), unit=unit, better="higher", n=n, comparable="hook", null=null, **record)


def _edge_table(effects: Effects, edges: Edges) -> Table:
    """The tested edges, strongest first by intervention."""
    every = effects.per_unit * edges.scale
    rows = []
    for e, (n, j) in enumerate(edges.pairs.tolist()):
        estimate = effects.edge(e, n).value
        values = [float(edges.values[way][n, j]) if way in edges.values else None for way in WAYS]
        fires, strength = effects.fires[:, n], float(every[n, j])
        rank = 1 + int((np.abs(every[n]) > abs(strength)).sum()) if math.isfinite(strength) else None
        rows.append([
            int(edges.sources[n]), j, *values, estimate.value, estimate.stderr, strength, rank,
            int(fires.sum()), np.count_nonzero(fires), ", ".join(edges.ways[e]), int(edges.first[e]),
        ])  # fmt: skip
    rows.sort(key=lambda row: (-abs(row[7]) if math.isfinite(row[7]) else 0.0, row[0], row[1]))
    columns = [
        "earlier", "later", *WAYS, "intervention", "stderr", "strength", "rank", "tokens", "documents", "strongest_by",
        "shown",
    ]  # fmt: skip
    return Table(columns, rows)
