"""SAEs of dictionary_learning: a trainer's folder with `ae.pt` and `config.json`, or one file alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from saeval.plugin import SaevalError, at_key
from saeval_formats.dense import TopK
from saeval_formats.fields import Fields, shown
from saeval_formats.reference import LocalLoader, LocalReference, json_object, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header, Tensors, state_dict, unpickled_dict

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"W_enc": ("encoder.weight", "nd"), "W_dec": ("decoder.weight", "dn")}
_BIASED = {**_LINEAR, "b_enc": ("encoder.bias", "n")}
_PLAIN = {"W_enc": ("W_enc", "dn"), "b_enc": ("b_enc", "n"), "W_dec": ("W_dec", "nd"), "b_dec": ("b_dec", "d")}
_SCALAR = {"threshold": ("threshold", "")}
_GATES = {"b_gate": ("gate_bias", "n"), "r_mag": ("r_mag", "n"), "b_mag": ("mag_bias", "n")}


@dataclass(frozen=True)
class DictClass:
    """A class of the library: the tensors in its state dict and the variant of its `encode`."""

    architecture: str
    layout: TensorLayout
    counts: tuple[str, ...] = ()
    """Keys of whole numbers beside the weights."""
    unused: tuple[str, ...] = ()
    """Keys of tensors that `encode` ignores by default."""

    @property
    def keys(self) -> set[str]:
        return {key for key, _ in self.layout.stored.values()} | {*self.counts, *self.unused}


CLASSES = {
    # The only class whose from_pretrained folds the norms of the decoder into the encoder.
    "AutoEncoder": DictClass(
        "standard", TensorLayout({**_BIASED, "b_dec": ("bias", "d")}, pre_bias=True, rescale=True)
    ),
    "AutoEncoderNew": DictClass("standard", TensorLayout({**_BIASED, "b_dec": ("decoder.bias", "d")})),
    "GatedAutoEncoder": DictClass(
        "gated", TensorLayout({**_LINEAR, **_GATES, "b_dec": ("decoder_bias", "d")}, pre_bias=True)
    ),
    "JumpReluAutoEncoder": DictClass("jumprelu", TensorLayout({**_PLAIN, "threshold": ("threshold", "n")})),
    "AutoEncoderTopK": DictClass(
        "topk", TensorLayout({**_BIASED, "b_dec": ("b_dec", "d")}, pre_bias=True), counts=("k",), unused=("threshold",)
    ),
    "BatchTopKSAE": DictClass(
        "batchtopk", TensorLayout({**_BIASED, "b_dec": ("b_dec", "d"), **_SCALAR}, pre_bias=True), counts=("k",)
    ),
    "MatryoshkaBatchTopKSAE": DictClass(
        "matryoshka_batchtopk", TensorLayout({**_PLAIN, **_SCALAR}, pre_bias=True), counts=("k", "group_sizes")
    ),
}
_HOOKS = {
    "resid_post": "hook_resid_post",
    "resid_out": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


class Reference(LocalReference):
    """A suite's reference to one SAE."""

    path: Path
    """A trainer's folder, or a file."""
    dict_class: str | None = Field(None, alias="class")
    """Replaces the config's class: the library's trainers write their default class, even if another was trained."""


class DictionaryLearning(LocalLoader):
    """SAEs of dictionary_learning's seven classes, each computed as its library loads and runs it.

    `AutoEncoderTopK` keeps the k largest features of each token; it ignores the threshold in newer files, which the
    library uses only in `encode(use_threshold=True)`. The batch-top-k classes use their threshold, as `encode` does.
    """

    name, entry = "dictionary_learning", Reference
    companions = (f"../{CONFIG}", f"../../{CONFIG}")

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        needs = f"the folder with {WEIGHTS} and {CONFIG}"
        options = parsed(Reference, reference, "dictionary_learning", needs=needs)
        path = options.path.expanduser()
        file = path / WEIGHTS if path.is_dir() else path
        state = unpickled_dict(file)
        if isinstance(state.get("ae"), dict):
            raise SaevalError(
                f"{file}: a checkpoint of an unfinished run (step {state.get('step')}): its biases are not yet "
                "rescaled to the activations; finish the run"
            )
        weights = state_dict(file, state)
        fields = _config(file)
        config, trainer, buffer = fields.path, fields.inside("trainer"), fields.inside("buffer")
        class_name = _class_name(options, trainer, file, weights)
        kind = CLASSES[class_name]
        header = Header.of_tensors(file, {key: t for key, t in weights.items() if key not in kind.counts + kind.unused})
        lengths = {key: trainer.whole(key) for key in ("activation_dim", "dict_size") if key in trainer.values}
        named = "'class'" if options.dict_class else f"'dict_class' of {config}"
        by = f"{' and '.join(map(repr, lengths))} of {config}" if lengths else "the lengths of the biases"
        d_in, d_sae = lengths.get("activation_dim"), lengths.get("dict_size")
        sizes = kind.layout.check(header, d_in, d_sae, kind=named, sizes=by)
        k = _k(file, weights, trainer, sizes[1]) if "k" in kind.counts else None
        topk = kind.architecture == "topk"
        if topk and k is None:
            meaning = "the number of active features per token"
            raise SaevalError(f"{file}: no 'k' in the file or in {CONFIG}; {class_name} needs it, {meaning}")
        _check_counts(file, weights, kind, sizes[1])
        facts = {"dict_class": class_name, **_facts(trainer)}
        declared = {"model_name": trainer.text("lm_name"), "context_size": buffer.maybe(buffer.whole, "ctx_len")}
        declared["k" if topk else "l0"] = k  # batch-top-k: k is the mean over tokens
        facts |= {key: value for key, value in declared.items() if value is not None}
        hook_name, activation = options.hook_name or _hook_name(trainer, buffer), TopK(k) if topk and k else None
        return Checkpoint(
            header, kind.layout, sizes, kind.architecture, hook_name, None, (class_name, k), facts, activation
        )


