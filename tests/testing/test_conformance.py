"""`check_metric` on metrics that are wrong, each in its own way, and on sound ones of every shape."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np
import pytest
import torch

from saeval import (
    Array,
    Curve,
    Ever,
    Evidence,
    Histogram,
    Mean,
    Metric,
    Moments,
    Ratio,
    Sample,
    Scalar,
    Table,
    Undefined,
)
from saeval.stats.evidence import Evidence as Base
from saeval.stats.randomness import hashed, normal
from saeval.testing import check_metric
from saeval.testing.claims import every

STATE = "so its numbers would depend on their order"
BATCHES = "it depends on how rows are split into batches"
PADDING = "it reads positions outside the mask, or counts them"
SHIFT = "it treats one position of the row, such as position 0, differently"
NO_REASON = r"is not finite \(the value is nan\) and has no reason; give one: raise Undefined"


class Planted(Metric):
    """The mean of the features' sum, which each planted metric spoils."""

    version = 1

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


# ---- those of values


class NotANumber(Planted):
    name = "not_a_number"

    def conclude(self, total):
        return {"mean": Scalar(total.value), "ratio": Scalar(float("nan"))}


class NeverANumber(Planted):
    name = "never_a_number"

    def conclude(self, total):
        return Scalar(total.value * float("nan"))


class NeverDefined(Planted):
    name = "never_defined"

    def conclude(self, total):
        raise Undefined("it needs labels")


class MinusOne(Planted):
    name = "minus_one"

    def conclude(self, total):
        return Scalar(total.value.value if total.value.value > 1e9 else -1, unit="share of features")


class NotANumberArray(Planted):
    name = "not_a_number_array"

    def conclude(self, total):
        return {"mean": Scalar(total.value), "by_feature": Array(np.full(4, np.nan))}


# ---- those of state and of writing


class OnSelf(Planted):
    name = "on_self"

    def __init__(self):
        self.sum = 0.0

    def observe(self, feature_acts, mask):
        self.sum += float(feature_acts.sum())
        return Mean.of(feature_acts.sum(-1) + self.sum, mask)


class OnClass(Planted):
    name = "on_class"
    seen: list[int] = []  # noqa: RUF012

    def observe(self, feature_acts, mask):
        self.seen.append(1)
        return Mean.of(feature_acts.sum(-1) * len(self.seen), mask)


class ThroughNumpy(Planted):
    name = "through_numpy"

    def observe(self, feature_acts, mask):
        acts = feature_acts.numpy()
        acts[acts < 1] = 0
        return Mean.of(feature_acts.sum(-1), mask)


class LaterThroughNumpy(Planted):
    """Writes in later batches only."""

    name = "later_through_numpy"

    def observe(self, feature_acts, mask, batch):
        if batch.sequence_ids[0] > 0:
            feature_acts.numpy()[:] = 1
        return Mean.of(feature_acts.sum(-1), mask)


COUNT = 0


class GlobalCounter(Planted):
    name = "global_counter"

    def observe(self, feature_acts, mask):
        global COUNT
        COUNT += 1
        return Mean.of(feature_acts.sum(-1) + 1e-3 * COUNT, mask)


def remembered(x, seen=[]):  # noqa: B006
    seen.append(x)
    return x + 0.01 * len(seen)


class MutableDefault(Planted):
    name = "mutable_default"

    def observe(self, feature_acts, mask):
        return Mean.of(remembered(feature_acts.sum(-1)), mask)


@functools.cache
def largest(width):
    return [0.0]


class CachedMaximum(Planted):
    """A memo that is no constant."""

    name = "cached_maximum"

    def observe(self, feature_acts, mask):
        largest(1)[0] = max(largest(1)[0], float(feature_acts.max())) * 1.01
        return Mean.of(feature_acts.sum(-1) / largest(1)[0], mask)


class AgainstTheFirst(Planted):
    """Relative to the first SAE of the run."""

    name = "against_the_first"

    def observe(self, feature_acts, mask, batch):
        base = vars(batch).setdefault("base", feature_acts.sum(-1))
        return Mean.of(feature_acts.sum(-1) / (1 + base), mask)


