"""Leaderboards: a pure function of results folders. One board is one (model, data, mask)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.formatting import number
from saeval.results.board import Board, Column, Entries, Entry, Row, damaged_in_words, some
from saeval.results.certificate import Certificate, Certified, stored
from saeval.results.comparability import classes, configuration, configurations, differences, ground, in_words, of_cells
from saeval.results.control_columns import against, columns_of
from saeval.results.file_states import Basis
from saeval.results.index import StaleError
from saeval.results.index import results as indexed
from saeval.results.index_rows import uncollected
from saeval.results.ranks import rank
from saeval.results.result import Result, support_of
from saeval.results.store import Store
from saeval.stats.estimate import proportion_interval

L0 = "l0"
"""The value that counts a token's features."""
DENSER = 2.0
"""How many times the L0 of the second row the first may have before the board says so."""


def boards(
    folders: Iterable[Path | str], *, include_limited: bool = False, every_column: bool = False,
    every_array: bool = False,
) -> list[Board]:  # fmt: skip
    """The boards of one or more results folders; rows are merged only where model and data agree.

    `every_column` leaves out the suites' own layout; `every_array` checks all arrays, also those that no board tests.
    Raises `SaevalError` for a folder without a manifest, and for runs with `--limit` unless `include_limited`.
    """
    how = {"include_limited": include_limited, "every_column": every_column, "every_array": every_array}
    return boards_on(folders, **how)[0]


def boards_of_two(folders: Iterable[Path | str], a: str, b: str, *, include_limited: bool = False) -> list[Board]:
    """The boards without the SAEs that neither name can mean, which is enough to compare the two.

    Controls and groups are all there. What the other SAEs lack is not said.
    """
    names = {a, b, a.rpartition("@")[0], b.rpartition("@")[0]}
    runs = []
    with uncollected():
        for folder in folders:
            manifest, found = Store(folder).results(include_limited, names)
            runs.append(_Run(manifest["suite"], {}, found))
        return _boards(runs)


def boards_on(
    folders: Iterable[Path | str], *, include_limited: bool = False, every_column: bool = False,
    every_array: bool = False,
) -> tuple[list[Board], list[Callable[[], Basis | None]]]:  # fmt: skip
    """The same, with functions for the files read so far of each folder, where they are many."""
    folders = list(folders)
    with uncollected():
        try:
            return _of_folders(folders, include_limited, every_column, every_array)
        except StaleError:  # a file of arrays is damaged, or has changed since the index was compared with it
            return _of_folders(folders, include_limited, every_column, every_array=True)


def _of_folders(
    folders: Sequence[Path | str], include_limited: bool, every_column: bool, every_array: bool = False
) -> tuple[list[Board], list[Callable[[], Basis | None]]]:
    runs, bases = [], []
    for folder in folders:
        manifest, found, basis = indexed(folder, include_limited, every_array)
        bases.append(basis)
        runs.append(_stored_run(folder, manifest, found, every_column))
    return _boards(runs), bases


def _stored_run(
    folder: Path | str, manifest: Mapping[str, Any], found: Sequence[Result], every_column: bool = False
) -> _Run:
    unfinished = []
    if absent := sum(result.status == "missing" for result in found):
        share = f"{absent} of {len(manifest['cells'])} cells of '{manifest['suite']}'"
        unfinished.append(f"{share} are not computed yet; run it again to go on where it stopped")
    if damaged := damaged_in_words(found):
        unfinished.append(f"'{manifest['suite']}': {damaged}")
    layout = {} if every_column else manifest["leaderboard"]
    return _Run(manifest["suite"], layout, found, unfinished, str(folder), stored(folder))


def of_stored(runs: Mapping[str, tuple[Mapping[str, Any], Sequence[Result]]]) -> list[Board]:
    """Boards from the manifests and results that `Store.results` has read, by folder."""
    return _boards([_stored_run(folder, manifest, found) for folder, (manifest, found) in runs.items()])


def from_results(results: Sequence[Result], title: str, settings: Mapping[str, Any]) -> list[Board]:
    """Boards from results in hand; results of groups have no row of their own subject and form rows of members."""
    return of_runs([(results, title, settings)])


def of_runs(runs: Iterable[tuple[Sequence[Result], str, Mapping[str, Any]]]) -> list[Board]:
    """Boards from the results of several runs in hand, each with its title and the layout of its suite."""
    return _boards([_Run(title, layout, results) for results, title, layout in runs])


