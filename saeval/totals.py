"""Sums of what `observe` returns: one evidence, or a dict of them by name."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from saeval.evidence import Evidence, Stamp

EvidenceTree: TypeAlias = "Evidence | dict[str, Evidence]"


def stamped(observed: Any, stamp: Stamp) -> EvidenceTree:
    """An observation with its clusters; `TypeError` for what is no evidence."""
    if isinstance(observed, Evidence):
        return storable(observed.stamp(stamp))
    if isinstance(observed, dict) and observed and all(isinstance(v, Evidence) for v in observed.values()):
        return storable({name: value.stamp(stamp) for name, value in observed.items()})
    raise TypeError(f"observe returned {type(observed).__name__}; return an Evidence such as Mean, or a dict of them")


def storable(total: EvidenceTree) -> EvidenceTree:
    """`total`; `TypeError` where its state holds what no file can. A state may be costly: it is asked for seldom."""
    for evidence in total.values() if isinstance(total, dict) else [total]:
        for name, array in evidence.state().items():
            if np.asarray(array).dtype.hasobject:
                kind = type(evidence).__name__
                raise TypeError(f"'{name}' of {kind} is no array or number, so it could not be stored; make it one")
    return total


def _sum(one: Evidence, other: Evidence) -> Evidence:
    total = one + other
    if not isinstance(total, Evidence):
        raise TypeError(f"the sum of two evidences is {type(total).__name__}; `__add__` returns an evidence")
    return total


def added(total: EvidenceTree, part: EvidenceTree) -> EvidenceTree:
    """The evidence of both; dicts are added name by name."""
    if isinstance(total, dict) and isinstance(part, dict):
        if total.keys() != part.keys():
            raise TypeError(f"observe returned {sorted(part)} after {sorted(total)}: names may not change")
        return {name: _sum(total[name], part[name]) for name in total}
    if isinstance(total, Evidence) and isinstance(part, Evidence):
        return _sum(total, part)
    raise TypeError("observe returned an Evidence once and a dict another time")
