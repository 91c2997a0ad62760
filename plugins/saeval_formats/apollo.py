"""SAEs of Apollo Research's e2e_sae: all of a run in one `.pt` file, or published one to a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError, digest_of, names_matching, names_matching_any, sha256_file, suggestion
from saeval_formats.fields import Fields
from saeval_formats.reference import Asked, LocalLoader, parsed, yaml_object
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header, state_dict, unpickled_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saeval_formats.dense import DenseSAE

CONFIG = "final_config.yaml"
_KEY = re.compile(r"(?:([^.]+)\.)?(encoder(?:\.0)?|decoder)\.(?:weight|bias)")


class Reference(Asked):
    """What a suite says of one SAE, or of several in one file."""

    path: Path
    """The file, or the folder of a run, whose last file is meant."""
    sites: str | list[str] | None = None
    """Hooks of the SAEs that are meant, or globs of hooks; not needed where the file holds one SAE."""


@dataclass(frozen=True)
class Checkpoint:
    """One SAE of a file, checked."""

    header: Header
    layout: TensorLayout
    site: str
    d_in: int
    d_sae: int
    hook_name: str | None
    facts: Mapping[str, Any]


class Apollo(LocalLoader):
    """`SAE` of e2e_sae: a ReLU without a bias before it, decoder rows of unit norm whatever the file holds.

    They were trained on what TransformerLens makes of a model by default, with centred writing weights and folded
    layer norms; at a residual hook of the model as published they are off by each activation's mean.
    """

    name, entry = "apollo", Reference
    companions = (f"../{CONFIG}",)
    suffixes = (".yaml",)

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """By globs of `path` and of `sites`."""
        found: dict[str, Mapping[str, Any]] = {}
        for part, one in super().expand(reference).items():
            asked = _parsed(one)
            if asked.sites is None:
                found[part] = one
                continue
            file = _file(asked.path)
            sites = _matching(file, list(_saes(file)), asked.sites)
            if asked.hook_name and len(sites) > 1:
                raise SaevalError(
                    f"apollo: 'hook_name' is one hook, but 'sites' means {len(sites)}: {', '.join(sites)}"
                )
            for site in sites:
                name = site if sites != [asked.sites] else ""  # one that is spelled out needs no further name
                found["/".join(filter(None, (part, name)))] = {**one, "sites": site}
        return found

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        found = _checkpoint(_parsed(reference))
        return SAEInfo(
            hook_name=found.hook_name,
            d_in=found.d_in,
            d_sae=found.d_sae,
            d_out=found.d_in,
            sha256=digest_of([sha256_file(found.header.path), found.site]),
            architecture="standard",
            facts=found.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        found = _checkpoint(_parsed(reference))
        return found.layout.dense(found.header, found.hook_name or "", device, dtype)


def _parsed(reference: Mapping[str, Any]) -> Reference:
    return parsed(Reference, reference, "apollo", needs="the .pt file or the folder of a run")


def _file(path: Path) -> Path:
    """The file at `path`; of a run's folder the one after the most samples, as the library takes it."""
    path = path.expanduser()
    if not path.is_dir():
        return path
    numbered = {int(m[1]): file for file in path.glob("*.pt") if (m := re.search(r"_(\d+)$", file.stem))}
    if not numbered:
        raise SaevalError(f"apollo: {path}: expected a folder with samples_<number>.pt, found none; give the file")
    return numbered[max(numbered)]


