"""Any file of tensors, with a suite that names the tensors of the SAE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from saeval.plugin import ParameterError, SaevalError, at_key, expand_user, suggestion, torch
from saeval_formats import folding
from saeval_formats.dense import AbsTopK, GroupMax, Normalization, TopK
from saeval_formats.fields import Fields
from saeval_formats.reference import LocalLoader, TranscoderReference, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header, Tensors, unpickled_dict

_SHAPES = {
    "W_enc": "dn", "b_enc": "n", "W_dec": "no", "b_dec": "o", "W_skip": "od",
    **dict.fromkeys(("threshold", "log_threshold", "b_gate", "r_mag", "b_mag"), "n"),
}  # fmt: skip
"""The tensors that an entry may name, in the shapes of `DenseSAE`."""
_WORDS = {"d": "d_in", "n": "d_sae", "o": "d_out", "1": "1"}
_OF_K = {"topk": TopK, "abstopk": AbsTopK, "groupmax": GroupMax}
_NEEDS = {"relu": (), "gated": ("b_gate", "r_mag", "b_mag"), **dict.fromkeys(_OF_K, ())}
"""Activation -> the tensors that it needs besides the matrices and biases."""
_BY_THRESHOLD = ("jumprelu", "batchtopk")
_INDEX = re.compile(r"(.+)\[([0-9]{1,9})\]", re.DOTALL)
_MOST_LISTED = 12


class Reference(TranscoderReference):
    """A suite's reference to one SAE."""

    path: Path
    """A `.safetensors` or `.npz` file, or one that `torch.save` wrote."""
    tensors: dict[str, str]
    """W_enc, b_enc, W_dec, b_dec, W_skip, threshold, log_threshold, b_gate, r_mag, b_mag -> a name in the file.

    The name may be followed by `[i]`, an index of the first dimension, and by `.T`.
    """
    activation: str | dict[str, Any]
    """relu, gated, jumprelu, batchtopk, {topk: k}, {abstopk: k}, {groupmax: k}, or {jumprelu: threshold}."""
    apply_b_dec_to_input: bool = False
    """Subtract b_dec from the input."""
    normalization: Normalization | dict[str, Any] = "none"
    """none, layer_norm, constant_norm_rescale, or {scale: s}: the SAE reads x·s and returns x̂·s."""
    unit_decoder: bool = Field(default=False, alias="fold_W_dec_norm")
    """Scale decoder rows to norm 1 and multiply their old norms into the features."""


