"""The metric `near_duplicates`: features of later SAEs that an earlier SAE already has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from saeval.plugin import Array, Metric, Repeats, Scalar, Table, Undefined, Value, torch
from saeval_stability.firing import Activity
from saeval_stability.floors import rotations

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject
    from saeval_stability.activities import Member

Some = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
_ROWS = 512


class _Best(NamedTuple):
    """For each feature of the later SAE: its best similarity to a feature of the earlier one, and that feature."""

    value: Float[np.ndarray, "n"]
    partner: Int[np.ndarray, "n"]


class NearDuplicates(Metric):
    """Share of a later SAE's features that are near-duplicates of an earlier SAE's, by decoder and by co-firing.

    For every pair of the group, in its order, each feature of the second SAE is compared with all features of the
    first: decoder_* by the cosine of decoder rows, above `cosine`; cofiring_* by the Jaccard index, (tokens on which
    both fire) / (tokens on which either fires), above `jaccard`. Several features may share a partner. Only features
    count that fire on at least `alive_firings` of the first `fit_tokens` tokens of the fit split, which also give the
    Jaccard indices. Values are means over pairs; the table `pairs` has each.

    *_floor: the same share after a random rotation of the first SAE's decoder, or after a circular shift of its tokens
    by whole documents, a mean over `draws`.

    Values:
        decoder_share: share of features with a decoder cosine above `cosine`; share of features; 0 .. 1; no better
            direction.
        cofiring_share: share of features with a Jaccard index above `jaccard`; share of features; 0 .. 1; no better
            direction, depends on the number of tokens: features that fire on few of them coincide by chance.
        both_share: share of features above both, with the same partner; share of features; 0 .. 1; no better
            direction, depends on the number of tokens: features that fire on few of them coincide by chance.
        decoder_floor: decoder_share under chance; share of features; 0 .. 1; no better direction.
        cofiring_floor: cofiring_share under chance; share of features; 0 .. 1; no better direction, depends on the
            number of tokens: features that fire on few of them coincide by chance.
        pairs, duplicates: the values of each pair, and the most similar features, tables; as above; as above; no better
            direction.
        partners_*, cosines_*, jaccards_*: the partner of each later feature by cosine, and its best similarities,
            arrays; feature number, cosine or Jaccard index; -1 .. d_sae; no better direction.

    Claims:
        decoder_share, cofiring_share, both_share: a share of the later features repeats earlier ones; null: none is
            tested; compare the floor beside it; needs: 10 firings of each counted feature, 2 SAEs, 1 seed; not: that
            the model copies the feature, or that the others are new.
        decoder_floor, cofiring_floor: nothing on its own; null: is one itself; needs: 2 SAEs; not: a comparison of
            floors at different numbers of features.

    Source: decoder cosine and co-firing as in Bricken et al. 2023.
    """

    name, version, subject = "near_duplicates", 1, "group"
    headline = ("decoder_share", "cofiring_share", "both_share")
    value_names = ("decoder_share", "cofiring_share", "both_share", "decoder_floor", "cofiring_floor")

    def __init__(
        self, cosine: Share = 0.9, jaccard: Share = 0.5, alive_firings: Some = 10, fit_tokens: Some = 200_000,
        draws: Annotated[Repeats, Field(ge=0)] = 3, seed: int = 0, shown: Annotated[int, Field(ge=0)] = 40,
    ) -> None:  # fmt: skip
        self.cosine, self.jaccard, self.alive_firings, self.fit_tokens = cosine, jaccard, alive_firings, fit_tokens
        self.draws, self.seed, self.shown = draws, seed, shown

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        pairs = itertools.combinations(subjects, 2)
        return sum(
            2.0 * (1 + self.draws) * (a.d_sae or 0) * (b.d_sae or 0) * (a.d_out or a.d_in or 0) for a, b in pairs
        )

    def conclude(
        self, W_dec: list[Float[Tensor, "d_sae d_out"]], fit_activity: list[Activity], subject_name: list[str]
    ) -> dict[str, Value]:
        from saeval_stability.activities import Member  # late: it loads numba, which only a run needs

        members: list[Member] = []
        for name, activity in zip(subject_name, fit_activity, strict=True):
            members += [Member.of(activity, self.alive_firings)] if activity.components()["n"] else []
            if not members or not len(members[-1].alive):
                raise Undefined(f"no feature of '{name}' fires {self.alive_firings} times on the fit split")
        arrays: dict[str, Value] = {}
        columns = ["earlier", "later", "features", *self.value_names]
        rows: list[tuple[str, str, int, list[float | None]]] = []
        duplicates: list[tuple[str, str, int, int, float, float, int]] = []
        for a, b in itertools.combinations(range(len(members)), 2):
            first, second = members[a], members[b]
            decoders = W_dec[a][first.alive], W_dec[b][second.alive]
            fires = _best_jaccard(first, second)
            same_width = decoders[0].shape[1] == decoders[1].shape[1]
            points = _best_cosine(*decoders) if same_width else None
            numbers: list[float | None] = [None, float((fires.value >= self.jaccard).mean()), None, None, None]
            if points is not None:
                both = (points.value >= self.cosine) & (fires.value >= self.jaccard) & (points.partner == fires.partner)
                numbers[0], numbers[2] = float((points.value >= self.cosine).mean()), float(both.mean())
                numbers[3] = _mean([
                    float((_best_cosine(turned["decoder"], decoders[1]).value >= self.cosine).mean())
                    for turned in rotations({"decoder": decoders[0]}, self.seed, self.draws)
                ])  # fmt: skip
                partners, cosines = np.full(len(W_dec[b]), -1), np.full(len(W_dec[b]), np.nan)
                partners[second.alive], cosines[second.alive] = first.alive[points.partner], points.value
                arrays |= {f"partners_{a}_{b}": Array(partners), f"cosines_{a}_{b}": Array(cosines)}
                for k in np.argsort(-points.value, kind="stable")[: self.shown]:
                    same = int(points.partner[k] == fires.partner[k])
                    similar = float(points.value[k]), float(fires.value[k])
                    pair = int(first.alive[points.partner[k]]), int(second.alive[k])
                    duplicates.append((subject_name[a], subject_name[b], *pair, *similar, same))
            shifted = list(first.shifted(self.seed, self.draws))
            numbers[4] = _mean([float((_best_jaccard(m, second).value >= self.jaccard).mean()) for m in shifted])
            jaccards = np.full(len(W_dec[b]), np.nan)
            jaccards[second.alive] = fires.value
            arrays[f"jaccards_{a}_{b}"] = Array(jaccards)
            rows.append((subject_name[a], subject_name[b], len(second.alive), numbers))
        values: dict[str, Value] = {}
        for at, name in enumerate(self.value_names):
            defined = [number for *_, numbers in rows if (number := numbers[at]) is not None]
            unit, mean = "share of features", _mean(defined)
            why = None if defined else "no pair has it: decoders of different widths, one document, or no draws"
            values[name] = Scalar(mean, unit=unit, n=len(defined), reason=why, comparable="hook")
        listed = ["earlier", "later", "earlier_feature", "later_feature", "cosine", "best_jaccard", "same_partner"]
        duplicates.sort(key=lambda row: -row[4])
        return {
            **values,
            "pairs": Table(columns, [[*pair, *numbers] for *pair, numbers in rows]),
            "duplicates": Table(listed, duplicates[: self.shown]),
            **arrays,
        }


def _mean(numbers: Sequence[float]) -> float | None:
    return float(np.mean(numbers)) if numbers else None


def _best_cosine(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> _Best:
    ours, theirs = (torch.nn.functional.normalize(x.double(), dim=1) for x in (first, second))
    return _blockwise(len(theirs), lambda rows: theirs[rows] @ ours.T)


def _best_jaccard(first: Member, second: Member) -> _Best:
    from saeval_stability.coactivation import Jaccard  # late: as above

    similarity = Jaccard(second.firing, first.firing)
    return _blockwise(len(second.alive), lambda rows: similarity.block(rows, None, torch.float64))


def _blockwise(count: int, similarities: Callable[[slice], Any]) -> _Best:
    """The best of each row, a block of rows at a time."""
    parts = [similarities(slice(at, at + _ROWS)).max(1) for at in range(0, count, _ROWS)]
    values, indices = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("values", "indices"))
    return _Best(values.numpy(), indices.numpy())
