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
    spec: Mapping[str, Any]
    """A Vega-Lite specification without data, which gets `data`; a title and sizes are set by whoever writes it."""
    data: Sequence[Mapping[str, Any]]
    """One record for each mark: what the CSV file beside the chart has."""
    description: str
    """What the chart shows, in a sentence, for people who cannot see it."""


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
class Section:
    """One part of a page: sentences that say what was found, then charts, then tables."""

    name: str
    """The stem of its files."""
    title: str
    summary: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    """How to read it."""
