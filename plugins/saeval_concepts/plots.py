"""Charts of the concept reports: curves beside their baselines, leads by task, absorption by parent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeval.plugin import Chart, Result, charts, formatting
from saeval_concepts.leads import Lead, control_of, draws_of, middle

PANELS = 24
"""Most SAEs with a panel each in a chart of curves."""
_PRINTED = 12, 40
"""Most SAEs and tasks of a heat map with printed numbers."""
_TALL = 200
"""Most tasks of a heat map."""
_WIDE = 60
"""Most SAEs of a heat map."""
_BY_PARENT = 12
"""Most SAEs with a panel each in a chart by parent."""
_BAR = "bars: 95% intervals over documents, of the SAE's features (the data has those of the other curves)"
_STROKES = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 300}
FEATURES = "features of the SAE"
DEFINITIONS = {
    "saebench_full": "full absorption",
    "saebench_fraction": "fraction (SAEBench 0.4.1 on)",
    "saebench_fraction_v03": "fraction (SAEBench 0.3.0 to 0.4.0)",
}


def names_of(results: Iterable[Result]) -> dict[int, str]:
    """Return a short distinct name for each result, with its hook where several results have the name."""
    given = list(results)
    whole = [r.subject for r in given]
    full = {id(r): r.subject if whole.count(r.subject) == 1 else f"{r.subject}@{hook_of(r)}" for r in given}
    short = charts.labels(full.values())
    return {key: short[name] for key, name in full.items()}


def hook_of(result: Result) -> str:
    """Return the hook of a result's subject."""
    return str(result.cell["subjects"][0]["hook_name"])


def shown_saes(results: Sequence[Result], value: str, most: int) -> tuple[list[Result], str]:
    """Return the SAEs that have a panel, in their order, and a clause on those that have none.

    Of more than `most`, they are those with the largest `value`.
    """
    saes = [r for r in results if not control_of(r)]
    if len(saes) <= most:
        return saes, formatting.counted(len(saes), "SAE")
    best = sorted(saes, key=lambda r: -_number(r.values.get(value)))[:most]
    kept = {id(r) for r in best}
    return [r for r in saes if id(r) in kept], f"the {most} of {len(saes)} SAEs with the largest {value}"


def _number(record: Mapping[str, Any] | None) -> float:
    return float("-inf") if record is None or record["value"] is None else float(record["value"])


class Curves:
    """Records of curves over a number of features, a panel for each SAE, with rules across the panel."""

    def __init__(self, at: Sequence[int]) -> None:
        self.at = list(at)
        self.records: list[dict[str, Any]] = []

    def curve(self, panel: str, of: str, sources: Sequence[Result], value: str) -> None:
        """Add a curve of the values `value@N`; of several draws of a control their mean, without an interval."""
        for n in self.at:
            self._add(panel, of, n, [r.values.get(f"{value}@{n}") for r in sources], rule=False)

    def rule(self, panel: str, of: str, source: Result, value: str) -> None:
        """Add a line at one value."""
        for n in sorted({self.at[0], self.at[-1]}):
            self._add(panel, of, n, [source.values.get(value)], rule=True)

    def _add(self, panel: str, of: str, n: int, given: Sequence[Mapping[str, Any] | None], *, rule: bool) -> None:
        known = [record for record in given if record is not None]
        if not known:
            return
        numbers = [record["value"] for record in known]
        value = None if None in numbers else sum(numbers) / len(numbers)
        number = charts.measured(value, known[0]["ci95"] if len(known) == 1 else None, "value")
        self.records.append({"panel": panel, "of": of, "n": n, **number, "rule": rule})

    def spec(self, x_title: str, y_title: str, styles: Mapping[str, tuple[str, Sequence[int]]], main: Sequence[str],
             zero: bool) -> charts.Spec:  # fmt: skip
        """Return the grid of panels; `styles` has the colour and dashes of each curve, `main` those with bars."""
        order = [of for of in styles if any(r["of"] == of for r in self.records)]
        x = charts.quantity("n", x_title, self.at, log=True)
        if x["scale"].get("type") == "log":
            x["axis"] = x["axis"] | {"values": self.at}
        y = charts.quantity("value", y_title, charts.extent(self.records, "value"), log=False, zero=zero)
        colour = charts.colour("of", None, order, [styles[of][0] for of in order])
        dash = charts.dash("of", None, order, [styles[of][1] for of in order])
        panels = list(dict.fromkeys(r["panel"] for r in self.records))
        if len(order) > 1:
            legend = {"legend": {**colour["legend"], "orient": "bottom", "columns": min(3, len(panels)), **_STROKES}}
            colour, dash = colour | legend, dash | legend
        inside = " || ".join(f"datum.of == '{of}'" for of in main)
        options: dict[str, Any] = {"by": ["of"], "color": colour, "strokeDash": dash}
        layers = charts.reference("y", 0) if zero else []
        layers += charts.where(charts.lines(x, y, points=False, **options), "datum.rule")
        thin = {"strokeWidth": 1.3}
        layers += charts.where(charts.lines(x, y, mark=thin, **options), f"!datum.rule && !({inside})")
        bold = {"strokeWidth": 2.2}
        layers += charts.where(charts.lines(x, y, bars=True, mark=bold, **options), f"!datum.rule && ({inside})")
        return charts.panels(layers, 215, 150, wrap=charts.panel("panel", panels), columns=3)