class Dropout(Planted):
    name = "dropout"

    def observe(self, feature_acts, mask):
        return Mean.of(torch.nn.functional.dropout(feature_acts, training=True).sum(-1), mask)


class Unseeded(Planted):
    name = "unseeded"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) * np.random.default_rng().random(), mask)


# ---- those of sums


@dataclasses.dataclass(frozen=True)
class Sums(Evidence):
    top: float
    below: float


class BatchMeans(Planted):
    name = "batch_means"

    def observe(self, feature_acts, mask):
        return Sums(float(feature_acts.sum(-1)[mask].mean()), 1.0)

    def conclude(self, total):
        return Scalar(total.top / total.below)


class BatchRatios(Planted):
    """The mean of the batches' ratios for the ratio of the sums."""

    name = "batch_ratios"

    def observe(self, activations, reconstruction, mask):
        ratio = (activations - reconstruction)[mask].square().sum() / activations[mask].square().sum()
        return Sums(float(ratio) * len(mask), float(len(mask)))

    def conclude(self, total):
        return Scalar(total.top / total.below)


class BatchMaxima(Planted):
    name = "batch_maxima"

    def observe(self, feature_acts, mask):
        return Sums(float(feature_acts[mask].max()), 1.0)

    def conclude(self, total):
        return Scalar(total.top / total.below)


class BatchVariance(Planted):
    """Centred by each batch's own mean."""

    name = "batch_variance"

    def observe(self, activations, mask):
        return Mean.of((activations - activations[mask].mean(0)).square().sum(-1), mask)


class BatchIndex(Planted):
    name = "batch_index"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) * torch.arange(len(mask))[:, None], mask)


class FirstBatch(Sums):
    def __add__(self, other):
        return self


class LastBatch(Sums):
    def __add__(self, other):
        return other


class OnlyFirst(Planted):
    name = "only_first"
    evidence = FirstBatch

    def observe(self, feature_acts, mask):
        return self.evidence(float(feature_acts.sum(-1)[mask].double().sum()), float(mask.sum()))

    def conclude(self, total):
        return Scalar(total.top / total.below)


class OnlyLast(OnlyFirst):
    name = "only_last"
    evidence = LastBatch


class Documents(Planted):
    """Documents, counted batch by batch."""

    name = "documents"

    def observe(self, mask, batch):
        return Sums(float(len(np.unique(batch.clusters))), 1.0)

    def conclude(self, total):
        return Scalar(total.top)


@dataclasses.dataclass(frozen=True)
class Tensors(Evidence):
    sum: torch.Tensor
    n: int


class Float32Sum(Planted):
    name = "float32_sum"
    dtype = torch.float32

    def observe(self, feature_acts, mask):
        return Tensors(feature_acts.sum(-1)[mask].to(self.dtype).sum(), int(mask.sum()))

    def conclude(self, total):
        return Scalar(float(total.sum) / total.n)


class Float16Sum(Float32Sum):
    name = "float16_sum"
    dtype = torch.float16


@dataclasses.dataclass(frozen=True)
class Running(Base):
    """Adds in float32, and shows a float."""

    sum: float
    n: int

    def __add__(self, other):
        return Running(float(np.float32(self.sum) + np.float32(other.sum)), self.n + other.n)


class HiddenFloat32(Planted):
    """A running sum in float32 whose evidence looks like float64."""

    name = "hidden_float32"

    def observe(self, feature_acts, mask):
        return Running(float(feature_acts.sum(-1)[mask].sum()), int(mask.sum()))

    def conclude(self, total):
        return Scalar(total.sum / total.n)


class BatchArray(Planted):
    """A sound number beside an array that is not."""

    name = "batch_array"

    def observe(self, feature_acts, mask):
        most = feature_acts.amax((0, 1)).double().numpy()
        return {"mean": Mean.of(feature_acts.sum(-1), mask), "most": Maxima(most)}

    def conclude(self, total):
        return {"mean": Scalar(total["mean"].value), "most": Array(total["most"].sums)}


