"""Families of SAEs, and one colour and shape for each family in all charts of some results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from saeval.results import charts
from saeval.results.sections import Chart

if TYPE_CHECKING:
    from saeval.results.result import Result

FAMILY = ("architecture", "d_sae", "end_to_end")
"""Properties that the SAEs of a family share, unless they declare a `family`."""
TRAINED_AS = "training_architecture"
"""The property in which a checkpoint says that it was trained with another architecture than it has now."""


class Mark(NamedTuple):
    colour: str
    shape: str


def declared(facts: Mapping[str, Any], name: str) -> Any:
    """Return a declared property, also one inside another; None if neither checkpoint nor suite declares it."""
    inner = [fact for fact in facts.values() if isinstance(fact, Mapping)]
    return next((own[name] for own in (facts, *inner) if own.get(name) is not None), None)


def family_names(saes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each SAE's family: the `family` that it declares, or else its architecture.

    The width and end-to-end training follow where the SAEs differ in them. The architecture is that of the checkpoint;
    one that says that it was trained with another is, for example, `jumprelu (trained as batchtopk)`.
    """
    values = [[_property(facts, name) for name in FAMILY] for facts in saes]
    varying = [i for i in range(len(FAMILY)) if i == 0 or len({str(own[i]) for own in values}) > 1]
    names = [" ".join(w for i in varying if (w := in_words(FAMILY[i], own[i]))) or "SAEs" for own in values]
    given = [declared(facts, "family") for facts in saes]
    return [name if own is None else str(own) for name, own in zip(names, given, strict=True)]


def in_words(name: str, value: Any) -> str:
    """Return a property as a part of a family's name; empty if it is not declared."""
    if value is None or value is False:
        return ""
    return name.replace("_", "-") if value is True else value if isinstance(value, str) else f"{name}={value}"


def _property(facts: Mapping[str, Any], name: str) -> Any:
    value = declared(facts, name)
    if name != "architecture" or value is None:
        return value
    trained = declared(facts, TRAINED_AS)
    return value if trained in (None, value) else f"{value} (trained as {trained})"


def key_of(subject: Mapping[str, Any]) -> str:
    """Return what identifies a subject among the results of several runs."""
    return str(subject.get("key") or f"{subject['name']}@{subject['hook_name']}")


class Palette:
    """The family of each SAE of some results, with its colour and shape; families in the order of the results."""

    def __init__(self, saes: Mapping[str, Mapping[str, Any]]) -> None:
        """`saes`: the declared properties of each SAE by its key."""
        self._families = dict(zip(saes, family_names(list(saes.values())), strict=True))
        names = dict.fromkeys(self._families.values())
        self.marks = {name: _mark(place) for place, name in enumerate(names)}
        """The colour and shape of each family."""

    @classmethod
    def of(cls, results: Iterable[Result]) -> Palette:
        subjects = (subject for result in results for subject in result.cell.get("subjects", ()))
        return cls({key_of(s): s for s in subjects if s.get("kind", "sae") == "sae"})

    def family(self, keys: Iterable[str]) -> str | None:
        """Return the family that all SAEs of these keys have; None if they have several, or one is not known."""
        names = {self._families.get(key) for key in keys}
        return names.pop() if len(names) == 1 else None

    def painted(self, chart: Chart) -> Chart:
        """Return a chart whose `families` have their colours and shapes; other names keep theirs if they are free."""
        marks: dict[str, Mark] = {}
        for name, key in chart.families.items():
            mark = self.marks.get(self._families.get(key, ""))
            taken = set(marks.values())
            if mark is None or mark in taken:  # two of its names may be one family here, such as two chosen by globs
                free = (one for one in map(_mark, range(_DISTINCT)) if one not in {*taken, *self.marks.values()})
                mark = next(free, _mark(len(marks)))
            marks[name] = mark
        return replace(chart, spec=_with_marks(chart.spec, marks)) if marks else chart


_DISTINCT = 24
"""Number of distinct pairs of a colour and a shape."""


def _mark(place: int) -> Mark:
    return Mark(charts.COLOURS[place % len(charts.COLOURS)], charts.SHAPES[place % len(charts.SHAPES)])


def _with_marks(part: Any, marks: Mapping[str, Mark]) -> Any:
    """A part of a specification, with the ranges of its colours and shapes by name replaced."""
    if isinstance(part, list | tuple):
        return [_with_marks(item, marks) for item in part]
    if not isinstance(part, Mapping):
        return part
    made: dict[str, Any] = {name: _with_marks(item, marks) for name, item in part.items()}
    for channel, of in (("color", 0), ("shape", 1)):
        scale = (made.get(channel) or {}).get("scale") if isinstance(made.get(channel), Mapping) else None
        if isinstance(scale, Mapping) and any(name in marks for name in scale.get("domain", ())):
            made[channel] = {**made[channel], "scale": {**scale, "range": _range(scale, marks, of)}}
    return made


def _range(scale: Mapping[str, Any], marks: Mapping[str, Mark], of: int) -> list[Any]:
    """The colours (`of` is 0) or shapes (1) of a scale. Another name whose colour a family has gets a free one."""
    pairs = list(zip(scale["domain"], scale["range"], strict=False))
    taken = {marks[name][of] for name, _ in pairs if name in marks}
    free = [colour for colour in charts.COLOURS if colour not in taken.union(one for _, one in pairs)]
    made = []
    for name, one in pairs:
        moved = free.pop(0) if of == 0 and name not in marks and one in taken and free else one
        made.append(marks[name][of] if name in marks else moved)
    return made
