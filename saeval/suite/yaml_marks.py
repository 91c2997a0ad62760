"""A YAML reader that keeps the position of each node, so that problems have file:line:col. It executes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from saeval.base.errors import Problem, SaevalError, SuiteError, lone_surrogate, searched_in
from saeval.base.escapes import line
from saeval.base.parameters import Location
from saeval.base.text_files import FileError, read_text

MAX_BYTES = 2**21
MAX_NODES = 100_000
MAX_DEPTH = 50
"""Limits far beyond any suite: larger files would take minutes or exhaust memory."""
MAX_CHARACTERS = 4 * MAX_BYTES
"""Largest total length of all strings, with aliases expanded."""
MAX_BITS = 64
_IS = {"bool": "neither true nor false", "int": "not an integer", "float": "not a number", "timestamp": "not a date"}
_SHOWN = 60
"""Number of characters of a wrong value that a message shows."""
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass
class Marks:
    """The line and column of each key and value of a suite."""

    source: str
    values: dict[Location, tuple[int, int] | str] = field(default_factory=dict)
    """The place of each value: its line and column, or the option that sets it."""
    keys: dict[Location, tuple[int, int]] = field(default_factory=dict)

    def where(self, location: Location, *, key: bool = False) -> str:
        """Return `file:line:col` of a value (or of its key), or of the nearest enclosing value with a position."""
        if key and location in self.keys:
            return self._show(self.keys[location])
        for length in range(len(location), -1, -1):
            if location[:length] in self.values:
                return self._show(self.values[location[:length]])
        return self.source

    def _show(self, mark: tuple[int, int] | str) -> str:
        return mark if isinstance(mark, str) else f"{self.source}:{mark[0]}:{mark[1]}"


def read(path: Path | str) -> tuple[dict[str, Any], Marks]:
    """Return a suite file as plain data, with its marks; `SuiteError` if it is not a mapping of plain data."""
    path = Path(path)
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError:
        raise SuiteError([Problem(f"no such file{searched_in(path)}", str(path))]) from None
    except OSError as error:
        raise SuiteError([Problem(f"cannot be read: {error}", str(path))]) from None
    except FileError as error:
        raise SuiteError([Problem(error.reason, str(path))]) from None
    return parse(text, str(path))


def parse(text: str, source: str) -> tuple[dict[str, Any], Marks]:
    """Return a suite like `read`, from a string."""
    data, marks = _plain(text, source)
    if data is None:
        raise SuiteError(
            [Problem("the file is empty; a suite needs at least 'suite', 'data' and 'metrics'", f"{source}:1:1")]
        )
    if not isinstance(data, dict):
        raise SuiteError([Problem(f"a suite must be a mapping, found {_kind(data)}", marks.where(()))])
    return data, marks


def value_of(text: str, source: str) -> Any:
    """Return the plain data of a piece of YAML, such as an option's value; `SuiteError` if it is not plain data."""
    return _plain(text, source)[0]


def _plain(text: str, source: str) -> tuple[Any, Marks]:
    marks = Marks(source)
    try:
        root = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = (error.problem or str(error)).strip()
        if "'\\t'" in problem:  # PyYAML has one class for all errors of its scanner
            problem = "YAML cannot be indented with tabs; use spaces"
        raise SuiteError([Problem(problem, where)]) from None
    except yaml.YAMLError as error:
        raise SuiteError([Problem(str(error).split("\n")[0], source)]) from None
    builder = _Builder(marks)
    data = builder.build(root, ()) if root is not None else None
    if builder.problems:
        raise SuiteError(builder.problems)
    return data, marks


def beyond(data: Any, marks: Marks, location: Location = (), around: tuple[int, ...] = ()) -> Problem | None:
    """Return a problem of data from Python that YAML cannot have: a number too large, a list that contains itself."""
    if isinstance(data, int) and data.bit_length() > MAX_BITS:
        return Problem(f"a number of more than {MAX_BITS} bits, which is too large", marks.where(location))
    if not isinstance(data, Mapping | list | tuple):
        return None
    if len(location) > MAX_DEPTH or id(data) in around:
        return Problem(f"nested more than {MAX_DEPTH} deep, or in itself", marks.where(location))
    inner = data.items() if isinstance(data, Mapping) else enumerate(data)
    problems = (beyond(value, marks, (*location, key), (*around, id(data))) for key, value in inner)
    return next((problem for problem in problems if problem is not None), None)


