"""SAELens folders: `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.errors import SaevalError
from saeval.fingerprint import sha256_file
from saeval.sae import SAEInfo, SAELoader
from saeval_formats.reference import Asked, flag, folder_of, json_object, parsed, whole
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    import torch

    from saeval_formats.dense import Activation, DenseSAE

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
_SCALE = "scaling_factor"  # for a while written with every SAE, nearly always as ones
_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
_FACTS = (
    "model_name", "model_class_name", "context_size", "prepend_bos", "exclude_special_tokens", "dataset_path",
    "normalize_activations", "apply_b_dec_to_input", "reshape_activations", "dtype",
    "sae_lens_version", "sae_lens_training_version", "training_architecture", "neuronpedia_id",
)  # fmt: skip
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}  # before version 4


class Reference(Asked):
    """What a suite says of one SAE."""

    path: Path
    """The folder."""


@dataclass(frozen=True)
class Config:
    """What `cfg.json` says, whichever version wrote it."""

    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool
    normalization: str
    k: int | None
    rescale: bool
    scale: float | None
    """Factor the inputs were multiplied by in training and that is not in the weights yet."""
    hook_name: str | None
    facts: Mapping[str, Any]

    @property
    def numeric(self) -> list[Any]:
        """All that the SAE's numbers depend on besides the weights."""
        sizes = [self.architecture, self.d_in, self.d_sae, self.k]
        return [*sizes, self.apply_b_dec_to_input, self.normalization, self.rescale, self.scale]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        biases = dict.fromkeys(_BIASES[self.architecture], (self.d_sae,))
        return {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_in), "b_dec": (self.d_in,), **biases}


