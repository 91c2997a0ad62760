"""Charts as files: PNG, SVG, HTML and JSON of their Vega-Lite specification, and CSV of their data.

Everything is drawn from libraries on this machine, without a browser and without a network address. Equal charts
give equal bytes.
"""

from __future__ import annotations

import csv as csv_files
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from saeval.base import escapes
from saeval.base.errors import SaevalError
from saeval.base.fingerprint import cached, digest_of
from saeval.results.sections import Chart

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""The name of the grammar that specifications follow; nothing fetches it."""
_SNIPPET = "window.vegaEmbed = vegaEmbed;"
VERSION = "6.4"
"""The version of Vega-Lite that draws files."""
SCALE = 2.0
"""Pixels of a PNG for each unit of a specification."""
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first one is inside the library that draws, so that files are the same on each machine."""
CONFIG: Mapping[str, Any] = {
    "font": FONT,
    "background": "white",
    "view": {"stroke": "#dddddd"},
    "axis": {"gridColor": "#ececec", "domainColor": "#888888", "tickColor": "#888888", "labelFontSize": 10,
             "titleFontSize": 11, "titleFontWeight": "normal"},
    "legend": {"labelFontSize": 10, "titleFontSize": 11, "titleFontWeight": "normal"},
    "title": {"anchor": "start", "fontSize": 14, "subtitleFontSize": 11, "subtitleColor": "#555555",
              "subtitlePadding": 4, "offset": 12},
    "header": {"labelFontSize": 11},
}  # fmt: skip
FORMATS = ("png", "svg", "html", "json")
_FIELD = re.compile(r"\w[\w %-]*")


def whole(chart: Chart, warning: str = "") -> dict[str, Any]:
    """Return the complete Vega-Lite specification of a chart; `warning` is the first line of its title.

    Text in it is on one line, without control characters. Raises `ValueError` for a number that is not finite, and for
    a field whose name the grammar would read as a path.
    """
    if odd := [field for record in chart.data for field in record if not _FIELD.fullmatch(field)]:
        raise ValueError(f"chart '{chart.name}': a field cannot be named {odd[0]!r}; use letters, digits, _ and -")
    letters = max(int(_width(chart.spec, chart.data) / 6.2), 56)
    title = {
        "text": [*_broken(warning, letters * 6 // 7), *_broken(chart.title, letters * 6 // 7)],
        "subtitle": _broken(chart.subtitle, letters),
    }
    data = {"values": [{field: _plain(value, chart) for field, value in record.items()} for record in chart.data]}
    inside = _plain({"title": title, "description": chart.description, **chart.spec}, chart)
    return {"$schema": SCHEMA, "config": {**CONFIG}, "data": data, **inside}


def content(chart: Chart, form: str, warning: str = "") -> bytes:
    """Return a chart as the content of a file in one of the `FORMATS`."""
    return {"png": png, "svg": svg, "html": html, "json": as_json}[form](chart, warning)


def png(chart: Chart, warning: str = "") -> bytes:
    """Return a chart as the content of a PNG file."""
    from vl_convert import vegalite_to_png  # late: only charts need it

    return bytes(vegalite_to_png(whole(chart, warning), vl_version=VERSION, scale=SCALE))


def svg(chart: Chart, warning: str = "") -> bytes:
    """Return a chart as the content of an SVG file."""
    from vl_convert import vegalite_to_svg  # late: as above

    return str(vegalite_to_svg(whole(chart, warning), vl_version=VERSION)).encode()


def html(chart: Chart, warning: str = "") -> bytes:
    """Return a chart as one HTML file that works offline; its scripts come from the installed library."""
    specification = script_text(whole(chart, warning))
    words = f"{chart.title}. {chart.description}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escapes.html(chart.title)}</title>\n<style>body {{ margin: 1rem; overflow-x: auto }}</style>\n"
        f"<script>{inline(vega())}</script></head>\n<body>\n"
        f'<div id="chart" role="img" aria-label="{escapes.html(words)}"></div>\n'
        f'<script>vegaEmbed("#chart", {specification}, '
        '{renderer: "svg", actions: {export: true, source: false, compiled: false, editor: false}});</script>\n'
        "</body></html>\n"
    ).encode()


def script_text(value: Any) -> str:
    """Return a value as JSON that no text in it can end: safe between `<script>` and `</script>`."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as the text of a script, which sets `vegaEmbed`.

    Packing takes seconds, so its result is cached by the version of vl-convert-python.
    """

    def pack() -> dict[str, Any]:
        import vl_convert  # late: a library of 80 MB

        return {"text": vl_convert.javascript_bundle(_SNIPPET, VERSION)}

    text: str = cached("scripts", digest_of([_SNIPPET, VERSION, version("vl-convert-python")]), pack)["text"]
    return text


def inline(script: str) -> str:
    """Return a script as the content of a `<script>` element: only in its strings can the end of the element occur."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE).replace("\r\n", "\n").replace("\r", "\n")


def as_json(chart: Chart, warning: str = "") -> bytes:
    """Return a chart as the content of a JSON file: its Vega-Lite specification, for those who restyle it."""
    return (json.dumps(whole(chart, warning), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def csv(chart: Chart) -> bytes:
    """Return the data of a chart as the content of a CSV file, in full precision; undefined numbers are empty."""
    return csv_text(chart.data).encode()


def csv_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as CSV. Texts and names of columns are escaped, so that no spreadsheet takes one for a formula."""
    lines = list(records)
    columns = list(dict.fromkeys(name for record in lines for name in record))
    text = io.StringIO()
    writer = csv_files.writer(text, lineterminator="\n")
    writer.writerow(map(escapes.csv, columns))
    writer.writerows([escapes.csv(record.get(name)) for name in columns] for record in lines)
    return text.getvalue()


def check_format(form: str) -> None:
    """Raise `SaevalError` unless charts can be written in a format."""
    if form not in FORMATS:
        raise SaevalError(f"charts have no format '{form}'; use {', '.join(FORMATS)}")


def _plain(value: Any, chart: Chart) -> Any:
    """A value with its texts on one line; `ValueError` for numbers that JSON does not have."""
    if isinstance(value, str):
        return escapes.line(value)
    if isinstance(value, Mapping):
        return {_plain(key, chart): _plain(inner, chart) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, chart) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"chart '{chart.name}': {value!r} is no text, finite number or None")


def _broken(text: str, letters: int) -> list[str]:
    return textwrap.wrap(escapes.line(text), letters, break_on_hyphens=False) if text else []


def _width(spec: Mapping[str, Any], data: Iterable[Mapping[str, Any]]) -> float:
    """About the width of a chart in pixels, with its axis and legend."""
    if "hconcat" in spec:
        return sum(_width(part, data) for part in spec["hconcat"])
    if "vconcat" in spec:
        return max(_width(part, data) for part in spec["vconcat"])
    if "concat" in spec:
        columns = min(int(spec.get("columns", len(spec["concat"]))), len(spec["concat"]))
        return max(_width(part, data) for part in spec["concat"]) * columns
    inner = spec.get("spec", spec)
    width = float(inner["width"]) if isinstance(inner.get("width"), int | float) else 320.0
    if "facet" not in spec:
        return width + 160
    facet = spec["facet"]
    wrapped = spec.get("columns") if "field" in facet else len(facet.get("column", {}).get("sort", [0]))
    return (width + 24) * (wrapped or 1) + 140
