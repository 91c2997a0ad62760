"""Plans a suite: its cells with their keys, and all problems that can be found before any weight is loaded."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from saeval.base.errors import Problem, SaevalError, SuiteError, blamed, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.identity import code_identity
from saeval.base.names import names_matching, names_matching_any
from saeval.base.parameters import validated
from saeval.base.run_options import RunOptions
from saeval.interfaces.contents import freeze
from saeval.interfaces.judge import Cost, Interview
from saeval.interfaces.metric import Metric, requested
from saeval.interfaces.model import ModelSpec
from saeval.interfaces.substitute import Subject
from saeval.plan.cell import Cell, subject_record
from saeval.plan.column_names import layout_problems
from saeval.plan.graph import Graph, NoSAEError
from saeval.plan.judge_entry import cost, interview, judge_problems
from saeval.plan.leaves import LEAVES, hooks_of, resume
from saeval.plan.model_entry import model_spec
from saeval.plan.nodes import Argument, Binding, Constant, Node, closure, flattened
from saeval.plan.precision import Stopping, stopping
from saeval.plan.streams import Streams, streams
from saeval.plan.subjects import Subjects
from saeval.registry.discovery import Failure
from saeval.registry.registry import Registry
from saeval.results.result import SCHEMA
from saeval.suite.schema import MetricEntry, Suite

UNTRAINED = ("random",)
"""The controls of which a group has twins by default."""
SEED = LEAVES["training_seed"].name
"""Its constants are part of a group's key; names of SAEs are not."""
_PROBE_TOKENS = 16
"""Length of the row on which live SAEs are tried if the data do not say how long rows are."""


@dataclass
class Plan:
    """Everything that a run will do and `saeval check` prints. Hooks `saeval_check` and `saeval_run_started` get it."""

    suite: Suite
    registry: Registry
    spec: ModelSpec | None
    streams: Streams
    interview: Interview | None
    """With the suite's judge, if it has one."""
    subjects: list[Subject]
    cells: list[Cell]
    options: RunOptions
    check_hooks: Any = None
    examined: Mapping[str, Mapping[str, Argument]] = field(default_factory=dict)
    """Requests of the preflight of an SAE, by the SAE's key."""
    proofs: Mapping[str, Mapping[str, Argument]] = field(default_factory=dict)
    """Requests of the proof that the model resumes correctly, by hook."""
    final: Mapping[str, Argument] | None = None
    """Requests of the examination of the model's clean final state; None without a model."""
    places: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    """Place of each SAE in the suite."""
    stopping: Stopping | None = None
    passing: frozenset[str] = frozenset()
    """Keys that no later run will have: those of unnamed live objects and of controls built from them."""

    twins: list[Subject] = field(default_factory=list)
    """The controls that take the places of SAEs in the twins of groups."""

    @property
    def name(self) -> str:
        return self.suite.name

    @property
    def title(self) -> str:
        """The suite's name; of a suite over several models, with the model's. It is unique in a run."""
        return f"{self.name}, {self.suite.part}" if self.suite.part else self.name

    def verify(self) -> None:
        """Check the SAEs' hooks against the model's config, and call `saeval_check`; `SuiteError` if a check fails."""
        problems: list[Problem] = self.check_hooks() if self.check_hooks else []
        if self.spec is not None:
            self.spec.facts()  # an adapter in which this fails should not stop a run half-way
        plugins = self.registry.plugins
        for problem, origin in plugins.collect("saeval_check", plan=self):
            if isinstance(problem, Problem):
                problems.append(problem)
            else:
                error = f"saeval_check returned an object of {type(problem).__name__} in its list; expected Problems"
                plugins.failures.append(Failure(origin, error))
        if problems:
            raise SuiteError(problems)

    def verify_judge(self, cells: Iterable[Cell]) -> None:
        """Check that the judge can answer the questions of cells within its budget; `SuiteError` if not."""
        if problems := judge_problems(self.suite, self.interview, self._asking(cells)):
            raise SuiteError(problems)

    def questions(self, cells: Iterable[Cell]) -> Cost:
        """Return what the questions of cells to the judge cost at most."""
        return cost(self.interview, self._asking(cells)) if self.interview is not None else Cost(0, 0)

    def _asking(self, cells: Iterable[Cell]) -> list[Node]:
        return [n for n in closure([n for cell in cells for n in cell.nodes()]).values() if n.quantity.asks]

    def is_reusable(self, node: Node) -> bool:
        """True if a later run may request this node, so that its value is worth storing."""
        if self.spec is not None and self.spec.live_key in self.passing and "model" in node.roots:
            return False
        return not any(n.quantity.identity in self.passing for n in closure([node]).values())

    def folds(self, cells: Iterable[Cell], stored: Iterable[str] = ()) -> dict[int, Node]:
        """Return the folds that `cells` need, by serial, without those needed only for `stored` ones (digests)."""
        digests = set(stored)
        needed = closure([n for cell in cells for n in cell.nodes()], beyond=lambda n: n.digest not in digests)
        return {serial: node for serial, node in needed.items() if node.quantity.fold}