@dataclasses.dataclass(frozen=True)
class Maxima(Base):
    sums: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spread(Base):
    """Sums of the batches' means and of their squares."""

    n: int
    sum: float
    squares: float


class BatchError(Planted):
    """A standard error over batches."""

    name = "batch_error"

    def observe(self, feature_acts, mask):
        mean = float(feature_acts.sum(-1)[mask].mean())
        return {"mean": Mean.of(feature_acts.sum(-1), mask), "spread": Spread(1, mean, mean**2)}

    def conclude(self, total):
        spread = total["spread"]
        variance = max(spread.squares / spread.n - (spread.sum / spread.n) ** 2, 1e-12)
        return Scalar(total["mean"].value.value, stderr=(variance / spread.n) ** 0.5)


class TokenError(Planted):
    """The standard deviation over tokens, divided by their root, as if they were independent."""

    name = "token_error"

    def observe(self, feature_acts, mask):
        return {"x": Mean.of(feature_acts.sum(-1), mask), "square": Mean.of(feature_acts.sum(-1).square(), mask)}

    def conclude(self, total):
        mean, square = (total[name].value.value for name in ("x", "square"))
        return Scalar(mean, stderr=((square - mean**2) / total["x"].n.sum()) ** 0.5)


# ---- those of positions and of what a batch holds besides


class Unmasked(Planted):
    name = "unmasked"

    def observe(self, feature_acts):
        return Mean.of(feature_acts.sum(-1))


class PaddingCounted(Planted):
    name = "padding_counted"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) * mask)


class LastColumn(Planted):
    """The last column for the last token."""

    name = "last_column"

    def observe(self, feature_acts):
        return Mean.of(feature_acts[:, -1].sum(-1))


class WrongSide(Planted):
    """The chosen side's features under the rejected side's mask."""

    name, data = "wrong_side", "pair"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts[0].sum(-1), mask[1])


class WithoutTheFirst(Planted):
    name = "without_the_first"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1), mask & (torch.arange(mask.shape[1]) > 0))


class FirstTwice(Planted):
    name = "first_twice"

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) * (1 + (torch.arange(mask.shape[1]) == 0)), mask)


class DocumentNumbers(Planted):
    name = "document_numbers"

    def observe(self, feature_acts, mask, batch):
        return Mean.of(feature_acts.sum(-1) * torch.as_tensor(batch.clusters)[:, None], mask)


class RowOrder(Planted):
    """Later tokens of the stream count more."""

    name = "row_order"

    def observe(self, feature_acts, mask, token_ranks):
        return Mean.of(feature_acts.sum(-1) / (1 + token_ranks), mask)


class Unreduced(Planted):
    """An error of shape [batch, seq, d]."""

    name = "unreduced"

    def observe(self, activations, reconstruction, mask):
        return Mean.of((activations - reconstruction).square(), mask)


class Broadcast(Planted):
    name = "broadcast"

    def observe(self, activations, reconstruction, mask):
        return Mean.of(((activations - reconstruction) * mask).sum(-1), mask)


class OwnFloat32(Planted):
    name = "own_float32"

    def observe(self, feature_acts, mask):
        return Mean.of((feature_acts @ torch.ones(32, 1))[..., 0], mask)