def of_pages(results: Sequence[Result]) -> list[Board]:
    """Boards from the results that a page shows, each in the layout of its suite."""
    by_layout: dict[int, list[Result]] = {}
    for result in results:
        by_layout.setdefault(id(result.layout) if result.layout else 0, []).append(result)
    return _boards([_Run("", own[0].layout, own) for own in by_layout.values()])


@dataclasses.dataclass(frozen=True)
class _Run:
    """The results of one run, with its suite's name and layout."""

    title: str
    layout: Mapping[str, Any]
    results: Sequence[Result]
    unfinished: Sequence[str] = ()
    """What it still lacks, in a sentence; empty for a whole run."""
    folder: str = ""
    """The folder that it is stored in, if it was read from one."""
    certificate: Certificate | None = None
    """What `saeval certify` found of its values."""


def _titles(tables: Iterable[Sequence[_Run]]) -> list[str]:
    """The names of the runs of each table; tables of the same names get those of their folders too."""
    tables = list(tables)
    names = [" + ".join(dict.fromkeys(run.title for run in runs)) for runs in tables]
    folders = [" + ".join(dict.fromkeys(run.folder for run in runs if run.folder)) for runs in tables]
    return [
        f"{name} in {folder}" if names.count(name) > 1 and folder else name
        for name, folder in zip(names, folders, strict=True)
    ]


def _boards(runs: Sequence[_Run]) -> list[Board]:
    """A board for each model, data and configuration of metrics that runs share. It has the names of the runs that are
    in it, and the first one's layout. All but the first say in what they differ from it."""
    tables: dict[tuple[str, int], list[tuple[_Run, Result]]] = {}
    grounds: dict[tuple[int, int], str] = {}
    configured = [configurations(run.results) for run in runs] if len(runs) > 1 else [{}]
    kinds = classes(configured)
    for run, kind in zip(runs, kinds, strict=False):
        for result in run.results:
            model, data = result.cell["model"], result.cell["data"]
            same = (id(model), id(data))
            if same not in grounds:
                grounds[same] = ground(result.cell)
            tables.setdefault((grounds[same], kind), []).append((run, result))
    made: list[Board] = []
    owners = [list({id(run): run for run, _ in table}.values()) for table in tables.values()]
    for ((_, kind), table), own, title in zip(tables.items(), owners, _titles(owners), strict=True):
        board = _board([result for _, result in table], title, next((r.layout for r in own if r.layout), {}))
        board.left_out = [sentence for run in own for sentence in run.unfinished]
        board.warnings += board.left_out
        if certificates := [run.certificate for run in own if run.certificate is not None]:
            first_results = [result for _, result in table]
            said = {name: one for certificate in certificates for name, one in certificate.on(first_results).items()}
            board.columns = [_certified(column, said.get(column.name)) for column in board.columns]
        if made:
            (_, first_kind), first = next(iter(tables.items()))
            metrics = [
                {
                    name: facts
                    for own, its in zip(configured, kinds, strict=False)
                    if its == k
                    for name, facts in own.items()
                }
                for k in (first_kind, kind)
            ]
            fields = of_cells(first[0][1].cell, table[0][1].cell) + (
                differences(metrics[0], metrics[1]) if kind != first_kind else []
            )
            board.apart = f"not ranked together with {made[0].title}, from which it differs in {in_words(fields)}"
            board.warnings.insert(0, board.apart)
        made.append(board)
    return made


def _certified(column: Column, said: Certified | None) -> Column:
    return column if said is None else dataclasses.replace(column, certified=(said.mark, said.words))