def _saes(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dict of each SAE in a file, under the file's own keys, by hook; the hook is empty where keys have none.

    The library writes hyphens for the dots of a hook in its keys.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict(path, unpickled_dict(path)).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise SaevalError(
                f"{path}: unexpected key '{key}', expected <hook>.encoder.0.weight, <hook>.encoder.0.bias, "
                "<hook>.decoder.weight, <hook>.decoder.bias, or these without a hook; check 'use'"
            )
        found.setdefault((match[1] or "").replace("-", "."), {})[key] = tensor
    if not found:
        raise SaevalError(f"{path}: holds no tensors; copy it again")
    return found


def _matching(path: Path, held: list[str], wanted: str | list[str]) -> list[str]:
    """The hooks that are meant, in the order of the file."""
    patterns = [wanted] if isinstance(wanted, str) else wanted
    for pattern in patterns:
        if not names_matching(pattern, held):
            near = suggestion(pattern, held)
            raise SaevalError(f"{path}: no SAE matches 'sites: {pattern}'{near}; it holds {_listed(held)}")
    return names_matching_any(patterns, held)


def _checkpoint(asked: Reference) -> Checkpoint:
    path = _file(asked.path)
    saes = _saes(path)
    sites = list(saes) if asked.sites is None else _matching(path, list(saes), asked.sites)
    if len(sites) > 1:
        raise SaevalError(f"{path}: holds several SAEs, so add 'sites:', a hook or a glob of hooks: {_listed(sites)}")
    site = sites[0]
    header = Header.of_tensors(path, saes[site])
    layout = _layout(saes[site], site)
    d_in, d_sae = layout.check(header, kind="'use'", sizes="the lengths of the biases")
    facts, position = _config(path)
    return Checkpoint(header, layout, site, d_in, d_sae, asked.hook_name or site or position, facts)


def _layout(state: Mapping[str, Tensor], site: str) -> TensorLayout:
    """Of one SAE: `encoder.0` as the library's modules have it, `encoder` as it publishes them."""
    prefix = f"{site.replace('.', '-')}." if site else ""
    encoder = "encoder" if any(key.startswith(("encoder.w", "encoder.b")) for key in state) else f"{prefix}encoder.0"
    stored = {
        "W_enc": (f"{encoder}.weight", "nd"),
        "b_enc": (f"{encoder}.bias", "n"),
        "W_dec": (f"{prefix}decoder.weight", "dn"),
        "b_dec": (f"{prefix}decoder.bias", "d"),
    }
    return TensorLayout(stored, unit_decoder=True)


def _config(path: Path) -> tuple[dict[str, Any], str | None]:
    """What the run's config says of itself, and its hook where it names one in full; published ones lie beside."""
    file = next((f for f in (path.with_suffix(".yaml"), path.parent / CONFIG) if f.is_file()), None)
    if file is None:
        return {}, None
    said = Fields(file, yaml_object(file))
    data = said.inside("train_data")
    by_name = said.text("tlens_model_name")
    facts = {
        "model_name": by_name or said.text("tlens_model_path"),
        "context_size": data.maybe(data.whole, "n_ctx"),
        "dataset_path": data.text("dataset_name"),
        "seed": said.maybe(said.count, "seed"),
        "n_samples": said.maybe(said.count, "n_samples"),
        "end_to_end": _end_to_end(said.inside("loss")),
        # A model by name comes from HookedTransformer.from_pretrained, which centres; one by path is as it was saved.
        "center_writing_weights": True if by_name else None,
    }
    positions = said.inside("saes").values.get("sae_positions")
    positions = [positions] if isinstance(positions, str) else positions
    only = str(positions[0]) if isinstance(positions, list) and len(positions) == 1 else ""
    return {k: v for k, v in facts.items() if v is not None}, only if only.startswith("blocks.") else None


def _end_to_end(loss: Fields) -> bool | None:
    """Whether training asked for the model's outputs or later activations, and not for a reconstruction."""

    def asked(key: str, coefficient: str = "coeff") -> bool:
        part = loss.inside(key)
        return bool(part.maybe(part.amount, coefficient))

    downstream = asked("logits_kl") or asked("in_to_orig", "total_coeff")
    return True if downstream and not asked("out_to_in") and not asked("out_to_orig") else None


def _listed(sites: list[str]) -> str:
    return ", ".join(site or "one without a hook" for site in sites)