WRONG = [
    # Those that were known.
    (NotANumber, NO_REASON),
    (NeverANumber, NO_REASON),
    (NotANumberArray, "by_feature is NaN throughout"),
    (NeverDefined, r"has no value on the tiny model and data, so nothing can be tested \(it needs labels\)"),
    (MinusOne, "minus_one is -1 for every SAE: if the value does not exist"),
    (OnSelf, f"sets its attribute 'sum'.*{STATE}; return what you count as evidence"),
    (Float32Sum, "observe returns 'sum' of Tensors in float32, which loses digits as batches are added"),
    (HiddenFloat32, "with batch size 1 and a model in float64.*it sums in less than float64"),
    (WithoutTheFirst, SHIFT),
    (ThroughNumpy, r"writes in place into 'feature_acts'.*feature_acts\.clone\(\)"),
    (BatchArray, f"most is an array.*{BATCHES}"),
    (BatchError, f"stderr is .*{BATCHES}"),
    (Unreduced, r"ratios of shape \[16\].*reduce values \[batch, seq, d\] to \[batch, seq\]"),
    (Broadcast, r"write mask\[\.\.\., None\]"),
    # Others.
    (LaterThroughNumpy, "failed.*writes in place into 'feature_acts'"),
    (OnClass, f"'seen', which outlives the call.*{STATE}"),
    (GlobalCounter, "with the same run again.*keep nothing in globals"),
    (MutableDefault, "with the same run again.*in default arguments"),
    (CachedMaximum, "with the same run again.*it keeps state between them"),
    (AgainstTheFirst, "tinysae-1 alone.*another SAE of the same run changes it"),
    (Dropout, r"another seed.*it draws from a global random generator \(torch.rand, dropout.*token_keys"),
    (Unseeded, "with the same run again.*draws unseeded random numbers"),
    (BatchMeans, f"batch size 7.*{BATCHES}: a mean"),
    (BatchRatios, f"batch size 7.*{BATCHES}.*return sums and counts.*divide in conclude"),
    (BatchMaxima, f"batch size 7.*{BATCHES}: a mean or maximum within each batch"),
    (BatchVariance, BATCHES),
    (BatchIndex, f"{BATCHES}.*a row's place in its batch"),
    (OnlyFirst, f"{BATCHES}.*the first or last batch kept"),
    (OnlyLast, f"{BATCHES}.*the first or last batch kept"),
    (Documents, BATCHES),
    (Float16Sum, "in float16, which loses digits"),
    (TokenError, "it is over tokens or rows, but those of one document are not independent"),
    (Unmasked, f"{PADDING}; pass the mask"),
    (PaddingCounted, PADDING),
    (LastColumn, PADDING),
    (WrongSide, f"other token ids in the padding.*{PADDING}"),
    (FirstTwice, SHIFT),
    (DocumentNumbers, "it computes with document ids, which are only names"),
    (RowOrder, "rows in another order.*it depends on the order of rows"),
    (OwnFloat32, r"a model in float64\): RuntimeError.*convert your own tensors, as in y.to\(x.dtype\)"),
]


@pytest.mark.parametrize(("metric", "said"), WRONG, ids=[m.name for m, _ in WRONG])
def test_a_wrong_metric_is_caught_with_its_cause(metric, said):
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        check_metric(metric)


def test_the_table_is_long_enough():
    assert len({metric for metric, _ in WRONG}) == len(WRONG) >= 15 + 10


# ---- those of documentation, and of no token


class Undocumented(Metric):
    name = "undocumented"

    def conclude(self, W_dec):
        return Scalar(float(W_dec.double().norm()))


class MalformedValues(Undocumented):
    """The norm of the decoder.

    Values:
        malformed_values: ‖W_dec‖; ≥ 0; no better direction.
    """

    name = "malformed_values"


class UnguardedMean(Metric):
    """The mean norm over tokens that it selects itself."""

    name = "unguarded_mean"

    def observe(self, activations, batch):
        return Mean.of(activations.norm(dim=-1), batch.mask)

    def conclude(self, total):
        return Scalar(total.value)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Undocumented, "undocumented has no docstring: say in its first line"),
        (MalformedValues, "the docstring of metric 'malformed_values': .* is not 'NAMES: EQUATION; UNIT; RANGE; DIR"),
        (UnguardedMean, "the value is nan.* where no token is in the mask; guard it: raise Undefined"),
    ],
)
def test_documentation_and_empty_masks_are_checked(metric, said):
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        check_metric(metric)


# ---- sound ones


