"""`Certificate`: how far each value of a suite can be trusted, as `saeval certify` stores it beside the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from saeval.base.errors import SaevalError
from saeval.base.fingerprint import digest_of
from saeval.base.formatting import counted, number
from saeval.base.sealed_json import DamagedError, sealed, unsealed
from saeval.base.whole_files import write_whole
from saeval.results.comparability import configurations, ground
from saeval.results.result import Result

FILE = "certificate.json"
FORM = 1
LEAST_APART = 0.5
"""Share of pairs of SAEs that a value has to tell apart to rank them."""
MOST_NOISE = 0.5
"""Most that its own draws, or the training seed, may move a value that ranks SAEs, in spreads between SAEs."""
SAME = 0.95
"""Rank correlation from which on two values say the same."""

Verdict = Literal["ranking", "controls", "unusable", "undecided", "describes"]
IN_WORDS: Mapping[Verdict, str] = {
    "ranking": "usable for ranking",
    "controls": "usable against controls only",
    "unusable": "not usable here",
    "undecided": "undecided",
    "describes": "describes, without a better direction",
}
MARKS: Mapping[Verdict, str] = {"ranking": "✓", "controls": "†", "unusable": "✗", "undecided": "?", "describes": ""}


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval, from `n` units; the ends are None where there is no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def words(self) -> str:
        ends = "" if self.low is None else f" [{number(self.low, 2)}, {number(self.high, 2)}]"
        return f"{number(self.value, 2)}{ends}"


@dataclass(frozen=True)
class Order:
    """How often a value puts one kind of rows before another: the share of SAEs whose row of the first is better."""

    better: str
    worse: str
    share: Interval | None
    """None: their values are the same for every SAE, by construction."""


@dataclass(frozen=True)
class Dose:
    """What a growing damage does to a value."""

    damage: str
    tau: Interval | None
    """Kendall's tau of the dose and of how bad the value is, the mean over SAEs; None if it does not change."""
    detected: float | None = None
    """The smallest dose that is significant for half of the SAEs; None if none is."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with another value over the SAEs, oriented so that 1 is the same order of quality."""

    column: str
    rho: Interval


@dataclass(frozen=True)
class Certified:
    """What a certificate says of one value."""

    column: str
    """`metric.value`."""
    verdict: Verdict = "undecided"
    reasons: Sequence[str] = ()
    """Why, in sentences without a full stop."""
    of: str = "SAE"
    """What it is a value of: `SAE` or `group`."""
    better: str | None = None
    unit: str = ""
    stderr: float | None = None
    """The median of its standard errors over SAEs: what other documents would change."""
    documents: int | None = None
    """The number of documents that would halve it."""
    spread: float | None = None
    """The standard deviation between SAEs at one hook."""
    evaluation: Interval | None = None
    """The standard deviation over seeds of what the metric draws, for one SAE; None for a metric that draws nothing."""
    training: Interval | None = None
    """The standard deviation over the training seeds of one recipe; None without groups of seeds."""
    apart: Interval | None = None
    """Share of the pairs of SAEs at one hook that paired tests tell apart, Holm-corrected."""
    difference: float | None = None
    """The median difference of the pairs told apart, as a share of the larger of both values: what a sure difference
    amounts to."""
    orders: Sequence[Order] = ()
    doses: Sequence[Dose] = ()
    same: Sequence[Correlation] = ()
    """The values that rank the SAEs most alike, the closest first."""
    truths: Sequence[Correlation] = ()
    """Correlations with the values that know the true features; those of metrics that know them have none."""

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]

    @property
    def words(self) -> str:
        """The verdict with its reasons."""
        return IN_WORDS[self.verdict] + (f": {'; '.join(self.reasons)}" if self.reasons else "")