@dataclass
class _Planner:
    suite: Suite
    registry: Registry
    options: RunOptions
    problems: list[Problem] = field(default_factory=list)

    def plan(self) -> Plan:
        entries = self.suite.metrics(self.problems)
        metrics = [configured for entry in entries if (configured := self._metric(entry)) is not None]
        by_alias = {entry.alias: None for entry in entries} | {entry.alias: metric for entry, metric in metrics}
        spec = model_spec(self.suite, self.registry, self.options, self.problems)
        asked = interview(self.suite, self.registry, self.problems)
        data = streams(self.suite, self.registry, spec, self.options.limit, self.problems)
        subjects = Subjects(self.suite, self.registry, spec, self.problems, self.options)
        saes, hooks = subjects.saes(), subjects.hooks()
        controls = subjects.controls(saes, hooks)
        groups = self._groups(saes)
        twins = {e.alias: self._twins(metric, e, subjects, groups) for e, metric in metrics}
        in_twins = list({s.key: s for sets in twins.values() for members in sets for s in members}.values())
        self._without_saes(metrics)
        if len(entries) == len(self.suite.body.metrics):  # else the names of some metrics are unknown
            self.problems += layout_problems(self.suite, by_alias, None if self.problems else [*controls, *in_twins])
        size = self.options.batch_size if self.options.batch_size is not None else self.suite.body.batch
        self.options = replace(self.options, batch_size=size)
        if self.problems or data is None:
            self._raise(subjects, saes)
        assert data is not None
        graph = self._graph(spec, data, subjects, asked)
        substitutes = [*saes, *controls]
        placed = [*substitutes, *hooks]
        subjects_of = {e.alias: self._subjects_of(metric, e, placed, groups) for e, metric in metrics}
        order = {s.key: i for i, s in enumerate([*placed, *in_twins])}
        cells = []
        for entry, metric in metrics:
            for members in [*subjects_of[entry.alias], *twins[entry.alias]]:
                first = min((order[s.key] for s in members), default=-1)
                if cell := self._cell(graph, spec, data, entry, metric, members, first):
                    cells.append(cell)
        self._without_cells(metrics, cells, substitutes)
        stop, cells = stopping(self.suite, cells, self.problems)
        if self.problems:
            self._raise(subjects, saes)

        def check_hooks() -> list[Problem]:
            before = len(self.problems)
            subjects.check_hooks(saes, data.evaluation.context or _PROBE_TOKENS, data.evaluation.width)
            return self.problems[before:]

        examined = {s.key: requests for s in saes if (requests := _examination_requests(graph, s)) is not None}
        return Plan(
            self.suite, self.registry, spec, data, asked, placed, cells, self.options,
            check_hooks, examined, _proofs(graph, cells), _final(graph) if spec else None, subjects.places, stop,
            self._passing(spec, [*substitutes, *in_twins]), in_twins,
        )  # fmt: skip

    def _passing(self, spec: ModelSpec | None, subjects: list[Subject]) -> frozenset[str]:
        if self.suite.live_keys is None or self.suite.live_keys.named:
            return frozenset()
        live = {s.key for s in subjects if (s.parent or s).name in self.suite.live}
        passes = spec is not None and spec.live_key and not self.suite.keeps_model
        return frozenset(live | ({spec.live_key} if spec is not None and passes else set()))

    def _raise(self, subjects: Subjects, saes: list[Subject]) -> None:
        if subjects.spec is not None:  # report wrong hooks together with the other problems
            subjects.check_hooks(saes)
        raise SuiteError(self.problems)

    def _metric(self, entry: MetricEntry) -> tuple[MetricEntry, Metric] | None:
        """Return an entry with all its parameters, and its metric; None, with problems, if the entry is wrong."""
        try:
            cls = self.registry.metrics[entry.name]
            params = validated(cls, entry.params, f"metric '{entry.name}'")
            with blamed(f"metric '{entry.name}'", self.registry.metrics.entry(entry.name).origin, values=True):
                metric = cls(**params)
                freeze(metric)
            clash = [p for p in params if p in self.registry.quantities or p in LEAVES]
            if clash:
                raise SaevalError(f"metric '{entry.name}': its parameter '{clash[0]}' is also the name of a quantity")
        except (SaevalError, ValueError) as error:
            self.problems += self.suite.problems(error, *entry.location, key=True)
            return None
        if (entry.over is None) == (metric.subject == "group"):
            rule = "needs 'over: GROUP'" if metric.subject == "group" else "takes no 'over'"
            self.problems.append(self.suite.problem(f"metric '{entry.name}' {rule}", *entry.location))
            return None
        return replace(entry, params=params), metric

    def _without_saes(self, metrics: list[tuple[MetricEntry, Metric]]) -> None:
        """Add a problem for metrics or controls that would have no cell, in a suite without SAEs."""
        if self.suite.body.saes or self.suite.live or self.suite.body.hooks:
            return
        remedy = "add 'saes:', as in 'saes: [testbed/relu-3]' or 'saes: [{use: FORMAT, path: FOLDER}]'"
        of_saes = [entry for entry, metric in metrics if metric.subject == "sae"]
        if of_saes:
            names = ", ".join(f"'{entry.alias}'" for entry in of_saes)
            message = f"{names}: evaluated on SAEs, and the suite has none; {remedy}"
            self.problems.append(self.suite.problem(message, *of_saes[0].location))
        elif self.suite.body.controls:
            message = f"controls are placed at the hooks of SAEs, and the suite has no SAE; {remedy}"
            message += ", or 'hooks:', as in 'hooks: [blocks.*.hook_resid_post]'"
            self.problems.append(self.suite.problem(message, "controls"))

    def _without_cells(
        self, metrics: list[tuple[MetricEntry, Metric]], cells: list[Cell], substitutes: list[Subject]
    ) -> None:
        """Add a problem for each metric that needs an SAE or control, in a suite with hooks alone."""
        for entry, metric in metrics if not (substitutes or self.problems or self.suite.part) else []:
            if metric.subject == "sae" and not any(cell.entry is entry for cell in cells):
                message = f"'{entry.alias}' needs an SAE or control at its hook, and the suite has none"
                remedy = "add 'saes:', or controls such as 'controls: [zero, mean]'"
                self.problems.append(self.suite.problem(f"{message}; {remedy}", *entry.location))

    def _groups(self, saes: list[Subject]) -> dict[str, list[Subject]]:
        groups: dict[str, list[Subject]] = {}
        for name, patterns in self.suite.body.groups.items():
            groups[name] = []
            for index, pattern in enumerate(patterns):
                names = names_matching(pattern, [s.name for s in saes])
                members = [s for s in saes if s.name in names]
                if not members and not self.problems:
                    message = f"group '{name}': no SAE of 'saes:' matches '{pattern}'"
                    self.problems += self.suite.lacks(message, "groups", name, index)
                groups[name] += [m for m in members if m not in groups[name]]
        return groups

    def _graph(self, spec: ModelSpec | None, data: Streams, subjects: Subjects, asked: Interview | None) -> Graph:
        most = spec.context if spec is not None else None
        if data.options is not None:  # before the rows are built, which take memory by their context
            self._check_context(data.options.context, spec, most)
        try:
            with data.answered_for():
                evaluation = data.evaluation
                longest, needs_model, _ = evaluation.context, evaluation.needs_model, evaluation.n_clusters
                data_digest, pair, supplies = evaluation.fingerprint, evaluation.pair, frozenset(evaluation.supplies)
                supplies_once, width = frozenset(evaluation.supplies_once), evaluation.width
        except SaevalError as error:
            raise SuiteError(self.suite.problems(error, "data")) from None
        self._check_context(longest, spec, most)
        if spec is None and needs_model:
            raise SuiteError([self.suite.problem("this data needs a model; add 'model:'", "data")])
        return Graph(
            self.registry.quantities.__getitem__,
            names={*self.registry.quantities.names(), *LEAVES, *supplies, *supplies_once},
            hooks=functools.cache(spec.hooks if spec else dict),
            control=subjects.ablation,
            digests={"model": digest_of([_identity(spec), spec.code]) if spec else "", "batch": data_digest},
            fit_digest=lambda: data.fit.fingerprint,
            pair=pair,
            supplies=supplies,
            supplies_once=supplies_once,
            once=evaluation.once,
            width=width,
            site=spec.site if spec else str,
            interview=asked,
            reward_unit="nats" if spec and spec.kind == "causal" else "reward",
            origin=lambda metric: self.registry.metrics.entry(metric).origin,
        )

    def _check_context(self, longest: int | None, spec: ModelSpec | None, most: int | None) -> None:
        if spec is not None and most is not None and longest is not None and longest > most:
            message = f"context {longest} is longer than the {most} positions of '{spec.name}'"
            raise SuiteError([self.suite.problem(message, "data", "context")])

    def _subjects_of(
        self, metric: Metric, entry: MetricEntry, placed: list[Subject], groups: Mapping[str, list[Subject]]
    ) -> list[list[Subject]]:
        if metric.subject == "group":
            members = groups[entry.over] if entry.over else []
            if not members and not self.suite.part:
                self._add_once(f"group '{entry.over}' has no members", entry)
            return [members] if members else []
        if metric.subject == "none":
            return [[]]
        if entry.of is None:
            return [[s] for s in placed]
        names = [s.name for s in placed]
        for index, pattern in enumerate(entry.of):
            if not names_matching(pattern, names):
                message = f"'of' of metric '{entry.alias}': nothing is named '{pattern}'{suggestion(pattern, names)}"
                self.problems += self.suite.lacks(message, *entry.location, "of", index)
        chosen = set(names_matching_any(entry.of, names))
        return [[s] for s in placed if s.name in chosen]

    def _twins(
        self, metric: Metric, entry: MetricEntry, subjects: Subjects, groups: Mapping[str, list[Subject]]
    ) -> list[list[Subject]]:
        """Return the twins of a metric's group: by default one of untrained SAEs."""
        members = groups[entry.over] if entry.over and metric.subject == "group" else []
        default = UNTRAINED if UNTRAINED[0] in self.registry.controls else ()
        twins = []
        for name in (default if entry.controls is None else entry.controls) if members else ():
            try:
                twins.append(subjects.twin(members, name))
            except SaevalError as error:
                self.problems.append(self.suite.problem(str(error), *entry.location, "controls"))
        return twins

    def _cell(
        self, graph: Graph, spec: ModelSpec | None, data: Streams, entry: MetricEntry, metric: Metric,
        members: list[Subject], order: int,
    ) -> Cell | None:  # fmt: skip
        params = entry.params
        group = tuple(members) if metric.subject == "group" else ()
        bindings = [Binding.of(subject, params, group) for subject in members] or [Binding(None, params)]
        at_hook = any(subject.kind == "hook" for subject in members)
        needs_pair = metric.data == "pair"
        if needs_pair != data.evaluation.pair and hasattr(metric, "observe"):
            needed = "preference pairs" if needs_pair else "a stream of text"
            self._add_once(f"metric '{entry.name}' needs {needed}, which data '{data.source.name}' is not", entry)
            return None
        origin = self.registry.metrics.entry(entry.name).origin
        try:
            with blamed("its requests", origin):
                observe = graph.request(metric, "observe", bindings) if hasattr(metric, "observe") else None
                conclude = graph.conclude(metric, bindings)
        except SaevalError as error:
            if not (at_hook and isinstance(error, NoSAEError)):
                self._add_once(f"metric '{entry.name}': {error}", entry)
            return None
        nodes = [n for a in [*(observe or {}).values(), *conclude.values()] for n in flattened(a)]
        reached = closure(nodes).values()
        if at_hook and not any("hook" in n.roots for n in reached):
            return None  # it says nothing about the hook
        if data.score_share < 1 and not metric.sampled_scores and any(n.quantity.scores for n in reached):
            remedy = "leave out one of them, or evaluate this metric in a suite of its own"
            message = f"metric '{entry.name}' needs the scores of all tokens, but data.score_share is"
            self._add_once(f"{message} {data.score_share:g}; {remedy}", entry)
            return None
        control = (members[0].facts or {}).get("control") if entry.over and members[0].kind == "control" else None
        record = {
            "suite": self.suite.name,
            "subjects": [subject_record(s) for s in members],
            "model": _identity(spec) | {"name": spec.name} if spec else None,
            "data": data.description,
            **_judge_record(graph.interview, reached),
            "metric": metric.name,
            "alias": entry.alias,
            "metric_version": metric.version,
            "params": params,
            "over": f"{control}({entry.over})" if control else entry.over,
            **({"twin": {"control": control, "of": entry.over}} if control else {}),
            "supplied_by": str(origin),
        }
        streamed = observe is not None or any("batch" in n.roots for n in reached)
        words = [
            SCHEMA, metric.name, metric.version, code_identity(type(metric), origin), params,
            [[s.key, s.hook_name] for s in members],
            [
                [name, [n.digest for n in flattened(a)], repr(a) if isinstance(a, Constant) or name == SEED else ""]
                for part in (observe or {}, conclude)
                for name, a in part.items()
            ],
            requested(metric, "substitutes"),
            data.evaluation.fingerprint if streamed else "",
        ]  # fmt: skip
        return Cell(
            digest_of(words)[:24], metric, entry, members, observe, conclude, record, order,
            streamed, foreign=not origin.own,
        )  # fmt: skip

    def _add_once(self, message: str, entry: MetricEntry) -> None:
        problem = self.suite.problem(message, *entry.location)
        if problem not in self.problems:
            self.problems.append(problem)