class SAELens(SAELoader):
    """SAEs saved by SAELens, versions 3 to 6; at hook_z their width is that of all heads together.

    `normalize_activations: expected_average_only_in` scales nothing at run time, as in the library; where the folder
    still holds the factor of an unfinished run, it is folded into the weights.
    """

    name = "saelens"

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        asked, folder = _checked(reference)
        config = _config(folder)
        Header.of(folder / WEIGHTS).check(config.shapes, [_SCALE])
        identity = json.dumps([sha256_file(folder / WEIGHTS), *config.numeric])
        return SAEInfo(
            hook_name=asked.hook_name or config.hook_name,
            d_in=config.d_in,
            d_sae=config.d_sae,
            d_out=config.d_in,
            sha256=hashlib.sha256(identity.encode()).hexdigest(),
            architecture=config.architecture,
            facts=config.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        from saeval_formats.dense import DenseSAE, Gated, JumpReLU, ReLU, TopK  # late: reading headers needs no torch

        asked, folder = _checked(reference)
        config = _config(folder)
        header = Header.of(folder / WEIGHTS)
        header.check(config.shapes, [_SCALE])
        if _SCALE in header.shapes and not (header.read([_SCALE], "cpu")[_SCALE] == 1).all():
            raise SaevalError(f"{header.path}: '{_SCALE}' is not all ones; fold the fine-tuned scale into W_dec first")
        tensors = header.read(config.shapes, device, dtype)
        if config.scale is not None:
            tensors["W_enc"] *= config.scale
            tensors["W_dec"] /= config.scale
            tensors["b_dec"] /= config.scale
        activation: Activation = ReLU()
        if config.k is not None:
            activation = TopK(config.k)
        elif config.architecture == "jumprelu":
            activation = JumpReLU(tensors["threshold"])
        elif config.architecture == "gated":
            activation = Gated(tensors["b_gate"], tensors["r_mag"], tensors["b_mag"])
        return DenseSAE(
            asked.hook_name or config.hook_name or "",
            tensors["W_enc"],
            tensors.get("b_enc"),
            tensors["W_dec"],
            tensors["b_dec"],
            activation,
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            normalization=config.normalization,  # type: ignore[arg-type]
            rescale_acts_by_decoder_norm=config.rescale,
        )


def _checked(reference: Mapping[str, Any]) -> tuple[Reference, Path]:
    asked = parsed(Reference, reference, "saelens", needs=f"the folder with {CONFIG} and {WEIGHTS}")
    return asked, folder_of(asked.path, "saelens", f"{CONFIG} and {WEIGHTS}")


def _config(folder: Path) -> Config:
    """Both layouts: version 6 keeps what does not change the numbers in `metadata`, earlier ones are flat."""
    path = folder / CONFIG
    raw = {_RENAMED.get(key, key): value for key, value in json_object(path).items()}
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SaevalError(f"{path}: expected an object in 'metadata', found {type(metadata).__name__}")
    about = {**raw, **metadata}
    architecture, k = _architecture(path, raw, flat="metadata" not in raw)
    d_in, d_sae = whole(path, "d_in", raw.get("d_in")), whole(path, "d_sae", raw.get("d_sae"))
    if architecture == "topk":
        k = whole(path, "k", k)
        if k > d_sae:
            raise SaevalError(f"{path}: 'k' is {k}, more than the {d_sae} features of 'd_sae'")
    if about.get("hook_head_index") is not None:
        raise SaevalError(f"{path}: an SAE of one head ('hook_head_index') is not supported")
    normalization = _normalization(path, raw.get("normalize_activations"))
    facts = {key: about[key] for key in _FACTS if about.get(key) is not None}
    if k is not None:
        facts["k"] = k
    scale = None
    if normalization == "expected_average_only_in":
        scale = _scale(folder / SCALER)
        facts["activation_scale"] = f"{scale} (folded)" if scale is not None else f"not folded: there is no {SCALER}"
        normalization = "none"
    hook_name = about.get("hook_name")
    return Config(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        apply_b_dec_to_input=flag(path, raw, "apply_b_dec_to_input", default=True),
        normalization=normalization,
        k=k,
        rescale=architecture == "topk" and flag(path, raw, "rescale_acts_by_decoder_norm", default=False),
        scale=scale,
        hook_name=str(hook_name) if hook_name else None,
        facts=facts,
    )


def _architecture(path: Path, raw: Mapping[str, Any], flat: bool) -> tuple[str, Any]:
    """The architecture and, for TopK, its k as found."""
    found = raw.get("architecture", "standard" if flat else None)
    architecture = None if found is None else str(found)
    activation = raw.get("activation_fn_str", raw.get("activation_fn", "relu"))
    k = raw.get("k")
    if activation == "topk" and architecture in ("standard", "topk"):
        # How flat configs say it; the library reads them so.
        kwargs = raw.get("activation_fn_kwargs")
        architecture, k = "topk", kwargs.get("k", k) if isinstance(kwargs, dict) else k
    elif activation != "relu" and architecture in _BIASES and architecture != "topk":
        raise SaevalError(f"{path}: activation '{activation}' of a {architecture} SAE is not supported; relu is")
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        raise SaevalError(
            f"{path}: '{architecture}' is a training checkpoint; export it with save_inference_model(), as jumprelu"
        )
    if architecture is None or architecture not in _BIASES:
        what = f"architecture '{architecture}' is not supported" if architecture else "there is no 'architecture'"
        raise SaevalError(f"{path}: {what}; supported: {', '.join(sorted(_BIASES))}")
    return architecture, k if architecture == "topk" else None


def _normalization(path: Path, found: Any) -> str:
    if isinstance(found, bool):  # the earliest configs
        return "expected_average_only_in" if found else "none"
    if found is None:
        return "none"
    if found not in _NORMALIZATIONS:
        raise SaevalError(
            f"{path}: 'normalize_activations: {found}' is not supported; supported: {', '.join(_NORMALIZATIONS)} "
            "(SAELens folds others into the weights)"
        )
    return str(found)


def _scale(path: Path) -> float | None:
    if not path.is_file():
        return None
    found = json_object(path)
    if found.get("has_whitening"):
        raise SaevalError(f"{path}: whitening is not supported; fold it with SAELens' fold_activation_whitening()")
    factor = found.get("scaling_factor")
    if factor is None:
        return None
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise SaevalError(f"{path}: expected a positive number in 'scaling_factor', found {factor!r}")
    return float(factor)