def _board(results: list[Result], title: str, settings: Mapping[str, Any]) -> Board:
    first: dict[object, Result] = {}
    for result in results:
        first.setdefault(result.form, result)
    forms = list(first.values())  # what they are asked, all results of one form answer alike
    _refuse_mixtures(forms)
    settings = _spelt_out(forms, settings)
    columns, warnings = _columns(forms, settings.get("columns") or [])
    names: dict[str, list[str]] = {}
    for column in columns:
        names.setdefault(column.metric, []).append(column.name)
    rows: dict[tuple[str, ...], Row] = {}
    facts: dict[tuple[str, ...], Mapping[str, Any]] = {}
    entries: dict[tuple[str, ...], Entries] = {}
    same: dict[tuple[int, Any], Entries] = {}
    for result in results:
        subjects = result.cell["subjects"]
        known = same.get((id(subjects), result.cell.get("over"))) if subjects else None
        if known is None:
            name, kind = _named(result)
            hooks = " + ".join(dict.fromkeys(s["hook_name"] for s in subjects))
            identity = (name, hooks, *(s.get("key", "") for s in subjects))
            site = " + ".join(dict.fromkeys(s.get("site", s["hook_name"]) for s in subjects))
            known = entries.setdefault(identity, Entries(names, _entry))
            same[id(subjects), result.cell.get("over")] = known
            row = rows.setdefault(identity, Row(name, hooks, kind, known, site=site, keys=identity[2:]))
            if kind == "control":
                row.control, row.of = subjects[0].get("control"), subjects[0].get("of")
                row.of_keys = tuple(subject.get("of_key") for subject in subjects)
                if twin := result.cell.get("twin"):
                    row.of = _group(twin["of"], subjects)
            if len(subjects) == 1:
                facts[identity] = subjects[0]
        known.add(result)
    for identity, row in rows.items():
        row.results = entries[identity].results
    warnings += _findings(forms)
    merged = _merge_copies(rows, facts)
    rank_by = settings.get("rank_by") or next((c.name for c in columns if c.headline), None)
    wanted = columns_of(settings.get("against") or [], rank_by)
    of_nulls = [(c.control["control"], c.name) for c in columns if c.control is not None]
    made = {row.control for row in merged if row.control}
    wanted += [pair for pair in of_nulls if pair not in wanted and pair[0] in made]
    ahead, in_vain = against(merged, columns, wanted)
    warnings += in_vain
    _tell_apart(merged)
    if rank_by and rank_by not in {c.name for c in columns}:
        near = suggestion(rank_by, [c.name for c in columns])
        warnings.append(f"rank_by '{rank_by}': there is no such column, so nothing is ranked{near[:200]}")
    ranked = next((c for c in columns if c.name == rank_by), None)
    own = [row.entries[ranked.name] for row in merged if ranked.name in row.entries] if ranked is not None else []
    if settings.get("rank_by") and ranked is not None and all(entry.value is None for entry in own):
        warnings.append(f"rank_by '{rank_by}': no row has a value of it, so nothing is ranked")
    elif settings.get("rank_by") and ranked is not None and ranked.better is None:
        warnings.append(f"rank_by '{rank_by}': it has no better direction, so nothing is ranked")
    several = len({row.site for row in merged if row.kind == "sae"}) > 1
    hook_only = several and ranked is not None and ranked.comparable == "hook"
    within_hooks = hook_only and not settings.get("across_hooks")
    rank(merged, ranked, within_hooks)
    if hook_only:
        warnings.append(_on_hooks(merged, rank_by, within_hooks))
    elif several and ranked is not None:
        warnings += _at_stake(merged, ranked.name)
    warnings += _denser(merged, columns, rank_by, within_hooks) + _repeated(merged, columns)
    cell = results[0].cell
    model = (cell["model"] or {}).get("name", "")
    data = cell["data"]
    columns = [c for column in columns for c in [column, *ahead.get(column.name, [])]]
    sample = next((r.sample for r in forms if r.sample), None)
    limited = data.get("limit") is not None
    return Board(
        title, model, data, columns, merged, rank_by, limited, warnings, sample=sample, within_hooks=within_hooks
    )


def _on_hooks(rows: Sequence[Row], rank_by: str | None, within_hooks: bool) -> str:
    """How rows at several hooks are ranked by a column that is comparable within a hook only."""
    only = f"{rank_by} is comparable within a hook only"
    if not within_hooks:
        return f"{only}, but the suite sets 'across_hooks: true': ranks also reflect how the hooks differ"
    if any(row.rank is not None for row in rows):
        saes = Counter(row.hook_name for row in rows if row.kind == "sae")
        alone = [hook for hook, count in saes.items() if count == 1]
        unranked = f"; an SAE alone at its hook has no rank ({some(alone)})" if alone else ""
        return f"{only}: rows are ordered by hook, and ranks are among the SAEs at one hook{unranked}"
    return f"{only}, and no two SAEs share a hook: rows are ordered by hook, and nothing is ranked"


def _at_stake(rows: Sequence[Row], rank_by: str) -> list[str]:
    """A sentence if ranks are over hooks at which an ablation shows that far more or less can be lost."""
    for ablation in ("mean", "zero"):
        of_hooks = {
            row.hook_name: abs(entry.value)
            for row in rows
            if row.control == ablation and (entry := row.entries.get(rank_by)) is not None and entry.value
        }
        if of_hooks and any(row.rank is not None for row in rows):
            (least, low), *_, (most, high) = sorted(of_hooks.items(), key=lambda item: item[1]) * 2
            if high >= DENSER * low:
                return [
                    f"{rank_by} is ranked over hooks that differ in how much can be lost (the control {ablation} has "
                    f"{number(low)} at {least} and {number(high)} at {most}): compare SAEs at one hook"
                ]
    return []


