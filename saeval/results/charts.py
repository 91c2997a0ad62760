"""Parts of charts as plain Vega-Lite dictionaries: axes, colours, marks with their intervals, and grids of panels.

A chart's records have the fields `NAME`, and `NAME_low` and `NAME_high` where `NAME` has a 95% interval (`measured`
makes them). A record without a number keeps its place on an axis of names, but no mark: it never stands at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from saeval.base.escapes import line
from saeval.base.formatting import counted, number
from saeval.base.names import without_repetition
from saeval.stats.estimate import LEAST, reach95

Spec = dict[str, Any]
Records = Sequence[Mapping[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A5CA8")
"""Colours that people with any colour vision tell apart: those of Okabe and Ito without yellow and black, and two."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [10, 4], [1, 4])
NEUTRAL = "#767676"
"""Grey of references, floors and controls: readable on white and on black."""
SEQUENTIAL, DIVERGING = "viridis", "blueorange"
LOG_SPREAD = 30.0
"""A positive axis is logarithmic if its largest number is this many times its smallest."""
FAR = 6.0
"""Numbers further than this many quartile distances from the quartiles are far away."""
FLAT = 4.0
"""They are moved to the edge if all numbers need this many times the room of the others, with their intervals."""
LONGEST = 34
"""Most letters of a name on an axis."""
BARS = "bars: 95% intervals over documents"


def labels(names: Iterable[str], longest: int = LONGEST) -> dict[str, str]:
    """Return a short distinct label for each name.

    Without the folder that all share. If a name is still too long, without the parts of paths that several names have
    and that are not needed to tell them apart: first those that all have or that `@hook` at the end repeats, then the
    longest. What is left is cut in the middle.
    """
    whole = list(dict.fromkeys(names))
    folder = whole[0].rpartition("/")[0] + "/" if whole else ""
    shared = len(whole) > 1 and len(folder) > 1 and all(name.startswith(folder) for name in whole)
    texts = [name.removeprefix(folder) if shared else name for name in whole]
    made: dict[str, str] = {}
    split = [text.rpartition("@") if "@" in text else (text, "", "") for text in texts]
    hooks = [at + hook for _, at, hook in split]
    parts = without_repetition([path for path, _, _ in split], [longest - len(hook) for hook in hooks], hooks)
    for name, kept, hook in zip(whole, parts, hooks, strict=True):
        text = line(kept + hook) or "(no name)"
        short = text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"
        number_, taken = 1, set(made.values())
        while short in taken:
            number_ += 1
            short = f"{text[: longest // 2]}…{text[-(longest // 3) :]} ({number_})"
        made[name] = short
    return made


def measured(value: float | None, ci95: Sequence[float] | None = None, name: str = "value") -> Spec:
    """Return the fields of a number with its 95% interval; None where it is undefined or not finite."""
    low, high = ci95 if ci95 is not None and value is not None else (None, None)
    numbers = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {field: None if n is None or not math.isfinite(n) else float(n) for field, n in numbers.items()}


def interval(value: float | None, stderr: float | None, documents: float | None) -> tuple[float, float] | None:
    """Return the 95% interval of a number whose standard error is over so many documents, by t.

    None without a number, an error or two documents.
    """
    if value is None or stderr is None or documents is None or documents < LEAST:
        return None
    reach = reach95(stderr, documents - 1)
    return value - reach, value + reach


def extent(records: Records, *names: str) -> list[float]:
    """Return the numbers of these fields and of the ends of their intervals."""
    fields = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return [number for r in records for f in fields if (number := r.get(f)) is not None]


