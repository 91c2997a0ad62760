"""Configs of SAELens, in the layout of any version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saeval.plugin import SAEInfo, SaevalError
from saeval_formats.dense import AbsTopK, DenseSAE, TopK
from saeval_formats.fields import Fields, shown
from saeval_formats.folding import rescaled
from saeval_formats.tensors import Tensors

_TENSORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold", "W_skip"),
}
"""Architecture -> the tensors besides W_enc, W_dec and b_dec."""
_OF_K = {"topk": TopK, "abstopk": AbsTopK}
"""Architectures that keep k features of each token."""
BY_LIBRARY = ("matching_pursuit", "temporal")
"""Architectures that only SAELens' own classes compute."""
_REFUSED = {
    "batchtopk": "is a training checkpoint; export it with save_inference_model(), as jumprelu",
    "matryoshka_batchtopk": "is a training checkpoint; export it with save_inference_model(), as jumprelu",
}
_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
_AS_FOUND = (
    "model_class_name", "exclude_special_tokens", "dataset_path", "normalize_activations", "apply_b_dec_to_input",
    "reshape_activations", "dtype", "sae_lens_version", "sae_lens_training_version", "training_architecture",
    "neuronpedia_id", "seed",
)  # fmt: skip
"""Facts that no computation uses."""
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}  # before version 4
_NO_NUMBERS = ("metadata", "device", "dtype")