def _denser(rows: Sequence[Row], columns: Sequence[Column], rank_by: str | None, within_hooks: bool) -> list[str]:
    """A sentence if the first row uses far more features than the second at its hook: more features reconstruct better.

    `within_hooks`: for each hook.
    """
    l0 = next((c.name for c in columns if c.value == L0), None)
    if l0 is None or rank_by == l0:
        return []
    by_hook: dict[str, list[Row]] = {}
    for row in (row for row in rows if row.rank is not None):
        by_hook.setdefault(row.hook_name if within_hooks else "", []).append(row)
    sentences = []
    for hook, ranked in by_hook.items():
        known = [(row, value) for row in ranked if l0 in row.entries and (value := row.entries[l0].value)]
        if not known or known[0][0] is not ranked[0]:
            continue
        (first, most), *others = known
        second = next(((row, value) for row, value in others if row.hook_name == first.hook_name), None)
        if second is not None and most >= DENSER * second[1]:
            sentences.append(
                f"{first.name}, first in {rank_by}{f' at {hook}' if hook else ''}, has {number(most / second[1], 2)} "
                f"times the L0 of {second[0].name} ({number(most)} against {number(second[1])} features per token): a "
                f"higher L0 makes {rank_by} easier, so compare SAEs of similar L0"
            )
    return sentences


