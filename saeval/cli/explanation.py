"""The output of `saeval explain`: the tree of quantities that a metric requests, as a suite resolves it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saeval.base.errors import SaevalError, suggestion
from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.run_options import RunOptions
from saeval.cli import cost_estimate
from saeval.engine.batch_program import BatchProgram, resumes
from saeval.engine.passes import passes
from saeval.interfaces.live_objects import LiveSAE
from saeval.plan import leaves
from saeval.plan.cell import Cell
from saeval.plan.nodes import Constant, Node, closure, flattened
from saeval.plan.plan import Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks

ROOTS = ("model", "batch", "hook", "subject")
HEADINGS = ("", "depends on", "pass", "used", "cost", "code")
LEGEND = """
depends on: metrics and SAEs share a value if these are the same for both
pass: the pass that computes it; `after`: computed once, from the sums of the passes
used: number of requests for it in the run; a per-batch value is freed after the last
cost: per batch; a number is in full clean passes of the model
(above): the same value, already printed; #1 and #2 are different values of one name
clean, resumed: a pass of the unchanged model; a partial pass, from the hook on"""


def example(metric: str, sae: str | None, plugins: Plugins) -> Plan:
    """Return the plan of a metric with its default parameters, without a suite: on a registered SAE, or a tiny one."""
    from saeval import testing  # late: it imports torch

    plugins = plugins.copy()
    plugins.add(testing.TinyPlugin(), "saeval:testing", "")
    registry = Registry(plugins)
    cls, model = registry.metrics[metric], (sae or "").split("/")[0]
    pairs, group = cls.data == "pair", cls.subject == "group"
    if sae is not None and (sae not in registry.saes or model not in registry.models):
        near = suggestion(sae, registry.saes.names())
        raise SaevalError(f"--sae: '{sae}' is no registered SAE{near}; for your own SAE, name a suite that has it")
    body: dict[str, Any] = {
        "suite": "example",
        "data": testing.register_rows("example", testing.TinyPairs() if pairs else testing.tiny_tokens()),
        "saes": [sae or "SAE"],
        "groups": {"group": ["*"]} if group else {},
        "metrics": [{metric: {"over": "group"}} if group else metric],
    }
    if sae is not None:
        suite = validate({**body, "model": model}, Marks("example"))
    else:
        names = ["SAE", "SAE-2"] if group else ["SAE"]
        suite = validate(body, Marks("example"), {name: LiveSAE(testing.TinySAE(), None, name) for name in names})
        suite.body.saes, suite.live_model = [], testing.TinyModel(kind="reward" if pairs else "causal")
    return plan(suite, registry, RunOptions())


def cell_of(plan: Plan, metric: str, sae: str | None) -> Cell:
    """Return the cell of a metric, by its alias or name, and of an SAE; of its first SAE if `sae` is None."""
    cells = [c for c in plan.cells if c.entry.alias == metric] or [c for c in plan.cells if c.metric.name == metric]
    aliases = list(dict.fromkeys(c.entry.alias for c in cells))
    if len(aliases) > 1:
        raise SaevalError(
            f"suite '{plan.name}' has the metric '{metric}' as {', '.join(aliases)}; use one of these names"
        )
    if not cells:
        aliases = list(dict.fromkeys(c.entry.alias for c in plan.cells))
        raise SaevalError(f"suite '{plan.name}' has no metric '{metric}'{suggestion(metric, aliases)}")
    matches = [c for c in cells if sae is None or sae in (s.name for s in c.subjects)]
    if not matches:
        near = suggestion(str(sae), [s.name for c in cells for s in c.subjects])
        raise SaevalError(f"--sae: metric '{metric}' of suite '{plan.name}' has no SAE '{sae}'{near}")
    return matches[0]


def explanation(plan: Plan, cell: Cell) -> str:
    """Return the tree as text: the passes that it needs, then each quantity with its roots, cost and code."""
    tree = _Tree(plan, cell)
    entry = plan.registry.metrics.entry(cell.metric.name)
    subjects = ", ".join(f"'{s.name}' at {s.hook_name}" for s in cell.subjects) or "the model"
    parameters = ", ".join(f"{name}={value!r}" for name, value in cell.entry.params.items())
    rows = [HEADINGS, *tree.table()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    table = ["  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    twins = [c.record["over"] for c in plan.cells if c.entry is cell.entry and "twin" in c.record]
    again = f"  computed again for {', '.join(twins)}: the group with each SAE replaced by this control"
    lines = [
        f"metric {cell.metric.name}@{cell.metric.version} of {subjects}, in suite {plan.name}",
        f"  {_code(entry.thing)} ({entry.origin})",
        *([f"  parameters: {parameters}"] if parameters else []),
        *([again] if twins else []),
        *tree.passes,
        "",
        *table,
        *LEGEND.split("\n"),
    ]
    return "\n".join(map(line, lines))


class _Tree:
    """The rows of the table, from `observe` and `conclude` down to the leaves, and the passes that they need."""

    def __init__(self, plan: Plan, cell: Cell) -> None:
        self.plan, metric = plan, cell.metric
        self.size = cost_estimate.ModelSize.of(plan.spec) if plan.spec is not None else None
        self._rows: list[tuple[str, Node | None, str, tuple[str, ...]]] = []
        """Text before the node's number, the node, text after the number, and the other columns."""
        ordered = passes(plan, plan.cells, ())
        self._programs = [BatchProgram(pass_.summations) for pass_ in ordered]
        self._folded = {
            s.node.serial: i for i, pass_ in enumerate(ordered, 1) for s in pass_.summations if s.node is not None
        }
        self._concluding = Counter(n.serial for c in plan.cells for a in c.conclude.values() for n in flattened(a))
        self._shown: dict[int, Node] = {}
        """Nodes that have a full row, by serial."""
        self._alike: set[int] = set()
        """Serials of nodes without a row, since another node of the same form has one."""
        self._forms: dict[int, tuple[Any, ...]] = {}
        observing = [i for i, pass_ in enumerate(ordered, 1) if cell in pass_.cells]
        if cell.observe is not None:
            self._method("observe", str(observing[0]), metric.observe, cell.observe)  # type: ignore[attr-defined]
        self._method("conclude", "after", metric.conclude, cell.conclude)  # type: ignore[attr-defined]
        needed = {i for serial in self._shown for i in self._when(serial)} | set(observing)
        described = [f"{pass_.title}: {_work(p)}" for pass_, p in zip(ordered, self._programs, strict=True)]
        self.passes = [f"  pass {i}: {text}" for i, text in enumerate(described, 1) if i in needed]

    def _method(self, name: str, when: str, function: Any, requests: Mapping[str, Any]) -> None:
        self._rows.append((name, None, "", ("", when, "", "", _code(function))))
        for request, argument in requests.items():
            members = list(dict.fromkeys(flattened(argument)))  # such as sides of a pair, or members of a group
            if isinstance(argument, list) and not members:
                argument = Constant([constant.value for constant in argument])
            self._add(request, members[0] if members else argument, members[1:], 1)

    def _add(self, request: str, argument: Node | Constant, alike: Sequence[Node], depth: int) -> None:
        """Add the row of an argument and those of its arguments; nodes in `alike` have the same form, and no rows."""
        indent = "  " * depth
        if isinstance(argument, Constant):
            self._rows.append((f"{indent}{request} = {_short(argument.value)}", None, "", ("",) * 5))
            return
        quantity = argument.quantity
        label = request if argument.name == request else f"{request} = {argument.name}"
        label += f" '{argument.subject}'" if argument.subject else ""
        more = f", and {len(alike)} more like it" if alike else ""
        shown = argument.serial in self._shown
        if shown or argument.serial in self._alike:
            after = f"{more} (above)" if shown else f"{more} (like one above)"
            self._rows.append((indent + label, argument, after, ("",) * 5))
            return
        fold = " (fold over the fit split)" if quantity.on_fit else " (fold)" if quantity.fold else ""
        uses = sum(program.uses[argument.serial] for program in self._programs) + self._concluding[argument.serial]
        code = "" if quantity.inserted else _code(quantity.function)
        columns = (
            ", ".join(root for root in ROOTS if root in argument.roots),
            ", ".join(map(str, self._when(argument.serial))) or "after",
            str(uses or ""),
            self._cost(argument),
            f"({quantity.origin})" if argument.subject else code,
        )
        self._rows.append((indent + label, argument, fold + more, columns))
        self._shown[argument.serial] = argument
        forms: dict[Any, list[tuple[str, Any]]] = {}
        for name, inner in argument.args.items():
            forms.setdefault(self._form(inner) if isinstance(inner, Node) else name, []).append((name, inner))
        for (name, inner), *rest in forms.values():
            self._add(name, inner, [node for _, node in rest if node is not inner], depth + 1)
            for same in (request for request, node in rest if node is inner):
                self._add(same, inner, [], depth + 1)
        self._alike.update(closure(alike))

    def table(self) -> list[tuple[str, ...]]:
        """Return the rows, with numbers if several nodes have the same name."""
        of_name: dict[str, list[Node]] = {}
        for node in self._shown.values():
            of_name.setdefault(node.name + node.subject, []).append(node)
        numbers = {
            node.serial: f" #{i}" for some in of_name.values() if len(some) > 1 for i, node in enumerate(some, 1)
        }
        return [
            (f"{before}{numbers.get(node.serial, '') if node else ''}{after}", *columns)
            for before, node, after, columns in self._rows
        ]

    def _form(self, node: Node) -> tuple[Any, ...]:
        """Return a key that is equal for nodes of different sides, hooks or draws that are otherwise the same."""
        if node.serial not in self._forms:
            inner = (self._form(a) if isinstance(a, Node) else () for a in node.args.values())
            self._forms[node.serial] = ("" if node.quantity.inserted else node.name, *inner)
        return self._forms[node.serial]

    def _when(self, serial: int) -> list[int]:
        """Return the numbers of the passes that compute or sum a value."""
        if serial in self._folded:
            return [self._folded[serial]]
        return [i for i, program in enumerate(self._programs, 1) if serial in program.nodes]

    def _cost(self, node: Node) -> str:
        if node.quantity is leaves.activations or node.quantity is leaves.clean_final:
            return "the clean pass"
        count = sum(times for _, times in resumes(node))
        parts = [counted(count, "resumed pass")] if count else ["scores"] if node.quantity.gathered else []
        operations = cost_estimate.of_node(self.plan, self.size, node)
        if operations and self.size is not None:
            parts.append(f"{operations / self.size.a_token:.2f}")
        return ": ".join(parts)


def _work(program: BatchProgram) -> str:
    """Return the model's work in a pass, in words."""
    if not program.touches_model:
        return "the model is not run"
    hooks = ("the deepest of " if len(program.hooks) > 1 else "") + ", ".join(program.hooks)
    cut = "" if program.final or not hooks else f", cut at {hooks}"
    return f"per batch 1 clean pass{cut}, {counted(program.resumes, 'resumed pass')}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _code(definition: Any) -> str:
    """Return the `file:line` of a function or class; empty if it has no source file."""
    while (inner := getattr(definition, "func", None)) is not None:  # a partial
        definition = inner
    definition = inspect.unwrap(definition)
    try:
        file, (_, first) = inspect.getsourcefile(definition), inspect.getsourcelines(definition)
    except (OSError, TypeError):
        return ""
    path = Path(file or "")
    near = path.is_relative_to(Path.cwd())
    return f"{path.relative_to(Path.cwd()) if near else path}:{first}"
