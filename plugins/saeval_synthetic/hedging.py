"""The metric `truth_hedging`: latents that mix related features into the one that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from saeval.plugin import Array, Metric, Repeats, Scalar, Undefined, Value
from saeval_synthetic.ground_truth import TrueMatch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject
    from saeval_synthetic.world import World


def related(truth: World, feature: int, most: int, least: float) -> Int[np.ndarray, "r"]:
    """Return a feature's ancestors and children, and the `most` ones correlated most with it, at least by `least`."""
    places, children = truth.tree.children
    family = [*truth.tree.ancestors(feature), *children[places[feature] : places[feature + 1]].tolist()]
    strength = np.abs(truth.correlation(feature))
    strongest = np.argsort(-strength, kind="stable")[:most]
    together = dict.fromkeys([*family, *strongest[strength[strongest] >= least].tolist()])
    return np.array(list(together), dtype=np.int64)


class TruthHedging(Metric):
    """Related features mixed into one latent, by its decoder row.

    The related features of a true feature are its ancestors and children in the hierarchy, and the `correlated`
    features with the largest planted correlation to it, of at least `correlation`. The decoder row of its latent
    (matched as for `truth_recovery`, scaled to norm 1) has least-squares coefficients on the directions of the feature
    and of its related ones. With more features than dimensions, coefficients on all directions would not be unique,
    and even a true direction would have parts of others; on these few they are unique, and a true direction has none.
    *_floor is the same value of a randomly rotated decoder, a mean over `draws`.

    Values:
        hedging: sum of the absolute coefficients of related features over that of the matched features; ratio; ≥ 0;
            lower is better.
        own_share: mean share of the matched feature in the absolute coefficients of its latent; share of the
            coefficients; 0 .. 1; higher is better.
        features: number of true features with a latent and a related feature; features; 0 .. n; no better direction.
        hedging_floor, own_share_floor: after a random rotation of the decoder; as above; as above; no better direction.
        feature, own_shares: these features and the share of each, arrays; feature number, share; 0 .. n; no better
            direction.

    Claims:
        hedging, own_share: decoder rows have parts of features that are related to theirs; null: none is tested; the
            floor is beside it; needs: data with a ground truth; not: that the latents fire with these features.
        features, hedging_floor, own_share_floor: nothing on its own; null: none is tested; needs: data with a ground
            truth;
            not: a quality.

    Source: the description of hedging of Chanin et al. 2025.
    """

    name, version = "truth_hedging", 1
    headline = ("hedging", "hedging_floor", "own_share")
    main = ("hedging",)
    value_names = ("hedging", "own_share", "features", "hedging_floor", "own_share_floor")

    def __init__(
        self, correlated: Annotated[int, Field(ge=0)] = 5, correlation: Annotated[float, Field(gt=0, le=1)] = 0.3,
        draws: Annotated[Repeats, Field(ge=1)] = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.correlated, self.correlation, self.draws, self.seed = correlated, correlation, draws, seed

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        from saeval_stability.group import matching_operations  # late: it imports torch

        each = [(s.d_sae or 0, s.d_out or s.d_in or 0) for s in subjects]
        return sum((1 + self.draws) * matching_operations(m, m, d) for m, d in each)

    def conclude(
        self, W_dec: Float[Tensor, "d_sae d_out"], truth: World, true_match: TrueMatch,
        chance_matches: list[tuple[Any, TrueMatch]],
    ) -> dict[str, Value]:  # fmt: skip
        features, own, others = self._coefficients(W_dec, truth, true_match)
        if not len(features):
            raise Undefined("no true feature with a latent has a related feature; give the world a hierarchy or groups")
        chance = [self._coefficients(turned, truth, found)[1:] for turned, found in chance_matches]
        return {
            "hedging": Scalar(_hedging(own, others), unit="ratio", better="lower"),
            "own_share": Scalar(float(_shares(own, others).mean()), unit="share", better="higher"),
            "features": Scalar(len(features), unit="features"),
            "hedging_floor": Scalar(float(np.mean([_hedging(*draw) for draw in chance])), unit="ratio"),
            "own_share_floor": Scalar(float(np.mean([_shares(*draw).mean() for draw in chance])), unit="share"),
            "feature": Array(features),
            "own_shares": Array(_shares(own, others)),
        }

    def _coefficients(
        self, W_dec: Float[Tensor, "m d"], truth: World, found: TrueMatch
    ) -> tuple[Int[np.ndarray, "f"], Float[np.ndarray, "f"], Float[np.ndarray, "f"]]:
        """Return the features that count, and the absolute coefficients of each and, summed, of its related ones."""
        rows = W_dec.detach().double().cpu().numpy()
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1.0)
        features, own, others = [], [], []
        for feature in found.matched:
            beside = related(truth, int(feature), self.correlated, self.correlation)
            if not len(beside):
                continue
            directions = truth.directions[np.append(feature, beside)].astype(np.float64)
            coefficients, *_ = np.linalg.lstsq(directions.T, rows[found.latent[feature]], rcond=None)
            features.append(int(feature))
            own.append(abs(float(coefficients[0])))
            others.append(float(np.abs(coefficients[1:]).sum()))
        return np.array(features, dtype=np.int64), np.array(own), np.array(others)


def _hedging(own: Float[np.ndarray, "f"], others: Float[np.ndarray, "f"]) -> float:
    return float(others.sum() / own.sum()) if own.sum() else float("nan")


def _shares(own: Float[np.ndarray, "f"], others: Float[np.ndarray, "f"]) -> Float[np.ndarray, "f"]:
    return np.asarray(own / np.maximum(own + others, 1e-300))