def probing_chart(results: Sequence[Result]) -> Chart:
    """Return the AUC over k of each SAE's features beside the probes of other columns: a panel for each SAE."""
    saes, words = shown_saes(results, f"auc@{middle(results[0])}", PANELS)
    names = names_of(saes)
    curves = Curves(sorted({int(k) for r in saes for k in r.cell["params"]["k"]}))
    controls = list(dict.fromkeys(filter(None, map(control_of, results))))
    of_controls = {control: f"features of the control {control}" for control in controls}
    for sae in saes:
        name = names[id(sae)]
        curves.curve(name, FEATURES, [sae], "auc")
        for control in controls:
            curves.curve(name, of_controls[control], draws_of(sae, results, control), "auc")
        for value, of in (("auc_random", "random features"), ("auc_neurons", "neurons"),
                          ("auc_components", "principal components")):  # fmt: skip
            curves.curve(name, of, [sae], value)
        curves.rule(name, "all activations", sae, "auc_activations")
        curves.rule(name, "tokens of the text", sae, "auc_tokens")
    solid: Sequence[int] = [1, 0]
    styles: dict[str, tuple[str, Sequence[int]]] = {FEATURES: (charts.COLOURS[0], solid)}
    styles |= {of: (charts.NEUTRAL, dashes) for of, dashes in zip(of_controls.values(), _cycled(charts.DASHES))}
    styles |= {
        "random features": (charts.COLOURS[5], solid), "neurons": (charts.COLOURS[1], solid),
        "principal components": (charts.COLOURS[2], solid), "all activations": (charts.COLOURS[3], [6, 3]),
        "tokens of the text": (charts.COLOURS[4], [2, 2]),
    }  # fmt: skip
    spec = curves.spec("k, columns of the probe", "AUC, mean over tasks", styles, [FEATURES], zero=False)
    return Chart(
        "auc", "AUC against the number of features, beside probes of other columns",
        f"{words}; {_BAR}{_undefined(curves.records)}", spec, curves.records,
        "AUC over k of probes of features, of controls, neurons, principal components, activations and tokens",
    )  # fmt: skip


