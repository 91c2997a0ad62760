"""What `saeval explain` prints: the tree of quantities that a metric requests, as a suite resolves it."""

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
from saeval.cli import cost_estimate as cost
from saeval.engine.batch_program import BatchProgram, resumes
from saeval.engine.passes import passes
from saeval.interfaces.live_objects import LiveSAE
from saeval.plan import leaves
from saeval.plan.nodes import Constant, Node, closure, flattened
from saeval.plan.plan import Cell, Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks

ROOTS = ("model", "batch", "hook", "subject")
HEADINGS = ("", "depends on", "pass", "used", "cost", "code")
LEGEND = """
depends on: metrics and SAEs that agree in these share the value
pass: where it is computed; `after`: once, from what the passes summed
used: how many requests of the run take it; a batch's value is freed after the last
cost: of each batch, in clean passes of the whole model where that is known
(above): the same value, printed once; numbers tell values of one name apart"""


def example(metric: str, sae: str | None, plugins: Plugins) -> Plan:
    """The plan of a metric with its default parameters, without a suite: on a registered SAE, or on a tiny one."""
    from saeval import testing  # late: it imports torch, which a suite may not need

    plugins = plugins.copy()
    plugins.add(testing.TinyPlugin(), "saeval:testing", "")
    registry = Registry(plugins)
    cls, model = registry.metrics[metric], (sae or "").split("/")[0]
    pairs, group = cls.data == "pair", cls.subject == "group"
    if sae is not None and (sae not in registry.saes or model not in registry.models):
        near = suggestion(sae, registry.saes.names())
        raise SaevalError(f"--sae: '{sae}' is no registered SAE{near}; for an SAE of yours, name a suite that has it")
    body: dict[str, Any] = {
        "suite": "example",
        "data": testing.register_rows("example", testing.TinyPairs() if pairs else testing.tiny_tokens()),
        "saes": [sae or "SAE"],
        "groups": {"group": ["*"]} if group else {},
        "metrics": [{metric: {"over": "group"}} if group else metric],
    }
    live = {}
    if sae is not None:
        body["model"] = model
    else:
        live = {name: LiveSAE(testing.TinySAE(), None, name) for name in (["SAE", "SAE-2"] if group else ["SAE"])}
    suite = validate(body, Marks("example"), live)
    if sae is None:
        suite.body.saes, suite.live_model = [], testing.TinyModel(kind="reward" if pairs else "causal")
    return plan(suite, registry, RunOptions())


def cell_of(made: Plan, metric: str, sae: str | None) -> Cell:
    """The cell of a metric, by its alias or name, and an SAE; the first SAE's without one."""
    cells = [c for c in made.cells if c.entry.alias == metric] or [c for c in made.cells if c.metric.name == metric]
    aliases = list(dict.fromkeys(c.entry.alias for c in cells))
    if len(aliases) > 1:
        raise SaevalError(f"suite '{made.name}' has the metric '{metric}' as {', '.join(aliases)}; name one of these")
    if not cells:
        known = list(dict.fromkeys(c.entry.alias for c in made.cells))
        raise SaevalError(f"suite '{made.name}' has no metric '{metric}'{suggestion(metric, known)}")
    own = [c for c in cells if sae is None or sae in (s.name for s in c.subjects)]
    if not own:
        known = [s.name for c in cells for s in c.subjects]
        raise SaevalError(
            f"--sae: metric '{metric}' of suite '{made.name}' has no SAE '{sae}'{suggestion(str(sae), known)}"
        )
    return own[0]