class MappingFile(LocalLoader):
    """An SAE in any safetensors, npz or `.pt` file; the entry names its tensors and its activation function.

    `{path: my.pt, tensors: {W_enc: enc.weight.T, b_enc: enc.bias, W_dec: dec.weight.T, b_dec: dec.bias},
    activation: {topk: 32}}`. Features are activation(x̃ W_enc + b_enc), with W_enc [d_in, d_sae]; x̂ is
    acts W_dec + b_dec, with W_dec [d_sae, d_out], plus x W_skipᵀ. A bias without a name is zeros. In a `.pt` file of
    nested dicts, names are joined by dots: `model.enc.weight`. With `input_hook`, it is a transcoder. BatchTopK is
    computed by its threshold, as JumpReLU, because k is a mean over the tokens of a batch.
    """

    name, entry = "mapping", Reference

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        try:
            options = parsed(Reference, reference, "mapping", needs="a .safetensors, .npz or .pt file")
        except ParameterError as error:
            missing = {fault.location for fault in error.faults if fault.kind == "missing"}
            if len(missing) < len(error.faults) or ("tensors",) not in missing or ("path",) in missing:
                raise
            tensors = _listed(_header(expand_user(reference["path"])).shapes)
            names = f"the names of W_enc, W_dec, ... in {reference['path']}, which has {tensors}"
            raise SaevalError(f"mapping: needs 'tensors', {names}") from None
        kind, threshold, k = _activation(options)
        transcoder = options.input_hook is not None
        if options.apply_b_dec_to_input:
            with at_key("apply_b_dec_to_input"):
                _check_pre_bias(options, transcoder)
        scale = None
        if isinstance(options.normalization, dict):
            with at_key("normalization"):
                scale = _single("normalization", options.normalization, ("scale",)).positive("scale")
                if transcoder:
                    fault = "a transcoder's inputs does not determine that of its outputs"
                    raise SaevalError(
                        f"mapping: 'normalization.scale': the scale of {fault}; fold both into the weights"
                    )
        if options.unit_decoder and k:
            with at_key("fold_W_dec_norm"):
                raise SaevalError(f"mapping: 'fold_W_dec_norm' is not for {kind}: other features would be active")
        whole = _header(options.path.expanduser())
        named = {}
        for slot, name in options.tensors.items():
            with at_key("tensors", slot):
                named[slot] = _named(whole, slot, name)
        header = _selection(whole, named.values())
        stored = {slot: (name.label, _letters(slot, name, header)) for slot, name in named.items()}
        lengths = _lengths(header, named, stored, transcoder)
        layout = TensorLayout(stored, pre_bias=options.apply_b_dec_to_input)
        sizes = layout.check(header, *map(lengths.get, "dno"), kind="'tensors'", sizes="'tensors'")
        if k:
            with at_key("activation", kind):
                _check_k(kind, k, sizes[1])

        def folded(tensors: Tensors) -> Tensors:
            if threshold:
                tensors = {**tensors, "threshold": tensors["W_enc"].new_tensor(threshold)}
            if kind == "batchtopk" and bool((tensors["threshold"] < 0).any()):
                fault = "the threshold is below 0: it was never set, and without it every positive feature is active"
                raise SaevalError(f"{header.path}: {fault}")
            return tensors if scale is None else folding.scaled(tensors, scale, scale)

        settings = (kind, threshold, k, options.apply_b_dec_to_input, options.normalization, options.unit_decoder)
        return Checkpoint(
            header,
            layout,
            sizes,
            f"{kind}{'_skip' * ('W_skip' in named)}{'_transcoder' * transcoder}",
            options.hook_name,
            options.input_hook,
            numeric=(sorted(options.tensors.items()), *settings, transcoder),
            facts={"k": k} if k else {},
            activation=_OF_K[kind](k) if k else None,
            normalization=options.normalization if isinstance(options.normalization, str) else "none",
            folded=folded,
            d_out=lengths.get("o"),
            unit_decoder=options.unit_decoder,
        )


@dataclass(frozen=True)
class Name:
    """A tensor that an entry names: `enc.weight[3].T`."""

    text: str
    key: str
    """Its name in the file."""
    indices: tuple[int, ...]
    transposed: bool

    @property
    def label(self) -> str:
        """The name without `.T`."""
        return self.key + "".join(f"[{index}]" for index in self.indices)


def _check_pre_bias(options: Reference, transcoder: bool) -> None:
    """Raise `SaevalError` for a b_dec that cannot be subtracted from the input."""
    if transcoder:
        raise SaevalError("mapping: 'apply_b_dec_to_input' is not for transcoders, whose b_dec is of their output")
    if "b_dec" not in options.tensors:
        remedy = "name it, or leave 'apply_b_dec_to_input' out"
        raise SaevalError(f"mapping: 'apply_b_dec_to_input' subtracts b_dec, which 'tensors' does not name; {remedy}")


def _check_k(kind: str, k: int, d_sae: int) -> None:
    """Raise `SaevalError` for a k that does not fit the number of features."""
    Fields(Path("mapping"), {kind: k}, "activation").k(d_sae, kind)
    if kind == "groupmax" and d_sae % k:
        raise SaevalError(f"mapping: {d_sae} features cannot be divided into 'groupmax: {k}' groups of equal size")


def _activation(options: Reference) -> tuple[str, float | None, int | None]:
    """Return the activation's name, its threshold if that is one number, and its k; `SaevalError` if it is unknown."""
    value, tensors = options.activation, options.tensors
    for slot in tensors:
        if slot not in _SHAPES:
            with at_key("tensors", slot, kind="unknown"):
                raise SaevalError(f"mapping: 'tensors' has no place for '{slot}'{suggestion(slot, _SHAPES)}")
    kinds = (*_NEEDS, *_BY_THRESHOLD)
    settings = value if isinstance(value, dict) else {value: None}
    with at_key("activation"):
        kind, threshold, k = _chosen(value, _single("activation", settings, kinds))
    needed = _NEEDS.get(kind, ())
    if kind in _BY_THRESHOLD and threshold is None:
        needed = ("log_threshold",) if "log_threshold" in tensors else ("threshold",)
    with at_key("tensors"):
        for slot in (slot for slot in ("W_enc", "W_dec", *needed) if slot not in tensors):
            number = f", or write {{{kind}: THRESHOLD}}" if slot == "threshold" else ""
            raise SaevalError(f"mapping: 'tensors' lacks '{slot}', which 'activation: {kind}' needs{number}")
    used = {*needed, "W_enc", "W_dec", "b_dec", "W_skip", *(("b_enc",) if kind != "gated" else ())}
    for slot in (slot for slot in tensors if slot not in used):
        with at_key("tensors", slot, kind="unknown"):
            raise SaevalError(f"mapping: 'tensors' names '{slot}', which 'activation: {kind}' does not use")
    return kind, threshold, k


def _chosen(value: str | Mapping[str, Any], fields: Fields) -> tuple[str, float | None, int | None]:
    """Return the activation's name, its threshold if that is one number, and its k."""
    (kind,) = fields.values
    if kind in _OF_K:
        return kind, None, fields.whole(kind)
    if isinstance(value, str):
        return kind, None, None
    if kind not in _BY_THRESHOLD:
        raise SaevalError(f"mapping: 'activation: {kind}' takes no number")
    threshold = fields.positive(kind)
    if kind == "batchtopk" and isinstance(value[kind], int):
        of_k = f"'batchtopk' takes the threshold of the features, found {value[kind]}"
        raise SaevalError(f"mapping: {of_k}; k is a mean over a batch (if it is the threshold, write {threshold})")
    return kind, threshold, None


def _single(setting: str, value: Mapping[str, Any], known: tuple[str, ...]) -> Fields:
    """Return the fields of a mapping that must have one of the `known` keys and no other."""
    for key in value:
        if key not in known:
            with at_key(setting, key, kind="unknown"):
                raise SaevalError(f"mapping: '{setting}' has no '{key}'{suggestion(str(key), known)}")
    if len(value) != 1:
        raise SaevalError(f"mapping: '{setting}' needs one of {', '.join(known)}, found {', '.join(value) or 'none'}")
    return Fields(Path("mapping"), value, setting)


def _header(path: Path) -> Header:
    """Return the header of a file of tensors, in the format that its suffix names; without one, that of torch.save."""
    if path.is_dir():
        raise SaevalError(f"{path}: is a folder, expected a .safetensors, .npz or .pt file; check 'path'")
    if path.suffix in (".safetensors", ".npz"):
        read = Header.of if path.suffix == ".safetensors" else Header.of_npz
        return read(path, wrapped=False)
    return Header.of_tensors(path, _flat(path, unpickled_dict(path)))


def _flat(path: Path, content: Mapping[Any, Any], within: str = "") -> Tensors:
    """Return the tensors in nested dicts, by their keys joined with dots."""
    tensors: Tensors = {}
    for key, value in content.items():
        inner: Tensors = {}
        if isinstance(value, Mapping):
            inner = _flat(path, value, f"{within}{key}.")
        elif isinstance(value, torch.Tensor) and not value.is_nested:  # nested tensors have no shape
            inner = {f"{within}{key}": value}
        if twice := next((name for name in inner if name in tensors), None):
            raise SaevalError(
                f"{path}: two tensors have the name '{twice}', by their keys joined with dots; rename one"
            )
        tensors |= inner
    return tensors


def _named(header: Header, slot: str, text: str) -> Name:
    """Return the tensor that a name means; `SaevalError` if the file does not have it.

    Operators are taken off its end only until the file has the rest.
    """
    key, transposed = text, False
    indices: tuple[int, ...] = ()
    if key not in header.shapes and key.endswith(".T"):
        key, transposed = key.removesuffix(".T"), True
    while key not in header.shapes and (match := _INDEX.fullmatch(key)):
        key, indices = match[1], (int(match[2]), *indices)
    if key not in header.shapes:
        near, listed = suggestion(key, header.shapes, ""), _listed(header.shapes)
        raise SaevalError(f"{header.path}: no tensor '{key}' for '{slot}'; the file has {listed}{near}")
    shape = header.shapes[key]
    if len(indices) > len(shape) or any(index >= length for index, length in zip(indices, shape, strict=False)):
        raise SaevalError(f"{header.path}: '{key}' is {list(shape)}, so there is no '{text}' for '{slot}'")
    return Name(text, key, indices, transposed)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = [f"{name} {list(shape)}" for name, shape in shapes.items()]
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return (", ".join(listed[:_MOST_LISTED]) or "no tensors") + more


def _selection(header: Header, names: Any) -> Header:
    """Return the header of the named tensors alone, by their labels."""
    by_label = {name.label: name for name in names}
    shapes = {label: header.shapes[name.key][len(name.indices) :] for label, name in by_label.items()}
    dtypes = {label: header.dtypes[name.key] for label, name in by_label.items()}

    def fetch(labels: Any, device: str) -> Tensors:
        read = header.fetch({by_label[label].key for label in labels}, device)
        parts = {label: (read[by_label[label].key], by_label[label].indices) for label in labels}
        return {label: tensor[at].clone() if at else tensor for label, (tensor, at) in parts.items()}

    return Header(header.path, shapes, dtypes, fetch)


def _letters(slot: str, name: Name, header: Header) -> str:
    """Return the shape of a stored tensor in letters, as in a `TensorLayout`."""
    shape = header.shapes[name.label]
    if "threshold" in slot and shape in ((), (1,)):
        return "1" * len(shape)
    return _SHAPES[slot][::-1] if name.transposed else _SHAPES[slot]


def _lengths(
    header: Header, named: Mapping[str, Name], stored: Mapping[str, tuple[str, str]], transcoder: bool
) -> dict[str, int]:
    """Return d_in, d_sae and, of a transcoder, d_out by their letters; `SaevalError` for a tensor of another shape.

    The vectors come first, because only a matrix can be stored in two ways.
    """
    lengths: dict[str, int] = {}
    sources: dict[str, str] = {}

    def fits(letters: str, shape: tuple[int, ...]) -> bool:
        pairs = zip(letters, shape, strict=False)
        return len(letters) == len(shape) and all(lengths.get(letter, length) == length for letter, length in pairs)

    for slot, (label, letters) in sorted(stored.items(), key=lambda item: len(item[1][1])):
        shape, name = header.shapes[label], named[slot]
        letters = letters if transcoder else letters.replace("o", "d")
        with at_key("tensors", slot):
            if 0 in shape:
                size = "features" if letters[shape.index(0)] == "n" else "inputs or outputs"
                raise SaevalError(
                    f"{header.path}: '{label}' is {list(shape)}, so the SAE has no {size}; check '{slot}'"
                )
            if not fits(letters, shape):
                expected = ", ".join(_WORDS[letter] for letter in letters)
                known = [f"{_WORDS[x]} is {lengths[x]} in {sources[x]}" for x in letters if x in lengths]
                why = f" ({', '.join(known)})" if known else ""
                other = name.text.removesuffix(".T") if name.transposed else f"{name.text}.T"
                remedy = f"; write '{slot}: {other}'" if fits(letters[::-1], shape) and len(shape) == 2 else ""
                raise SaevalError(
                    f"{header.path}: '{label}' is {list(shape)}, but {slot}: {name.text} expects [{expected}]"
                    f"{why}{remedy}"
                )
        for letter, length in zip(letters, shape, strict=True):
            lengths.setdefault(letter, length)
            sources.setdefault(letter, f"{slot}: {name.text}")
    return lengths
