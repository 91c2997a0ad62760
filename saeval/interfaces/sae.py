"""Interface of SAE loaders: one per checkpoint format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from saeval.base.lazy_torch import torch
from saeval.interfaces.live_objects import LiveSAE
from saeval.interfaces.substitute import Substitute


@dataclass(frozen=True)
class SAEInfo:
    """The facts about a checkpoint that its headers hold, known without reading the weights."""

    hook_name: str | None
    """The hook whose activations it replaces; None if the checkpoint does not say."""
    d_in: int
    """Width of the activations that it encodes."""
    d_sae: int
    """Number of features."""
    sha256: str
    """Hash of the weights, or a hub revision: identifies the checkpoint."""
    architecture: str = ""
    d_out: int | None = None
    """Width of the reconstruction; None if it is `d_in`."""
    input_hook: str | None = None
    """The hook that a transcoder encodes; None if it is `hook_name`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's metadata (model name, context size, L1, k, ...)."""


class SAELoader(ABC):
    """A checkpoint format, chosen by `use:` in a suite's `saes:` entry."""

    name: ClassVar[str]
    """The name that `use:` selects."""
    entry: ClassVar[type[BaseModel] | None] = None
    """The keys of an entry besides `use` and `name`; `saeval show` lists them, `info` and `load` check them."""
    expands: ClassVar[Mapping[str, Any]] = {}
    """Types of further keys by name, which `expand` uses up."""
    otherwise: ClassVar[type[BaseModel] | None] = None
    """The keys of an entry of another form, which `expand` also takes."""

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return one reference per SAE that an entry with globs or `sites:` matches, by a name for each.

        An entry of a single SAE returns itself under the empty name. `SaevalError` if nothing matches.
        """
        return {"": reference}

    def fetch(self, reference: Mapping[str, Any]) -> None:  # noqa: B027 (files on disk need no fetching)
        """Download the weights that `load` will read, unless `expand` or `info` already did."""

    @abstractmethod
    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        """Read the file's header only. A `SaevalError` names the file, the key, the value and the expected one."""

    @abstractmethod
    def load(self, reference: Mapping[str, Any], device: str, dtype: torch.dtype) -> Substitute:
        """Read the weights and return the SAE. Code inside a checkpoint is never executed."""

    def label(self, reference: Mapping[str, Any]) -> str:
        """Return the name of an entry that has neither `name:` nor `path:`."""
        return self.name

    def accepts(self, live: object) -> bool:
        """Return True if `live` is an object of this format's library, which `wrap` can handle."""
        return False

    def wrap(self, live: Any, hook_name: str | None, name: str) -> LiveSAE:
        """Return a user's own object as an SAE; `hook_name` overrides the hook that the object declares."""
        return LiveSAE(live, hook_name, name)


@dataclass(frozen=True)
class RegisteredSAE:
    """A named SAE, usable by its name in a suite's `saes:`."""

    name: str
    loader: str
    """Name of the `SAELoader` that loads it."""
    reference: Mapping[str, Any]
    """The keys of a suite's `saes:` entry, as its loader reads them."""
    description: str = ""
