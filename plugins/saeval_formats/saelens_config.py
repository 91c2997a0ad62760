"""What SAELens says of an SAE besides its tensors, whichever version wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError
from saeval_formats.fields import Fields, shown

if TYPE_CHECKING:
    from torch import Tensor

    from saeval_formats.dense import DenseSAE

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
"""By architecture, what there is besides W_enc, W_dec and b_dec."""
_OF_K = ("topk", "abstopk")
"""Architectures that keep k features of each token."""
BY_LIBRARY = ("matching_pursuit", "temporal")
"""Architectures that only the library's own classes compute."""
_REFUSED = {
    "batchtopk": "is a training checkpoint; export it with save_inference_model(), as jumprelu",
    "matryoshka_batchtopk": "is a training checkpoint; export it with save_inference_model(), as jumprelu",
}
_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
_AS_FOUND = (
    "model_class_name", "exclude_special_tokens", "dataset_path", "normalize_activations", "apply_b_dec_to_input",
    "reshape_activations", "dtype", "sae_lens_version", "sae_lens_training_version", "training_architecture",
    "neuronpedia_id",
)  # fmt: skip
"""Facts that nothing is computed from."""
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}  # before version 4
_NO_NUMBERS = ("metadata", "device", "dtype")


@dataclass(frozen=True)
class Config:
    """A config's settings, checked."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    apply_b_dec_to_input: bool
    normalization: str
    """As the config says; `expected_average_only_in` does nothing without a factor, as in the library."""
    k: int | None
    rescale: bool
    hook_name: str | None
    """The hook it replaces."""
    input_hook: str | None
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    """All that the numbers may depend on besides the tensors, for classes of the library's."""

    @property
    def numeric(self) -> list[Any]:
        """All that the SAE's numbers depend on besides the tensors."""
        if self.architecture in BY_LIBRARY:
            return [self.architecture, sorted(self.settings.items()), version("sae-lens")]
        sizes = [self.architecture, self.d_in, self.d_sae, self.d_out, self.k]
        return [*sizes, self.apply_b_dec_to_input, self.normalization, self.rescale]

    def info(self, hook_name: str | None, input_hook: str | None, sha256: str, facts: Mapping[str, Any]) -> SAEInfo:
        """What a suite learns of the SAE, with the hooks that it asks for."""
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
        """The tensors of a dense SAE."""
        found = {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_out), "b_dec": (self.d_out,)}
        skip = (self.d_out, self.d_in)
        return {**found, **{n: skip if n == "W_skip" else (self.d_sae,) for n in _TENSORS[self.architecture]}}

    def with_factor(self, factor: float | None, source: str) -> Config:
        """With a word on the factor that inputs were multiplied by in training, where the config knows of one."""
        if self.normalization != "expected_average_only_in":
            return self
        said = f"{factor} (folded)" if factor is not None else f"not folded: there is no {source}"
        return replace(self, facts={**self.facts, "activation_scale": said})


def parsed_config(where: Path, raw: Mapping[str, Any]) -> Config:
    """Both layouts: version 6 keeps what does not change the numbers in `metadata`, earlier ones are flat.

    `where` is for messages. `SaevalError` names the first setting that is wrong or not supported.
    """
    raw = {_RENAMED.get(key, key): value for key, value in raw.items()}
    said = Fields(where, raw)
    about = Fields(where, {**raw, **said.inside("metadata").values})
    architecture = _architecture(said, flat="metadata" not in raw)
    transcoder = architecture.endswith("transcoder")
    d_in, d_sae = said.whole("d_in"), said.whole("d_sae")
    k = _k(said, d_sae) if architecture in _OF_K else None
    _check_settings(said, architecture, d_sae)
    for key in ("hook_head_index", "hook_head_index_out"):
        if key in about:
            raise SaevalError(f"{where}: an SAE of one head ('{key}') is not supported")
    normalization = _normalization(said, architecture)
    apply_b_dec_to_input = said.flag("apply_b_dec_to_input", default=not transcoder)
    if transcoder and (apply_b_dec_to_input or normalization == "covariance_whitening"):
        what = "normalize_activations: covariance_whitening" if not apply_b_dec_to_input else "apply_b_dec_to_input"
        raise SaevalError(f"{where}: '{what}' is not for a transcoder, whose outputs are of another hook")
    hook_name, input_hook = _hooks(about, transcoder)
    typed = {"model_name": about.text, "context_size": about.whole, "prepend_bos": about.flag}
    texts = {"hf_hook_name": about.text, "model_from_pretrained_kwargs": lambda key: dict(about.inside(key).values)}
    facts = about.facts({**typed, **texts, **dict.fromkeys(_AS_FOUND)})
    return Config(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=said.whole("d_out") if transcoder else d_in,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalization=normalization,
        k=k,
        rescale=architecture in _OF_K and said.flag("rescale_acts_by_decoder_norm", default=False),
        hook_name=hook_name,
        input_hook=input_hook,
        facts=facts if k is None else {**facts, "k": k},
        settings={key: value for key, value in raw.items() if key not in _NO_NUMBERS},
    )


