"""Tests that can pass on nothing: none of these forms is in a test."""

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


def written_out(things: ast.expr) -> bool:
    """Whether a reader sees that there is something to loop over: a display, a constant, `range`, or a claim of it."""
    if isinstance(things, ast.List | ast.Tuple | ast.Set):
        return bool(things.elts)
    if isinstance(things, ast.Dict):
        return bool(things.keys)
    if isinstance(things, ast.Name):
        return things.id.isupper()
    if not isinstance(things, ast.Call):
        return False
    function = things.func
    if isinstance(function, ast.Attribute) and function.attr in ("items", "values", "keys"):
        return written_out(function.value)
    if name_of(things) == "zip":  # strict ones are as long as any of theirs
        strict = any(k.arg == "strict" for k in things.keywords)
        return (any if strict else all)(map(written_out, things.args))
    if name_of(things) in ("enumerate", "sorted", "reversed", "list"):
        return written_out(things.args[0])
    return name_of(things) in (*CLAIMS, "range", "itertools.count")


def claims_something(body: list[ast.stmt]) -> bool:
    calls = [name_of(node) for statement in body for node in ast.walk(statement)]
    asserts = any(isinstance(node, ast.Assert) for statement in body for node in ast.walk(statement))
    return asserts or any(re.search(r"(^|\.)(assert_\w+|raises|fails)$", call) for call in calls)


def faults(source: str) -> list[str]:
    """`line: what` for each form that passes on nothing."""
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
                        f"{part.lineno}: {name_of(part)}() of nothing passes; use every() or none() of saeval.testing.claims"
                    )
        if isinstance(node, ast.For) and claims_something(node.body) and not written_out(node.iter):
            if "# may be empty: " in lines[node.lineno - 1]:
                continue
            found.append(
                f"{node.lineno}: a loop over nothing claims nothing; loop over some(...) of saeval.testing.claims"
            )
        if isinstance(node, ast.Expr) and name_of(node.value) in ("subprocess.run", "cli.main", "main"):
            checked = any(k.arg == "check" for k in node.value.keywords) or _raises_around(tree, node)
            found += [] if checked else [f"{node.lineno}: nobody reads the return code of {name_of(node.value)}()"]
        if isinstance(node, ast.Attribute) and name_of(node.value) == "subprocess.run" and node.attr != "returncode":
            checked = any(k.arg == "check" for k in node.value.keywords)
            found += [] if checked else [f"{node.lineno}: nobody reads the return code of subprocess.run()"]
        if isinstance(node, ast.ExceptHandler) and none(isinstance(s, ast.Raise) for s in ast.walk(node)):
            caught = next(t for t in ast.walk(tree) if isinstance(t, ast.Try) and node in t.handlers)
            if not caught.orelse and not any(isinstance(s, ast.Assign | ast.AugAssign) for s in node.body):
                found.append(
                    f"{node.lineno}: an exception that need not come; use pytest.raises, or claim something in 'else'"
                )
    return found


def _is_positive_any(test: ast.expr, part: ast.AST) -> bool:
    """`any(...)` fails on nothing unless it is denied."""
    denied = [n.operand for n in ast.walk(test) if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not)]
    return name_of(part) == "any" and none([False, *(part is operand for operand in denied)])


def _over_constants(call: ast.AST) -> bool:
    arguments = call.args if isinstance(call, ast.Call) else []
    return (
        len(arguments) == 1
        and isinstance(arguments[0], ast.GeneratorExp)
        and written_out(arguments[0].generators[0].iter)
        and not arguments[0].generators[0].ifs
    )


def _raises_around(tree: ast.AST, statement: ast.stmt) -> bool:
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and statement in n.body]
    return any("raises" in ast.unparse(item.context_expr) for block in blocks for item in block.items)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(TESTS).as_posix())
def test_no_test_passes_on_nothing(file):
    assert not faults(file.read_text())


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("assert all(x > 0 for x in rows)", "all() of nothing passes"),
        ("assert not any(x < 0 for x in rows)", "any() of nothing passes"),
        ("assert ok and all(x > 0 for x in (1, 2) if x > 3)", "all() of nothing passes"),
        ("for row in rows:\n    assert row", "a loop over nothing"),
        ("for row in rows.values():\n    torch.testing.assert_close(row, 1)", "a loop over nothing"),
        ("for a, b in zip(one, other, strict=True):\n    assert a == b", "a loop over nothing"),
        ("subprocess.run(command)", "return code"),
        ("out = subprocess.run(command, capture_output=True).stdout", "return code"),
        ("cli.main(['ls'])", "return code"),
        ("assert (x, 'is wrong')", "tuple"),
        ("try:\n    f()\nexcept ValueError as error:\n    assert 'x' in str(error)", "an exception that need not come"),
    ],
)
def test_a_form_that_passes_on_nothing_is_found(source, what):
    (found,) = faults(source)
    assert what in found


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
def test_a_claim_is_left_alone(source):
    assert not faults(source)


def test_claims_of_nothing_fail():
    assert every([1, True])
    assert none([0, False])
    assert list(some(x for x in "ab")) == ["a", "b"]
    for claim in (every, none, some):
        with pytest.raises(AssertionError, match="nothing to check"):
            claim([])
