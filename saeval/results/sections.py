"""`Section`: what a report shows of some results: charts, tables and sentences that each output format can write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A chart as a Vega-Lite specification with its data."""

    name: str
    """The stem of its files, such as `cosines-by-depth`: letters, digits, `-`, `_` and `.`."""
    title: str
    subtitle: str
    """What marks and error bars mean, and how many SAEs, documents or draws the chart shows."""
    spec: Mapping[str, Any]
    """A Vega-Lite specification with sizes, without `data`, `title` and `config`, which whoever writes it adds."""
    data: Sequence[Mapping[str, Any]]
    """One record for each mark, with text, finite numbers and None: what the CSV file beside the chart has."""
    description: str
    """What the chart shows, in a sentence, for people who cannot see it."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Names in the data that stand for a family of SAEs, each with the `key` of one of its SAEs among the subjects of
    results. Whoever writes several charts gives a family the same colour and shape in all of them."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """Return what a notebook shows: the specification for those that draw it, and a picture."""
        from saeval.results.chart_files import png, whole  # late: it imports this module

        return {"application/vnd.vegalite.v6+json": whole(self), "image/png": png(self)}


@dataclass(frozen=True)
class Table:
    """A table of text, numbers and None, which is an empty cell."""

    name: str
    """The stem of its files."""
    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    notes: Mapping[str, str] = field(default_factory=dict)
    """What columns mean, by header."""
    folded: bool = False
    """True if a page shows it only on demand."""


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens of a text, of which those stand out that have an activation."""

    heading: str
    """What is active here, such as `Feature 12`; passages in a row with the same heading stand below it together."""
    label: str
    tokens: Sequence[str]
    activations: Sequence[float]
    """One for each token; 0 where it is not active."""


@dataclass(frozen=True)
class Section:
    """One part of a page: sentences that say what was found, then charts, tables and passages of text."""

    name: str
    """The stem of its files."""
    title: str
    summary: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    passages: Sequence[Passage] = ()
    notes: Sequence[str] = ()
    """How to read it."""
