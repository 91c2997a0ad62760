"""A certificate as a section of a page: the verdicts, what they rest on, and which values say the same."""

from __future__ import annotations

from collections.abc import Sequence

from saeval.base.formatting import counted, number
from saeval.results import charts
from saeval.results.certificate import IN_WORDS, MARKS, SAME, TRAINED, Certificate, Certified, Interval
from saeval.results.sections import Chart, Section, Table

NAME = "certificate"
_MOST = 40
"""Values in the chart of rank correlations."""
_NOTES = {
    "± documents": "the median standard error over SAEs, by document",
    "to halve it": "the number of documents that would halve this error",
    "spread": "the standard deviation between SAEs at one hook",
    "± draws": "the standard deviation over seeds of what the metric draws, with its 95% interval",
    "± seeds": "the standard deviation over training seeds of one recipe, with its 95% interval",
    "told apart": "the share of pairs of SAEs at one hook that paired tests tell apart (Holm), with its 95% interval",
    "by": "the median difference of the pairs told apart, as a share of the larger value of both",
}


def section(certificate: Certificate) -> Section:
    """Return the section of a certificate."""
    values = certificate.values
    summary = [
        f"{IN_WORDS[verdict]}: {', '.join(one.column for one in own)}"
        for verdict in IN_WORDS
        if (own := [one for one in values if one.verdict == verdict])
    ]
    tables = [verdicts(values), _errors(values), _orders(values), _doses(values), _same(values), _truths(values)]
    rows = f" and {certificate.limit} sequences (--limit)" if certificate.limit is not None else ""
    return Section(
        NAME,
        f"Certificate of {certificate.suite}: how far each value can be trusted",
        summary=[f"From {counted(certificate.saes, 'SAE')}{rows}, on this model and text alone", *summary],
        charts=_responses(values),
        tables=[table for table in tables if table.rows],
        notes=[
            "A value is usable for ranking if it puts the SAEs before their controls, gets worse under damage, and "
            "tells SAEs apart by more than its own draws and the training seed move it",
        ],
    )


def verdicts(values: Sequence[Certified]) -> Table:
    """Return the table of verdicts."""
    rows = [
        [one.column, f"{MARKS[one.verdict]} {IN_WORDS[one.verdict]}".strip(), "; ".join(one.reasons)] for one in values
    ]
    return Table("verdicts", "Verdicts", ["value", "verdict", "why"], rows)


def _errors(values: Sequence[Certified]) -> Table:
    headers = ["value", *_NOTES]
    rows = [
        [
            one.column, number(one.stderr, 2), one.documents, number(one.spread, 2), _words(one.evaluation),
            _words(one.training), _words(one.apart), None if one.difference is None else f"{one.difference:.2%}",
        ]
        for one in values
    ]  # fmt: skip
    return Table("errors", "Errors, and what they leave to tell apart", headers, rows, _NOTES)


def _orders(values: Sequence[Certified]) -> Table:
    kinds = list(dict.fromkeys((o.better, o.worse) for one in values for o in one.orders))
    headers = ["value", *(f"{better} > {worse}" for better, worse in kinds)]
    rows = []
    for one in (one for one in values if one.orders):
        found = {(o.better, o.worse): _words(o.share) if o.share else "the same" for o in one.orders}
        rows.append([one.column, *(found.get(kind) for kind in kinds)])
    notes = dict.fromkeys(
        headers[1:2], "share of SAEs for which the value is better, with its 95% interval; 'the same' by construction"
    )
    return Table("order", f"Order of {TRAINED} SAEs and controls", headers, rows, notes)


def _doses(values: Sequence[Certified]) -> Table:
    kinds = list(dict.fromkeys(dose.damage for one in values for dose in one.doses))
    headers = ["value", *(f"{kind}{end}" for kind in kinds for end in ("", ", from"))]
    rows = []
    for one in (one for one in values if one.doses):
        found = {dose.damage: (_words(dose.tau) if dose.tau else "no change", dose.detected) for dose in one.doses}
        rows.append([one.column, *(cell for kind in kinds for cell in found.get(kind, (None, None)))])
    notes = dict.fromkeys(kinds[:1], "Kendall's tau of dose and badness, the mean over SAEs: 1 if always worse")
    notes |= {f"{kind}, from": "the smallest share that is significant for half of the SAEs" for kind in kinds[:1]}
    return Table("doses", "Response to damage", headers, rows, notes)


def _same(values: Sequence[Certified]) -> Table:
    rows = [
        [one.column, other.column, _words(other.rho)]
        for place, one in enumerate(values)
        for other in one.same
        if abs(other.rho.value) >= SAME and other.column not in {earlier.column for earlier in values[:place]}
    ]
    title = f"Values that rank the SAEs alike (rank correlation of at least {SAME:g})"
    return Table("same", title, ["value", "another", "rank correlation"], rows, folded=True)


def _truths(values: Sequence[Certified]) -> Table:
    rows = [[one.column, other.column, _words(other.rho)] for one in values for other in one.truths]
    return Table("truth", "Rank correlation with the truth", ["value", "truth", "rank correlation"], rows)


def _responses(values: Sequence[Certified]) -> list[Chart]:
    """Return the chart of how a value responds to each kind of damage."""
    judged = [one for one in values if any(dose.tau for dose in one.doses)][:_MOST]
    records = [
        {"value": one.column, "damage": dose.damage, **charts.measured(dose.tau.value, _ends(dose.tau), "tau")}
        for one in judged
        for dose in one.doses
        if dose.tau
    ]
    if not records:
        return []
    kinds = list(dict.fromkeys(str(record["damage"]) for record in records))
    x = charts.quantity("tau", "Kendall's tau of damage and badness", charts.extent(records, "tau"))
    y = charts.names("value", None, [one.column for one in judged])
    layers = charts.dots(x, y, bars="x", color=charts.colour("damage", "damage", kinds))
    layers += charts.reference("x", 0.0)
    spec = charts.single(layers, 420, {"step": 22})
    described = f"Rank correlation of the share of damage with how bad {counted(len(judged), 'value')} get"
    return [Chart("damage", "What gets worse under damage", "bars: 95% intervals over SAEs", spec, records, described)]


def _ends(interval: Interval) -> tuple[float, float] | None:
    return None if interval.low is None or interval.high is None else (interval.low, interval.high)


def _words(interval: Interval | None) -> str | None:
    return interval.words if interval else None