@dataclass(frozen=True)
class Certificate:
    """What is certified of the values of a suite, with what it holds for: this model, text and these metrics."""

    suite: str
    saes: int
    values: Sequence[Certified]
    ground: str = ""
    """A hash of model and data."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """By metric, a hash of its configuration."""
    limit: int | None = None
    """The number of sequences of a run with `--limit`."""

    def write(self, folder: Path) -> Path:
        """Write it into a results folder, and return the file."""
        record = {"form": FORM, **asdict(self)}
        path = folder / FILE
        write_whole(path, sealed(_plain(record), indent=1), "--out")
        return path

    def on(self, results: Sequence[Result]) -> dict[str, Certified]:
        """Return what it says of the values of these results, by column; empty unless model and data are the same."""
        if not results or ground(results[0].cell) != self.ground:
            return {}
        current = digests(results)
        return {one.column: one for one in self.values if self._holds(one.column.split(".", 1)[0], current)}

    def _holds(self, metric: str, current: Mapping[str, str]) -> bool:
        return metric in current and self.metrics.get(metric) == current[metric]


def stored(folder: Path | str) -> Certificate | None:
    """Return the certificate in a results folder; None where there is none. `SaevalError` for a damaged one."""
    path = Path(folder) / FILE
    try:
        record = unsealed(path.read_bytes())
        if record.get("form") != FORM:
            return None
        values = [Certified(one["column"], one["verdict"], tuple(one["reasons"])) for one in record["values"]]
        if any(one.verdict not in MARKS for one in values):
            raise DamagedError("it has an unknown verdict")
        return Certificate(
            str(record["suite"]), int(record["saes"]), values, str(record["ground"]), dict(record["metrics"])
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DamagedError, KeyError, TypeError, ValueError) as error:
        raise SaevalError(f"{path}: not readable ({error}); run `saeval certify` again, or delete it") from None


def digests(results: Iterable[Result]) -> dict[str, str]:
    """Return a hash of the configuration of each metric."""
    return {name: digest_of(own) for name, own in configurations(results).items()}


def verdict(found: Certified) -> tuple[Verdict, list[str]]:
    """Return the verdict on what was found of a value, with its reasons.

    Not usable: it is the same for everything; it ranks a control before the SAEs; it tells the SAEs from no control; it
    gets better under a damage, or responds to none; what it draws moves it as much as the SAEs differ; it contradicts
    the truth. Else for ranking, if it tells apart `LEAST_APART` of the pairs of SAEs, neither its draws nor the
    training seed move it by more than `MOST_NOISE` of the spread between SAEs, it tells SAEs from every control, and it
    agrees with the truth, where that is known.
    """
    if found.better is None:
        return "describes", []
    wrong = [*_order(found.orders), *_dose(found.doses), *_noise(found), *_truth(found.truths)]
    if found.spread == 0 and not any(order.share for order in found.orders):
        return "unusable", ["it is the same for all SAEs and controls"]
    if wrong:
        return "unusable", wrong
    judged = [order.share for order in found.orders if order.share and order.better == TRAINED]
    responses = [dose.tau for dose in found.doses if dose.tau]
    if not judged and not responses:
        if found.orders and found.doses:
            return "unusable", ["no control and no damage changes it"]
        return "undecided", ["no control and no damage could be tested on it"]
    if judged and not any(share.low is not None and share.low > 0.5 and share.n >= ENOUGH for share in judged):
        few = max(share.n for share in judged)
        return "undecided", [f"{counted(few, found.of)}: too few to say whether it tells them from controls"]
    if not judged and not any(tau.low is not None and tau.low > 0 for tau in responses):
        few = max(tau.n for tau in responses)
        return "undecided", [f"{counted(few, found.of)}: too few to say whether it gets worse with damage"]
    limits = _limits(found)
    return ("controls", limits) if limits else ("ranking", [])


def _order(orders: Sequence[Order]) -> list[str]:
    judged = [order for order in orders if order.share and order.better == TRAINED]
    before = [o.worse for o in judged if o.share and o.share.high is not None and o.share.high < 0.5]
    if before:
        return [f"it ranks {', '.join(before)} before the SAEs"]
    known = [o.share for o in judged if o.share]
    if known and max(share.n for share in known) >= ENOUGH and all(share.value <= MOST_UNTOLD for share in known):
        return [f"it does not tell the SAEs from {' or '.join(o.worse for o in judged)}"]
    return []


def _dose(doses: Sequence[Dose]) -> list[str]:
    judged = [(dose.damage, dose.tau) for dose in doses if dose.tau]
    rising = [name for name, tau in judged if tau.high is not None and tau.high < 0]
    if rising:
        return [f"it gets better with {', '.join(rising)}"]
    known = [tau for _, tau in judged if tau.low is not None]
    unclear = known and all(tau.low <= 0 for tau in known if tau.low is not None)
    if unclear and max(tau.n for tau in known) >= ENOUGH:
        return [f"it does not get worse with {' or '.join(name for name, _ in judged)}"]
    return []


def _noise(found: Certified) -> list[str]:
    noise = found.evaluation
    if noise and found.spread is not None and noise.value >= found.spread and noise.value > 0:
        return [f"its own draws move it by {number(noise.value, 2)}, and the SAEs differ by {number(found.spread, 2)}"]
    return []


def _truth(truths: Sequence[Correlation]) -> list[str]:
    against = [one.column for one in truths if one.rho.high is not None and one.rho.high < 0]
    return [f"it ranks SAEs against the truth ({', '.join(against)})"] if against and not _agrees(truths) else []


def _agrees(truths: Sequence[Correlation]) -> bool:
    return any(one.rho.low is not None and one.rho.low > 0 for one in truths)


def _limits(found: Certified) -> list[str]:
    """Return why a value that is better than controls for SAEs cannot rank these."""
    limits = []
    judged = [(order.worse, order.share) for order in found.orders if order.share and order.better == TRAINED]
    if untold := [name for name, share in judged if share.n >= ENOUGH and share.value <= MOST_UNTOLD]:
        limits.append(f"it does not tell the SAEs from {' or '.join(untold)}")
    if found.apart is None:
        why = "it has no error bars" if found.spread is not None else "no two SAEs are at one hook"
        limits.append(f"no two SAEs could be compared: {why}")
    elif found.apart.value < LEAST_APART:
        limits.append(f"it tells apart {found.apart.value:.0%} of the pairs of SAEs")
    for noise, words in ((found.evaluation, "its own draws"), (found.training, "the training seed")):
        if noise and found.spread and noise.value > MOST_NOISE * found.spread:
            size = f"{number(noise.value, 2)}, and SAEs differ by {number(found.spread, 2)}"
            limits.append(f"{words} {'moves' if 'seed' in words else 'move'} it by {size}")
    if found.truths and not _agrees(found.truths):
        each = ", ".join(f"{one.column} {one.rho.words}" for one in found.truths)
        limits.append(f"it is not seen to rank SAEs as the truth does (rank correlations {each})")
    return limits


TRAINED = "trained"
ENOUGH = 5
"""SAEs below which shares and responses decide nothing: all of five agree by chance in 3 of 100 cases, of four in 6."""
MOST_UNTOLD = 0.75
"""Share of SAEs that are better than a control up to which the value does not tell them apart; above it, and with an
interval that includes one half, more SAEs are needed to say."""


def _plain(value: Any) -> Any:
    """Return a record with lists for tuples and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