class Overlap(Metric):
    """Group: how often each feature of both fires with its namesake; a share a feature, and one for all."""

    name, version, subject = "overlap", 1, "group"

    def observe(self, feature_acts, mask):
        both = (feature_acts[0] > 0) & (feature_acts[1] > 0)
        return {"each": Mean.of(both.double(), mask), "any": Mean.of(both.any(-1).double(), mask)}

    def conclude(self, total, W_dec):
        each = total["each"]
        cosines = torch.nn.functional.cosine_similarity(W_dec[0], W_dec[1])
        return {
            "any": Scalar(total["any"].value, unit="share of tokens"),
            "each": Array(each.numerator.sum(0) / np.maximum(each.denominator.sum(0), 1)),
            "cosine": Scalar(float(cosines.double().mean()), unit="cosine"),
        }


class Kept(Metric):
    """Pairs: the margin with parts of the activations' norm kept, as a curve and a table."""

    name, version, data = "kept", 1, "pair"
    interventions = ("half", "most")

    def substitutes(self, activations):
        return {"half": activations * 0.5, "most": activations * 0.9}

    def observe(self, substitute_reward, clean_reward):
        margin = clean_reward[0] - clean_reward[1]
        return {
            name: Ratio.of(substitute_reward[0][name] - substitute_reward[1][name], margin.abs())
            for name in self.interventions
        }

    def conclude(self, total):
        values = [total[name].value for name in self.interventions]
        rows = [[name, value, "positive" if value.value > 0 else "negative"] for name, value in total_items(values)]
        return {
            "margin": Curve([0.5, 0.9], values, "factor", "of the margin"),
            "rows": Table(["part", "x", "sign"], rows),
        }


def total_items(values):
    return zip(Kept.interventions, values, strict=True)


class Norms(Metric):
    """Neither SAE nor group: quantiles of the activations' norm at a hook, with noise keyed by token."""

    name, version, subject = "norms", 1, "none"

    def observe(self, tokens, mask, token_keys):
        noise = normal(hashed(0, token_keys), 1)[..., 0].to(tokens.device)
        x = tokens.double() + noise
        return {"counts": Histogram.of(x, mask, np.linspace(-5, 60, 66)), "mean": Mean.of(x, mask)}

    def conclude(self, total):
        quantiles = {f"q{q}": Scalar(total["counts"].quantile(q / 100)) for q in (10, 50, 90)}
        return {**quantiles, "mean": Scalar(total["mean"].value, unit="tokens")}


class Latest(Metric):
    """By position, with a sample and what ever fired; undefined where nothing did."""

    name, version = "latest", 1

    def observe(self, feature_acts, mask):
        place = torch.arange(mask.shape[1]).expand_as(mask).double()
        return {
            "place": Ratio.of(place * (feature_acts > 0).any(-1), (feature_acts > 0).any(-1).double(), mask),
            "rows": Sample.of(feature_acts, mask, size=5),
            "ever": Ever.of(feature_acts > 0, mask),
            "moments": Moments.of(feature_acts, mask),
        }

    def conclude(self, total):
        if not total["ever"].count:
            raise Undefined("no feature fires")
        return {
            "place": Scalar(total["place"].value),
            "of_sample": Scalar(float(total["rows"].rows.astype(np.float64).mean())),
            "share": Scalar(total["ever"].share),
            "mean": Scalar(float(total["moments"].mean.mean())),
        }


class Opposite(Metric):
    """A cosine that is exactly -1."""

    name, version = "opposite", 1

    def conclude(self, W_dec):
        w = W_dec.double()
        return Scalar(float(torch.nn.functional.cosine_similarity(w, -w).mean().round(decimals=9)), unit="cosine")


@pytest.mark.parametrize(
    ("metric", "options"),
    [(Overlap, {}), (Kept, {}), (Norms, {}), (Latest, {"by_position": ["place", "of_sample"]}), (Opposite, {})],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_sound_metric_passes(metric, options):
    numbers = check_metric(metric, **options)
    assert numbers
    assert every(value is not None for value in numbers.values())


def test_a_metric_of_positions_says_so():
    with pytest.raises(AssertionError, match=re.escape("check_metric(..., by_position=[")):
        check_metric(Latest)