def _cycled(dashes: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
    while True:
        yield from dashes


def _undefined(records: Sequence[Mapping[str, Any]]) -> str:
    count = sum(r["value"] is None for r in records)
    return f"; {formatting.counted(count, 'value')} undefined" if count else ""


def leads_chart(leads: Sequence[Lead]) -> Chart:
    """Return the lead of each SAE on each task as a heat map."""
    over, k = leads[0].over, leads[0].k
    results = list({id(lead.result): lead.result for lead in leads}.values())
    names, tasks = names_of(results[:_WIDE]), list(dict.fromkeys(lead.task for lead in leads))
    rows = charts.labels(tasks[:_TALL])
    numbers = [lead.value for lead in leads if lead.value == lead.value]
    reach = max(map(abs, numbers), default=0.0) or 1.0
    printed = len(names) <= _PRINTED[0] and len(rows) <= _PRINTED[1]
    records = []
    for lead in leads:
        if id(lead.result) not in names or lead.task not in rows:
            continue
        apart = lead.ci95 is not None and not lead.ci95[0] <= 0 <= lead.ci95[1]
        number = charts.measured(lead.value, lead.ci95, "lead")
        figure = "" if number["lead"] is None else f"{lead.value:+.2f}".replace("-", "−")
        text = figure if apart else f"({figure})" if figure else ""
        records.append({
            "task": rows[lead.task], "SAE": names[id(lead.result)], "hook": hook_of(lead.result), **number,
            "AUC": charts.measured(lead.auc)["value"], "AUC of the reference": charts.measured(lead.other)["value"],
            "text": text if printed else "•" if apart else "", "dark": abs(number["lead"] or 0) > 0.65 * reach,
        })  # fmt: skip
    x, y = charts.names("SAE", None, names.values()), charts.names("task", None, rows.values(), limit=200)
    x["axis"] = x["axis"] | {"labelAngle": -40}
    colour = charts.gradient("lead", f"AUC − AUC of {over}", -reach, reach, middle=0.0)
    colour["legend"] = {"orient": "top", "direction": "horizontal", "gradientLength": 160}
    width, height = (62, 22) if printed else (22, 15)
    layers = charts.heat(x, y, colour, text="text", light="dark")
    layers[0]["encoding"]["tooltip"] = [
        {"field": field, "type": "nominal" if field in ("task", "SAE", "hook") else "quantitative",
         **({} if field in ("task", "SAE", "hook") else {"format": ".3f"}), "title": title}
        for field, title in (("task", "task"), ("SAE", "SAE"), ("hook", "hook"), ("lead", "lead"),
                             ("lead_low", "95% from"), ("lead_high", "95% to"), ("AUC", "AUC"),
                             ("AUC of the reference", f"AUC of {over}"))
    ]  # fmt: skip
    left_out = [
        f"{kind}s beyond the first {most} are in the table alone"
        for kind, count, most in (("SAE", len(results), _WIDE), ("task", len(tasks), _TALL)) if count > most
    ]  # fmt: skip
    sign = "in parentheses: the 95% interval includes 0" if printed else "•: the 95% interval does not include 0"
    return Chart(
        f"lead-{over}", f"Lead over {_reference(over)} by task, k = {k}",
        "; ".join([
            f"{formatting.counted(len(tasks), 'task')}, {formatting.counted(len(results), 'SAE')}",
            "paired by document",
            f"{sign}, not corrected for the number of cells", *left_out,
        ]),
        charts.single(layers, max(width * len(names), 90), height * len(rows)), records,
        f"Heat map of the AUC of {k} features minus that of {over}, by task and SAE",
    )  # fmt: skip


def _reference(over: str) -> str:
    return "as many neurons" if over == "neurons" else f"the control {over}"


def tpp_chart(results: Sequence[Result]) -> Chart:
    """Return the effects of removing N features of a class: a panel for each SAE."""
    count = sorted({int(n) for r in results for n in r.cell["params"]["n"]})
    saes, words = shown_saes(results, f"total@{count[len(count) // 2]}", PANELS)
    names, curves = names_of(saes), Curves(count)
    kinds = {
        "intended": ("intended", charts.COLOURS[0], [1, 0]), "unintended": ("unintended", charts.COLOURS[1], [1, 0]),
        "total": ("total: intended − unintended", charts.COLOURS[2], [1, 0]),
        "shuffled": ("total, decoder rows exchanged", charts.NEUTRAL, [6, 3]),
        "random": ("total, random features", charts.NEUTRAL, [2, 2]),
    }  # fmt: skip
    for sae in saes:
        for value, (of, *_) in kinds.items():
            curves.curve(names[id(sae)], of, [sae], value)
        curves.rule(names[id(sae)], _SKYLINE, sae, "skyline")
    styles = {of: (shade, dashes) for of, shade, dashes in kinds.values()}
    styles[_SKYLINE] = (charts.COLOURS[3], [8, 2, 2, 2])
    spec = curves.spec(
        "N, features removed", "fall, share of the margin", styles, [kinds["intended"][0], kinds["unintended"][0]],
        zero=True,
    )  # fmt: skip
    return Chart(
        "effects", "What removing the features of a class takes from its probe, and from the others",
        f"{words}; bars: 95% intervals over documents (the data has those of the other curves)"
        f"{_undefined(curves.records)}",
        spec, curves.records, "Intended and unintended falls of probes' margins over the number of features removed",
    )  # fmt: skip


_SKYLINE = "skyline: the probe's direction removed"


def scr_chart(results: Sequence[Result]) -> Chart:
    """Return what removing N features of a spurious label repairs: a panel for each SAE and each label that is kept."""
    count = sorted({int(n) for r in results for n in r.cell["params"]["n"]})
    saes, words = shown_saes(results, f"first@{count[len(count) // 2]}", PANELS // 2)
    names, curves = names_of(saes), Curves(count)
    others = {"shuffled": "decoder rows exchanged", "random": "random features"}
    for sae in saes:
        for kept, task in kept_tasks(sae).items():
            panel = f"{names[id(sae)]}: keeps {task}"
            curves.curve(panel, FEATURES, [sae], kept)
            for value, of in others.items():
                curves.curve(panel, of, [sae], f"{value}_{kept}")
            curves.rule(panel, _SKYLINE, sae, f"skyline_{kept}")
    styles: dict[str, tuple[str, Sequence[int]]] = {
        FEATURES: (charts.COLOURS[0], [1, 0]), others["shuffled"]: (charts.NEUTRAL, [6, 3]),
        others["random"]: (charts.NEUTRAL, [2, 2]), _SKYLINE: (charts.COLOURS[3], [8, 2, 2, 2]),
    }  # fmt: skip
    spec = curves.spec("N, features removed", "gain, share of the deficit", styles, [FEATURES], zero=True)
    spec["facet"] = charts.panel("panel", [r["panel"] for r in curves.records], broken=": ")
    spec["columns"] = 2
    return Chart(
        "gains", "What removing the features of one label repairs in a biased probe of the other",
        f"{words}; {_BAR}{_undefined(curves.records)}", spec, curves.records,
        "Gain of a biased probe over the number of features removed, for each label that is kept",
    )  # fmt: skip


def kept_tasks(result: Result) -> dict[str, str]:
    """Return the tasks of a result of `scr`: the label that is kept in `first@N`, and in `second@N`."""
    table = result.values["probes"]
    labels = dict.fromkeys(row[table["columns"].index("label")] for row in table["rows"])
    return dict(zip(("first", "second"), map(str, labels), strict=False))


def absorption_chart(results: Sequence[Result]) -> Chart:
    """Return the absorption rates of each SAE and control by the three definitions: a row for each."""
    order = sorted(results, key=lambda r: bool(control_of(r)))
    names = names_of(order)
    kinds = {**DEFINITIONS, "silent": "main features silent"}
    records = [
        {"SAE": names[id(r)], "hook": hook_of(r), "of": of,
         **charts.measured(r.values[value]["value"], r.values[value]["ci95"], "rate")}
        for r in order for value, of in kinds.items() if value in r.values
    ]  # fmt: skip
    x = charts.quantity("rate", "share of words", charts.extent(records, "rate"), log=False, zero=True)
    y = charts.names("SAE", None, names.values())
    colour, shape = charts.colour("of", None, kinds.values()), charts.shape("of", None, kinds.values())
    shift = {"yOffset": {"field": "of", "type": "nominal", "sort": None, "scale": {"domain": list(kinds.values())}}}
    layers = charts.dots(x, y, bars="x", shift=shift, color=_below(colour), shape=_below(shape))
    return Chart(
        "rates", "Absorption by each definition", f"{len(order)} SAEs and controls; {charts.BARS}; "
        f"compare marks of one kind only{charts.lost(records, 'rate', x)}",
        charts.single(layers, 360, {"step": 11 * len(kinds), "for": "position"}), records,
        "Share of words with absorption by each definition, and with silent main features, of each SAE and control",
    )  # fmt: skip


def _below(channel: charts.Spec) -> charts.Spec:
    return channel | {"legend": {**(channel["legend"] or {}), "orient": "bottom", "columns": 2}}


def parents_chart(results: Sequence[Result], values: Mapping[str, str], name: str, title: str, unit: str) -> Chart:
    """Return values of each parent by SAE: a panel for each SAE, a row for each parent that counts."""
    saes, words = shown_saes(results, "counted", _BY_PARENT)
    names, records = names_of(saes), []
    for sae in saes:
        for cells in parents_of(sae):
            for value, of in values.items() if not cells["left out"] else ():
                ends = charts.interval(cells[value], cells.get(f"± {value}"), cells.get("documents"))
                if ends and value in DEFINITIONS:  # a share
                    ends = max(ends[0], 0.0), min(ends[1], 1.0)
                records.append({
                    "SAE": names[id(sae)], "parent": str(cells["parent"]), "of": of, "words": cells["right"],
                    "mains": cells["mains"], **charts.measured(cells[value], ends, "number"),
                })  # fmt: skip
    parents = charts.labels(sorted(dict.fromkeys(str(r["parent"]) for r in records)))
    records = [{**r, "parent": parents[r["parent"]]} for r in records]
    x = charts.quantity("number", unit, [0.0, *charts.extent(records, "number")], log=False)
    y = charts.names("parent", None, parents.values())
    several: dict[str, Any] = {}
    if len(values) > 1:
        colour, shape = charts.colour("of", None, values.values()), charts.shape("of", None, values.values())
        offset = {"field": "of", "type": "nominal", "sort": None, "scale": {"domain": list(values.values())}}
        several = {"shift": {"yOffset": offset}, "color": _below(colour), "shape": _below(shape)}
    layers = [*charts.reference("x", 0), *charts.dots(x, y, bars="x", size=32, **several)]
    step = {"step": max(9 * len(values), 15), "for": "position"}
    panels = charts.panel("SAE", [names[id(sae)] for sae in saes])
    return Chart(
        name, title, f"{words}, {formatting.counted(len(parents), 'parent')}; {charts.BARS}"
        f"{charts.lost(records, 'number', x)}",
        charts.panels(layers, 190, step, wrap=panels, columns=3), records, f"{title}, a panel for each SAE",
    )  # fmt: skip


def parents_of(result: Result) -> list[dict[str, Any]]:
    """Return the rows of the table `parents` of a result of `absorption`, by column."""
    table = result.values["parents"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