def _facts(trainer: Fields) -> dict[str, Any]:
    """Return the facts about the training in the trainer's config."""
    texts = dict.fromkeys(("submodule_name", "trainer_class"), trainer.text)
    amounts = dict.fromkeys(("l1_penalty", "sparsity_penalty", "target_l0"), trainer.amount)
    counts = dict.fromkeys(("steps", "seed"), trainer.count)
    layer = trainer.text if isinstance(trainer.values.get("layer"), str) else trainer.count
    return trainer.facts({"layer": layer, **texts, **counts, **amounts})


def _config(file: Path) -> Fields:
    """Return the config beside a file, or above it for a file in `checkpoints`; empty if there is none."""
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    path = folder / CONFIG
    return Fields(path, json_object(path) if path.is_file() else {})


def _class_name(options: Reference, trainer: Fields, file: Path, weights: Tensors) -> str:
    name = options.dict_class or trainer.values.get("dict_class")
    supported = ", ".join(CLASSES)
    if name is None:
        fitting = [fit for fit, kind in CLASSES.items() if kind.keys == set(weights)]
        hint = f"; its tensors are those of {' or '.join(fitting)}" if fitting else ""
        raise SaevalError(f"{file}: no 'trainer.dict_class' in {trainer.path}; add 'class:', one of {supported}{hint}")
    if options.dict_class and name not in CLASSES:
        with at_key("class"):
            raise SaevalError(f"dictionary_learning: 'class': '{name}' is not supported; supported: {supported}")
    return options.dict_class or trainer.choice("dict_class", CLASSES)


def _k(file: Path, weights: Tensors, trainer: Fields, d_sae: int) -> int | None:
    """Return the number of active features per token; in older files it is only in the config."""
    configured = trainer.k(d_sae) if "k" in trainer else None
    if "k" not in weights:
        return configured
    stored = weights["k"]
    if stored.is_floating_point() or stored.numel() != 1:
        raise SaevalError(f"{file}: expected one whole number in 'k', found {stored.dtype} {list(stored.shape)}")
    k = Fields(file, {"k": stored.item()}).k(d_sae)
    if configured not in (None, k):
        raise SaevalError(f"{file}: 'k' is {k}, but {configured} in {trainer.path}; the files are of different SAEs")
    return k


def _check_counts(file: Path, weights: Tensors, kind: DictClass, d_sae: int) -> None:
    """Raise `SaevalError` for numbers beside the weights that the library's assertions refuse."""
    if "group_sizes" in kind.counts:
        if "group_sizes" not in weights:
            raise SaevalError(f"{file}: 'group_sizes' is missing; check 'class' or 'dict_class'")
        stored = weights["group_sizes"]
        if stored.is_floating_point() or stored.ndim != 1:
            actual = f"{stored.dtype} {list(stored.shape)}"
            raise SaevalError(f"{file}: expected whole numbers in 'group_sizes', found {actual}")
        if (stored < 1).any():
            raise SaevalError(f"{file}: expected positive numbers in 'group_sizes', found {shown(stored.tolist())}")
        groups = int(stored.sum())
        if groups != d_sae:
            raise SaevalError(f"{file}: 'group_sizes' add up to {groups}, expected {d_sae}, the number of features")
    if kind.layout.stored.get("threshold") == _SCALAR["threshold"] and float(weights["threshold"]) < 0:
        raise SaevalError(
            f"{file}: 'threshold' is {float(weights['threshold']):g}: training ended before it was set, and "
            "without it every positive feature is active; train beyond 'threshold_start_step'"
        )


def _hook_name(trainer: Fields, buffer: Fields) -> str | None:
    """Return the hook if the submodule's name determines it, as the names in the library's demo do; else None."""
    match = re.fullmatch(r"([a-z]+_[a-z]+)_layer_?(\d+)", trainer.text("submodule_name") or "")
    if match is None or match[1] not in _HOOKS or buffer.values.get("io", "out") != "out":
        return None
    if trainer.values.get("layer") not in (None, int(match[2]), match[2]):
        return None
    # In Gemma 2 and 3, TransformerLens hooks of these names come after one more norm than the modules' outputs.
    if not match[1].startswith("resid") and re.search(r"gemma-?[23]", trainer.text("lm_name") or "", re.IGNORECASE):
        return None
    return f"blocks.{int(match[2])}.{_HOOKS[match[1]]}"
