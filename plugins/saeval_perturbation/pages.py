"""The perturbation report: an SAE's error beside noise at the same tokens, with Holm's correction over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import PageTable, Result, Section, Verdict, formatting, holm, verdicts_in_words, verdicts_on
from saeval_perturbation.bins import COLUMNS
from saeval_perturbation.plots import (
    MATCHED,
    NULLS,
    SAE,
    curve_chart,
    damage_chart,
    hook_of,
    kind_of,
    ratio_chart,
)
from saeval_perturbation.tails import SHARES

VARIANTS = (
    "sae", "cosine_matched", "cosine_matched_covariance", "shuffled_error", "epsilon", "norm_only", "norm_corrected",
    "zero", "mean",
)  # fmt: skip
TAIL = SHARES[-1]
"""Share of the tokens in a tail."""
_BINS = {
    "of": "KL at the position itself, or summed over it and later ones",
    "difference": "KL of the SAE minus KL of its noise at the same tokens, nats",
    "share_worse": "share of the tokens at which the SAE is more harmful",
    "p_holm": "corrected over bins, hooks and both kinds of KL",
}


def sections(results: Sequence[Result]) -> list[Section]:
    """Return a section for every configured `perturbation` and `perturbation_curve`."""
    ok = [r for r in results if r.status == "ok"]
    made = [_damage(alias, group) for alias, group in by_alias(ok, "perturbation").items()]
    return made + [_curve(alias, group) for alias, group in by_alias(ok, "perturbation_curve").items()]


def _damage(alias: str, results: Sequence[Result]) -> Section:
    given = [verdict for verdict in verdicts_on(results) if verdict.column.value.startswith("difference")]
    saes = [r for r in results if kind_of(r) == "sae"]
    noises = {"kl_sae": SAE} | {
        f"kl{ending or '_cosine_matched'}": f"noise: {label}" for ending, label in NULLS.items()
    }
    drawn = [damage_chart(saes, noises, "kl"), ratio_chart(saes)] if saes else []
    return Section(
        alias, f"SAE errors against noise: {alias}", [f"{words}." for words in verdicts_in_words(given)], drawn,
        tables(results), notes=[
            *(f"{note}." for note in dict.fromkeys(note for r in results for note in r.notes)),
            "± is one standard error, by document. Noise has the SAE's cosine and norm at each token.",
        ],
    )  # fmt: skip


def _curve(alias: str, results: Sequence[Result]) -> Section:
    saes = [r for r in results if kind_of(r) == "sae"]
    drawn, made = [curve_chart(results)], []
    if saes:
        drawn.append(damage_chart(saes, {"kl_sae": SAE, "kl_cosine_matched": MATCHED}, "matched"))
    if bins := bin_rows(saes):
        columns, cells = list(bins[0]), [list(row.values()) for row in bins]
        made.append(
            PageTable("by-cosine", "Differences to matched noise by cosine", columns, cells, _BINS, folded=True)
        )
    notes = [f"{note}." for note in dict.fromkeys(note for r in results for note in r.notes)]
    return Section(alias, f"KL of noise by cosine: {alias}", (), drawn, made, notes=notes)


def tables(results: Sequence[Result]) -> list[PageTable]:
    """Return differences with claims, what is left without the tail, percentiles, KL of each variant, and ratios."""
    given = [verdict for verdict in verdicts_on(results) if verdict.column.value.startswith("difference")]
    claims = {(v.row.name, v.row.hook_name, v.column.value): v for v in given if v.claimed}
    saes, labels = [r for r in results if kind_of(r) == "sae"], list(NULLS.values())
    made = [
        _grid("differences", "Difference to noise: mean KL of the SAE − mean KL of the noise at the same tokens, nats "
              "per token", labels, [(r, _differences(r, claims)) for r in saes]),
        _grid("without-tail", f"Ratio of the SAE's KL to the noise's without the {TAIL:.0%} of the tokens with the "
              "largest KL, for each claim (in parentheses: share of the difference in these tokens)", labels,
              [(r, _without_tail(r, claims)) for r in saes], folded=True),
    ]  # fmt: skip
    for name, title, names in (
        ("percentiles", "Percentile of the SAE's KL among draws at the same token (½: like that noise)",
         {f"percentile{ending}": label for ending, label in NULLS.items()}),
        ("kl", "KL(clean‖perturbed), nats per token", {f"kl_{v}": v for v in VARIANTS}),
        ("ratios", "Ratio of the SAE's KL to the noise's, comparable within a hook only",
         {f"ratio{ending}": label for ending, label in NULLS.items()}),
        ("alone", "One position perturbed at a time: KL there (here), and from there on (later)",
         {f"alone_{w}_{q}": f"{w}: {q}" for w in ("here", "later") for q in ("sae", "cosine_matched", "ratio")}),
    ):  # fmt: skip
        present = {name: label for name, label in names.items() if any(name in r.values for r in results)}
        if present:
            rows = [(r, [_shown(r.values.get(name)) for name in present]) for r in results]
            made.append(_grid(name, title, list(present.values()), rows, folded=True))
    return made


def _differences(result: Result, claims: Mapping[tuple[str, str, str], Verdict]) -> list[str]:
    """Each difference with its claim."""
    cells = []
    for ending in NULLS:
        claim = claims.get((result.subject, hook_of(result), f"difference{ending}"))
        cells.append(_shown(result.values.get(f"difference{ending}")) + (f"; {_claim(claim)}" if claim else ""))
    return cells


def _without_tail(result: Result, claims: Mapping[tuple[str, str, str], Verdict]) -> list[str]:
    """The ratio without the tokens of the largest KL, and their share of the difference, for claims."""
    tails = result.values.get("tails", {}).get("rows", [])
    rest = {noise: _rest(*numbers) for noise, tokens, *numbers in tails if tokens == TAIL}
    claimed = {ending: (result.subject, hook_of(result), f"difference{ending}") in claims for ending in NULLS}
    names = {ending: ending.removeprefix("_") or "cosine_matched" for ending in NULLS}
    return [rest.get(names[ending], "–") if claimed[ending] else "–" for ending in NULLS]


def _rest(difference: float | None, ratio: float | None) -> str:
    return "–" if difference is None or ratio is None else f"{ratio:.3f} ({difference:.0%})"


def _claim(verdict: Verdict) -> str:
    side = "more harmful" if verdict.value > 0 else "less harmful"
    return f"{side} ({verdict.qualifier})" if verdict.qualifier else side


def _grid(
    name: str, title: str, labels: Sequence[str], rows: Sequence[tuple[Result, Sequence[str]]], *, folded: bool = False
) -> PageTable:
    cells = [[r.subject, hook_of(r), *numbers] for r, numbers in rows]
    return PageTable(name, title, ["subject", "hook", *labels], cells, folded=folded)


def bin_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """All bins of all results, with p values corrected over bins, hooks and both tables."""
    rows = [
        {"subject": r.subject, "hook": hook_of(r), "of": of, **dict(zip(COLUMNS, row, strict=True))}
        for of, name in (("position", "by_cosine"), ("position and later", "by_cosine_later"))
        for r in results
        for row in r.values.get(name, {}).get("rows", [])
    ]
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _shown(record: Mapping[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "–"
    return formatting.with_error(record["value"], record["stderr"])


def by_alias(results: Sequence[Result], metric: str) -> dict[str, list[Result]]:
    """Return the results of a metric by its name in the suite."""
    mine = [r for r in results if r.cell["metric"] == metric]
    return {alias: [r for r in mine if r.metric == alias] for alias in dict.fromkeys(r.metric for r in mine)}
