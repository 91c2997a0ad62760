"""The `judge:` of a suite as an interview with it, and what its questions will cost."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

from saeval.base.errors import Problem, SaevalError, UnknownNameError, blamed
from saeval.base.parameters import Fault, ParameterError, at_key, schema, validated, validated_as
from saeval.interfaces.contents import freeze
from saeval.interfaces.judge import Budget, Cost, Interview, Judge
from saeval.plan.nodes import Constant, Node
from saeval.registry.registry import Registry
from saeval.suite.schema import JudgeBudget, Suite

_SECRET = re.compile(r"key$|token$|secret|passw|credential|authorization|headers?$", re.IGNORECASE)
"""What parameters that hold secrets are called."""


def interview(suite: Suite, registry: Registry, problems: list[Problem]) -> Interview | None:
    """Return the interview with the suite's judge; None without one, or, with problems, if its entry is wrong."""
    raw = suite.body.judge
    if raw is None:
        return None
    entry = {"use": raw} if isinstance(raw, str) else dict(raw)
    use = entry.pop("use", None)
    if not isinstance(use, str):
        problems.append(suite.problem(f"'judge' needs 'use', one of: {', '.join(registry.judges.names())}", "judge"))
        return None
    limits = {name: entry.pop(name) for name in JudgeBudget.model_fields if name in entry}
    try:
        budget = validated_as(JudgeBudget, limits, "judge")
        judge_class = registry.judges[use]
        _refuse_secrets(judge_class, entry, f"judge '{use}'")
        params = validated(judge_class, entry, f"judge '{use}'")
        with blamed(f"judge '{use}'", registry.judges.entry(use).origin, values=True):
            judge = judge_class(**params)
            freeze(judge)
            judge.identity()
        return Interview(judge, Budget(**budget.model_dump()))
    except UnknownNameError as error:
        problems += suite.problems(error, "judge", "use")
    except (SaevalError, ValueError) as error:
        problems += suite.problems(error, "judge")
    return None


def _refuse_secrets(judge_class: type[Judge], entry: Mapping[str, object], what: str) -> None:
    """Raise `ParameterError` for keys that no judge has, and that hold a secret, without their values."""
    known = schema(judge_class).model_fields
    remedy = "a suite is shared and recorded, so it holds no secret; put it into the environment"
    found = [name for name in entry if name not in known and _SECRET.search(name)]
    if found:
        raise ParameterError(Fault((name,), f"'{name}' of {what}: {remedy}", "unknown") for name in found)


def cost(interview: Interview, nodes: Iterable[Node]) -> Cost:
    """Return what the questions of these nodes cost at most, each node counted once."""
    total = Cost(0, 0)
    for node in nodes:
        asks = node.quantity.asks
        if asks is not None:
            known = {name: arg.value for name, arg in node.args.items() if isinstance(arg, Constant)}
            given = {name: known[name] for name in inspect.signature(asks).parameters if name in known}
            with blamed(f"the cost of quantity '{node.name}'", node.quantity.origin):
                total += asks(judge=interview.judge, **given)
    return total


def judge_problems(suite: Suite, asked: Interview | None, nodes: Iterable[Node]) -> list[Problem]:
    """Return why a run cannot ask its judge: it is not there, or the questions exceed the budget."""
    nodes = list(nodes)
    if asked is None or not nodes:
        return []
    try:
        with at_key("judge"):
            asked.judge.check()
    except SaevalError as error:
        return [suite.problem(str(error), "judge")]
    if excess := asked.budget.excess(cost(asked, nodes)):
        remedy = "raise it, or choose fewer 'features' or windows"
        return [suite.problem(f"the run asks its judge up to {excess}; {remedy}", "judge")]
    return []
