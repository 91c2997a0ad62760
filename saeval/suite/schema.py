"""The schema of a suite file, checked before any name in it is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from saeval.base.errors import Problem, SuiteError, suggestion
from saeval.base.names import unfit, unfit_for_files
from saeval.base.parameters import Fault, Location, ParameterError, validated_as
from saeval.base.run_options import MOST_ROWS
from saeval.suite import yaml_marks
from saeval.suite.yaml_marks import Marks


class Leaderboard(BaseModel):
    """The layout of the table; not part of any key."""

    model_config = ConfigDict(extra="forbid")

    rank_by: str | None = None
    """The `metric.value` that orders the rows; by default the first column."""
    columns: list[str] = Field(default_factory=list)
    """Names `metric.value`; by default every scalar of every metric."""
    against: list[str] | dict[str, list[str]] = Field(default_factory=list)
    """Controls with which each SAE is compared in the `rank_by` column, or, as a mapping, in the listed columns."""
    across_hooks: bool = False
    """True: rank SAEs of different hooks together even if the `rank_by` column is comparable within a hook only."""


@dataclass(frozen=True)
class MetricEntry:
    """One configured metric: `- ce: {ablation: zero, as: ce_zero}`."""

    name: str
    alias: str
    params: Mapping[str, Any]
    over: str | None
    location: Location
    controls: tuple[str, ...] | None = None
    """Controls of which the group has twins; None for the default."""
    of: tuple[str, ...] | None = None
    """Names and globs of the SAEs, controls and hooks that it is evaluated on; None for all."""


class JudgeBudget(BaseModel):
    """The keys of `judge:` that limit what a run may ask; not part of any key."""

    model_config = ConfigDict(extra="forbid")

    max_requests: int | None = Field(default=None, ge=0)
    """Most requests that a run may send to the judge."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of requests and replies."""


class SuiteModel(BaseModel):
    """The top level of a suite file."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    suite: str
    model: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    data: str | dict[str, Any]
    judge: str | dict[str, Any] | None = None
    """Who answers questions about features, for metrics that ask."""
    saes: list[str | dict[str, Any]] = Field(default_factory=list)
    hooks: list[str] = Field(default_factory=list)
    """Hooks of the model, by name or pattern, where controls and metrics run without an SAE."""
    controls: list[str | dict[str, Any]] = Field(default_factory=list)
    groups: dict[str, list[str]] = Field(default_factory=dict)
    metrics: list[str | dict[str, Any]]
    precision: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Target standard errors by `metric.value`: the run stops early when all subjects have reached them."""
    batch: Any = 16
    """Sequences per batch, or `auto`; not part of any key."""
    leaderboard: Leaderboard = Field(default_factory=Leaderboard)

    @field_validator("suite")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if reason := unfit_for_files(name):
            raise ValueError(f"a suite's name becomes a folder, but {reason}")
        return name

    @field_validator("groups")
    @classmethod
    def _names_are_shown(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in groups:
            if reason := unfit(name):
                raise ValueError(f"the name of a group cannot be shown: {reason}")
        return groups

    @field_validator("batch")
    @classmethod
    def _number_or_auto(cls, size: Any) -> Any:
        if size != "auto" and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_ROWS):
            most = f" up to {MOST_ROWS}" if isinstance(size, int) and size > MOST_ROWS else ""
            raise ValueError(f"expected a number of sequences{most}, or auto")
        return size

    @field_validator("model", "saes", "hooks", "metrics")
    @classmethod
    def _not_empty(cls, entries: Any) -> Any:
        if entries == []:
            raise ValueError("the list is empty")
        return entries


