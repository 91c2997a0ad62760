"""The SAEs of a run with their values and declared properties, and families of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saeval.plugin import Estimate, Result, SaevalError, names_matching, suggestion
from saeval.plugin import families as of_saes

SPARSITY = ("k", "target_l0", "l1_coefficient", "l1_penalty", "sparsity_penalty", "l0")
"""Declared properties that set the sparsity, which the checkpoints of one training run share."""
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kmbKMB](?![A-Za-z]))?"


@dataclass(frozen=True)
class Member:
    """An SAE of a run, with its results."""

    name: str
    hook_name: str
    facts: Mapping[str, Any]
    """The properties that its checkpoint and the suite declare."""
    results: Mapping[str, Result]
    """Its results by the metric's name in the suite."""
    key: str = ""
    """What identifies it among the subjects of results."""

    def record(self, column: str) -> Mapping[str, Any] | None:
        """Return the record of the scalar `metric.value`; None if it does not exist."""
        metric, _, value = column.partition(".")
        return self.results[metric].scalar(value)[0] if metric in self.results else None

    def value(self, column: str) -> Estimate | None:
        """Return a value; one without an error over documents has an empty estimate. None if it does not exist."""
        record = self.record(column)
        if record is None or record["value"] is None:
            return None
        metric, _, value = column.partition(".")
        estimate = self.results[metric].estimate(value)
        return estimate or Estimate(float(record["value"]), np.zeros(0), np.zeros(0))

    def declared(self, name: str) -> Any:
        """Return a declared property, also one inside another; None if neither checkpoint nor suite declares it."""
        return of_saes.declared(self.facts, name)

    def required(self, name: str) -> Any:
        """Return a declared property; `SaevalError` if it is not declared."""
        value = self.declared(name)
        if value is None:
            facts = [self.facts, *(fact for fact in self.facts.values() if isinstance(fact, Mapping))]
            known = [f for own in facts for f, v in own.items() if v is not None and not isinstance(v, Mapping)]
            near = suggestion(name, known, f"; it declares {', '.join(known) or 'nothing'}")
            raise SaevalError(f"'{self.name}' does not declare '{name}'{near}; add 'facts:' to its entry in the suite")
        return value

    def number(self, name: str, pattern: str | None = None) -> float:
        """Return a declared number, or the one in its name at `{}` in the pattern, where 2M is 2,000,000."""
        if pattern is not None:
            before, _, after = pattern.partition("{}")
            form = r"(?<![^\W_])" * before[:1].isalnum() + re.escape(before) + _NUMBER + re.escape(after)
            if (match := re.search(form, self.name)) is None:
                raise SaevalError(f"the name '{self.name}' has no number at '{pattern}'")
            return float(match[1]) * _UNITS[(match[2] or "").lower()]
        value = self.required(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < sys.float_info.max:
            raise SaevalError(f"'{self.name}' declares '{name}' as {value!r}, which is not a number")
        return float(value)


_RECORD = ("name", "hook_name", "kind", "key", "site")


def members(results: Sequence[Result]) -> list[Member]:
    """Return the SAEs of a run in their order; controls and groups are left out."""
    by_subject: dict[tuple[str, str], dict[str, Result]] = {}
    subjects: dict[tuple[str, str], Mapping[str, Any]] = {}
    for result in results:
        if len(result.cell["subjects"]) == 1 and result.cell["subjects"][0].get("kind") == "sae":
            (subject,) = result.cell["subjects"]
            place = (subject["name"], subject["hook_name"])
            subjects.setdefault(place, subject)
            by_subject.setdefault(place, {})[result.metric] = result
    return [
        Member(
            *place, {k: v for k, v in subjects[place].items() if k not in _RECORD}, own, of_saes.key_of(subjects[place])
        )
        for place, own in by_subject.items()
    ]


def families(
    saes: Sequence[Member], by: Sequence[str] = (), patterns: Mapping[str, str] | None = None
) -> dict[tuple[str, str], list[Member]]:
    """Return the SAEs by hook and family: by patterns of names, by declared properties, or by default as in all charts.

    `SaevalError` for a pattern without a match, an SAE in two families, and a property that an SAE does not declare.
    """
    labels: dict[int, str] = {}
    for label, pattern in (patterns or {}).items():
        names = set(names_matching(pattern, [sae.name for sae in saes]))
        if not names:
            near = suggestion(pattern, [sae.name for sae in saes])
            raise SaevalError(f"family '{label}': no SAE of these results matches '{pattern}'{near}")
        for sae in (sae for sae in saes if sae.name in names):
            if labels.setdefault(id(sae), label) != label:
                raise SaevalError(f"'{sae.name}' is in two families, '{labels[id(sae)]}' and '{label}'")
    if by and not patterns:
        kinds = {id(sae): [sae.required(name) for name in by] for sae in saes}
        varying = [i for i in range(len(by)) if i == 0 or len({str(kind[i]) for kind in kinds.values()}) > 1]
        for sae in saes:
            words = [of_saes.in_words(by[i], kinds[id(sae)][i]) for i in varying]
            labels[id(sae)] = " ".join(word for word in words if word) or "SAEs"
    elif not patterns:
        labels = dict(zip(map(id, saes), of_saes.family_names([sae.facts for sae in saes]), strict=True))
    grouped: dict[tuple[str, str], list[Member]] = {}
    for sae in saes:
        if id(sae) in labels:
            grouped.setdefault((sae.hook_name, labels[id(sae)]), []).append(sae)
    return grouped


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates."""
    first, *others = paired(*estimates)
    return sum(others, first) / len(estimates)


def paired(*estimates: Estimate) -> tuple[Estimate, ...]:
    """Return estimates that can be combined: without their errors, if not all have one over the same documents."""
    if len({estimate.without.shape for estimate in estimates}) == 1:
        return estimates
    return tuple(Estimate(estimate.value, np.zeros(0), np.zeros(0)) for estimate in estimates)
