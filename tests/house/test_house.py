"""Rules of the code base that a reader relies on."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import inspect
import re
from graphlib import TopologicalSorter
from pathlib import Path

import saeval
from saeval import cli
from saeval.registry import hookspecs
from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_core_imports_no_plugin():
    for file in some((ROOT / "saeval").glob("*.py")):
        plugins = [name for name in imports(file) if name.startswith("saeval_")]
        assert not plugins, f"{file.name} imports {plugins}"


def test_no_claim_of_a_test_is_left_without_assert():
    for file in some((ROOT / "tests").rglob("*.py")):
        calls = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Expr)]
        names = [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
        assert not {"every", "none", "all", "any", "isinstance"} & set(names), f"{file}: a claim without assert"


def parts():
    for folder in ("saeval", "plugins"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def module(file):
    names = file.relative_to(ROOT / "plugins" if ROOT / "plugins" in file.parents else ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def at_import(body):
    """Yield import statements that run when a module is imported, without those for type checkers only."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try) and "TYPE_CHECKING" not in ast.dump(node):
            yield from at_import(node.body)


def test_no_imports_are_circular():
    modules = {module(file): file for file in parts()}
    needs = {}
    for name, file in modules.items():
        needs[name] = set()
        for node in at_import(ast.parse(file.read_text()).body):
            inner = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            outer = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            needs[name] |= modules.keys() & inner or modules.keys() & outer
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the cycle


def test_imports_inside_functions_state_their_reason():
    """They hide dependencies; start-up time and optional extras are good reasons."""
    unexplained = []
    for file in parts():
        lines = file.read_text().splitlines()
        for function in ast.walk(ast.parse(file.read_text())):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else []:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    first = node.lineno - 1
                    while lines[first - 1].lstrip().startswith(("import ", "from ")):
                        first -= 1
                    if "#" not in "".join(lines[first - 1 : node.end_lineno]):
                        unexplained.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not unexplained


def loaded(code):
    """Return the global names that a code object and its nested ones look up when they run."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(loaded(nested) for nested in code.co_consts if inspect.iscode(nested)))


def test_all_global_names_are_defined():
    """No linter checks this here: jaxtyping's dimensions look like undefined names."""
    looked_up = 0
    for file in some(parts()):
        names = loaded(compile(file.read_text(), str(file), "exec"))
        defined = vars(importlib.import_module(module(file)))
        for name in names:  # may be empty: they are counted
            assert name in defined or hasattr(builtins, name), f"{file}: {name} is not defined"
        looked_up += len(names)
    assert looked_up > 1000


def test_files_stay_short():
    """A file is one noun; past 500 lines it is usually two."""
    long = {
        str(file.relative_to(ROOT)): lines for file in parts() if (lines := len(file.read_text().splitlines())) > 500
    }
    assert not long


def test_weights_are_loaded_as_data_only():
    texts = {file: file.read_text() for file in parts()}
    for file, text in some(texts.items()):
        assert not re.search(r"\b(pickle\.load|yaml\.load\(|yaml\.unsafe)", text), file
    for pattern, safe in ((r"torch\.load\([^)]*\)", "weights_only=True"), (r"np\.load\([^\n]*", "allow_pickle=False")):
        for file, call in some((file, call) for file, text in texts.items() for call in re.findall(pattern, text)):
            assert safe in call, file


def test_every_public_name_exists_and_is_documented():
    for name in some(saeval.__all__):
        assert getattr(saeval, name).__doc__, name


def bound(file):
    """Yield the names that a module binds at its top level, except modules of its own package."""
    package = module(file)
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom) and node.module != package:
            yield from (alias.asname or alias.name for alias in node.names)


def test_no_package_has_a_name_and_a_submodule_that_are_equal():
    """`from saeval import x` would import either, depending on what was imported before."""
    packages = [file for file in parts() if file.name == "__init__.py"]
    assert len(packages) > 10
    shadows = {}
    for file in packages:
        submodules = {path.stem for path in file.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
        package = importlib.import_module(module(file))
        names = {*bound(file), *getattr(package, "__all__", ())}
        if both := names & submodules:
            shadows[module(file)] = both
    assert not shadows


def hooks_table():
    """Return the table of hooks in docs/plugins.md."""
    rows = ["| hook | returns | what for |", "|---|---|---|"]
    for name, hook in vars(hookspecs).items():
        if name.startswith("saeval_"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            returns = hook.__annotations__["return"].replace("|", "or")
            rows.append(f"| `{name}({arguments})` | `{returns}` | {inspect.cleandoc(hook.__doc__)} |")
    return "\n".join(rows)


def test_the_documentation_lists_all_hooks():
    """The table is generated from hookspecs.py; `python tests/house/test_house.py` prints it."""
    assert hooks_table() in (ROOT / "docs" / "plugins.md").read_text(), (
        "docs/plugins.md is stale: put what `python tests/house/test_house.py` prints into its section Hooks"
    )


def test_commands_and_targets_in_the_readme_exist():
    text = "".join(re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE))
    for command in some(re.findall(r"^saeval (\w+)", text, re.MULTILINE)):
        assert command in (*cli.VERBS, "pareto", "testbed", "export"), command
    for target in some(re.findall(r"^make (\w+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


if __name__ == "__main__":
    print(hooks_table())