@dataclass
class Suite:
    """A parsed suite with the places of its parts in the file."""

    body: SuiteModel
    marks: Marks
    live: dict[str, Any] = field(default_factory=dict)
    """Live objects by name."""
    live_model: Any = None
    """The spec of a user's own model, used instead of `model:`."""
    live_keys: Any = None
    """The `LiveKeys` of the call, if it has live objects."""
    keeps_model: bool = False
    """True if the user's own model is the same in several calls, so that what depends on it alone can be reused."""
    file: Path | None = None
    """Path of its file; None for a mapping."""
    part: str = ""
    """The short name of the model, if this is the part of a suite over several models that is about one of them."""
    lacking: dict[Location, Problem] = field(default_factory=dict)
    """In such a part: the names that match nothing, by place. One that matches nothing in any part is a mistake."""

    @property
    def name(self) -> str:
        return self.body.suite

    def problem(self, message: str, *location: str | int, key: bool = False) -> Problem:
        """Return a problem at a location of the file."""
        return Problem(message, self.marks.where(location, key=key))

    def problems(self, error: Exception, *location: str | int, key: bool = False) -> list[Problem]:
        """Return the problems of an error at a location of the file; a `ParameterError` has one per parameter."""
        if isinstance(error, SuiteError):
            return error.problems
        if isinstance(error, ParameterError):
            return [problem_of(fault, self.marks, location) for fault in error.faults]
        return [self.problem(str(error), *location, key=key)]

    def lacks(self, message: str, *location: str | int) -> list[Problem]:
        """Return the problem of a name that matches nothing; in a part of a suite it is only noted in `lacking`."""
        problem = self.problem(message, *location)
        if not self.part:
            return [problem]
        self.lacking[location] = problem
        return []

    def metrics(self, problems: list[Problem]) -> list[MetricEntry]:
        """Return the configured metrics, and append the problems of entries to `problems`."""
        entries, seen = [], set()
        for index, raw in enumerate(self.body.metrics):
            location: Location = ("metrics", index)
            if isinstance(raw, str):
                name, params = raw, {}
            elif len(raw) == 1:
                name, given = next(iter(raw.items()))
                if given is not None and not isinstance(given, dict):
                    problems.append(self.problem(f"the parameters of '{name}' must be a mapping", *location, name))
                    continue
                params, location = dict(given or {}), (*location, name)
            else:
                problems.append(self.problem("a metric must be a name, or one name with its parameters", *location))
                continue
            alias, over = params.pop("as", name), params.pop("over", None)
            twins = params.pop("controls", None) if over is not None else None
            if twins is not None and not _names(twins):
                message = f"'controls' of metric '{name}' is a list of names, as in [random], or [] for none"
                problems.append(self.problem(message, *location, "controls"))
                continue
            of = params.pop("of", None)
            if of is not None and (over is not None or not of or not _names(of)):
                expected = "is a list of names of SAEs and controls, as in ['my-sae*', random]"
                fault = "stands beside 'over', whose group has the SAEs" if over is not None else expected
                problems.append(self.problem(f"'of' of metric '{name}' {fault}", *location, "of"))
                continue
            wrong = [key for key, word in (("as", alias), ("over", over)) if word and not isinstance(word, str)]
            wrong += ["as"] if isinstance(alias, str) and "." in alias else []  # columns are ALIAS.VALUE
            if wrong:
                message = f"'{wrong[0]}' of metric '{name}' must be a name without dots"
                problems.append(self.problem(message, *location, wrong[0]))
                continue
            if alias != name and (reason := unfit_for_files(str(alias or ""))):
                message = f"'as' of metric '{name}' becomes a file name, but {reason}"
                problems.append(self.problem(message, *location, "as"))
                continue
            if alias in seen:
                message = f"metric '{alias}' is configured twice; rename one with 'as: another_name'"
                problems.append(self.problem(message, *location))
                continue
            seen.add(alias)
            if over is not None and over not in self.body.groups:
                near = suggestion(str(over), self.body.groups)
                problems.append(self.problem(f"unknown group '{over}'{near}", *location, "over"))
                continue
            controls = None if twins is None else tuple(dict.fromkeys(twins))
            chosen = None if of is None else tuple(dict.fromkeys(of))
            entries.append(MetricEntry(name, str(alias), params, over, location, controls, chosen))
        return entries


def _names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(name, str) for name in given)


@dataclass(frozen=True)
class RegisteredSuite:
    """A suite that ships with a plugin, run as `saeval run NAME`."""

    name: str
    path: Path
    description: str = ""


def load(path: Path | str, overrides: Iterable[str] = ()) -> Suite:
    """Read and validate a suite file; `SuiteError` with every problem of the schema."""
    data, marks = yaml_marks.read(path)
    for assignment in overrides:
        yaml_marks.override(data, marks, assignment)
    suite = validate(data, marks)
    suite.file = Path(path).resolve()
    return suite


def validate(data: dict[str, Any], marks: Marks, live: dict[str, Any] | None = None) -> Suite:
    """Return a suite from plain data; `SuiteError` with every problem of the schema."""
    if problem := yaml_marks.beyond(data, marks):
        raise SuiteError([problem])
    try:
        return Suite(validated_as(SuiteModel, data), marks, live or {})
    except ParameterError as error:
        raise SuiteError(problem_of(fault, marks) for fault in error.faults) from None


def problem_of(fault: Fault, marks: Marks, location: Location = ()) -> Problem:
    """Return the problem of a fault in the data at a location of the file."""
    return Problem(fault.sentence, marks.where((*location, *fault.location), key=fault.kind == "unknown"))
