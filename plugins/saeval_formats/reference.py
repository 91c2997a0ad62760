"""What a suite says of a checkpoint, and the small files beside its weights: each fault one sentence."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict

from saeval.plugin import (
    ParameterError,
    SAELoader,
    SaevalError,
    expand_user,
    read_json,
    read_text,
    searched_in,
    validated_as,
)


class Asked(BaseModel):
    """Keys that every local format takes."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    hook_name: str | None = None
    """Instead of the checkpoint's own."""


class AskedTranscoder(Asked):
    """Keys of formats that have transcoders as well."""

    input_hook: str | None = None
    """The hook a transcoder reads, instead of the checkpoint's own."""


A = TypeVar("A", bound=BaseModel)

_GLOB = re.compile(r"\*+|\?|\[[^\]/]+\]")
_STARS = re.compile(r"\*+|\?")
_HOLE = re.compile(r"\{(\d*)\}")


class LocalLoader(SAELoader):
    """A format of files, whose `path` may hold globs; with `repo` (and `revision`) it is a path in a hub repository."""

    companions: ClassVar[tuple[str, ...]] = ()
    """Files outside `path` that are read too, relative to it: `../config.json` lies beside it."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of files that are read too, in the place of that of `path`."""

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return matched(_on_disk(reference, self.name, self._beside), self.name)

    def _beside(self, path: str) -> list[str]:
        """What else of a repository a path in it needs."""
        named = PurePosixPath(path)
        beside = [posixpath.normpath(named / one) for one in self.companions]
        beside += [str(named.with_suffix(suffix)) for suffix in self.suffixes if named.name]
        return [one for one in beside if not one.startswith("..")]


def matched(reference: Mapping[str, Any], format: str) -> dict[str, dict[str, Any]]:
    """One reference for each path that `path` matches, by what its globs stand for there (`pythia/3` for two).

    That may be used in `hook_name`: `{}` is what the first glob stands for (the next `{}` the second), `{2}` the
    second. A path that exists is taken as it stands.
    """
    path, hook_name = reference.get("path"), reference.get("hook_name")
    holes = _HOLE.search(hook_name) if isinstance(hook_name, str) else None
    pattern = str(expand_user(path)) if isinstance(path, str | Path) else ""
    if not _GLOB.search(pattern) or Path(pattern).exists():
        if holes:
            raise SaevalError(f"{format}: 'hook_name: {hook_name}' has '{holes[0]}', but 'path' has no glob to fill it")
        return {"": dict(reference)}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    matches = glob.glob(pattern)
    wildcards = _GLOB if matches else _STARS
    for match in matches or glob.glob(pattern.replace("[", "[[]")):  # brackets may be those of a name: `a[lr=1e-4]/*`
        parts = re.fullmatch(_expression(pattern, wildcards), match)
        assert parts is not None
        found[parts.groups()] = {**reference, "path": match}
        if holes:
            found[parts.groups()]["hook_name"] = _filled(str(hook_name), parts.groups(), format)
    if not found:
        raise SaevalError(f"{format}: nothing matches 'path: {path}'{searched_in(pattern)}")
    return {"/".join(parts): found[parts] for parts in sorted(found, key=in_order)}


def _on_disk(reference: Mapping[str, Any], format: str, beside: Callable[[str], list[str]]) -> Mapping[str, Any]:
    """The reference with the path of a hub's files where they lie here."""
    if "repo" not in reference and "revision" not in reference:
        return reference
    local = dict(reference)
    repo, revision = local.pop("repo", None), local.pop("revision", None)
    path = local.get("path", ".")
    for key, value in (("repo", repo), ("path", path), ("revision", revision or "")):
        if not isinstance(value, str):
            raise SaevalError(f"{format}: '{key}' of a hub checkpoint is text, found {value!r}")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise SaevalError(f"{format}: 'path: {path}' of repository '{repo}' must lie within it")
    folder = snapshot(repo, revision, "**" if path == "." else path, format, beside(path))
    return {**local, "path": str(folder / path)}