@dataclass(frozen=True)
class Config:
    """The checked settings of a config."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    apply_b_dec_to_input: bool
    normalization: str
    """The config's `normalize_activations`; `expected_average_only_in` does nothing without a factor, as in SAELens."""
    k: int | None
    rescale: bool
    hook_name: str | None
    """The hook that the SAE replaces."""
    input_hook: str | None
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    """All settings that outputs may depend on besides the tensors, for SAELens' own classes."""

    @property
    def numeric(self) -> list[Any]:
        """The settings that the SAE's outputs depend on besides the tensors."""
        if self.architecture in BY_LIBRARY:
            return [self.architecture, sorted(self.settings.items()), version("sae-lens")]
        sizes = [self.architecture, self.d_in, self.d_sae, self.d_out, self.k]
        return [*sizes, self.apply_b_dec_to_input, self.normalization, self.rescale]

    def info(self, hook_name: str | None, input_hook: str | None, sha256: str, facts: Mapping[str, Any]) -> SAEInfo:
        """Return the `SAEInfo`; `hook_name` and `input_hook` replace the config's unless they are None."""
        return SAEInfo(
            hook_name=hook_name or self.hook_name,
            input_hook=input_hook or self.input_hook if self.transcoder else None,
            d_in=self.d_in,
            d_sae=self.d_sae,
            d_out=self.d_out,
            sha256=sha256,
            architecture=self.architecture,
            facts=facts,
        )

    @property
    def transcoder(self) -> bool:
        return self.architecture.endswith("transcoder")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The expected tensors of a dense SAE and their shapes."""
        common = {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_out), "b_dec": (self.d_out,)}
        skip = (self.d_out, self.d_in)
        return {**common, **{n: skip if n == "W_skip" else (self.d_sae,) for n in _TENSORS[self.architecture]}}

    def with_factor(self, factor: float | None, source: str) -> Config:
        """Return the config with a fact about the factor of training inputs, if its normalisation has one."""
        if self.normalization != "expected_average_only_in":
            return self
        scale = f"{factor} (folded)" if factor is not None else f"not folded: there is no {source}"
        return replace(self, facts={**self.facts, "activation_scale": scale})


def parsed_config(where: Path, raw: Mapping[str, Any]) -> Config:
    """Parse a config: version 6 keeps settings without numerical effect in `metadata`; earlier versions are flat.

    `where` is the path for messages. `SaevalError` names the first setting that is wrong or not supported.
    """
    raw = {_RENAMED.get(key, key): value for key, value in raw.items()}
    config = Fields(where, raw)
    metadata = Fields(where, {**raw, **config.inside("metadata").values})
    architecture = _architecture(config, flat="metadata" not in raw)
    transcoder = architecture.endswith("transcoder")
    d_in, d_sae = config.whole("d_in"), config.whole("d_sae")
    k = _k(config, d_sae) if architecture in _OF_K else None
    _check_settings(config, architecture, d_sae)
    for key in ("hook_head_index", "hook_head_index_out"):
        if key in metadata:
            raise SaevalError(f"{where}: an SAE of one head ('{key}') is not supported")
    normalization = _normalization(config, architecture)
    apply_b_dec_to_input = config.flag("apply_b_dec_to_input", default=not transcoder)
    if transcoder and (apply_b_dec_to_input or normalization == "covariance_whitening"):
        key = "normalize_activations: covariance_whitening" if not apply_b_dec_to_input else "apply_b_dec_to_input"
        raise SaevalError(f"{where}: '{key}' is not for transcoders, whose outputs come from another hook")
    hook_name, input_hook = _hooks(metadata, transcoder)
    typed = {"model_name": metadata.text, "context_size": metadata.whole, "prepend_bos": metadata.flag}
    texts = {
        "hf_hook_name": metadata.text,
        "model_from_pretrained_kwargs": lambda key: dict(metadata.inside(key).values),
    }
    facts = metadata.facts({**typed, **texts, **dict.fromkeys(_AS_FOUND)})
    return Config(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=config.whole("d_out") if transcoder else d_in,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalization=normalization,
        k=k,
        rescale=architecture in _OF_K and config.flag("rescale_acts_by_decoder_norm", default=False),
        hook_name=hook_name,
        input_hook=input_hook,
        facts=facts if k is None else {**facts, "k": k},
        settings={key: value for key, value in raw.items() if key not in _NO_NUMBERS},
    )


def assembled(where: Path, config: Config, tensors: Tensors, hook_name: str | None, *, unit_decoder: bool) -> DenseSAE:
    """Return the SAE of these tensors; `SaevalError` if its norms cannot be folded."""
    if config.rescale:
        tensors = rescaled(tensors)
    by_input = config.normalization in ("layer_norm", "constant_norm_rescale")
    sae = DenseSAE.of(
        hook_name or "",
        tensors,
        _OF_K[config.architecture](config.k) if config.k else None,
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        normalization=config.normalization if by_input else "none",
        transcoder=config.transcoder,
    )
    try:
        return sae if config.rescale or not unit_decoder else sae.with_unit_decoder()  # rescaled rows have unit norm
    except ValueError as error:
        raise SaevalError(f"{where}: 'fold_W_dec_norm' is not for this SAE: {error}") from None


def _hooks(metadata: Fields, transcoder: bool) -> tuple[str | None, str | None]:
    """Return the hook that the SAE replaces, and the hook that it reads if that is another one."""
    hook_name = metadata.text("hook_name")
    if not transcoder:
        return hook_name, None
    # Gemma Scope 2 reads the MLP's input, which is not what its TransformerLens name, hook_mlp_in, means.
    module = re.fullmatch(r"(.+)\.(in|out)put", metadata.text("hf_hook_name") or "")
    if module:
        hook_name = module[1] + (":in" if module[2] == "in" else "")
    return metadata.text("hook_name_out"), metadata.text("hook_name_in") or hook_name


def _architecture(config: Fields, flat: bool) -> str:
    """Return the architecture; as in SAELens, a flat config may declare TopK by its activation function."""
    name = config.values.get("architecture", "standard" if flat else None)
    activation = config.values.get("activation_fn_str", config.values.get("activation_fn", "relu"))
    if activation == "topk" and name in ("standard", "topk"):
        return "topk"
    if isinstance(name, str) and name in _REFUSED:
        raise SaevalError(f"{config.path}: '{name}' {_REFUSED[name]}")
    architecture = config.choice("architecture", sorted((*_TENSORS, *BY_LIBRARY)), "standard" if flat else None)
    if activation != "relu" and architecture in _TENSORS and architecture not in _OF_K:
        raise SaevalError(
            f"{config.path}: activation {shown(activation)} of a {architecture} SAE is not supported; supported: 'relu'"
        )
    return architecture


def _k(config: Fields, d_sae: int) -> int:
    """Return the number of active features per token; flat configs may have it in `activation_fn_kwargs`."""
    kwargs = config.inside("activation_fn_kwargs")
    return (kwargs if "k" in kwargs else config).k(d_sae)


def _check_settings(config: Fields, architecture: str, d_sae: int) -> None:
    """Raise `SaevalError` for settings of SAELens' own classes that would fail only during a run."""
    readers: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
        "matching_pursuit": {
            "residual_threshold": config.amount,
            "max_iterations": config.whole,
            "stop_on_duplicate_support": config.flag,
        },
        "temporal": {
            **dict.fromkeys(("n_heads", "n_attn_layers", "bottleneck_factor"), config.whole),
            "sae_diff_type": lambda key: config.choice(key, ("relu", "topk")),
            "kval_topk": lambda key: config.k(d_sae, key),
            "tied_weights": config.flag,
            "activation_normalization_factor": config.positive,
        },
    }
    for key, read in readers.get(architecture, {}).items():
        config.maybe(read, key)


def _normalization(config: Fields, architecture: str) -> str:
    value = config.values.get("normalize_activations")
    if isinstance(value, bool):  # early configs
        return "expected_average_only_in" if value else "none"
    if value is None or (architecture == "temporal" and value == "constant_scalar_rescale"):
        return value or "none"
    return config.choice("normalize_activations", _NORMALIZATIONS)