class _Composer(yaml.SafeLoader):
    """A loader that stops at files too large or too deep to be a suite, before they exhaust memory."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._count += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH + 1:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark)
        if self._count > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES} nodes", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Composer.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
"""Numbers such as 1e-3, which PyYAML takes for text."""


class _Builder:
    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.problems: list[Problem] = []
        self._scalars = yaml.constructor.SafeConstructor()
        self._count = self._characters = 0

    def build(self, node: Any, location: Location) -> Any:
        self._count += 1
        self._characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if len(location) > MAX_DEPTH:
            raise SuiteError([Problem(f"nested more than {MAX_DEPTH} deep, or an alias of itself", self.marks.source)])
        for count, most, what in ((self._count, MAX_NODES, "nodes"), (self._characters, MAX_CHARACTERS, "characters")):
            if count > most:
                raise SuiteError([Problem(f"more than {most} {what} after expanding aliases", self.marks.source)])
        self.marks.values[location] = _mark(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*location, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        try:
            return self._scalar(node)
        except SaevalError as error:
            self.problems.append(Problem(str(error), self.marks.where(location)))
            return None

    def _scalar(self, node: Any) -> Any:
        written = node.value if len(node.value) <= _SHOWN else f"{node.value[:_SHOWN]}..."
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            value = self._scalars.construct_object(node)
        except yaml.YAMLError as error:
            raise SaevalError(str(getattr(error, "problem", error))) from None
        except Exception:  # PyYAML's constructors raise any class, such as KeyError for `!!bool maybe`
            digits = "; it has too many digits" if kind == "int" and len(node.value) > _SHOWN else ""
            raise SaevalError(
                f"'{written}' is {_IS.get(kind, f'not a {kind}')}{digits}; quote it if it is text"
            ) from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise SaevalError(f"'{written}' is a number of more than {MAX_BITS} bits, which is too large")
        if isinstance(value, bytes):
            raise SaevalError("binary data; a value must be text, a number, true, false or null")
        if isinstance(value, str):  # JSON escapes a character beyond the first 65,536 as a surrogate pair
            value = _PAIR.sub(lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), value)
        if isinstance(value, str) and (half := lone_surrogate(value)):
            raise SaevalError(f"'{half}' is half of a surrogate pair, so this is not text; write the whole character")
        return value

    def _mapping(self, node: Any, location: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            row, column = _mark(key_node)
            where = f"{self.marks.source}:{row}:{column}"
            if not isinstance(key, str) or lone_surrogate(key):
                self.problems.append(Problem("a key must be a plain word", where))
                continue
            if key in mapping:
                first = self.marks.keys[(*location, key)][0]
                self.problems.append(Problem(f"duplicate key '{key}', first set in line {first}; keep one", where))
                continue
            self.marks.keys[(*location, key)] = (row, column)
            mapping[key] = self.build(value_node, (*location, key))
        return mapping


def override(data: dict[str, Any], marks: Marks, assignment: str) -> None:
    """Apply `--set key.path=value`; the value is YAML. Lists are indexed by number."""
    path, equals, text = assignment.partition("=")
    assignment = assignment if len(assignment) <= 2 * _SHOWN else f"{assignment[: 2 * _SHOWN]}..."
    if not equals or not path:
        raise SaevalError(f"--set {assignment}: expected key=value, such as --set data.sequences=64")
    try:
        value = value_of(text, "")
    except SuiteError as error:
        reason = error.problems[0].message
        raise SaevalError(f"--set {assignment}: the value is not plain YAML data: {reason}") from None
    place: Any = data
    *parents, last = path.split(".")
    location: Location = ()
    for part in parents:
        key = _step(place, part, assignment)
        location = (*location, key)
        if isinstance(place, dict) and not isinstance(place.get(key), dict | list):
            shorthand = place.get(key)  # `data: python-stdlib` means `data: {use: python-stdlib}`
            place[key] = {"use": shorthand} if isinstance(shorthand, str) else {}
        place = place[key]
    key = _step(place, last, assignment)
    place[key] = value
    stale = (*location, key)
    for table in (marks.values, marks.keys):
        for nested in [k for k in table if k[: len(stale)] == stale]:
            del table[nested]
    marks.values[stale] = line(f"--set {assignment}")


def _step(place: Any, part: str, assignment: str) -> str | int:
    if isinstance(place, list):
        if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(place):
            raise SaevalError(f"--set {assignment}: '{part[:_SHOWN]}' is not an index of a list of {len(place)}")
        return int(part)
    if not isinstance(place, dict):
        raise SaevalError(f"--set {assignment}: the parent of '{part}' is neither a mapping nor a list")
    return part


def _mark(node: Any) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", int: "a number", float: "a number"}.get(type(value), "something else")