def _expression(pattern: str, wildcards: re.Pattern[str]) -> str:
    """A glob as a regular expression, a group for each of its wildcards."""
    groups = [_group(glob[0]) for glob in wildcards.finditer(pattern)]
    literals = [re.escape(text) for text in wildcards.split(pattern)]
    return literals[0] + "".join(group + text for group, text in zip(groups, literals[1:], strict=True))


def _group(wildcard: str) -> str:
    if wildcard[0] == "[":
        inside = wildcard[1:-1].replace("\\", "\\\\")
        return f"([^{inside[1:]}])" if inside[0] == "!" else f"([{inside}])"
    return "([^/])" if wildcard == "?" else "([^/]*)"


def _filled(template: str, parts: tuple[str, ...], format: str) -> str:
    """A template with each `{}` replaced by the next part, each `{n}` by the n-th."""
    numbers = iter(range(1, len(template)))

    def part(hole: re.Match[str]) -> str:
        number = int(hole[1]) if hole[1] else next(numbers)
        if not 1 <= number <= len(parts):
            raise SaevalError(
                f"{format}: 'hook_name: {template}' asks for glob {number} of 'path', which has {len(parts)}"
            )
        return parts[number - 1]

    return _HOLE.sub(part, template)


def in_order(parts: tuple[str, ...]) -> list[tuple[bool, int, str]]:
    """Numbers by their size: 2 comes before 12."""
    words = [word for part in parts for word in re.split(r"(\d+)", part)]
    return [(not word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]


def parsed(cls: type[A], reference: Mapping[str, Any], format: str, *, needs: str) -> A:
    """The reference as `cls`; `ParameterError` names the keys at fault. `needs` says what `path` is."""
    try:
        made = validated_as(cls, reference, f"SAE format '{format}'")
    except ParameterError as error:
        raise ParameterError(
            replace(fault, sentence=f"{fault.sentence}, {needs}")
            if fault.kind == "missing" and fault.location == ("path",) and needs
            else fault
            for fault in error.faults
        ) from None
    if isinstance(path := getattr(made, "path", None), Path):
        expand_user(path)
    return made


def folder_of(path: Path, format: str, holds: str) -> Path:
    """The folder at `path`; `SaevalError` where there is none."""
    folder = path.expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else f"nothing{searched_in(folder)}"
        raise SaevalError(f"{format}: {folder}: expected a folder with {holds}, found {found}")
    return folder


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `SaevalError` where there is none."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'") from None
    except OSError as error:
        raise SaevalError(f"{path}: cannot be read ({error}); check 'path'") from None
    if not isinstance(found, dict):
        raise SaevalError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def yaml_object(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain data; `SaevalError` where it is broken or asks for more."""
    try:
        found = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SaevalError(f"{path}: broken YAML, or more than plain data ({reason})") from None
    if not isinstance(found, dict):
        raise SaevalError(f"{path}: expected a YAML mapping, found {type(found).__name__}")
    return found


def snapshot(repo: str, revision: str | None, pattern: str, format: str, beside: Sequence[str] = ()) -> Path:
    """The local folder of a repository, in which the files that `pattern` matches are present.

    `pattern` is a file, a folder (with all below it) or a glob of either; `beside` are others that may be there.
    Offline (`HF_HUB_OFFLINE`) what was downloaded before is used. `SaevalError` where the repository cannot be had.
    """
    from huggingface_hub import constants, snapshot_download  # late: most suites name no hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    spellings = dict.fromkeys((pattern, pattern.replace("[", "[[]")))  # brackets may be those of a name
    wanted = [*(f"{one.rstrip('/')}{below}" for one in spellings for below in ("", "/**")), *beside]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise SaevalError(f"{format}: 'repo: {repo}' is no name of a hub repository, such as org/name") from None
    except LocalEntryNotFoundError:
        why = "this run is offline" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise SaevalError(
            f"{format}: repository '{repo}' was not downloaded before and {why}; "
            "run `saeval fetch SUITE` where there is a network"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SaevalError(f"{format}: repository '{repo}' cannot be had: {reason}") from None
