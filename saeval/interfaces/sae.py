"""What the engine asks of SAEs and their loaders."""

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
    """What a checkpoint's headers tell, without reading the weights."""

    hook_name: str | None
    d_in: int
    d_sae: int
    sha256: str
    """Hash of the weights, or a hub revision: what makes two checkpoints the same."""
    architecture: str = ""
    d_out: int | None = None
    """Width of what it writes, where that is not `d_in`."""
    input_hook: str | None = None
    """The hook a transcoder reads; None where it reads the one it replaces, `hook_name`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's own words about itself (model name, context size, L1, k, ...)."""


class SAELoader(ABC):
    """A checkpoint format, chosen by `use:` in a suite's `saes:` entry."""

    name: ClassVar[str]
    entry: ClassVar[type[BaseModel] | None] = None
    """The keys of an entry besides `use` and `name`, which `saeval show` lists; `info` and `load` check them."""

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The references that an entry with globs or `sites:` means, by what tells them apart.

        Just itself, under the empty name, for an entry that means one SAE. `SaevalError` where nothing matches.
        """
        return {"": reference}

    def fetch(self, reference: Mapping[str, Any]) -> None:  # noqa: B027 (files on disk need no fetching)
        """Download the weights that `load` will read, for a format whose `expand` or `info` has not done it."""

    @abstractmethod
    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        """From the file's header only. `SaevalError` names the file, the key, what was found and what expected."""

    @abstractmethod
    def load(self, reference: Mapping[str, Any], device: str, dtype: torch.dtype) -> Substitute:
        """Read the weights. Nothing that the checkpoint carries is ever executed."""

    def label(self, reference: Mapping[str, Any]) -> str:
        """What an entry without a `name:` or a `path:` is called."""
        return self.name

    def accepts(self, live: object) -> bool:
        """Whether `live` is an object of this format's library, which `wrap` knows how to call."""
        return False

    def wrap(self, live: Any, hook_name: str | None, name: str) -> LiveSAE:
        """A user's own object as an SAE; `hook_name` wins over what the object says."""
        return LiveSAE(live, hook_name, name)


@dataclass(frozen=True)
class RegisteredSAE:
    """A named SAE: `reference` is what its `loader` would find in a suite."""

    name: str
    loader: str
    reference: Mapping[str, Any]
    description: str = ""
