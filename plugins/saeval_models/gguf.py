"""GGUF files: their header, read without any weight, and their config as transformers understands it."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from saeval.plugin import SaevalError, cached, digest_of, libraries, sha256_file
from saeval_models.library_errors import library_errors, quietly

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from transformers import PreTrainedModel

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata values, as formats of `struct`; strings and arrays have types of their own."""
_ALIGNMENT = 32
_LONGEST = 100_000_000
"""Maximum length of a string in the header."""
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_SIZES = (
    "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.dimension_count", "vocab_size",
)  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


class Length(int):
    """The number of values of an array in the header."""


@dataclass(frozen=True)
class GGUFTensor:
    """The place of a tensor in a GGUF file."""

    shape: tuple[int, ...]
    """In PyTorch's order."""
    kind: int
    """The number of its quantization type."""
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """A model in one GGUF file."""

    path: Path

    @property
    def gguf_file(self) -> str:
        """The argument of transformers: an absolute path, because it prefers a file in the working folder to a name."""
        return str(self.path.absolute())

    def check(self) -> None:
        """Raise `SaevalError` if the libraries are missing, or if the file is damaged or only a part of a model."""
        if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
            raise SaevalError(f"{self.path} needs the gguf library; pip install 'saeval[gguf]'")
        shard = _SHARD.search(self.path.name)
        shards = int(shard[1]) if shard else self.metadata.get("split.count", 1)
        if shards != 1:
            raise SaevalError(
                f"{self.path} is one of {shards} parts of a model, and saeval reads a single file; join them with "
                "llama-gguf-split --merge"
            )
        if not isinstance(self.metadata.get("general.architecture"), str):
            raise SaevalError(f"{self.path} does not state its architecture ('general.architecture'); convert it again")
        size, required = self.path.stat().st_size, self._end
        if required > size:
            raise SaevalError(f"{self.path} has {size} bytes, but its header requires {required}; copy it again")

        for name, value in self.metadata.items():
            epsilon = name.endswith("_epsilon")
            if isinstance(value, float) and (not math.isfinite(value) or (epsilon and value < 0)):
                expected = "a number of 0 or more" if epsilon else "a finite number"
                raise SaevalError(f"{self.path}: expected {expected} in '{name}', found {value}; convert it again")

    def check_tokenizer(self) -> None:
        """Raise `SaevalError` for special tokens that the tokenizer in the file does not have."""
        size = self.metadata.get("tokenizer.ggml.tokens")
        for name, value in self.metadata.items():
            special = name.startswith("tokenizer.ggml.") and name.endswith("_token_id")
            if special and isinstance(size, int) and isinstance(value, int) and not 0 <= value < size:
                fault = f"'{name}' is {value}, but its tokenizer has the tokens 0 to {size - 1}"
                raise SaevalError(
                    f"{self.path}: {fault}; convert it again, or put the model's tokenizer.json beside it"
                )

    def _key(self, name: str) -> str:
        """Return the key of a number of the model, such as `llama.block_count`."""
        return f"{self.metadata['general.architecture']}.{name}"

    def _numbers(self, *keys: str) -> dict[str, int]:
        """Return those of the header's keys that have one whole number as their value."""
        values = {key: self.metadata.get(key) for key in keys}
        return {key: v for key, v in values.items() if isinstance(v, int) and not isinstance(v, Length)}

    @property
    def counts(self) -> Mapping[str, int]:
        """The numbers of blocks and of experts by their keys."""
        return self._numbers(*map(self._key, ("block_count", "expert_count")))

    @property
    def sha256(self) -> str:
        return sha256_file(self.path)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Numbers and strings of the header by name; of an array, only its `Length`."""
        return self._header[0]

    @property
    def tensors(self) -> Mapping[str, GGUFTensor]:
        return self._header[1]

    @cached_property
    def quantization(self) -> str:
        """The quantization: that of the file, and the number of tensors of each type."""
        from gguf import GGMLQuantizationType, LlamaFileType  # late: an optional dependency

        counts = Counter(GGMLQuantizationType(tensor.kind).name for tensor in self.tensors.values())
        kinds = ", ".join(f"{name}: {counts[name]}" for name in sorted(counts))
        try:
            name = LlamaFileType(self.metadata["general.file_type"]).name
        except (KeyError, ValueError):  # the key is optional, and newer files have newer types
            return kinds
        return f"{name.removeprefix('MOSTLY_').removeprefix('ALL_')} ({kinds})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config that transformers derives from the header; cached between runs, because this takes seconds."""
        return cached("models", digest_of(["gguf", self.sha256, libraries()]), self._config)

    def _config(self) -> dict[str, Any]:
        from transformers import AutoConfig, __version__  # late: slow to import

        _reader()
        failure = f"{self.path} cannot be read by transformers {__version__}"
        try:
            with library_errors(failure, "use the model's safetensors files instead"), quietly():
                config = AutoConfig.from_pretrained(self.path.parent, gguf_file=self.gguf_file, trust_remote_code=False)
                return json.loads(config.to_json_string())  # type: ignore[no-any-return]
        except SaevalError as error:
            # Only now, since an architecture may not use these numbers: Mamba has 0 heads.
            width, heads = (self._key(name) for name in ("embedding_length", "attention.head_count"))
            numbers = self._numbers(width, heads)
            if len(numbers) == 2 and (not numbers[heads] or numbers[width] % numbers[heads]):
                fault = f"'{width}' is {numbers[width]}, which '{heads}', {numbers[heads]}, does not divide"
                raise SaevalError(f"{self.path}: {fault}; convert it again") from error
            raise

    def options(self) -> dict[str, Any]:
        """Return arguments of `from_pretrained`, to which the config is to be added."""
        from transformers import GgufConfig  # late: slow to import

        _reader()
        # Weights are unpacked as they load, because transformers downloads code for packed ones.
        return {"gguf_file": self.gguf_file, "quantization_config": GgufConfig(dequantize=True)}

    def unused(self, module: PreTrainedModel, n_blocks: int) -> list[str]:
        """Return the tensors that the model does not use; `SaevalError` if its tensors are not those of the file.

        `module` has `n_blocks` blocks and no values. Compares names and sizes, by the header alone.
        """
        key = self._key("block_count")
        numbers = [int(match[1]) for match in map(_BLOCK.match, self.tensors) if match]
        stored = max(numbers, default=-1) + 1
        predicted = sum(self._numbers(self._key("nextn_predict_layers")).values())
        if stored - predicted > n_blocks or stored < n_blocks:
            fault = f"'{key}' is {self.metadata.get(key)}, but it holds the tensors of {stored} blocks"
            raise SaevalError(f"{self.path}: {fault}; copy or convert it again")
        names = self._names(module)
        self._compare(module, names)
        # It reports unused tensors when the model loads; those of experts are split.
        return [] if self._has_newer_reader else sorted(n for n in self.tensors if n not in names and "_exps." not in n)

    def _names(self, module: PreTrainedModel) -> Mapping[str, str]:
        """Return the name in the model of each name that the model's tensors may have in the file."""
        architecture, config = self.metadata["general.architecture"], module.config
        with library_errors(f"the tensors of {self.path} have unknown names", "update the library gguf"):
            if self._has_newer_reader:
                from transformers.core_model_loading import (  # late: slow to import
                    WeightConverter,
                    WeightRenaming,
                    rename_source_key,
                )
                from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS  # late: slow to import

                mapping = GGUF_ARCHS[architecture](config)
                renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
                converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
                return {name: rename_source_key(name, renamings, converters)[0] for name in self.tensors}
            reader = _reader()
            processor = reader.TENSOR_PROCESSORS.get(architecture, reader.TensorProcessor)
            # GPT-2's unembedding has a name of its own.
            own = {"output.weight": "lm_head.weight"}
            return {**own, **reader.get_gguf_hf_weights_map(module, processor(config=config.to_dict()))}

    def _compare(self, module: PreTrainedModel, names: Mapping[str, str]) -> None:
        """Raise `SaevalError` for a tensor of the model that the file lacks, or has with another number of values."""
        expected_names = {name for name, _ in module.named_parameters()}  # of tied ones, the first
        in_file: dict[str, list[str]] = {}  # the model's experts join several tensors of the file
        for name in self.tensors:
            if (ours := names.get(name) or names.get(name.removesuffix(".weight"))) in expected_names:
                in_file.setdefault(str(ours), []).append(name)
        for name, ours in names.items():
            if ours in expected_names and ours not in in_file:
                raise SaevalError(f"{self.path} lacks {name}: it is incomplete; copy or convert it again")
        for ours, stored in in_file.items():
            shape, expected = self.tensors[stored[0]].shape, tuple(module.get_parameter(ours).shape)
            if len(stored) == 1:
                fits = sorted(n for n in shape if n > 1) == sorted(n for n in expected if n > 1)  # or transposed
            else:
                fits = sum(math.prod(self.tensors[name].shape) for name in stored) == math.prod(expected)
            if not fits:
                numbers = ", ".join(f"{key} {n}" for key, n in self._numbers(*map(self._key, _SIZES)).items())
                fault = f"{' and '.join(stored)} is {list(shape)}, but by the header's numbers it is {list(expected)}"
                raise SaevalError(f"{self.path}: {fault} ({numbers}); copy or convert it again")

    @property
    def _has_newer_reader(self) -> bool:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported  # late: slow to import

        return is_gguf_arch_supported(self.metadata["general.architecture"])

    def warnings(self) -> list[str]:
        """Return a warning if transformers ignores how positions are scaled, as most of its readers do."""
        settings = f"{self.metadata['general.architecture']}.rope.scaling."
        ignored = sorted(name for name in self.metadata if name.startswith(settings))
        kind = self.metadata.get(f"{settings}type")
        if not ignored or kind == "none" or settings.startswith("gpt-oss.") or self._has_newer_reader:
            return []
        return [
            f"{self.path}: transformers ignores {', '.join(ignored)}, so long texts get other positions than in "
            "training; use the model's safetensors files for them"
        ]

    @cached_property
    def _header(self) -> tuple[Mapping[str, Any], Mapping[str, GGUFTensor], int]:
        """Metadata, tensors, and the position of the tensors' values."""
        with self.path.open("rb") as stream:
            if stream.read(4) != _MAGIC:
                raise SaevalError(f"{self.path} is not a GGUF file: it does not start with 'GGUF'")
            try:
                (number,) = _unpacked(stream, "I")
                if number not in _VERSIONS:
                    expected = " or ".join(map(str, _VERSIONS))
                    raise SaevalError(f"{self.path} has GGUF version {number}, expected {expected}; convert it again")
                n_tensors, n_values = _unpacked(stream, "QQ")
                metadata = dict(_entry(stream) for _ in range(n_values))
                tensors = dict(_tensor(stream) for _ in range(n_tensors))
                return metadata, tensors, stream.tell()
            except (ValueError, OSError, OverflowError) as error:  # lengths may be any numbers
                raise SaevalError(f"{self.path} is damaged ({error}); copy or download it again") from None

    @cached_property
    def _end(self) -> int:
        """The smallest size that the file can have, in bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # late: an optional dependency

        alignment, ends = self.metadata.get("general.alignment"), [0]
        alignment = alignment if isinstance(alignment, int) and alignment > 0 else _ALIGNMENT
        for name, tensor in self.tensors.items():
            try:
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
            except (KeyError, ValueError):
                raise SaevalError(
                    f"{self.path}: {name} has the quantization type {tensor.kind}, which gguf {version('gguf')} does "
                    "not know; update that library, or copy the file again"
                ) from None
            ends.append(tensor.offset + math.prod(tensor.shape) // block * size)
        return -(-self._header[2] // alignment) * alignment + max(ends)


class _PlainArray:
    """An attribute that keeps a memory map as a plain array: a header's 100,000 strings are read in a quarter of the
    time."""

    def __set__(self, reader: Any, values: np.ndarray) -> None:
        reader.__dict__["data"] = np.asarray(values)


def _reader() -> Any:
    """Return transformers' reader of GGUF files, prepared to show no progress bar, to build its table once, and to
    read headers faster."""
    import gguf  # late: an optional dependency
    from transformers import modeling_gguf_pytorch_utils as reader  # late: slow to import
    from transformers.utils import logging

    reader.tqdm = logging.tqdm  # type: ignore[attr-defined]  # `quietly` hides this one
    if not hasattr(gguf.get_tensor_name_map, "cache_info"):  # called for each module, always with the same arguments
        gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
        gguf.GGUFReader.data = _PlainArray()  # type: ignore[assignment]
    return reader


def _unpacked(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, _bytes(stream, struct.calcsize(form)))


def _bytes(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length) if length <= _LONGEST else b""
    if len(content) < length:
        raise ValueError("it ends within its header")
    return content


def _string(stream: BinaryIO) -> str:
    return _bytes(stream, *_unpacked(stream, "Q")).decode()


def _entry(stream: BinaryIO) -> tuple[str, Any]:
    name, (kind,) = _string(stream), _unpacked(stream, "I")
    if kind in _SCALARS:
        return name, _unpacked(stream, _SCALARS[kind])[0]
    if kind == _STRING:
        return name, _string(stream)
    if kind != _ARRAY:
        raise ValueError(f"its header has a value of the unknown type {kind}")
    kind, count = _unpacked(stream, "IQ")
    if kind in _SCALARS:
        stream.seek(count * struct.calcsize(f"<{_SCALARS[kind]}"), 1)
    elif kind == _STRING:
        for _ in range(count):
            stream.seek(_unpacked(stream, "Q")[0], 1)
    else:
        raise ValueError(f"its header has an array of the unknown type {kind}")
    return name, Length(count)


def _tensor(stream: BinaryIO) -> tuple[str, GGUFTensor]:
    name, (dimensions,) = _string(stream), _unpacked(stream, "I")
    shape = _unpacked(stream, f"{dimensions}Q")
    return name, GGUFTensor(shape[::-1], *_unpacked(stream, "IQ"))
