"""An adapter of peft's in a local folder: small weights that change what a model computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SaevalError, read_json
from saeval_models.library_errors import library_errors
from saeval_models.weights import check_whole

if TYPE_CHECKING:  # annotations only: transformers is slow to import
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class PeftAdapter:
    """A folder with `adapter_config.json` and the adapter's weights."""

    folder: Path

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The raw `adapter_config.json`."""
        try:
            config = read_json(self.config_file)
        except OSError as error:
            raise SaevalError(f"{self.config_file} cannot be read ({error}); save the adapter again") from None
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise SaevalError(f"{self.config_file} has no 'peft_type': it is not the config of an adapter of peft's")
        return config

    @property
    def kind(self) -> str:
        """`LORA`, `IA3`, ..."""
        return str(self.config["peft_type"])

    @property
    def files(self) -> list[Path]:
        """Every file that peft reads."""
        weights = sorted(file for file in self.folder.glob("adapter_model*") if file.is_file())
        return [self.config_file, *weights]

    def check(self) -> None:
        """`SaevalError` for an adapter that cannot be applied here, or that names code or files of its own."""
        if importlib.util.find_spec("peft") is None:
            raise SaevalError(
                f"{self.folder} holds an adapter ({CONFIG}), which needs peft: pip install peft, or merge the adapter "
                f"into its model and save that"
            )
        if self.config.get("megatron_config") is not None:
            raise SaevalError(f"{self.config_file} names code to import ('megatron_config'), which saeval does not run")
        if self.config.get("layer_replication") is not None:
            raise SaevalError(f"{self.config_file} repeats blocks ('layer_replication'); merge it and save the model")
        if self.kind == "XLORA":
            raise SaevalError(
                f"{self.config_file} is of an X-LoRA, which reads other folders; evaluate it as an object"
            )
        weights = self.files[1:]
        if not weights:
            raise SaevalError(f"{self.folder} has {CONFIG} and no adapter_model.safetensors; copy the adapter again")
        for file in weights:
            if file.suffix == ".safetensors":
                check_whole(file)

    def base(self) -> tuple[Path | None, str]:
        """The model it was trained on: its folder where that is here, and its name."""
        named = self.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise SaevalError(
                f"{self.config_file} does not name its model; set 'base_model_name_or_path' to the model's folder"
            )
        path = Path(named).expanduser()
        for folder in [path] if path.is_absolute() else [self.folder / path, path]:
            if folder.is_dir():
                return folder, named
        if path.is_absolute() or named.startswith((".", "~")):
            raise SaevalError(
                f"{self.config_file}: its model '{named}' is not here; set 'base_model_name_or_path' to its folder"
            )
        return None, named

    def apply(self, module: PreTrainedModel) -> None:
        """Put the adapter into its loaded model. `SaevalError` where its weights are not those of this model."""
        with library_errors(
            f"the adapter {self.folder} cannot be applied to {type(module).__name__}", "check its model"
        ):
            found = module.load_adapter(str(self.folder), ignore_mismatched_sizes=True)
        for keys, fault in (
            (found.missing_keys, "lacks"),
            (found.unexpected_keys, "has weights that its model has no place for:"),
            (found.mismatched_keys, "has weights of other shapes than its model:"),
        ):
            if keys:
                shown = ", ".join(sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)[:3])
                raise SaevalError(
                    f"the adapter {self.folder} {fault} {shown}; check 'base_model_name_or_path' of {CONFIG}"
                )


def adapter_in(folder: Path) -> PeftAdapter | None:
    """The checked adapter in a folder; None where it holds none."""
    if not (folder / CONFIG).is_file():
        return None
    adapter = PeftAdapter(folder)
    adapter.check()
    return adapter


def attached(module: Any) -> list[str]:
    """The adapters of a loaded model, as `name (KIND)`."""
    configs = getattr(module, "peft_config", None)
    if not isinstance(configs, Mapping):
        return []
    kinds = {name: getattr(config, "peft_type", "") for name, config in configs.items()}
    return [f"{name} ({getattr(kind, 'value', kind)})" for name, kind in kinds.items()]
