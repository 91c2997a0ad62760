"""The SAEs that `SAE.from_pretrained` knows: releases out of SAELens' own registry, or repositories of the hub.

The registry is a file of the library's, so releases are listed without a network. Files come through the library's
own readers, one for each publisher's format.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from saeval.plugin import SAEInfo, SaevalError, suggestion, torch
from saeval_formats.folders import chosen
from saeval_formats.reference import parsed
from saeval_formats.saelens_config import BY_LIBRARY, Config, assembled, parsed_config
from saeval_formats.saelens_objects import LibrarySAE, first_line

if TYPE_CHECKING:
    from saeval.plugin import Substitute

_PATIENCE_SECONDS = 5.0
_HEADERS_BY_HTTP = ("gemma_3", "mntss_clt_layer_transcoder")
"""Readers that ask the hub for tensor shapes past its cache."""


class Reference(BaseModel):
    """What a suite says of one SAE of a release."""

    model_config = ConfigDict(extra="forbid")

    release: str
    """A release of SAELens' registry, or a repository of the hub as `user/name`."""
    id: str
    """As in the registry; in a repository, the SAE's folder."""
    hook_name: str | None = None
    input_hook: str | None = None
    unit_decoder: bool = Field(default=False, alias="fold_W_dec_norm")


def releases(reference: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One reference for each id of the release that `ids` matches: a glob, or a list of them."""
    rest = {key: value for key, value in reference.items() if key != "ids"}
    if "ids" not in reference:
        if "id" not in reference:
            found = _registered(str(reference["release"])).saes_map
            some = ", ".join(list(found)[:3])
            raise SaevalError(f"saelens: release '{reference['release']}' needs 'id' or 'ids', such as {some}")
        return {"": rest}
    release = _registered(str(reference["release"]))
    missing = f"saelens: release '{release.release}' has no SAE that"
    return {one: {**rest, "id": one} for one in chosen(reference["ids"], list(release.saes_map), missing, "ids")}


@dataclass(frozen=True)
class Release:
    """One SAE of a release."""

    asked: Reference
    repo_id: str
    folder: str
    reader: str
    """The library's name for the publisher's format."""
    entry: Any
    """The release in the registry; None for a repository that is not in it."""

    @classmethod
    def of(cls, reference: Mapping[str, Any]) -> Release:
        asked = parsed(Reference, reference, "saelens", needs="")
        if "/" in asked.release and asked.release not in _registry():
            return cls(asked, asked.release, asked.id, "sae_lens", None)
        entry = _registered(asked.release)
        if asked.id not in entry.saes_map:
            near = suggestion(asked.id, entry.saes_map)[:400]
            raise SaevalError(f"saelens: release '{asked.release}' has no SAE '{asked.id}'{near}")
        folder, reader = entry.saes_map[asked.id], entry.conversion_func or "sae_lens"
        if reader == "mntss_clt_layer_transcoder" or "clt" in folder:
            raise SaevalError(
                f"saelens: '{asked.release}/{asked.id}' is a layer of a cross-layer transcoder; SAELens adds its "
                "decoders up, which reconstructs nothing"
            )
        return cls(asked, entry.repo_id, folder, reader, entry)

    @property
    def where(self) -> Path:
        """For messages."""
        return Path(self.asked.release) / self.asked.id

    def info(self) -> SAEInfo:
        """From the publisher's config alone; where even that needs the hub, so does this."""
        config, revision = self.config, _revision(self.repo_id)
        factor = self.entry.norm_scaling_factor.get(self.asked.id) if self.entry else None
        config = config.with_factor(factor, "'norm_scaling_factor' in SAELens' registry")
        version = _library().__version__
        identity = [self.repo_id, self.folder, revision, self.reader, version, factor, self.asked.unit_decoder]
        published = {}
        if self.entry is not None:
            published["published_l0"] = self.entry.expected_l0.get(self.asked.id)
            published["published_explained_variance"] = self.entry.expected_var_explained.get(self.asked.id)
        # The registry's own defaults, 0 and 1, stand for nothing published.
        published = {key: value for key, value in published.items() if value not in (None, 0.0, 1.0)}
        sha256 = hashlib.sha256(json.dumps([*identity, *config.numeric]).encode()).hexdigest()
        facts = {**config.facts, **published, "repository": self.repo_id, "revision": revision}
        return config.info(self.asked.hook_name, self.asked.input_hook, sha256, facts)

    def load(self, device: str, dtype: torch.dtype | None) -> Substitute:
        revision, wanted = _revision(self.repo_id), dtype or torch.float32
        self._check_reader()
        names = {"release": self.asked.release, "sae_id": self.asked.id}
        with _told(self.where, revision):
            made = _library().SAE.from_pretrained(**names, device=device, dtype=str(wanted).removeprefix("torch."))
        for name, tensor in made.state_dict().items():
            broken = int((~torch.isfinite(tensor)).sum())
            if broken:
                raise SaevalError(f"{self.where}: '{name}' holds {broken} NaN or infinite values of {tensor.numel()}")
        config = parsed_config(self.where, made.cfg.to_dict())
        hook_name = self.asked.hook_name or config.hook_name
        if config.architecture in BY_LIBRARY:
            if self.asked.unit_decoder:
                raise SaevalError(f"{self.where}: 'fold_W_dec_norm' is not for '{config.architecture}' SAEs")
            return LibrarySAE(made, hook_name or "?", str(self.where))
        tensors = {name: tensor.detach() for name, tensor in made.state_dict().items()}
        try:
            return assembled(config, tensors, hook_name or "", unit_decoder=self.asked.unit_decoder)
        except ValueError as error:
            raise SaevalError(f"{self.where}: 'fold_W_dec_norm' is not for this SAE: {error}") from None

    @property
    def config(self) -> Config:
        """What the release's own reader makes of the publisher's config."""
        revision = _revision(self.repo_id)
        self._check_reader()
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface  # late: an optional extra

        with _told(self.where, revision):
            raw = load_sae_config_from_huggingface(self.asked.release, self.asked.id)
        return parsed_config(self.where, raw)

    def _check_reader(self) -> None:
        if self.reader in _HEADERS_BY_HTTP and _offline():
            raise SaevalError(
                f"saelens: {self.where}: SAELens asks the hub for its header even where the files are in the cache, "
                "and HF_HUB_OFFLINE is set; give the downloaded folder as {use: gemma_scope, path: ...}"
            )


def _library() -> Any:
    """The module `sae_lens`; `SaevalError` where it is not installed."""
    from saeval_formats.saelens_objects import library  # late: it imports torch

    return library()


def _registry() -> Mapping[str, Any]:
    _library()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory  # late: an optional extra

    return get_pretrained_saes_directory()  # type: ignore[no-any-return]


def _registered(release: str) -> Any:
    known = _registry()
    if release not in known:
        what = "a repository is listed by nobody: name one SAE by 'id'" if "/" in release else "no such release"
        raise SaevalError(f"saelens: release '{release}': {what}{suggestion(release, known)[:400]}")
    return known[release]


def _offline() -> bool:
    from huggingface_hub import constants  # late: slow to import

    return bool(constants.HF_HUB_OFFLINE)


@functools.cache
def _asked_hub(repo_id: str) -> str:
    """The commit that `main` of a repository is at: one request a process."""
    from huggingface_hub import HfApi  # late: slow to import

    return str(HfApi().model_info(repo_id, timeout=_PATIENCE_SECONDS).sha)


def _revision(repo_id: str) -> str:
    """The commit whose files will be read, asked of the hub, else of its cache; `SaevalError` where neither knows."""
    from huggingface_hub import constants  # late: slow to import
    from huggingface_hub.file_download import repo_folder_name

    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "refs" / "main"
    reason = "HF_HUB_OFFLINE is set"
    if not _offline():
        try:
            return _asked_hub(repo_id)
        except Exception as error:  # the hub's client changes its exceptions with the library it sits on
            reason = type(error).__name__
    if cached.is_file():
        return cached.read_text(encoding="utf-8").strip()
    raise SaevalError(
        f"saelens: nothing is known of '{repo_id}' here: the hub could not be asked ({reason}) and its cache "
        f"{constants.HF_HUB_CACHE} has no such repository; check the name, or download it where there is a network"
    )


@contextmanager
def _told(where: Path, revision: str) -> Iterator[None]:
    """Whatever the library or the hub's client raises as one sentence; pickles are read as tensors and plain data."""
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch 2.6 the library's torch.load would execute them
    try:
        yield
    except Exception as error:
        raise SaevalError(f"saelens: {where} at {revision[:12]} could not be read ({first_line(error)})") from None
    finally:
        if forced is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced
