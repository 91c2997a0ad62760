"""SAEs of the library dictionary_learning: `ae.pt` and `config.json` of a trainer's folder, or one file alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from saeval.plugin import SAEInfo, SaevalError, digest_of, sha256_file
from saeval_formats.fields import Fields, shown
from saeval_formats.reference import Asked, LocalLoader, json_object, parsed
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header, state_dict, unpickled_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saeval_formats.dense import DenseSAE

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"W_enc": ("encoder.weight", "nd"), "W_dec": ("decoder.weight", "dn")}
_BIASED = {**_LINEAR, "b_enc": ("encoder.bias", "n")}
_PLAIN = {"W_enc": ("W_enc", "dn"), "b_enc": ("b_enc", "n"), "W_dec": ("W_dec", "nd"), "b_dec": ("b_dec", "d")}
_SCALAR = {"threshold": ("threshold", "")}
_GATES = {"b_gate": ("gate_bias", "n"), "r_mag": ("r_mag", "n"), "b_mag": ("mag_bias", "n")}


@dataclass(frozen=True)
class DictClass:
    """A class of the library: what its state dict holds and what its `encode` does with it."""

    architecture: str
    layout: TensorLayout
    counts: tuple[str, ...] = ()
    """Whole numbers beside the weights."""
    unused: tuple[str, ...] = ()
    """Tensors that `encode` reads only when it is told to."""

    @property
    def keys(self) -> set[str]:
        return {key for key, _ in self.layout.stored.values()} | {*self.counts, *self.unused}


CLASSES = {
    # Its from_pretrained, alone among these, folds the norms of the decoder into the encoder.
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


class Reference(Asked):
    """What a suite says of one SAE."""

    path: Path
    """The folder of a trainer, or a file."""
    dict_class: str | None = Field(None, alias="class")
    """Instead of the config's: the library's trainers write their usual class there, whichever they were given."""


@dataclass(frozen=True)
class Checkpoint:
    """One file and what stands beside it, checked."""

    header: Header
    class_name: str
    d_in: int
    d_sae: int
    k: int | None
    hook_name: str | None
    facts: Mapping[str, Any]

    @property
    def kind(self) -> DictClass:
        return CLASSES[self.class_name]


class DictionaryLearning(LocalLoader):
    """The seven classes of dictionary_learning, each as its library loads and runs it.

    `AutoEncoderTopK` takes the k largest of each token; the threshold that newer files also hold is for
    `encode(use_threshold=True)` alone. The batch-top-k classes run with their threshold, as `encode` does.
    """

    name, entry = "dictionary_learning", Reference
    companions = (f"../{CONFIG}", f"../../{CONFIG}")

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        found = _checkpoint(parsed(Reference, reference, self.name, needs=f"the folder with {WEIGHTS} and {CONFIG}"))
        return SAEInfo(
            hook_name=found.hook_name,
            d_in=found.d_in,
            d_sae=found.d_sae,
            d_out=found.d_in,
            sha256=digest_of([sha256_file(found.header.path), found.class_name, found.k]),
            architecture=found.kind.architecture,
            facts=found.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        found = _checkpoint(parsed(Reference, reference, self.name, needs=f"the folder with {WEIGHTS} and {CONFIG}"))
        k = found.k if found.kind.architecture == "topk" else None
        return found.kind.layout.dense(found.header, found.hook_name or "", device, dtype, k=k)


def _checkpoint(asked: Reference) -> Checkpoint:
    path = asked.path.expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    state = unpickled_dict(file)
    if isinstance(state.get("ae"), dict):
        raise SaevalError(
            f"{file}: a checkpoint of an interrupted run (step {state.get('step')}), whose biases are not yet scaled "
            "back to the activations; finish the run"
        )
    weights = state_dict(file, state)
    said = _config(file)
    config, trainer, buffer = said.path, said.inside("trainer"), said.inside("buffer")
    class_name = _class_name(asked, trainer, file, weights)
    kind = CLASSES[class_name]
    header = Header.of_tensors(file, {key: t for key, t in weights.items() if key not in kind.counts + kind.unused})
    given = {key: trainer.whole(key) for key in ("activation_dim", "dict_size") if key in trainer.values}
    d_in, d_sae = kind.layout.check(
        header,
        given.get("activation_dim"),
        given.get("dict_size"),
        kind="'class'" if asked.dict_class else f"'dict_class' of {config}",
        sizes=f"{' and '.join(map(repr, given))} of {config}" if given else "the lengths of the biases",
    )
    k = _k(file, weights, trainer, d_sae) if "k" in kind.counts else None
    if kind.architecture == "topk" and k is None:
        raise SaevalError(
            f"{file}: no 'k' in it or in {CONFIG}; {class_name} needs how many features of a token are active"
        )
    _check_counts(file, weights, kind, d_sae)
    facts = {"dict_class": class_name, **_facts(trainer)}
    declared = {"model_name": trainer.text("lm_name"), "context_size": buffer.maybe(buffer.whole, "ctx_len")}
    declared["k" if kind.architecture == "topk" else "l0"] = k  # of a batch: a token's is only k in the mean
    facts |= {key: value for key, value in declared.items() if value is not None}
    return Checkpoint(header, class_name, d_in, d_sae, k, asked.hook_name or _hook_name(trainer, buffer), facts)


def _facts(trainer: Fields) -> dict[str, Any]:
    """What the trainer's config says of the training."""
    texts = dict.fromkeys(("submodule_name", "trainer_class"), trainer.text)
    amounts = dict.fromkeys(("l1_penalty", "sparsity_penalty", "target_l0"), trainer.amount)
    counts = dict.fromkeys(("steps", "seed"), trainer.count)
    layer = trainer.text if isinstance(trainer.values.get("layer"), str) else trainer.count
    return trainer.facts({"layer": layer, **texts, **counts, **amounts})


def _config(file: Path) -> Fields:
    """The config beside a file, or of the trainer whose `checkpoints` it is among; empty where there is none."""
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    path = folder / CONFIG
    return Fields(path, json_object(path) if path.is_file() else {})


def _class_name(asked: Reference, trainer: Fields, file: Path, weights: Mapping[str, Tensor]) -> str:
    found = asked.dict_class or trainer.values.get("dict_class")
    known = ", ".join(CLASSES)
    if found is None:
        fitting = [name for name, kind in CLASSES.items() if kind.keys == set(weights)]
        hint = f"; its tensors are those of {' or '.join(fitting)}" if fitting else ""
        raise SaevalError(f"{file}: no 'trainer.dict_class' in {trainer.path}, so add 'class:', one of {known}{hint}")
    if asked.dict_class and found not in CLASSES:
        raise SaevalError(f"dictionary_learning: 'class': '{found}' is not supported; supported: {known}")
    return asked.dict_class or trainer.choice("dict_class", CLASSES)


def _k(file: Path, weights: Mapping[str, Tensor], trainer: Fields, d_sae: int) -> int | None:
    """How many features are active, which older files leave to the config."""
    said = trainer.k(d_sae) if "k" in trainer else None
    if "k" not in weights:
        return said
    stored = weights["k"]
    if stored.is_floating_point() or stored.numel() != 1:
        raise SaevalError(f"{file}: expected one whole number in 'k', found {stored.dtype} {list(stored.shape)}")
    k = Fields(file, {"k": stored.item()}).k(d_sae)
    if said not in (None, k):
        raise SaevalError(f"{file}: 'k' is {k}, but {said} in {trainer.path}; they belong to different SAEs")
    return k


def _check_counts(file: Path, weights: Mapping[str, Tensor], kind: DictClass, d_sae: int) -> None:
    """What the library asserts of numbers beside the weights."""
    if "group_sizes" in kind.counts:
        if "group_sizes" not in weights:
            raise SaevalError(f"{file}: 'group_sizes' is missing; check 'class' or 'dict_class'")
        stored = weights["group_sizes"]
        if stored.is_floating_point() or stored.ndim != 1:
            raise SaevalError(
                f"{file}: expected whole numbers in 'group_sizes', found {stored.dtype} {list(stored.shape)}"
            )
        if (stored < 1).any():
            raise SaevalError(f"{file}: expected positive numbers in 'group_sizes', found {shown(stored.tolist())}")
        groups = int(stored.sum())
        if groups != d_sae:
            raise SaevalError(f"{file}: 'group_sizes' add up to {groups}, expected {d_sae}, the features it has")
    if kind.layout.stored.get("threshold") == _SCALAR["threshold"] and float(weights["threshold"]) < 0:
        raise SaevalError(
            f"{file}: 'threshold' is {float(weights['threshold']):g}: training ended before it was ever set, and "
            "without it every positive feature is active; train beyond 'threshold_start_step'"
        )


def _hook_name(trainer: Fields, buffer: Fields) -> str | None:
    """The hook, where the names that the library's demo and its users give tell it without doubt."""
    match = re.fullmatch(r"([a-z]+_[a-z]+)_layer_?(\d+)", trainer.text("submodule_name") or "")
    if match is None or match[1] not in _HOOKS or buffer.values.get("io", "out") != "out":
        return None
    if trainer.values.get("layer") not in (None, int(match[2]), match[2]):
        return None
    # There, hooks of this name come after one more norm than the modules do.
    if not match[1].startswith("resid") and re.search(r"gemma-?[23]", trainer.text("lm_name") or "", re.IGNORECASE):
        return None
    return f"blocks.{int(match[2])}.{_HOOKS[match[1]]}"
