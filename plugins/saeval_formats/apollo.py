"""SAEs of Apollo Research's e2e_sae: one `.pt` file per run, or one per published SAE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError, names_matching, names_matching_any, suggestion
from saeval_formats.fields import Fields
from saeval_formats.reference import LocalLoader, LocalReference, parsed, yaml_object
from saeval_formats.tensor_layout import Checkpoint, TensorLayout, linear
from saeval_formats.tensors import Header, Tensors, state_dict, unpickled_dict

CONFIG = "final_config.yaml"
_KEY = re.compile(r"(?:([^.]+)\.)?(encoder(?:\.0)?|decoder)\.(?:weight|bias)")


class Reference(LocalReference):
    """A suite's reference to one SAE, or to several in one file."""

    path: Path
    """The file, or the folder of a run, of which the last file is loaded."""
    sites: str | list[str] | None = None
    """The hook of the SAE, or globs of hooks; not needed if the file holds one SAE."""


class Apollo(LocalLoader):
    """SAEs of e2e_sae: features relu(x W_encᵀ + b_enc), and x̂ from decoder rows scaled to norm 1.

    These SAEs were trained on models that TransformerLens loaded with its defaults, centred writing weights and folded
    layer norms: the residual stream of the published model differs from their inputs by each activation's mean.
    """

    name, entry = "apollo", Reference
    companions = (f"../{CONFIG}",)
    suffixes = (".yaml",)

    def at_path(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        options = _parsed(reference)
        if options.sites is None:
            return {"": reference}
        file = _file(options.path)
        sites = _matching(file, list(_saes(file)), options.sites)
        if options.hook_name and len(sites) > 1:
            raise SaevalError(f"apollo: 'hook_name' is one hook, but 'sites' matches {len(sites)}: {', '.join(sites)}")
        # A site without globs does not extend the name.
        return {site if sites != [options.sites] else "": {**reference, "sites": site} for site in sites}

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = _parsed(reference)
        path = _file(options.path)
        saes = _saes(path)
        sites = list(saes) if options.sites is None else _matching(path, list(saes), options.sites)
        if len(sites) > 1:
            raise SaevalError(f"{path}: has several SAEs; add 'sites:', a hook or a glob of hooks: {_listed(sites)}")
        site = sites[0]
        header = Header.of_tensors(path, saes[site])
        layout = _layout(saes[site], site)
        sizes = layout.check(header, kind="'use'", sizes="the lengths of the biases")
        facts, position = _config(path)
        hook_name = options.hook_name or site or position
        return Checkpoint(header, layout, sizes, "standard", hook_name, numeric=(site,), facts=facts)


def _parsed(reference: Mapping[str, Any]) -> Reference:
    return parsed(Reference, reference, "apollo", needs="the .pt file or the folder of a run")


def _file(path: Path) -> Path:
    """Return the file at `path`; for the folder of a run, the file after the most samples, as in e2e_sae."""
    path = path.expanduser()
    if not path.is_dir():
        return path
    numbered = {int(m[1]): file for file in path.glob("*.pt") if (m := re.search(r"_(\d+)$", file.stem))}
    if not numbered:
        raise SaevalError(f"apollo: {path}: expected a folder with samples_<number>.pt, found none; name the file")
    return numbered[max(numbered)]


def _saes(path: Path) -> dict[str, Tensors]:
    """Return the state dict of each SAE in a file by its hook; the hook is empty if the keys have none.

    In its keys, e2e_sae writes the dots of a hook as hyphens.
    """
    saes: dict[str, Tensors] = {}
    for key, tensor in state_dict(path, unpickled_dict(path)).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise SaevalError(
                f"{path}: unexpected key '{key}', expected <hook>.encoder.0.weight, <hook>.encoder.0.bias, "
                "<hook>.decoder.weight, <hook>.decoder.bias, or these without a hook; check 'use'"
            )
        saes.setdefault((match[1] or "").replace("-", "."), {})[key] = tensor
    if not saes:
        raise SaevalError(f"{path}: has no tensors; copy it again")
    return saes


def _matching(path: Path, hooks: list[str], wanted: str | list[str]) -> list[str]:
    """Return the hooks that `wanted` matches, in the order of the file."""
    patterns = [wanted] if isinstance(wanted, str) else wanted
    for pattern in patterns:
        if not names_matching(pattern, hooks):
            near = suggestion(pattern, hooks)
            raise SaevalError(f"{path}: no SAE matches 'sites: {pattern}'{near}; the file has {_listed(hooks)}")
    return names_matching_any(patterns, hooks)


def _layout(state: Tensors, site: str) -> TensorLayout:
    """Return the layout of one SAE: keys are `encoder.0` in files of a run, `encoder` in published files."""
    prefix = f"{site.replace('.', '-')}." if site else ""
    encoder = "encoder" if any(key.startswith(("encoder.w", "encoder.b")) for key in state) else f"{prefix}encoder.0"
    decoder = f"{prefix}decoder"
    return TensorLayout(linear(f"{encoder}.bias", f"{decoder}.bias", encoder, decoder), unit_decoder=True)


def _config(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the facts in the run's config, and its hook if it names one in full; the config is beside the file."""
    file = next((f for f in (path.with_suffix(".yaml"), path.parent / CONFIG) if f.is_file()), None)
    if file is None:
        return {}, None
    config = Fields(file, yaml_object(file))
    data = config.inside("train_data")
    by_name = config.text("tlens_model_name")
    facts = {
        "model_name": by_name or config.text("tlens_model_path"),
        "context_size": data.maybe(data.whole, "n_ctx"),
        "dataset_path": data.text("dataset_name"),
        "seed": config.maybe(config.count, "seed"),
        "n_samples": config.maybe(config.count, "n_samples"),
        "end_to_end": _end_to_end(config.inside("loss")),
        # HookedTransformer.from_pretrained centres a model loaded by name; one loaded by path is as it was saved.
        "center_writing_weights": True if by_name else None,
    }
    positions = config.inside("saes").values.get("sae_positions")
    positions = [positions] if isinstance(positions, str) else positions
    hook = str(positions[0]) if isinstance(positions, list) and len(positions) == 1 else ""
    return {k: v for k, v in facts.items() if v is not None}, hook if hook.startswith("blocks.") else None


def _end_to_end(loss: Fields) -> bool | None:
    """True if the loss had terms for the model's output or later activations, and none for the reconstruction."""
    terms = {key: loss.inside(key) for key in ("logits_kl", "in_to_orig", "out_to_in", "out_to_orig")}
    weights = {k: t.maybe(t.amount, "total_coeff" if k == "in_to_orig" else "coeff") for k, t in terms.items()}
    downstream = weights["logits_kl"] or weights["in_to_orig"]
    return True if downstream and not weights["out_to_in"] and not weights["out_to_orig"] else None


def _listed(sites: list[str]) -> str:
    return ", ".join(site or "an SAE without a hook" for site in sites)