def _repeated(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """A sentence for rows of a control with equal numbers: SAEs of one width and L0 may have the same control."""
    shown = [column.name for column in columns if column.headline]
    equal: dict[object, list[str]] = {}
    for row in (row for row in rows if row.kind == "control" and row.of is not None):
        numbers = [(e.value, e.stderr) for name in shown if (e := row.entries.get(name)) is not None]
        if any(stderr for _, stderr in numbers):  # equal counts prove nothing
            equal.setdefault((row.control, row.site, *numbers), []).append(row.name)
    return [
        f"{some(names)} have the same numbers, so these SAEs have the same control, and the rows count as one"
        for names in equal.values()
        if len(names) > 1
    ]


def _spelt_out(results: list[Result], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The layout with every column as `metric.value`: a metric with one value may be named alone."""
    scalars: dict[str, list[str]] = {}
    for result in results:
        names = [name for name, record in result.values.items() if "kind" not in record]
        scalars.setdefault(result.metric, []).extend(name for name in names if name not in scalars[result.metric])

    def whole(name: Any) -> Any:
        only = scalars.get(str(name), [])
        return f"{name}.{only[0]}" if len(only) == 1 else name

    against = settings.get("against") or []
    if isinstance(against, Mapping):
        against = {control: [whole(name) for name in names] for control, names in against.items()}
    columns = [whole(name) for name in settings.get("columns") or []]
    return {**settings, "columns": columns, "rank_by": whole(settings.get("rank_by")), "against": against}


def _named(result: Result) -> tuple[str, str]:
    """What a result's row is called, and its kind."""
    subjects = result.cell["subjects"]
    if len(subjects) == 1:
        return subjects[0]["name"], subjects[0].get("kind", "sae")
    if not subjects:
        return (result.cell["model"] or {}).get("name") or str(result.cell["data"].get("use")), "model"
    kind = "control" if "twin" in result.cell else "group"
    return _group(result.cell.get("over") or "group", subjects), kind


def _group(name: str, members: Sequence[Any]) -> str:
    return f"{name} ({len(members)})"


def _findings(results: list[Result]) -> list[str]:
    """What the preflight found of SAEs that were allowed all the same, and what metrics warn of, each once."""
    found = {
        f"preflight: {name}: {finding['message']}"
        for result in results
        for name, findings in (result.provenance.get("preflight") or {}).items()
        for finding in findings
    }
    return [*sorted(found), *dict.fromkeys(note for result in results for note in result.notes)]


def _columns(results: list[Result], asked: Sequence[str]) -> tuple[list[Column], list[str]]:
    """Every scalar of every metric, those asked for first and in their order; and what was asked for in vain."""
    warnings = []
    found: dict[str, Column] = {}
    complete: set[str] = set()
    for result in results:
        if result.values:
            complete.add(result.metric)
        first = [name for name in result.headline if name in result.values] or list(result.values)
        main = first[:1] if result.main is None else result.main
        for name, record in result.values.items():
            if "kind" not in record:
                column = f"{result.metric}.{name}"
                shown = column in asked if asked else name in first
                facts = ("comparable", "null", "depends")
                how: dict[str, Any] = {fact: record[fact] for fact in facts if record.get(fact)}
                if "control" in how.get("null", {}):
                    how["control"] = how.pop("null")
                # An undefined value may lack them.
                if column not in found or (how and found[column].null is None and found[column].control is None):
                    found[column] = Column(column, record["unit"], record["better"], shown, name in main, **how)
    for name in asked:
        metric, _, value = name.partition(".")
        if name not in found and metric in complete:
            values = [c.value for c in found.values() if c.metric == metric]
            warnings.append(f"column '{name}': metric '{metric}' has no value '{value}'{suggestion(value, values)}")
        found.setdefault(name, Column(name))
    for result in results:  # a metric that failed everywhere still has its column, which says so
        if result.metric not in {c.metric for c in found.values()}:
            name = f"{result.metric}.{result.cell['metric']}"
            found[name] = Column(name, headline=not asked, main=True)
    order = {name: index for index, name in enumerate(asked)}
    return sorted(found.values(), key=lambda c: order.get(c.name, len(order))), warnings


def _entry(result: Result, name: str) -> Entry:
    record, estimate = result.scalar(name)
    if record is None:
        return Entry(status=result.status, reason=result.reason)
    status = "ok" if record["value"] is not None else "undefined"
    interval, null = record["ci95"], record.get("null")
    return Entry(
        record["value"], record["stderr"], tuple(interval) if interval else None, record["n"], status,
        record.get("reason"), estimate, support=support_of(record), p=record.get("p"),
        proportion=record.get("proportion", False),
        null=null if null and "control" not in null else None,  # a control's null is tested in a column of its own
        seeds=tuple(record["seeds"]) if record.get("seeds") else None,
    )  # fmt: skip


def _merge_copies(rows: Mapping[tuple[str, ...], Row], facts: Mapping[tuple[str, ...], Mapping[str, Any]]) -> list[Row]:
    """Independent draws of one control become one row: their mean, with their spread in the error."""
    families: dict[Any, list[Row]] = {}
    for identity, row in rows.items():
        fact = facts.get(identity, {})
        if fact.get("kind") == "control" and "copy" in fact:
            words = {k: v for k, v in fact.items() if k not in ("name", "key", "copy")}
            families.setdefault(digest_of(words), []).append(row)
        else:
            families[identity] = [row]
    return [family[0] if len(family) == 1 else _averaged(family) for family in families.values()]


def _tell_apart(rows: list[Row]) -> None:
    """Rows of different subjects under one name (from different runs) are numbered."""
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        place = (row.name, row.hook_name)
        seen[place] += 1
        if seen[place] > 1:
            row.name = f"{row.name} ({seen[place]})"


def _refuse_mixtures(results: list[Result]) -> None:
    """One name for two configurations (from different runs) would be a column that mixes two formulas."""
    configured: dict[str, Any] = {}
    for result in results:
        own = configuration(result)
        if configured.setdefault(result.metric, own) != own:
            raise SaevalError(
                f"leaderboard: '{result.metric}' is {configured[result.metric]} in one run and {own} in another; "
                f"give one of them another name with 'as:'"
            )


def _averaged(family: list[Row]) -> Row:
    first, count = family[0], len(family)
    row = dataclasses.replace(first, entries={}, copies=count, results=[r for own in family for r in own.results])
    for name in first.entries:
        entries = [r.entries[name] for r in family if name in r.entries]
        values = [e.value for e in entries if e.value is not None]
        if len(values) < count:
            row.entries[name] = next(e for e in entries if e.value is None) if len(entries) == count else Entry()
            continue
        mean = sum(values) / count
        spread = sum((v - mean) ** 2 for v in values) / (count - 1) / count
        estimates = [e.estimate for e in entries if e.estimate is not None]
        average = sum(estimates[1:], estimates[0]) / count if len(estimates) == count else None
        # Draws see the same documents, so together they are no surer of them than one is.
        own = average.stderr if average else max((e.stderr for e in entries if e.stderr is not None), default=None)
        stderr = None if own is None and not spread else math.sqrt((own or 0.0) ** 2 + spread)
        support = average.support if average else None
        entry = Entry(mean, stderr, None, entries[0].n, "ok", entries[0].reason, average, count, spread, support)
        if entries[0].proportion and average is not None and stderr is not None and entry.testable:
            entry.proportion = True
            entry.ci95 = proportion_interval(mean, stderr, average.effective, float(average.sizes.sum()))
        row.entries[name] = entry
    return row
