"""A suite's references to checkpoints: keys, globs, hub repositories, and the config files beside the weights."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

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

if TYPE_CHECKING:
    from saeval.plugin import SAEInfo, Substitute, torch


class LocalReference(BaseModel):
    """The keys that every local format takes."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    hook_name: str | None = None
    """Replaces the hook that the checkpoint names."""


class TranscoderReference(LocalReference):
    """The keys of formats that also have transcoders."""

    input_hook: str | None = None
    """The hook that a transcoder reads; replaces the one that the checkpoint names."""


A = TypeVar("A", bound=BaseModel)

_GLOB = re.compile(r"\*+|\?|\[[^\]/]+\]")
_STARS = re.compile(r"\*+|\?")
_HOLE = re.compile(r"\{(\d*)\}")


class Opened(Protocol):
    """A checked SAE."""

    def info(self) -> SAEInfo: ...

    def load(self, device: str, dtype: torch.dtype | None) -> Substitute: ...


class LocalLoader(SAELoader):
    """A format of local files. `path` may contain globs; with `repo` (and `revision`) it is inside a hub repository."""

    expands: ClassVar[Mapping[str, Any]] = {"repo": str, "revision": str}
    companions: ClassVar[tuple[str, ...]] = ()
    """Other files to download from a hub repository, relative to `path`: `../config.json` lies beside it."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of other files to download, each in place of the suffix of `path`."""

    def opened(self, reference: Mapping[str, Any]) -> Opened:
        """Return the SAE, checked except for the values of its tensors."""
        raise NotImplementedError

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        return self.opened(reference).info()

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> Substitute:
        """Load in `dtype`, float32 by default. `hook_name` is empty if neither checkpoint nor entry names a hook."""
        return self.opened(reference).load(device, dtype)

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        matches = matched(_on_disk(reference, self.name, self._beside), self.name)
        return {
            "/".join(filter(None, (part, name))): inner
            for part, match in matches.items()
            for name, inner in self.at_path(match).items()
        }

    def at_path(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return one reference per SAE at a path without globs, by its name there."""
        return {"": reference}

    def _beside(self, path: str) -> list[str]:
        """Return the other files of a repository that a path in it may need."""
        pure = PurePosixPath(path)
        beside = [posixpath.normpath(pure / companion) for companion in self.companions]
        beside += [str(pure.with_suffix(suffix)) for suffix in self.suffixes if pure.name]
        return [file for file in beside if not file.startswith("..")]


def matched(reference: Mapping[str, Any], format: str) -> dict[str, dict[str, Any]]:
    """Return one reference per path that `path` matches, by the text that its globs matched (`pythia/3` for two globs).

    `hook_name` may insert that text: the first `{}` is the text of the first glob, the next `{}` that of the second;
    `{2}` is that of the second glob. A path that exists is never read as a glob.
    """
    path, hook_name = reference.get("path"), reference.get("hook_name")
    holes = _HOLE.search(hook_name) if isinstance(hook_name, str) else None
    pattern = str(expand_user(path)) if isinstance(path, str | Path) else ""
    if not _GLOB.search(pattern) or Path(pattern).exists():
        if holes:
            raise SaevalError(f"{format}: 'hook_name: {hook_name}' has '{holes[0]}', but 'path' has no glob to fill it")
        return {"": dict(reference)}
    references: dict[tuple[str, ...], dict[str, Any]] = {}
    matches = glob.glob(pattern)
    wildcards = _GLOB if matches else _STARS
    for match in matches or glob.glob(pattern.replace("[", "[[]")):  # brackets may be part of a name: `a[lr=1e-4]/*`
        parts = re.fullmatch(_expression(pattern, wildcards), match)
        assert parts is not None
        references[parts.groups()] = {**reference, "path": match}
        if holes:
            references[parts.groups()]["hook_name"] = _filled(str(hook_name), parts.groups(), format)
    if not references:
        raise SaevalError(f"{format}: nothing matches 'path: {path}'{searched_in(pattern)}")
    return {"/".join(parts): references[parts] for parts in sorted(references, key=in_order)}


def _on_disk(reference: Mapping[str, Any], format: str, beside: Callable[[str], list[str]]) -> Mapping[str, Any]:
    """Download a hub reference's files and return it with their local path; return any other reference unchanged."""
    if "repo" not in reference and "revision" not in reference:
        return reference
    local = dict(reference)
    repo, revision = local.pop("repo", None), local.pop("revision", None)
    path = local.get("path", ".")
    for key, value in (("repo", repo), ("path", path), ("revision", revision or "")):
        if not isinstance(value, str):
            raise SaevalError(f"{format}: '{key}' of a hub checkpoint must be text, found {value!r}")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise SaevalError(f"{format}: 'path: {path}' of repository '{repo}' must be inside it")
    folder = snapshot(repo, revision, "**" if path == "." else path, format, beside(path))
    return {**local, "path": str(folder / path)}


def _expression(pattern: str, wildcards: re.Pattern[str]) -> str:
    """Return a glob as a regular expression with one group per wildcard."""
    groups = [_group(glob[0]) for glob in wildcards.finditer(pattern)]
    literals = [re.escape(text) for text in wildcards.split(pattern)]
    return literals[0] + "".join(group + text for group, text in zip(groups, literals[1:], strict=True))


def _group(wildcard: str) -> str:
    if wildcard[0] == "[":
        inside = wildcard[1:-1].replace("\\", "\\\\")
        return f"([^{inside[1:]}])" if inside[0] == "!" else f"([{inside}])"
    return "([^/])" if wildcard == "?" else "([^/]*)"


def _filled(template: str, parts: tuple[str, ...], format: str) -> str:
    """Return a template with each `{}` replaced by the next part, each `{n}` by the n-th."""
    numbers = iter(range(1, len(template)))

    def part(hole: re.Match[str]) -> str:
        number = int(hole[1]) if hole[1] else next(numbers)
        if not 1 <= number <= len(parts):
            fault = f"refers to glob {number} of 'path', which has {len(parts)}"
            raise SaevalError(f"{format}: 'hook_name: {template}' {fault}")
        return parts[number - 1]

    return _HOLE.sub(part, template)


def in_order(parts: tuple[str, ...]) -> list[tuple[bool, int, str]]:
    """Return a sort key that orders numbers by their size: 2 comes before 12."""
    words = [word for part in parts for word in re.split(r"(\d+)", part)]
    return [(not word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]


def parsed(cls: type[A], reference: Mapping[str, Any], format: str, *, needs: str) -> A:
    """Return the reference as `cls`; `ParameterError` names the wrong keys. `needs` describes `path` in messages."""
    try:
        validated = validated_as(cls, reference, f"SAE format '{format}'")
    except ParameterError as error:
        raise ParameterError(
            replace(fault, sentence=f"{fault.sentence}, {needs}")
            if fault.kind == "missing" and fault.location == ("path",) and needs
            else fault
            for fault in error.faults
        ) from None
    if isinstance(path := getattr(validated, "path", None), Path):
        expand_user(path)
    return validated


def folder_of(path: Path, format: str, holds: str) -> Path:
    """Return the folder at `path`; `SaevalError` if there is none."""
    folder = path.expanduser()
    if not folder.is_dir():
        actual = "a file" if folder.exists() else f"nothing{searched_in(folder)}"
        raise SaevalError(f"{format}: {folder}: expected a folder with {holds}, found {actual}")
    return folder


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; `SaevalError` if it cannot be read or is not an object."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'") from None
    except OSError as error:
        raise SaevalError(f"{path}: cannot be read ({error}); check 'path'") from None
    if not isinstance(content, dict):
        raise SaevalError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def yaml_object(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of plain data; `SaevalError` if it is invalid or holds anything else."""
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SaevalError(f"{path}: invalid YAML, or YAML with more than plain data ({reason})") from None
    if not isinstance(content, dict):
        raise SaevalError(f"{path}: expected a YAML mapping, found {type(content).__name__}")
    return content


_SEVERAL_HOOKS = {
    "clt": "a cross-layer transcoder: the output of a layer comes from the features of all layers before it",
    "crosscoder": "a crosscoder: its features come from the activations of several hooks at once",
    "lorsa": "a sparse replacement of attention: its features come from earlier tokens through query and key weights",
    "molt": "a mixture of linear transforms: its features multiply matrices, not decoder rows",
}


def several_hooks(path: Path, kind: str) -> SaevalError:
    """Return the error for a kind of dictionary that is not a substitute of one hook's activations."""
    return SaevalError(f"{path}: is {_SEVERAL_HOOKS[kind]}, so it cannot be evaluated as an SAE of one hook")


def snapshot(repo: str, revision: str | None, pattern: str, format: str, beside: Sequence[str] = ()) -> Path:
    """Download the files of a hub repository that `pattern` matches; return its local folder.

    `pattern` is a file, a folder (with everything below it) or a glob of either; `beside` are files that may exist.
    Offline (`HF_HUB_OFFLINE`), only earlier downloads are used. `SaevalError` if the repository cannot be downloaded.
    """
    from huggingface_hub import constants, snapshot_download  # late: most suites use no hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    spellings = dict.fromkeys((pattern, pattern.replace("[", "[[]")))  # brackets may be part of a name
    wanted = [*(f"{spelling.rstrip('/')}{below}" for spelling in spellings for below in ("", "/**")), *beside]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise SaevalError(f"{format}: 'repo: {repo}' is not a valid repository name, such as org/name") from None
    except LocalEntryNotFoundError:
        why = "this run is offline" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        remedy = "run `saeval fetch SUITE` with network access"
        raise SaevalError(f"{format}: repository '{repo}' has not been downloaded and {why}; {remedy}") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SaevalError(f"{format}: repository '{repo}' cannot be downloaded: {reason}") from None
