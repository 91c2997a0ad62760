"""The metric `truth_absorption`: latents that go silent where a child of their feature fires."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from saeval.plugin import Array, Estimate, Evidence, Metric, Null, Scalar, Stamp, Undefined, Value, torch
from saeval_synthetic.firings import known_mean
from saeval_synthetic.ground_truth import TrueMatch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject
    from saeval_synthetic.world import TrueFeatures, World


@dataclasses.dataclass(frozen=True, eq=False)
class ParentFirings(Evidence):
    """For each parent with a latent: tokens on which it fires, and those on which its latent does too.

    The last dimension has the tokens without a child, of these those with the latent, and the same two with a child.
    """

    counts: Int[np.ndarray, "clusters parents 4"]
    tokens: Int[np.ndarray, "clusters"]

    def stamp(self, stamp: Stamp) -> Self:
        counts = np.zeros((stamp.n_clusters, *self.counts.shape[1:]), np.int64)
        tokens = np.zeros(stamp.n_clusters, np.int64)
        for row, document in enumerate(stamp.clusters):
            counts[document] += self.counts[row]
            tokens[document] += self.tokens[row]
        return type(self)(counts, tokens)

    def components(self) -> dict[str, Any]:
        return {"tokens": int(self.tokens.sum()), "parents": int(self.counts.shape[1])}


def parents_of(truth: World, found: TrueMatch) -> Int[np.ndarray, "p"]:
    """Return the parents of the hierarchy that have a latent; `Undefined` if the world has no hierarchy."""
    parents = np.unique(truth.tree.parent[truth.tree.parent >= 0])
    if not len(parents):
        raise Undefined("the world has no hierarchy; set 'roots' and 'depth' above 0")
    return np.asarray(parents[found.latent[parents] >= 0])


class TruthAbsorption(Metric):
    """Children that absorb their parents: the latent of a parent goes silent where a child fires.

    For each parent p of the hierarchy with a latent (matched as for `truth_recovery`): P(latent fires | p fires and no
    child of it) − P(latent fires | p fires and a child too), over tokens. Values are means over the parents that have
    at least `least` tokens of each kind. A latent that does not know of the children has 0 on average.

    Values:
        absorption: mean difference of the two shares; share of tokens; -1 .. 1; lower is better.
        recall_with_child: mean share of the tokens with parent and child on which the parent's latent fires; share of
            tokens; 0 .. 1; higher is better.
        recall_alone: mean share of the tokens with a parent and no child on which its latent fires; share of tokens;
            0 .. 1; higher is better.
        parents: number of parents that count; features; 0 .. n; no better direction.
        parent, differences: the parents that count and the difference of each, arrays; feature number, share of tokens;
            -1 .. n; no better direction.

    Claims:
        absorption: the latents of parents are silent more often beside a child; null: a latent that fires whatever the
            child; needs: 20 documents, a world with a hierarchy; not: which latent took over.
        recall_with_child, recall_alone: the latents of parents fire with them; null: none is tested; needs: 20
            documents, a world with a hierarchy; not: that they fire with nothing else.
        parents: nothing on its own; null: none is tested; needs: a world with a hierarchy; not: a quality.

    Source: the definition of absorption of Chanin et al. 2024, with the true features in place of probes.
    """

    name, version, truth = "truth_absorption", 1, True
    headline = ("absorption", "recall_with_child", "recall_alone")
    main = ("absorption",)
    value_names = ("absorption", "recall_with_child", "recall_alone", "parents")

    def __init__(self, least: Annotated[int, Field(ge=1)] = 20) -> None:
        self.least = least

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        from saeval_stability.group import matching_operations  # late: it imports torch

        return sum(matching_operations(s.d_sae or 0, s.d_sae or 0, s.d_out or s.d_in or 0) for s in subjects)

    def observe(
        self, feature_acts: Float[Tensor, "batch seq d_sae"], true_features: TrueFeatures, true_match: TrueMatch,
        truth: World, mask: Bool[Tensor, "batch seq"],
    ) -> ParentFirings:  # fmt: skip
        parents, n = parents_of(truth, true_match), truth.n
        batch, seq, m = feature_acts.shape
        inside = mask.cpu().numpy().ravel()
        token, feature = true_features.token.cpu().numpy(), true_features.feature.cpu().numpy()
        token, feature = token[inside[token]], feature[inside[token]]
        above = truth.tree.parent[feature]
        beside = np.unique(token[above >= 0] * n + above[above >= 0])
        place = np.full(n, -1, np.int64)
        place[parents] = np.arange(len(parents))
        ours = place[feature] >= 0
        token, feature = token[ours], feature[ours]
        with_child = np.isin(token * n + feature, beside)
        latent = torch.from_numpy(true_match.latent[feature]).to(feature_acts.device)
        acts = feature_acts.detach().reshape(-1, m)[torch.from_numpy(token).to(feature_acts.device), latent]
        fires = (acts != 0).cpu().numpy()
        kind = (token // seq * len(parents) + place[feature]) * 4 + 2 * with_child
        size = batch * len(parents) * 4
        counts = np.bincount(kind, minlength=size) + np.bincount(kind[fires] + 1, minlength=size)
        return ParentFirings(counts.reshape(batch, len(parents), 4), inside.reshape(batch, seq).sum(1))

    def conclude(self, total: ParentFirings, truth: World, true_match: TrueMatch) -> dict[str, Value]:
        whole = total.counts.sum(0)
        enough = (whole[:, 0] >= self.least) & (whole[:, 2] >= self.least)
        if not enough.any():
            raise Undefined(f"no parent with a latent fires {self.least} times with a child and {self.least} without")

        def shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with np.errstate(invalid="ignore", divide="ignore"):
                return counts[enough, 1] / counts[enough, 0], counts[enough, 3] / counts[enough, 2]

        def estimate(function: Any) -> Estimate:
            without = np.array([function(*shares(whole - own)) for own in total.counts])
            return Estimate(function(*shares(whole)), without, total.tokens.astype(np.float64), int(total.tokens.sum()))

        null = Null("a latent that fires whatever the child", 0.0, above="more often silent beside a child than")
        absorbed = estimate(lambda alone, beside: known_mean(alone - beside))
        alone, beside = shares(whole)
        return {
            "absorption": Scalar(absorbed, unit="share", better="lower", null=null),
            "recall_with_child": Scalar(estimate(lambda _, beside: known_mean(beside)), unit="share", better="higher"),
            "recall_alone": Scalar(estimate(lambda alone, _: known_mean(alone)), unit="share", better="higher"),
            "parents": Scalar(int(enough.sum()), unit="features"),
            "parent": Array(parents_of(truth, true_match)[enough]),
            "differences": Array(alone - beside),
        }
