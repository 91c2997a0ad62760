"""The SAEs that `SAE.from_pretrained` loads: releases in SAELens' registry, and hub repositories.

The registry is a file of SAELens, so releases are listed without network access. SAELens' own readers, one per
publisher's format, read the files.
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
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from saeval.plugin import SAEInfo, SaevalError, Substitute, suggestion, torch
from saeval_formats.folders import chosen
from saeval_formats.reference import parsed
from saeval_formats.saelens_config import BY_LIBRARY, assembled, parsed_config
from saeval_formats.saelens_objects import LibrarySAE, first_line, library

_PATIENCE_SECONDS = 5.0
_HEADERS_BY_HTTP = ("gemma_3", "mntss_clt_layer_transcoder")
"""Readers that request tensor shapes from the hub even if the files are in the cache."""


class Reference(BaseModel):
    """A suite's reference to one SAE of a release."""

    model_config = ConfigDict(extra="forbid")

    release: str
    """A release in SAELens' registry, or a hub repository, as `user/name`."""
    id: str
    """The SAE's id in the registry, or its folder in a repository."""
    hook_name: str | None = None
    input_hook: str | None = None
    unit_decoder: bool = Field(default=False, alias="fold_W_dec_norm")


class Releases(Reference):
    """A suite's reference to SAEs of a release: one by its `id`, or those that `ids` matches."""

    id: str | None = None  # type: ignore[assignment]
    ids: str | list[str] | None = None
    """A glob of ids, or a list of globs."""