def _judge_record(asked: Interview | None, nodes: Iterable[Node]) -> dict[str, Any]:
    """Return the record of the judge in the results of a cell whose nodes ask it."""
    if asked is None or not any(node.quantity.asks for node in nodes):
        return {}
    return {"judge": {"use": type(asked.judge).name, **asked.judge.identity()}}


def _identity(spec: ModelSpec) -> dict[str, Any]:
    return dict(spec.identity()) | ({"live": spec.live_key} if spec.live_key else {})


def _examination_requests(graph: Graph, sae: Subject) -> dict[str, Argument] | None:
    """Return the requests of an SAE's examination; None if it is fitted first, or the suite has no activations."""
    if sae.needs:
        return None
    try:
        return {name: graph.resolve(name, Binding(sae)) for name in ("sae", "sae_input", "activations", "mask")}
    except SaevalError:
        return None


def _proofs(graph: Graph, cells: Iterable[Cell]) -> dict[str, dict[str, Argument]]:
    """Return the requests of the proof of a resume, by hook, for each hook at which a cell resumes."""
    nodes = closure([n for cell in cells for n in cell.nodes()]).values()
    names = ("activations", "resume", "clean_final", "batch")
    at = {hook: Binding(None, hook_name=hook) for hook in hooks_of(resume, nodes)}
    return {hook: {name: graph.resolve(name, binding) for name in names} for hook, binding in at.items()}


def _final(graph: Graph) -> dict[str, Argument]:
    return {name: graph.resolve(name, Binding(None)) for name in ("model", "batch", "clean_final")}


def plan(suite: Suite, registry: Registry, options: RunOptions) -> Plan:
    """Plan a suite: resolve all its names; `SuiteError` lists all problems at once."""
    return _Planner(suite, registry, options).plan()
