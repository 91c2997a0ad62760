"""The page of verdicts: every test against a null hypothesis, and the claim that it allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeval.plugin import Result, Verdict, escapes, formatting, untested_on, verdicts_in_words, verdicts_on
from saeval_reports.tables import markdown_table, p_value

TITLE = "Verdicts"
HEADERS = ("row", "hook", "value", "number", "95% interval", "p", "p (Holm)", "verdict")
LEGEND = (
    "Each value is tested against its null hypothesis at the 5% level, with Holm's correction over all tests of its "
    "metric on one model and data. ± is one standard error; intervals are not corrected. 'Cannot be distinguished "
    "from' is no evidence that there is no difference."
)


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """Return the page as Markdown and HTML; empty if no value has a null hypothesis."""
    given, untested = verdicts_on(results), untested_on(results)
    if not given and not untested:
        return {}
    sentences = [*verdicts_in_words(given), *untested]
    return {"verdicts.md": _markdown(sentences, given), "verdicts.html": _html(sentences, given)}


def _lines(given: Sequence[Verdict]) -> list[list[str]]:
    return [
        [
            verdict.row.name,
            verdict.row.hook_name,
            verdict.column.name,
            formatting.with_error(verdict.value, verdict.entry.stderr),
            formatting.interval(verdict.interval, verdict.entry.stderr) if verdict.interval else "",
            p_value(verdict.p),
            p_value(verdict.p_holm),
            verdict.outcome,
        ]
        for verdict in given
    ]


def _markdown(sentences: Sequence[str], given: Sequence[Verdict]) -> str:
    items = [f"- {escapes.markdown(sentence)}" for sentence in sentences]
    lines = [list(map(escapes.markdown, line)) for line in _lines(given)]
    return "\n\n".join([f"# {TITLE}", "\n".join(items), markdown_table(HEADERS, lines), LEGEND]) + "\n"


def _html(sentences: Sequence[str], given: Sequence[Verdict]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escapes.html(cell)}</{tag}>' for cell in cells)}</tr>"

    items = "\n".join(f"<li>{escapes.html(sentence)}</li>" for sentence in sentences)
    lines = "\n".join(row(line, "td") for line in _lines(given))
    style = "body { font: 15px/1.5 sans-serif; margin: 2rem } td, th { padding: 0.2rem 0.6rem; text-align: left }"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title><style>{style}</style>'
        f"</head>\n<body>\n<h1>{TITLE}</h1>\n<ul>\n{items}\n</ul>\n<table>\n{row(HEADERS, 'th')}\n{lines}\n</table>\n"
        f"<p>{escapes.html(LEGEND)}</p>\n</body></html>\n"
    )