def assembled(config: Config, tensors: Mapping[str, Tensor], hook_name: str, *, unit_decoder: bool) -> DenseSAE:
    """The SAE of these tensors; `ValueError` where they do not fit, or a norm cannot be folded."""
    from saeval_formats.dense import AbsTopK, DenseSAE, activation_of  # late: reading headers needs no torch

    by_input = config.normalization in ("layer_norm", "constant_norm_rescale")
    sae = DenseSAE(
        hook_name,
        tensors["W_enc"],
        tensors.get("b_enc"),
        tensors["W_dec"],
        tensors["b_dec"],
        AbsTopK(config.k) if config.k and config.architecture == "abstopk" else activation_of(tensors, config.k),
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        normalization=config.normalization if by_input else "none",  # type: ignore[arg-type]
        rescale_acts_by_decoder_norm=config.rescale,
        transcoder=config.transcoder,
        W_skip=tensors.get("W_skip"),
    )
    return sae if config.rescale or not unit_decoder else sae.with_unit_decoder()  # rescaled is of unit norm already


def _hooks(about: Fields, transcoder: bool) -> tuple[str | None, str | None]:
    """The hook it replaces, and the one it reads where that is another."""
    hook_name = about.text("hook_name")
    if not transcoder:
        return hook_name, None
    # Gemma Scope 2 reads what the MLP reads, which its TransformerLens name, hook_mlp_in, does not say.
    precise = re.fullmatch(r"(.+)\.(in|out)put", about.text("hf_hook_name") or "")
    if precise:
        hook_name = precise[1] + (":in" if precise[2] == "in" else "")
    return about.text("hook_name_out"), about.text("hook_name_in") or hook_name


def _architecture(said: Fields, flat: bool) -> str:
    """The architecture, by the activation where a flat config says TopK so, as the library reads it."""
    found = said.values.get("architecture", "standard" if flat else None)
    activation = said.values.get("activation_fn_str", said.values.get("activation_fn", "relu"))
    if activation == "topk" and found in ("standard", "topk"):
        return "topk"
    if isinstance(found, str) and found in _REFUSED:
        raise SaevalError(f"{said.path}: '{found}' {_REFUSED[found]}")
    architecture = said.choice("architecture", sorted((*_TENSORS, *BY_LIBRARY)), "standard" if flat else None)
    if activation != "relu" and architecture in _TENSORS and architecture not in _OF_K:
        raise SaevalError(
            f"{said.path}: activation {shown(activation)} of a {architecture} SAE is not supported; relu is"
        )
    return architecture


def _k(said: Fields, d_sae: int) -> int:
    """How many features of a token are active; flat configs may say it of their activation function."""
    kwargs = said.inside("activation_fn_kwargs")
    return (kwargs if "k" in kwargs else said).k(d_sae)


def _check_settings(said: Fields, architecture: str, d_sae: int) -> None:
    """`SaevalError` at a setting of the library's own classes that it would stumble over only in a run."""
    readers: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
        "matching_pursuit": {
            "residual_threshold": said.amount,
            "max_iterations": said.whole,
            "stop_on_duplicate_support": said.flag,
        },
        "temporal": {
            **dict.fromkeys(("n_heads", "n_attn_layers", "bottleneck_factor"), said.whole),
            "sae_diff_type": lambda key: said.choice(key, ("relu", "topk")),
            "kval_topk": lambda key: said.k(d_sae, key),
            "tied_weights": said.flag,
            "activation_normalization_factor": said.positive,
        },
    }
    for key, read in readers.get(architecture, {}).items():
        said.maybe(read, key)


def _normalization(said: Fields, architecture: str) -> str:
    found = said.values.get("normalize_activations")
    if isinstance(found, bool):  # the earliest configs
        return "expected_average_only_in" if found else "none"
    if found is None or (architecture == "temporal" and found == "constant_scalar_rescale"):
        return found or "none"
    return said.choice("normalize_activations", _NORMALIZATIONS)
