"""Do SAEs find the same features? Decoders and encoders of all pairs of a group, matched one-to-one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saeval.plugin import Metric, Notes, Repeats, Undefined, Value, torch
from saeval_stability.firing import Firings
from saeval_stability.floors import gaussians, rotations
from saeval_stability.group import (
    Group,
    Numbers,
    Pair,
    group_values,
    labelled,
    matching_operations,
    pair_seed,
    pair_sizes,
)
from saeval_stability.measures import agreement, flattened, iid_best, shared

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject
    from saeval_stability.floors import Spaces
    from saeval_stability.matching import Matching

Mode = Literal["signed", "abs"]
Count = Annotated[int, Field(ge=0)]
Draws = Annotated[Repeats, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]


class SeedStability(Metric):
    """How alike the decoders and the encoders of a group's SAEs are, feature by feature, beside what chance gives.

    For every pair A, B of the group (in the suite's order), decoder rows and encoder columns of unit norm are matched
    one-to-one so that Σ cos is largest, exactly and with a proof: decoder_* and encoder_*; *_abs_* maximise Σ |cos|.
    Only alive features, those that are not 0 on at least `alive_firings` of the stream's first `alive_tokens` tokens
    of the mask; the table `pairs` has all features and the dead alone beside them. A cosine is in -1 .. 1, and so are
    means of them; shares are in 0 .. 1.

    *_matched = Σ / max(n_A, n_B), *_matched_over_smaller = Σ / min. *_share_above_0_5, _0_7, _0_9: of the matched
    pairs. *_max_a_to_b, *_max_b_to_a: mean best match, which counts one feature as often as it is nearest;
    *_collisions_*: 1 − |unique best matches| / n. shared: features of the smaller side with the same partner in both
    matchings, above 0.7 in both; index_agreement: with the same partner.
    *_found_in_all: share of a member's features matched above 0.7 with every other member.

    *_floor: the larger of two nulls' means over `draws` draws: a random rotation of B, and Gaussian features with B's
    mean and covariance (decoder and encoder jointly). The table `floors` has every value with both nulls, and the
    closed form for uniform directions where there is one.

    Values are means over all pairs; from 4 SAEs on with a 95% interval by leaving one SAE out at a time. `kinds` maps a
    label to patterns of names, for a table within and across kinds. Undefined where an SAE has no encoder or decoder
    weights or no alive feature. Source: Sharkey et al. 2022 (max-cosine), Paulo and Belrose 2025 (Hungarian matching).

    Values:
        decoder_matched, encoder_matched: Σ of the matched cosines / max(n_A, n_B), a mean over pairs; cosine;
            -1 .. 1; higher is better.
        decoder_matched_over_smaller, encoder_matched_over_smaller: the same sum / min(n_A, n_B); cosine; -1 ..
            1; higher is better.
        decoder_matched_floor, decoder_matched_over_smaller_floor, encoder_matched_floor,
            encoder_matched_over_smaller_floor: the same by chance; cosine; -1 .. 1; no better direction.
        decoder_share_above_*, encoder_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of
            matched pairs; 0 .. 1; higher is better.
        decoder_max_a_to_b, decoder_max_b_to_a, encoder_max_a_to_b, encoder_max_b_to_a: mean over the features
            of A (of B) of the best match; cosine; -1 .. 1; no better direction.
        decoder_collisions_a_to_b, decoder_collisions_b_to_a, encoder_collisions_a_to_b,
            encoder_collisions_b_to_a: 1 − |unique best matches| / n; share of features; 0 .. 1; no better
            direction.
        *_abs_matched: Σ of the matched |cosines| / max(n_A, n_B), a mean over pairs; cosine; 0 .. 1; higher is
            better.
        *_abs_matched_over_smaller: the same sum / min(n_A, n_B); cosine; 0 .. 1; higher is better.
        *_abs_matched_floor, *_abs_matched_over_smaller_floor: the same by chance; cosine; 0 .. 1; no better
            direction.
        *_abs_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of matched pairs; 0 .. 1;
            higher is better.
        *_abs_max_a_to_b, *_abs_max_b_to_a: mean over the features of A (of B) of the best match; cosine; 0 ..
            1; no better direction.
        *_abs_collisions_a_to_b, *_abs_collisions_b_to_a: 1 − |unique best matches| / n; share of features; 0 ..
            1; no better direction.
        shared: features with one partner in both matchings above 0.7 / min(n_A, n_B); share of features; 0 ..
            1; higher is better.
        index_agreement: features with one partner in both matchings / min(n_A, n_B); share of features; 0 .. 1;
            higher is better.
        *_found_in_all: share of a member's features matched above 0.7 with every other member; share of
            features; 0 .. 1; higher is better.
        *_indices_*, *_cosines_*, *_chance_*: of each feature of the first SAE its partner and their cosine, and
            cosines of one draw of chance, arrays; feature number, or cosine; -1 .. d_sae; no better direction.
        members, pairs, floors, kinds: the same numbers member by member, pair by pair, null by null and kind by
            kind, tables; as above; as above; no better direction.
    """

    name, version, subject = "seed_stability", 1, "group"

    def __init__(
        self, alive_firings: Count = 10, alive_tokens: Some = 1_000_000, draws: Draws = 20, seed: int = 0,
        modes: tuple[Mode, ...] = ("signed", "abs"), kinds: dict[str, list[str]] | None = None,
    ) -> None:  # fmt: skip
        self.alive_firings, self.alive_tokens = alive_firings, alive_tokens
        self.draws, self.seed, self.kinds = draws, seed, kinds or {}
        self.modes: tuple[Mode, ...] = tuple(dict.fromkeys(modes))
        if not self.modes:
            raise ValueError("'modes' names none: expected [signed], [abs] or both")
        views = [_view(space, self.modes[0]) for space in ("decoder", "encoder")]
        self.headline = (*(f"{view}_matched{end}" for view in views for end in ("", "_floor")), "shared")
        every = [_view(space, mode) for space in ("decoder", "encoder") for mode in self.modes]
        self.value_names = (*group_values(every, views, self.draws > 0), "shared", "index_agreement")

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        # The two spaces, for alive features, all and the dead; and for each draw of the two nulls.
        times = 2 * len(self.modes) * (3 + 2 * self.draws)
        return sum(
            times * matching_operations(n, m, d) + self.draws * 8.0 * m * d * d for n, m, d in pair_sizes(subjects)
        )

    def conclude(
        self,
        W_dec: list[Float[Tensor, "d_sae d_out"]],
        W_enc: list[Float[Tensor, "d_in d_sae"]],
        firings: list[Firings],
        subject_name: list[str],
    ) -> dict[str, Value]:
        spaces = [{"decoder": dec, "encoder": enc.T} for dec, enc in zip(W_dec, W_enc, strict=True)]
        alive = [found.counts >= self.alive_firings for found in firings]
        for name, some in zip(subject_name, alive, strict=True):
            if not some.any():
                told = f"fires on {self.alive_firings} of {firings[0].n} tokens"
                lower = " or a lower 'alive_firings'" if self.alive_firings > 1 else ""
                raise Undefined(f"no feature of '{name}' {told}; more tokens{lower} may help")
        pairs = [self._pair(a, b, spaces, alive) for a, b in itertools.combinations(range(len(spaces)), 2)]
        kinds = labelled(subject_name, self.kinds)
        numbers = [np.flatnonzero(some) for some in alive]
        main = {_view(space, self.modes[0]): numbers for space in ("decoder", "encoder")}
        group = Group(subject_name, kinds, pairs, main, [len(some) for some in alive])
        told = f"features that are not 0 on at least {self.alive_firings} of the first {firings[0].n} tokens"
        return {**group.values(), "alive": Notes([f"seed_stability is of {told}"])}

    def _pair(self, a: int, b: int, spaces: Sequence[Spaces], alive: Sequence[np.ndarray]) -> Pair:
        ours, theirs = _taken(spaces[a], alive[a]), _taken(spaces[b], alive[b])
        main = self._matched(ours, theirs)
        views = dict(main)
        if alive[a].all() and alive[b].all():
            views |= {f"all_{view}": found for view, found in main.items()}
        else:
            views |= {f"all_{view}": found for view, found in self._matched(spaces[a], spaces[b]).items()}
        if not alive[a].all() and not alive[b].all():
            dead = self._matched(_taken(spaces[a], ~alive[a]), _taken(spaces[b], ~alive[b]))
            views |= {f"dead_{view}": found for view, found in dead.items()}
        key, floors, examples = pair_seed(self.seed, a, b), {}, []
        for name, null in (("rotated", rotations), ("gaussian", gaussians)):
            floors[name], example = self._chance(ours, null(theirs, key, self.draws))
            examples += example
        chance = {view: max((e[view] for e in examples), key=lambda m: m.total) for view in main} if examples else {}
        return Pair(a, b, views, self._numbers(main), floors, chance, self._closed(ours, theirs))

    def _chance(self, ours: Spaces, null: Iterator[Spaces]) -> tuple[list[Numbers], list[dict[str, Matching]]]:
        """The numbers of all draws, and the matchings of the first."""
        numbers: list[Numbers] = []
        first: list[dict[str, Matching]] = []
        for drawn in null:
            found = self._matched(ours, drawn)
            numbers.append(self._numbers(found))
            first = first or [found]
        return numbers, first

    def _matched(self, ours: Spaces, theirs: Spaces) -> dict[str, Matching]:
        from saeval_stability.matching import match  # late: a compiler is loaded, and only a run needs it

        both = itertools.product(ours, self.modes)
        return {_view(space, mode): match(ours[space], theirs[space], mode) for space, mode in both}

    def _numbers(self, views: Mapping[str, Matching]) -> Numbers:
        dec, enc = (views[_view(space, self.modes[0])] for space in ("decoder", "encoder"))
        return {**flattened(views), "shared": shared(dec, enc), "index_agreement": agreement(dec, enc)}

    def _closed(self, ours: Spaces, theirs: Spaces) -> Numbers:
        found: Numbers = {}
        for space, mode in itertools.product(ours, self.modes):
            n_a, n_b, d = len(ours[space]), len(theirs[space]), ours[space].shape[1]
            found[f"{_view(space, mode)}_max_a_to_b"] = iid_best(n_b, d, mode == "abs")
            found[f"{_view(space, mode)}_max_b_to_a"] = iid_best(n_a, d, mode == "abs")
        return found


def _view(space: str, mode: Mode) -> str:
    return space if mode == "signed" else f"{space}_abs"


def _taken(spaces: Spaces, which: np.ndarray) -> Spaces:
    index = torch.from_numpy(np.flatnonzero(which))
    return {name: x[index.to(x.device)] for name, x in spaces.items()}
