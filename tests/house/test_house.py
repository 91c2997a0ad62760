"""Rules of the house that a reader relies on."""

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


def parts():
    for folder in ("saeval", "plugins"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def module(file):
    names = file.relative_to(ROOT / "plugins" if ROOT / "plugins" in file.parents else ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def at_import(body):
    """Import statements that run when a module is imported; those for type checkers alone do not."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try) and "TYPE_CHECKING" not in ast.dump(node):
            yield from at_import(node.body)


def test_no_module_imports_itself_by_a_detour():
    known = {module(file): file for file in parts()}
    needs = {}
    for name, file in known.items():
        needs[name] = set()
        for node in at_import(ast.parse(file.read_text()).body):
            inner = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            outer = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            needs[name] |= {found for found in inner if found in known} or {found for found in outer if found in known}
    TopologicalSorter(needs).prepare()  # raises CycleError, with the cycle


def test_an_import_inside_a_function_says_why():
    """They hide what a module needs; the reasons that count are start-up time and optional extras."""
    silent = []
    for file in parts():
        lines = file.read_text().splitlines()
        for function in ast.walk(ast.parse(file.read_text())):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else []:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    first = node.lineno - 1
                    while lines[first - 1].lstrip().startswith(("import ", "from ")):
                        first -= 1
                    if "#" not in "".join(lines[first - 1 : node.end_lineno]):
                        silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not silent


def loaded(code):
    """The global names that a code object and those inside it look up when they run."""
    own = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    return own.union(*(loaded(one) for one in code.co_consts if inspect.iscode(one)))


def test_every_name_that_code_looks_up_exists():
    """No linter says so here: names of jaxtyping's dimensions look like names that are not defined."""
    looked_up = 0
    for file in some(parts()):
        names = loaded(compile(file.read_text(), str(file), "exec"))
        found = vars(importlib.import_module(module(file)))
        for name in names:  # may be empty: they are counted
            assert name in found or hasattr(builtins, name), f"{file}: {name} is not defined"
        looked_up += len(names)
    assert looked_up > 1000


def test_files_stay_short():
    """A file is one noun; past 500 lines it is usually two."""
    long = {
        str(file.relative_to(ROOT)): lines for file in parts() if (lines := len(file.read_text().splitlines())) > 500
    }
    assert not long


def test_weights_are_only_ever_loaded_as_data():
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
    """Names that a module binds at its top level to anything but a module of its own package."""
    package = module(file)
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom) and node.module != package:
            yield from (alias.asname or alias.name for alias in node.names)


def test_no_name_of_a_package_is_also_that_of_its_submodule():
    """`from saeval import x` would give the one or the other, depending on what was imported before."""
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
    """The hooks as docs/plugins.md lists them."""
    rows = ["| hook | returns | what for |", "|---|---|---|"]
    for name, hook in vars(hookspecs).items():
        if name.startswith("saeval_"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            returns = hook.__annotations__["return"].replace("|", "or")
            rows.append(f"| `{name}({arguments})` | `{returns}` | {inspect.cleandoc(hook.__doc__)} |")
    return "\n".join(rows)


def test_the_documented_hooks_are_those_there_are():
    """Made from hookspecs.py; `python tests/house/test_house.py` prints it."""
    assert hooks_table() in (ROOT / "docs" / "plugins.md").read_text(), (
        "docs/plugins.md is stale: put what `python tests/house/test_house.py` prints into its section Hooks"
    )


def test_the_readme_names_what_exists():
    text = "".join(re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE))
    for command in some(re.findall(r"^saeval (\w+)", text, re.MULTILINE)):
        assert command in (*cli.VERBS, "testbed"), command
    for target in some(re.findall(r"^make (\w+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


if __name__ == "__main__":
    print(hooks_table())
