"""Checks of charts, for plugin authors: a specification that is valid, and marks that all have their data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeval.base.escapes import file_name
from saeval.results.chart_files import whole
from saeval.results.sections import Chart


def check_chart(chart: Chart) -> None:
    """Raise `AssertionError` if a chart is wrong.

    Its specification must follow the schema of Vega-Lite, which the package altair carries, and bring no data, title
    or address of its own. Every field that it draws must be in some record, every axis must have a title or names,
    and the subtitle, the description and the data must not be empty.
    """
    assert chart.name == file_name(chart.name), f"'{chart.name}' is not the stem of a file"
    assert chart.data, f"chart '{chart.name}' has no data"
    assert chart.title, f"chart '{chart.name}' has no title"
    assert chart.subtitle, f"chart '{chart.name}' has no subtitle, which says n and what error bars mean"
    assert chart.description, f"chart '{chart.name}' has no description"
    own = {"data", "title", "config", "$schema"} & set(chart.spec)
    assert not own, f"chart '{chart.name}' has {', '.join(sorted(own))} of its own"
    known = {field for record in chart.data for field in record}
    for name, channel in channels(chart.spec):
        field = channel.get("field")
        assert field is None or field in known, f"chart '{chart.name}': no record has the field '{field}' of {name}"
        if name in ("x", "y") and channel.get("type") == "quantitative" and channel.get("axis", {}) is not None:
            assert channel.get("title"), f"chart '{chart.name}': the axis {name} of '{field}' has no title"
    assert "http" not in json.dumps(chart.spec), f"chart '{chart.name}' has an address"
    specification = whole(chart) | {"data": {"values": []}}
    errors = list(_validator().iter_errors(specification))
    places = [f"{error.json_path}: {error.message[:200]}" for error in errors]
    assert not errors, f"chart '{chart.name}' does not follow the schema of Vega-Lite: {places[0]}"


def channels(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every channel of a specification and of its parts, with its name."""
    for name, channel in spec.get("encoding", {}).items():
        for one in channel if isinstance(channel, list) else [channel]:
            yield name, one
    facet = spec.get("facet", {})
    yield from ((name, channel) for name, channel in ([("facet", facet)] if "field" in facet else facet.items()))
    inner = [*spec.get("layer", ()), *spec.get("concat", ()), *spec.get("hconcat", ()), *spec.get("vconcat", ())]
    for part in [*inner, *([spec["spec"]] if "spec" in spec else [])]:
        yield from channels(part)


@cache
def _validator() -> Any:
    from jsonschema import Draft7Validator  # late: only tests of charts need it

    package = find_spec("altair")
    assert package is not None, "the schema of Vega-Lite is in the package altair; install it"
    path = Path(str(package.origin)).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    return Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
