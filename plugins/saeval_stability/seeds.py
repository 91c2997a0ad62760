"""The metric `seed_stability`: decoder and encoder directions of all pairs of a group, matched one-to-one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saeval.plugin import Metric, Notes, Null, Repeats, Value, torch
from saeval_stability.firing import Firings, without_features
from saeval_stability.floors import gaussians, rotations
from saeval_stability.group import (
    Group,
    Pair,
    group_values,
    labelled,
    matching_operations,
    pair_seed,
    pair_sizes,
    remarks_on,
)
from saeval_stability.measures import SHARED, agreement, flattened, iid_best

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject
    from saeval_stability.floors import Spaces
    from saeval_stability.group import Numbers
    from saeval_stability.matching import Matching

CHANCE = Null("random features of the same mean and covariance", above="more alike than", below="less alike than")
Mode = Literal["signed", "abs"]
Count = Annotated[int, Field(ge=0)]
Draws = Annotated[Repeats, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]


class SeedStability(Metric):
    """Agreement between the SAEs of a group: decoder and encoder directions, matched feature by feature.

    For every pair A, B of the group (in the suite's order), unit-norm decoder rows (decoder_*) and encoder columns
    (encoder_*) are matched one-to-one to maximise Σ cos; *_abs_* maximise Σ |cos|. Each matching is exact, with a
    proof. Only alive features are matched: those that are not 0 on at least `alive_firings` of the first `alive_tokens`
    tokens in the mask. The table `pairs` also has all features and, separately, the dead ones. Cosines and their means
    are in -1 .. 1, shares in 0 .. 1.

    *_matched = Σ / max(n_A, n_B), *_matched_over_smaller = Σ / min(n_A, n_B). *_share_above_0_5, _0_7, _0_9: share of
    the matched pairs above that similarity. *_max_a_to_b, *_max_b_to_a: mean best match, one partner for many allowed;
    *_collisions_*: 1 − |unique best matches| / n. index_agreement: share of the smaller side's features with the same
    partner in the decoder and the encoder matching; shared: those that are also above 0.7 in both.
    *_found_in_all: share of a member's features matched above 0.7 with every other member.

    *_floor: the score expected by chance, which is the larger of two nulls' means over `draws` draws: a random rotation
    of B, and Gaussian features with B's mean and covariance (decoder and encoder jointly). The table `floors` has every
    value under both nulls, and the closed form for uniform directions if there is one. *_excess = value − floor.

    Values are means over the pairs of different seeds, with a jackknife 95% interval that leaves out one seed at a time
    (t with seeds − 1 degrees of freedom), which includes the error of the floor: each pair has its own draws. Without
    four seeds, or if a seed is unknown, there is no error and no test. The test is conservative: with four seeds, it is
    false in 5% of cases if all variation is between seeds, and in 1% if it is between pairs. The twin `random(GROUP)`,
    the same group with untrained SAEs, has the same values; `decoder_matched vs random` is the difference, paired by
    seed. `kinds` maps a label to patterns of names, for a table within and across kinds, where pairs of one seed have
    rows of their own. Undefined if an SAE has no encoder or decoder weights or no alive feature. Source: Sharkey et al.
    2022 (max-cosine), Paulo and Belrose 2025 (Hungarian matching).

    Values:
        decoder_matched, encoder_matched: Σ of the matched cosines / max(n_A, n_B), a mean over pairs; cosine;
            -1 .. 1; higher is better.
        decoder_matched_over_smaller, encoder_matched_over_smaller: the same sum / min(n_A, n_B); cosine; -1 ..
            1; higher is better.
        decoder_matched_floor, decoder_matched_over_smaller_floor, encoder_matched_floor,
            encoder_matched_over_smaller_floor: the same under chance; cosine; -1 .. 1; no better direction.
        decoder_matched_excess, decoder_matched_over_smaller_excess, encoder_matched_excess,
            encoder_matched_over_smaller_excess: value − floor; cosine; -2 .. 2; higher is better.
        decoder_share_above_*, encoder_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of
            matched pairs; 0 .. 1; higher is better.
        decoder_max_a_to_b, decoder_max_b_to_a, encoder_max_a_to_b, encoder_max_b_to_a: mean best match of the
            features of A (of B); cosine; -1 .. 1; no better direction.
        decoder_collisions_a_to_b, decoder_collisions_b_to_a, encoder_collisions_a_to_b,
            encoder_collisions_b_to_a: 1 − |unique best matches| / n; share of features; 0 .. 1; no better
            direction.
        *_abs_matched: Σ of the matched |cosines| / max(n_A, n_B), a mean over pairs; cosine; 0 .. 1; higher is
            better.
        *_abs_matched_over_smaller: the same sum / min(n_A, n_B); cosine; 0 .. 1; higher is better.
        *_abs_matched_floor, *_abs_matched_over_smaller_floor: the same under chance; cosine; 0 .. 1; no better
            direction.
        *_abs_matched_excess, *_abs_matched_over_smaller_excess: value − floor; cosine; -1 .. 1; higher is better.
        *_abs_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of matched pairs; 0 .. 1;
            higher is better.
        *_abs_max_a_to_b, *_abs_max_b_to_a: mean best match of the features of A (of B); cosine; 0 .. 1; no
            better direction.
        *_abs_collisions_a_to_b, *_abs_collisions_b_to_a: 1 − |unique best matches| / n; share of features; 0 ..
            1; no better direction.
        shared: features with the same partner in both matchings, above 0.7 in both, / min(n_A, n_B); share of
            features; 0 .. 1; higher is better.
        index_agreement: features with the same partner in both matchings / min(n_A, n_B); share of features; 0
            .. 1; higher is better.
        *_found_in_all: share of a member's features matched above 0.7 with every other member; share of
            features; 0 .. 1; higher is better.
        *_indices_*, *_cosines_*, *_chance_*: partner of each feature of the first SAE, their cosine, and the
            cosines of one draw from a null, arrays; feature number, or cosine; -1 .. d_sae; no better direction.
        members, pairs, floors, kinds: the same numbers per member, per pair, per null and per kind, tables; as
            above; as above; no better direction.

    Claims:
        decoder_matched, encoder_matched: SAEs of different seeds have more similar directions than untrained SAEs;
            null: the twin `random(GROUP)`, paired by seed; needs: 10 firings of each counted feature, 4 SAEs, 4 seeds;
            not: that features are the same, since a direction that all features share suffices, or agreement beyond
            that of untrained SAEs of another architecture than the control's.
        decoder_matched_excess, encoder_matched_excess: SAEs of different seeds have more similar directions than their
            means and covariances bring about; null: floor, excess 0; needs: 10 firings of each counted feature, 4 SAEs,
            4 seeds; not: how many features are the same, or that the agreement is large.
        *_abs_matched, *_abs_matched_excess: a description of these SAEs; with `modes: [abs]`, the claims of the signed
            values; null: none; with `modes: [abs]`, those of the signed values; needs: 10 firings of each counted
            feature, 2 SAEs, 2 seeds, for a test 4 SAEs, 4 seeds; not: agreement beyond that of untrained SAEs unless it
            was tested.
        *_matched_over_smaller, *_matched_over_smaller_excess, *_share_above_*, *_found_in_all, shared: a description of
            these SAEs; null: none is tested; compare the twin and the table `floors`; needs: 10 firings of each counted
            feature, 2 SAEs, 2 seeds; not: agreement beyond that of untrained SAEs, or anything about SAEs of other
            recipes.
        *_max_*, *_collisions_*: how far best matches count features repeatedly; null: none is tested; compare the table
            `floors`; needs: 10 firings of each counted feature, 2 SAEs, 2 seeds; not: agreement, which needs one-to-one
            matches.
        index_agreement: encoder and decoder match the same features; null: none is tested; compare the table `floors`;
            needs: 10 firings of each counted feature, 2 SAEs, 2 seeds; not: a comparison with the twin, whose encoders
            are its transposed decoders, so that it is 1 by construction.
        *_floor: nothing on its own; null: none; needs: 2 SAEs; not: a comparison of floors at different numbers of
            features.
    """

    name, version, subject = "seed_stability", 3, "group"

    def __init__(
        self, alive_firings: Count = 10, alive_tokens: Some = 1_000_000, draws: Draws = 20, seed: int = 0,
        modes: tuple[Mode, ...] = ("signed", "abs"), kinds: dict[str, list[str]] | None = None,
    ) -> None:  # fmt: skip
        self.alive_firings, self.alive_tokens = alive_firings, alive_tokens
        self.draws, self.seed, self.kinds = draws, seed, kinds or {}
        self.modes: tuple[Mode, ...] = tuple(dict.fromkeys(modes))
        if not self.modes:
            raise ValueError("'modes' is empty: expected [signed], [abs] or both")
        main_views = [_view(space, self.modes[0]) for space in ("decoder", "encoder")]
        ends = ("", "_floor", "_excess")
        self.headline = (*(f"{view}_matched{end}" for view in main_views for end in ends), "shared")
        views = [_view(space, mode) for space in ("decoder", "encoder") for mode in self.modes]
        self.value_names = (*group_values(views, main_views, self.draws > 0), "shared", "index_agreement")

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        # Two spaces: alive, all and dead features, and the alive ones again for each draw of the two nulls.
        matchings = 2 * len(self.modes) * (3 + 2 * self.draws)
        sizes = pair_sizes(subjects)
        return sum(matchings * matching_operations(n, m, d) + self.draws * 8.0 * m * d * d for n, m, d in sizes)

    def remarks(self, subjects: Sequence[Subject]) -> list[str]:
        return remarks_on(subjects)

    def conclude(
        self,
        W_dec: list[Float[Tensor, "d_sae d_out"]],
        W_enc: list[Float[Tensor, "d_in d_sae"]],
        firings: list[Firings],
        subject_name: list[str],
        sae_name: list[str],
        training_seed: list[int | None],
    ) -> dict[str, Value]:
        spaces = [{"decoder": dec, "encoder": enc.T} for dec, enc in zip(W_dec, W_enc, strict=True)]
        alive = [member.counts >= self.alive_firings for member in firings]
        for name, is_alive in zip(subject_name, alive, strict=True):
            if not is_alive.any():
                raise without_features(name, self.alive_firings, firings[0].n)
        pairs = [self._pair(a, b, spaces, alive) for a, b in itertools.combinations(range(len(spaces)), 2)]
        kinds = labelled(sae_name, self.kinds)
        numbers = [np.flatnonzero(is_alive) for is_alive in alive]
        main = {_view(space, self.modes[0]): numbers for space in ("decoder", "encoder")}
        widths, fewest = [len(is_alive) for is_alive in alive], min(map(len, numbers))
        group = Group(subject_name, kinds, training_seed, pairs, main, widths, floor_n=fewest, chance=CHANCE)
        threshold = f"at least {self.alive_firings} of the first {firings[0].n} tokens"
        most, d = max(map(len, numbers)), spaces[0]["decoder"].shape[1]
        sizes = f"{fewest if fewest == most else f'{fewest} to {most}'} features in {d} dimensions"
        note = f"{self.name} counts only features that fire on {threshold}; its floors are those of {sizes}"
        return {**group.values(), "alive": Notes([note])}

    def _pair(self, a: int, b: int, spaces: Sequence[Spaces], alive: Sequence[np.ndarray]) -> Pair:
        ours, theirs = _selected(spaces[a], alive[a]), _selected(spaces[b], alive[b])
        main = self._match(ours, theirs)
        every = main if alive[a].all() and alive[b].all() else self._match(spaces[a], spaces[b])
        views = {**main, **{f"all_{view}": matching for view, matching in every.items()}}
        if not alive[a].all() and not alive[b].all():
            dead = self._match(_selected(spaces[a], ~alive[a]), _selected(spaces[b], ~alive[b]))
            views |= {f"dead_{view}": matching for view, matching in dead.items()}
        key, examples = pair_seed(self.seed, a, b), []
        floors: dict[str, list[Numbers]] = {"rotated": [], "gaussian": []}
        for name, null in (("rotated", rotations), ("gaussian", gaussians)):
            for drawn in null(theirs, key, self.draws):
                matchings = self._match(ours, drawn)
                examples += [] if floors[name] else [matchings]
                floors[name].append(self._numbers(matchings))
        chance = {view: max((e[view] for e in examples), key=lambda m: m.total) for view in main} if examples else {}
        return Pair(a, b, views, self._numbers(main), floors, chance, self._closed_forms(ours, theirs))

    def _match(self, ours: Spaces, theirs: Spaces) -> dict[str, Matching]:
        from saeval_stability.matching import match  # late: it loads numba, which only a run needs

        views = itertools.product(ours, self.modes)
        return {_view(space, mode): match(ours[space], theirs[space], mode) for space, mode in views}

    def _numbers(self, views: Mapping[str, Matching]) -> Numbers:
        dec, enc = (views[_view(space, self.modes[0])] for space in ("decoder", "encoder"))
        return {**flattened(views), "shared": agreement(dec, enc, SHARED), "index_agreement": agreement(dec, enc)}

    def _closed_forms(self, ours: Spaces, theirs: Spaces) -> Numbers:
        numbers: Numbers = {}
        for space, mode in itertools.product(ours, self.modes):
            n_a, n_b, d = len(ours[space]), len(theirs[space]), ours[space].shape[1]
            numbers[f"{_view(space, mode)}_max_a_to_b"] = iid_best(n_b, d, mode == "abs")
            numbers[f"{_view(space, mode)}_max_b_to_a"] = iid_best(n_a, d, mode == "abs")
        return numbers


def _view(space: str, mode: Mode) -> str:
    return space if mode == "signed" else f"{space}_abs"


def _selected(spaces: Spaces, features: np.ndarray) -> Spaces:
    index = torch.from_numpy(np.flatnonzero(features))
    return {name: x[index.to(x.device)] for name, x in spaces.items()}