def quantity(
    field: str, title: str, numbers: Sequence[float], *, log: bool | None = None, zero: bool = False, grid: bool = True
) -> Spec:
    """Return an axis of numbers with its title and unit; all panels of a chart have the same.

    `numbers` is what it has to show. It is logarithmic if `log`, or if all are positive and the spread needs it.
    Numbers that are not positive have no mark on a logarithmic axis: say so with `lost`.
    """
    positive = [number for number in numbers if number > 0]
    if log is None:
        log = len(positive) == len(numbers) > 0 and max(positive) >= LOG_SPREAD * min(positive)
    axis: Spec = {"grid": grid, "titlePadding": 8}
    if log and positive:
        low, high = min(positive), max(positive)
        room = max((high / low) ** 0.04, 1.03)
        low, high = low / room, high * room
        axis |= {"values": log_ticks(low, high), "format": ".4~g" if high < 1e5 and low > 1e-4 else ".2~g"}
        scale: Spec = {"type": "log", "domain": [low, high], "nice": False, "clamp": True}
    else:
        axis["tickCount"] = 6
        scale = {"zero": zero, "nice": zero, "padding": 0 if zero else 8}
    return {"field": field, "type": "quantitative", "title": line(title), "scale": scale, "axis": axis}


def log_ticks(low: float, high: float) -> list[float]:
    """Return where a logarithmic axis has labels: three to twelve numbers between its ends, however close these are.

    Within one decade they are round numbers; within three, 1, 2 and 5 times the powers of ten; then powers of ten.
    """
    if high < 10 * low:
        steps = [m * 10.0**e for e in range(-320, 309) for m in (1, 2, 2.5, 5) if m * 10.0**e > (high - low) / 7]
        ticks = [math.ceil(low / steps[0]) * steps[0] + i * steps[0] for i in range(8)]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = 1 if high < 1e12 * low else math.ceil(len(powers) / 12)
        ticks = [m * 10.0**e for e in powers if e % every == 0 for m in ((1, 2, 5) if high < 1000 * low else (1,))]
    inside = [float(f"{tick:.6g}") for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 1 else [low, high]


def lost(records: Records, field: str, axis: Spec) -> str:
    """Return the clause on records without a mark, undefined or beside a logarithmic axis; empty if there are none."""
    undefined = sum(r.get(field) is None for r in records)
    log = axis["scale"].get("type") == "log"
    below = sum(r[field] <= 0 for r in records if r.get(field) is not None) if log else 0
    clauses = [f"{counted(undefined, 'value')} undefined"] * (undefined > 0)
    clauses += [f"{counted(below, 'value')} not above 0, left out of the logarithmic axis"] * (below > 0)
    return "".join(f"; {clause}" for clause in clauses)


def names(field: str, title: str | None, order: Iterable[str], *, limit: int = 260) -> Spec:
    """Return an axis of names in this order, each with its place even if it has no number."""
    places = list(dict.fromkeys(order))
    axis = {"labelLimit": limit, "grid": False, "ticks": False, "domain": False}
    scale = {"domain": places}
    # The domain is the order. A `sort` by a list of names is one nested expression, too deep for some hundreds of them.
    return {"field": field, "type": "nominal", "title": title, "sort": None, "scale": scale, "axis": axis}


def colour(field: str, title: str | None, order: Iterable[str], colours: Sequence[str] = COLOURS) -> Spec:
    """Return a colour for each name; more names than colours share them, so give them another channel too."""
    return _by_name(field, title, order, colours)


def shape(field: str, title: str | None, order: Iterable[str], shapes: Sequence[str] = SHAPES) -> Spec:
    """Return a shape for each name."""
    return _by_name(field, title, order, shapes)


def dash(field: str, title: str | None, order: Iterable[str], dashes: Sequence[Sequence[int]] = DASHES) -> Spec:
    """Return a pattern of dashes for each name."""
    return _by_name(field, title, order, dashes)


def _by_name(field: str, title: str | None, order: Iterable[str], marks: Sequence[Any]) -> Spec:
    places = list(dict.fromkeys(order))
    scale = {"domain": places, "range": list(islice(cycle(marks), len(places)))}
    legend = {"labelLimit": 260, "symbolLimit": 60, "symbolOpacity": 1} if len(places) > 1 else None
    return {"field": field, "type": "nominal", "title": title, "scale": scale, "legend": legend, "sort": None}


def gradient(field: str, title: str, low: float, high: float, *, middle: float | None = None) -> Spec:
    """Return colours for numbers, with a colour bar; `middle` is where a diverging scale is white, such as a floor."""
    scale: Spec = {"domain": [low, high], "scheme": SEQUENTIAL}
    if middle is not None:
        reach = max(high - middle, middle - low) or 1.0
        scale = {"domain": [middle - reach, middle + reach], "scheme": DIVERGING, "domainMid": middle}
    return {
        "field": field,
        "type": "quantitative",
        "title": line(title),
        "scale": scale,
        "legend": {"gradientLength": 160},
    }


def dots(x: Spec, y: Spec, *, bars: str = "", size: float = 55, shift: Spec | None = None, mark: Spec | None = None,
         **channels: Spec) -> list[Spec]:  # fmt: skip
    """Return the layers of points, with bars for the 95% intervals of the axes in `bars`, such as `xy`.

    `shift` moves the marks of one place apart (a channel `yOffset` or `xOffset`).
    """
    plain = {} if "color" in channels else {"color": (mark or {}).get("color", COLOURS[0])}
    layers = [_interval(x, y, axis, (shift or {}) | _of_bars(channels), plain) for axis in bars]
    point = {"type": "point", "filled": True, "size": size, "opacity": 1, "tooltip": True} | plain | (mark or {})
    return [*layers, _layer(point, x, y, (shift or {}) | channels)]


def bars(
    x: Spec, y: Spec, *, along: str, shift: Spec | None = None, mark: Spec | None = None, **channels: Spec
) -> list[Spec]:
    """Return the layers of bars along the axis `x` or `y` from 0, with their 95% intervals as black lines."""
    of_length = {"x": x, "y": y}[along]
    body = {"type": "bar", "opacity": 0.85, "tooltip": True} | (mark or {})
    interval = _interval(x, y, along, shift or {}, {"color": "#222222"})
    return [_layer(body, x, y, (shift or {}) | channels, [of_length["field"]]), interval]


def lines(x: Spec, y: Spec, *, by: Sequence[str] = (), bars: bool = False, band: bool = False, points: bool = True,
          mark: Spec | None = None, **channels: Spec) -> list[Spec]:  # fmt: skip
    """Return the layers of lines along `x`: a band or bars for the intervals of `y`, and a point for each record.

    `by` names fields that separate lines besides the channels' own. Join only what belongs together, such as the same
    SAE at several points: a line between unrelated SAEs would show values that were not measured.
    """
    detail = {"detail": [{"field": field, "type": "nominal"} for field in by]} if by else {}
    layers = []
    if band:
        low, high = y | {"field": f"{y['field']}_low"}, {"field": f"{y['field']}_high"}
        encoding = {"x": x, "y": low, "y2": high, **detail, **_of_bars(channels)}
        body = {"type": "area", "opacity": 0.18, "line": False}
        layers.append({"mark": body, "encoding": encoding, "transform": _shown(x, low)})
    if bars:
        layers.append(_interval(x, y, "y", _of_bars(channels)))
    path = {k: v for k, v in channels.items() if k in ("color", "strokeDash", "opacity")}
    layers.append(_layer({"type": "line", "strokeWidth": 1.6} | (mark or {}), x, y, path | detail))
    if points:
        point = {"type": "point", "filled": True, "size": 32, "opacity": 1, "tooltip": True} | {
            k: v for k, v in (mark or {}).items() if k in ("color",)
        }
        own = {k: v for k, v in channels.items() if k != "strokeDash"}
        layers.append(_layer(point, x, y, own))
    return layers


def heat(x: Spec, y: Spec, colour: Spec, *, text: str | None = None, light: str | None = None) -> list[Spec]:
    """Return the layers of a heat map: a cell for each record, and the `text` field printed in it.

    Text is white where the field `light` is true, for dark cells.
    """
    band = {"scale": {"paddingInner": 0.02, "paddingOuter": 0}}
    x, y = (axis | {"scale": axis["scale"] | band["scale"]} for axis in (x, y))
    layers = [_layer({"type": "rect", "tooltip": True}, x, y, {"color": colour}, [colour["field"]])]
    if text:
        written: Spec = {"text": {"field": text}, "color": {"value": "black"}}
        if light:
            written["color"] = {"condition": {"test": f"datum['{light}']", "value": "white"}, "value": "black"}
        layers.append(_layer({"type": "text", "fontSize": 10}, x, y, written, []))
    return layers


def ticks(x: Spec, y: Spec, *, along: str, length: float = 16, shift: Spec | None = None, mark: Spec | None = None,
          **channels: Spec) -> list[Spec]:  # fmt: skip
    """Return short lines across the axis `along`: a floor, a control or a null beside the marks that it belongs to."""
    across = "vertical" if along == "x" else "horizontal"
    body = {"type": "tick", "orient": across, "size": length, "thickness": 2, "color": NEUTRAL, "tooltip": True}
    return [_layer(body | (mark or {}), x, y, (shift or {}) | channels)]


def reference(
    axis: str, at: float, *, dashes: Sequence[int] = (), text: str = "", mark: Spec | None = None
) -> list[Spec]:
    """Return a line across a whole panel at a number of the axis `x` or `y`, with `text` beside it."""
    data: Spec = {"values": [{}]}
    rule = {"type": "rule", "color": NEUTRAL, "strokeWidth": 1, "strokeDash": list(dashes)} | (mark or {})
    layers: list[Spec] = [{"data": data, "mark": rule, "encoding": {axis: {"datum": at}}}]
    if text:
        place = {"y": {"datum": at}, "x": {"value": 3}} if axis == "y" else {"x": {"datum": at}, "y": {"value": -4}}
        turn = {"align": "left", "dy": -2} if axis == "y" else {"align": "center"}
        body = {"type": "text", "baseline": "bottom", "fontSize": 10, "color": rule["color"], **turn}
        layers.append({"data": data, "mark": body, "encoding": {**place, "text": {"value": line(text)}}})
    return layers


def written(x: Spec, y: Spec, field: str, *, mark: Spec | None = None, **channels: Spec) -> list[Spec]:
    """Return the text of a field beside each mark."""
    body = {"type": "text", "align": "left", "dx": 6, "dy": -6, "fontSize": 9} | (mark or {})
    return where([_layer(body, x, y, {"text": {"field": field}, **channels})], f"isValid(datum['{field}'])")


def where(layers: Sequence[Spec], test: str) -> list[Spec]:
    """Return layers that show only the records of which a Vega expression is true, such as `datum.settled`."""
    return [layer | {"transform": [*layer.get("transform", []), {"filter": test}]} for layer in layers]


def no_number(y: Spec, field: str, text: str = "reason") -> list[Spec]:
    """Return the text of a field, such as the reason, in the place of records that have no number; one line each."""
    body = {"type": "text", "align": "left", "fontSize": 9, "fontStyle": "italic", "color": NEUTRAL, "limit": 300}
    encoding = {"y": y, "x": {"value": 4}, "text": {"field": text}}
    return [{"mark": body, "encoding": encoding, "transform": [{"filter": f"!isValid(datum['{field}'])"}]}]


def single(layers: Sequence[Spec], width: float, height: float | Spec) -> Spec:
    """Return the specification of one panel; `height` may be `{"step": 18}`, pixels for each name."""
    return {"layer": list(layers), "width": width, "height": height}


def panels(
    layers: Sequence[Spec], width: float, height: float | Spec, *, row: Spec | None = None, column: Spec | None = None,
    wrap: Spec | None = None, columns: int = 3, own: Sequence[str] = (),
) -> Spec:  # fmt: skip
    """Return a grid of panels by the fields of `panel`: rows and columns, or wrapped in rows of `columns`.

    All panels share their axes, except those named in `own` (`x` or `y`).
    """
    inner = {"layer": list(layers), "width": width, "height": height}
    resolve = {"resolve": {"scale": dict.fromkeys(own, "independent")}} if own else {}
    if wrap is not None:
        return {"facet": wrap, "columns": min(columns, len(wrap["sort"])), "spec": inner, **resolve}
    grid = {name: channel for name, channel in (("row", row), ("column", column)) if channel is not None}
    return {"facet": grid, "spec": inner, **resolve}


def panel(field: str, order: Iterable[str], *, side: bool = False, broken: str = "") -> Spec:
    """Return the channel of a grid: a panel for each name, in this order; `side` turns headers of rows upright.

    Headers have a line for each part between `broken`, such as `: `.
    """
    places = list(dict.fromkeys(order))
    header: Spec = {"labelFontSize": 11, "labelLimit": 320, "title": None, "labelFontWeight": "bold"}
    if side:
        header |= {"labelAngle": 0, "labelAlign": "left", "labelOrient": "right", "labelLimit": 160}
    if broken:
        header |= {"labelExpr": f"split(datum.label, '{broken}')", "labelFontSize": 10, "labelLimit": 150}
    return {"field": field, "type": "nominal", "sort": places, "header": header}


def clipped(records: Records, field: str, among: Records | None = None) -> tuple[list[dict[str, Any]], int]:
    """Return the records with the places of their marks, and the number of marks that would flatten the others.

    The fields `shown`, `shown_low` and `shown_high` are those of `field`, moved to the edge where they are far away.
    Far numbers have the field `beyond`, their number as text; others have None there. `among` are the records whose
    numbers must stay distinct (default: all).
    """
    low, high = _edges(among or records, records, field)
    moved = []
    for r in records:
        ends = {end: r.get(f"{field}{end}") for end in ("", "_low", "_high")}
        value = ends[""]
        text = _at_edge(value, low, high) if value is not None and not low <= value <= high else None
        shown = {f"shown{end}": None if n is None else min(max(n, low), high) for end, n in ends.items()}
        moved.append({**r, **shown, "beyond": text})
    return moved, sum(r["beyond"] is not None for r in moved)


def _at_edge(value: float, low: float, high: float) -> str:
    """A number beyond the edge, with an arrow to its side; rounding errors of 0 are 0."""
    shown = number(0.0 if abs(value) < 1e-9 * (high - low) else value, 3)
    return f"← {shown}" if value < low else f"→ {shown}"


def _edges(among: Records, records: Records, field: str) -> tuple[float, float]:
    """The ends of an axis on which the numbers of `among` stay distinct; infinite if one can show all records."""
    values = sorted(r[field] for r in among if r.get(field) is not None)
    everything = extent(records, field)
    if len(values) < 5:
        return -math.inf, math.inf
    low, high = values[len(values) // 4], values[-1 - len(values) // 4]
    reach = FAR * (high - low)
    inside = [r for r in among if r.get(field) is not None and low - reach <= r[field] <= high + reach]
    low, high = min(extent(inside, field)), max(extent(inside, field))
    if high == low or max(everything) - min(everything) <= FLAT * (high - low):
        return -math.inf, math.inf
    span = high - low
    near = [number for number in everything if low - span <= number <= high + span]
    low, high = min(near), max(near)
    return low - 0.1 * span, high + 0.1 * span


def _interval(x: Spec, y: Spec, axis: str, channels: Spec, mark: Spec | None = None) -> Spec:
    """The line of a 95% interval along one axis."""
    own, other = (x, y) if axis == "x" else (y, x)
    low = own | {"field": f"{own['field']}_low"}
    ends = {axis: low, f"{axis}2": {"field": f"{own['field']}_high"}, "y" if axis == "x" else "x": other}
    body = {"type": "rule", "strokeWidth": 1.4} | (mark or {})
    log = [{"filter": f"datum['{own['field']}_high'] > 0"}] if own["scale"].get("type") == "log" else []
    valid = [{"filter": f"isValid(datum['{low['field']}'])"}, *_shown(other, own)]
    return {"mark": body, "encoding": {**ends, **channels}, "transform": [*valid, *log]}


def _of_bars(channels: Spec) -> Spec:
    return {name: channel for name, channel in channels.items() if name in ("color", "opacity", "yOffset", "xOffset")}


def _layer(mark: Spec, x: Spec, y: Spec, channels: Spec, needed: Sequence[str] | None = None) -> Spec:
    fields = _shown(x, y) if needed is None else [{"filter": f"isValid(datum['{name}'])"} for name in needed]
    body = {"mark": mark, "encoding": {"x": x, "y": y, **channels}}
    return body | ({"transform": fields} if fields else {})


def _shown(*axes: Spec) -> list[Spec]:
    """The filters that leave out records without a number on these axes, or that a logarithmic one cannot show."""
    filters = []
    for axis in (axis for axis in axes if axis["type"] == "quantitative"):
        field = f"datum['{axis['field']}']"
        filters.append(
            {"filter": f"isValid({field})" + (f" && {field} > 0" if axis["scale"].get("type") == "log" else "")}
        )
    return filters
