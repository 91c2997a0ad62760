"""No test has a form that passes without checking anything."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from saeval.testing.claims import every, none, some

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
CLAIMS = ("every", "none", "some", "numbers")


def name_of(call: ast.AST) -> str:
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


def surely_nonempty(iterable: ast.expr) -> bool:
    """True if the code shows that there is something to loop over: a display, a constant, `range`, or a claim of it."""
    if isinstance(iterable, ast.List | ast.Tuple | ast.Set):
        return bool(iterable.elts)
    if isinstance(iterable, ast.Dict):
        return bool(iterable.keys)
    if isinstance(iterable, ast.Name):
        return iterable.id.isupper()
    if not isinstance(iterable, ast.Call):
        return False
    function = iterable.func
    if isinstance(function, ast.Attribute) and function.attr in ("items", "values", "keys"):
        return surely_nonempty(function.value)
    if name_of(iterable) == "zip":  # a strict one is as long as each of its arguments
        strict = any(k.arg == "strict" for k in iterable.keywords)
        return (any if strict else all)(map(surely_nonempty, iterable.args))
    if name_of(iterable) in ("enumerate", "sorted", "reversed", "list"):
        return surely_nonempty(iterable.args[0])
    return name_of(iterable) in (*CLAIMS, "range", "itertools.count")


def claims_something(body: list[ast.stmt]) -> bool:
    calls = [name_of(node) for statement in body for node in ast.walk(statement)]
    asserts = any(isinstance(node, ast.Assert) for statement in body for node in ast.walk(statement))
    return asserts or any(re.search(r"(^|\.)(assert_\w+|raises|fails)$", call) for call in calls)


def faults(source: str) -> list[str]:
    """Return `line: message` for each form that passes without checking anything."""
    found, tree, lines = [], ast.parse(source), source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            if isinstance(node.test, ast.Tuple):
                found.append(f"{node.lineno}: an assert of a tuple is always true")
            for part in ast.walk(node.test):
                if (
                    name_of(part) in ("all", "any")
                    and not _is_positive_any(node.test, part)
                    and not _over_constants(part)
                ):
                    found.append(
                        f"{part.lineno}: {name_of(part)}() of an empty iterable passes; use every() or none() of saeval.testing.claims"
                    )
        if isinstance(node, ast.For) and claims_something(node.body) and not surely_nonempty(node.iter):
            if "# may be empty: " in lines[node.lineno - 1]:
                continue
            found.append(
                f"{node.lineno}: a loop over an empty iterable checks nothing; loop over some(...) of saeval.testing.claims"
            )
        if isinstance(node, ast.Expr) and name_of(node.value) in ("subprocess.run", "cli.main", "main"):
            checked = any(k.arg == "check" for k in node.value.keywords) or _raises_around(tree, node)
            found += [] if checked else [f"{node.lineno}: the return code of {name_of(node.value)}() is ignored"]
        if isinstance(node, ast.Attribute) and name_of(node.value) == "subprocess.run" and node.attr != "returncode":
            checked = any(k.arg == "check" for k in node.value.keywords)
            found += [] if checked else [f"{node.lineno}: the return code of subprocess.run() is ignored"]
        if isinstance(node, ast.ExceptHandler) and none(isinstance(s, ast.Raise) for s in ast.walk(node)):
            caught = next(t for t in ast.walk(tree) if isinstance(t, ast.Try) and node in t.handlers)
            if not caught.orelse and not any(isinstance(s, ast.Assign | ast.AugAssign) for s in node.body):
                found.append(
                    f"{node.lineno}: an exception that may not be raised; use pytest.raises, or assert something in 'else'"
                )
    return found


def _is_positive_any(test: ast.expr, part: ast.AST) -> bool:
    """`any(...)` of an empty iterable fails unless it is negated."""
    negated = [n.operand for n in ast.walk(test) if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not)]
    return name_of(part) == "any" and none([False, *(part is operand for operand in negated)])


def _over_constants(call: ast.AST) -> bool:
    arguments = call.args if isinstance(call, ast.Call) else []
    return (
        len(arguments) == 1
        and isinstance(arguments[0], ast.GeneratorExp)
        and surely_nonempty(arguments[0].generators[0].iter)
        and not arguments[0].generators[0].ifs
    )


def _raises_around(tree: ast.AST, statement: ast.stmt) -> bool:
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and statement in n.body]
    return any("raises" in ast.unparse(item.context_expr) for block in blocks for item in block.items)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(TESTS).as_posix())
def test_no_test_passes_without_checking_anything(file):
    assert not faults(file.read_text())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("assert all(x > 0 for x in rows)", "all() of an empty iterable passes"),
        ("assert not any(x < 0 for x in rows)", "any() of an empty iterable passes"),
        ("assert ok and all(x > 0 for x in (1, 2) if x > 3)", "all() of an empty iterable passes"),
        ("for row in rows:\n    assert row", "a loop over an empty iterable"),
        ("for row in rows.values():\n    torch.testing.assert_close(row, 1)", "a loop over an empty iterable"),
        ("for a, b in zip(one, other, strict=True):\n    assert a == b", "a loop over an empty iterable"),
        ("subprocess.run(command)", "return code"),
        ("out = subprocess.run(command, capture_output=True).stdout", "return code"),
        ("cli.main(['ls'])", "return code"),
        ("assert (x, 'is wrong')", "tuple"),
        (
            "try:\n    f()\nexcept ValueError as error:\n    assert 'x' in str(error)",
            "an exception that may not be raised",
        ),
    ],
)
def test_forms_that_check_nothing_are_found(source, message):
    (fault,) = faults(source)
    assert message in fault


@pytest.mark.parametrize(
    "source",
    [
        "assert every(x > 0 for x in rows)",
        "assert any(x > 0 for x in rows)",
        "assert all(x in text for x in ('a', 'b'))",
        "for row in some(rows):\n    assert row",
        "for name, row in TABLE.items():\n    assert row",
        "for row in rows:  # may be empty: a reason\n    assert row",
        "for a, b in zip((1, 2), other, strict=True):\n    assert a == b",
        "subprocess.run(command, check=True)",
        "ran = subprocess.run(command)\nassert ran.returncode == 0",
        "with pytest.raises(SystemExit):\n    cli.main([])",
        "try:\n    f()\nexcept ValueError:\n    failed = True\nelse:\n    assert done",
    ],
)
def test_valid_claims_are_accepted(source):
    assert not faults(source)


def test_claims_about_empty_iterables_fail():
    assert every([1, True])
    assert none([0, False])
    assert list(some(x for x in "ab")) == ["a", "b"]
    for claim in (every, none, some):
        with pytest.raises(AssertionError, match="nothing to check"):
            claim([])