def explanation(made: Plan, cell: Cell) -> str:
    """The tree as text: the passes of its run, then every quantity with what it depends on and where its code is."""
    tree = _Tree(made, cell)
    entry = made.registry.metrics.entry(cell.metric.name)
    subjects = ", ".join(f"'{s.name}' at {s.hook_name}" for s in cell.subjects) or "the model"
    given = ", ".join(f"{name}={value!r}" for name, value in cell.entry.params.items())
    rows = [HEADINGS, *tree.table()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    table = ["  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [
        f"metric {cell.metric.name}@{cell.metric.version} of {subjects}, in suite {made.name}",
        f"  {_code(entry.thing)} ({entry.origin})",
        *([f"  parameters: {given}"] if given else []),
        *tree.passes,
        "",
        *table,
        *LEGEND.split("\n"),
    ]
    return "\n".join(map(line, lines))


class _Tree:
    """The rows of the table, from `observe` and `conclude` down to the leaves, and the passes that they need."""

    def __init__(self, made: Plan, cell: Cell) -> None:
        self.made, metric = made, cell.metric
        self.size = cost.ModelSize.of(made.spec) if made.spec is not None else None
        self._rows: list[tuple[str, Node | None, str, tuple[str, ...]]] = []
        """What stands before a node's number, the node, what stands behind it, and the other columns."""
        ordered = passes(made, made.cells, ())
        self._programs = [BatchProgram(one.summations) for one in ordered]
        self._folded = {
            t.node.serial: i for i, one in enumerate(ordered, 1) for t in one.summations if t.node is not None
        }
        self._concluding = Counter(n.serial for c in made.cells for a in c.conclude.values() for n in flattened(a))
        self._shown: dict[int, Node] = {}
        """Nodes with rows of their own, by serial."""
        self._alike: set[int] = set()
        """Nodes that stand for themselves in no row, since others of their form do."""
        self._forms: dict[int, tuple[Any, ...]] = {}
        own = [i for i, one in enumerate(ordered, 1) if cell in one.cells]
        if cell.observe is not None:
            self._method("observe", str(own[0]), metric.observe, cell.observe)  # type: ignore[attr-defined]
        self._method("conclude", "after", metric.conclude, cell.conclude)  # type: ignore[attr-defined]
        needed = {i for serial in self._shown for i in self._when(serial)} | set(own)
        made_in = zip(ordered, self._programs, strict=True)
        self.passes = [f"  pass {i}: {one.title}: {_work(p)}" for i, (one, p) in enumerate(made_in, 1) if i in needed]

    def _method(self, name: str, when: str, function: Any, requests: Mapping[str, Any]) -> None:
        self._rows.append((name, None, "", ("", when, "", "", _code(function))))
        for request, argument in requests.items():
            members = list(dict.fromkeys(flattened(argument)))  # sides of a pair, members of a group
            if isinstance(argument, list) and not members:
                argument = Constant([one.value for one in argument])
            self._add(request, members[0] if members else argument, members[1:], 1)

    def _add(self, request: str, argument: Node | Constant, alike: Sequence[Node], depth: int) -> None:
        """The row of an argument, and those of what it is made of; `alike` have the same form, so one is enough."""
        indent = "  " * depth
        if isinstance(argument, Constant):
            self._rows.append((f"{indent}{request} = {_short(argument.value)}", None, "", ("",) * 5))
            return
        quantity = argument.quantity
        label = request if argument.name == request else f"{request} = {argument.name}"
        label += f" '{argument.subject}'" if argument.subject else ""
        more = f", and {len(alike)} more like it" if alike else ""
        known = argument.serial in self._shown
        if known or argument.serial in self._alike:
            behind = f"{more} (above)" if known else f"{more} (like one above)"
            self._rows.append((indent + label, argument, behind, ("",) * 5))
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
            for again in (other for other, node in rest if node is inner):
                self._add(again, inner, [], depth + 1)
        self._alike.update(closure(alike))

    def table(self) -> list[tuple[str, ...]]:
        """The rows, with numbers where several nodes have one name."""
        of_name: dict[str, list[Node]] = {}
        for node in self._shown.values():
            of_name.setdefault(node.name + node.subject, []).append(node)
        numbers = {
            node.serial: f" #{i}" for some in of_name.values() if len(some) > 1 for i, node in enumerate(some, 1)
        }
        return [
            (f"{before}{numbers.get(node.serial, '') if node else ''}{behind}", *columns)
            for before, node, behind, columns in self._rows
        ]

    def _form(self, node: Node) -> tuple[Any, ...]:
        """Equal for nodes that differ only in what they are of: a side of a pair, a hook, a draw."""
        if node.serial not in self._forms:
            inner = (self._form(a) if isinstance(a, Node) else () for a in node.args.values())
            self._forms[node.serial] = ("" if node.quantity.inserted else node.name, *inner)
        return self._forms[node.serial]

    def _when(self, serial: int) -> list[int]:
        """The passes in which a value is computed, or summed."""
        if serial in self._folded:
            return [self._folded[serial]]
        return [i for i, program in enumerate(self._programs, 1) if serial in program.nodes]

    def _cost(self, node: Node) -> str:
        if node.quantity is leaves.activations or node.quantity is leaves.clean_final:
            return "the clean pass"
        often = sum(times for _, times in resumes(node))
        what = [counted(often, "resumed pass")] if often else ["scores"] if node.quantity.gathered else []
        operations = cost.of_node(self.made, self.size, node)
        if operations and self.size is not None:
            what.append(f"{operations / self.size.a_token:.2f}")
        return ": ".join(what)


def _work(program: BatchProgram) -> str:
    """What a pass asks of the model."""
    if not program.touches_model:
        return "no pass of the model"
    hooks = ("the deepest of " if len(program.hooks) > 1 else "") + ", ".join(program.hooks)
    cut = (
        "" if program.final else f", cut at {hooks}" if len(program.hooks) == 1 else f", cut at the deepest of {hooks}"
    )
    return f"a clean pass of each batch{cut}, {counted(program.resumes, 'resumed pass')}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _code(thing: Any) -> str:
    """`file:line` of a function or class; empty where no file has it."""
    while (inner := getattr(thing, "func", None)) is not None:  # of a partial
        thing = inner
    thing = inspect.unwrap(thing)
    try:
        file, (_, first) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return ""
    path = Path(file or "")
    near = path.is_relative_to(Path.cwd())
    return f"{path.relative_to(Path.cwd()) if near else path}:{first}"