def releases(reference: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one reference per id of the release that `ids` matches, a glob or a list of globs."""
    rest = {key: value for key, value in reference.items() if key != "ids"}
    if "ids" not in reference:
        if "id" not in reference:
            examples = ", ".join(list(_registered(str(reference["release"])).saes_map)[:3])
            raise SaevalError(f"saelens: release '{reference['release']}' needs 'id' or 'ids', such as {examples}")
        return {"": rest}
    release = _registered(str(reference["release"]))
    missing = f"saelens: release '{release.release}' has no SAE that"
    return {id: {**rest, "id": id} for id in chosen(reference["ids"], list(release.saes_map), missing, "ids")}


@dataclass(frozen=True)
class Release:
    """One SAE of a release."""

    options: Reference
    repo_id: str
    folder: str
    reader: str
    """SAELens' name for the publisher's format."""
    entry: Any
    """The release's entry in the registry; None for a repository that is not in it."""

    @classmethod
    def of(cls, reference: Mapping[str, Any]) -> Release:
        options = parsed(Reference, reference, "saelens", needs="")
        if "/" in options.release and options.release not in _registry():
            return cls(options, options.release, options.id, "sae_lens", None)
        entry = _registered(options.release)
        if options.id not in entry.saes_map:
            near = suggestion(options.id, entry.saes_map)[:400]
            raise SaevalError(f"saelens: release '{options.release}' has no SAE '{options.id}'{near}")
        folder, reader = entry.saes_map[options.id], entry.conversion_func or "sae_lens"
        if reader == "mntss_clt_layer_transcoder" or "clt" in folder:
            raise SaevalError(
                f"saelens: '{options.release}/{options.id}' is a layer of a cross-layer transcoder; SAELens "
                "sums its decoders, which reconstructs no activations"
            )
        return cls(options, entry.repo_id, folder, reader, entry)

    @property
    def where(self) -> Path:
        """The release and id as a path, for messages."""
        return Path(self.options.release) / self.options.id

    def info(self) -> SAEInfo:
        """Return the `SAEInfo` from the publisher's config; may need network access to read it."""
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface  # late: an optional extra

        revision = _revision(self.repo_id)
        self._check_reader()
        with _library_errors(self.where, revision):
            raw = load_sae_config_from_huggingface(self.options.release, self.options.id)
        factor = self.entry.norm_scaling_factor.get(self.options.id) if self.entry else None
        config = parsed_config(self.where, raw).with_factor(factor, "'norm_scaling_factor' in SAELens' registry")
        version = library().__version__
        identity = [self.repo_id, self.folder, revision, self.reader, version, factor, self.options.unit_decoder]
        published = {}
        if self.entry is not None:
            published["published_l0"] = self.entry.expected_l0.get(self.options.id)
            published["published_explained_variance"] = self.entry.expected_var_explained.get(self.options.id)
        # 0 and 1 are the registry's defaults for unpublished values.
        published = {key: value for key, value in published.items() if value not in (None, 0.0, 1.0)}
        sha256 = hashlib.sha256(json.dumps([*identity, *config.numeric]).encode()).hexdigest()
        facts = {**config.facts, **published, "repository": self.repo_id, "revision": revision}
        return config.info(self.options.hook_name, self.options.input_hook, sha256, facts)

    def load(self, device: str, dtype: torch.dtype | None) -> Substitute:
        revision, wanted = _revision(self.repo_id), dtype or torch.float32
        self._check_reader()
        names = {"release": self.options.release, "sae_id": self.options.id}
        with _library_errors(self.where, revision):
            module = library().SAE.from_pretrained(**names, device=device, dtype=str(wanted).removeprefix("torch."))
        for name, tensor in module.state_dict().items():
            broken = int((~torch.isfinite(tensor)).sum())
            if broken:
                raise SaevalError(f"{self.where}: '{name}' holds {broken} NaN or infinite values of {tensor.numel()}")
        config = parsed_config(self.where, module.cfg.to_dict())
        hook_name = self.options.hook_name or config.hook_name
        if config.architecture in BY_LIBRARY:
            if self.options.unit_decoder:
                raise SaevalError(f"{self.where}: 'fold_W_dec_norm' is not for '{config.architecture}' SAEs")
            return LibrarySAE(module, hook_name or "?", str(self.where))
        tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        return assembled(self.where, config, tensors, hook_name, unit_decoder=self.options.unit_decoder)

    def _check_reader(self) -> None:
        from huggingface_hub import constants  # late: slow to import

        if self.reader in _HEADERS_BY_HTTP and constants.HF_HUB_OFFLINE:
            raise SaevalError(
                f"saelens: {self.where}: SAELens requests its header from the hub even if the files are in the cache, "
                "and HF_HUB_OFFLINE is set; use the downloaded folder, as in {use: gemma_scope, path: ...}"
            )


def _registry() -> Mapping[str, Any]:
    library()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory  # late: an optional extra

    return get_pretrained_saes_directory()  # type: ignore[no-any-return]


def _registered(release: str) -> Any:
    registry = _registry()
    if release not in registry:
        fault = "the registry does not list this repository; set 'id'" if "/" in release else "no such release"
        raise SaevalError(f"saelens: release '{release}': {fault}{suggestion(release, registry)[:400]}")
    return registry[release]


@functools.cache
def _hub_commit(repo_id: str) -> str:
    """Return the commit of a repository's `main`; one request per process."""
    from huggingface_hub import HfApi  # late: slow to import

    return str(HfApi().model_info(repo_id, timeout=_PATIENCE_SECONDS).sha)


def _revision(repo_id: str) -> str:
    """Return the commit whose files will be read, from the hub, else from its cache; `SaevalError` if both fail."""
    from huggingface_hub import constants  # late: slow to import
    from huggingface_hub.file_download import repo_folder_name

    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "refs" / "main"
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _hub_commit(repo_id)
        except Exception as error:  # the exceptions depend on the hub client's HTTP library
            reason = type(error).__name__
    if cached.is_file():
        return cached.read_text(encoding="utf-8").strip()
    raise SaevalError(
        f"saelens: repository '{repo_id}' is not in the cache {constants.HF_HUB_CACHE} and the hub could not be "
        f"asked ({reason}); check the name, or download it with network access"
    )


@contextmanager
def _library_errors(where: Path, revision: str) -> Iterator[None]:
    """Raise exceptions of SAELens or the hub client as `SaevalError`; no pickle can execute code."""
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch 2.6, SAELens' torch.load would execute code
    try:
        yield
    except Exception as error:
        raise SaevalError(f"saelens: {where} at {revision[:12]} could not be read ({first_line(error)})") from None
    finally:
        if forced is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced
