"""peft adapters in local folders, such as LoRA weights."""

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
    """An adapter: a folder with `adapter_config.json` and weights."""

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
            raise SaevalError(f"{self.config_file} has no 'peft_type': it is not the config of a peft adapter")
        return config

    @property
    def kind(self) -> str:
        """The adapter's `peft_type`: `LORA`, `IA3`, ..."""
        return str(self.config["peft_type"])

    @property
    def files(self) -> list[Path]:
        """The files that peft reads."""
        weights = sorted(file for file in self.folder.glob("adapter_model*") if file.is_file())
        return [self.config_file, *weights]

    def check(self) -> None:
        """Raise `SaevalError` for an adapter that cannot be applied, or that needs other code or folders."""
        if importlib.util.find_spec("peft") is None:
            raise SaevalError(
                f"{self.folder} holds an adapter ({CONFIG}), which needs peft: pip install peft, or merge the adapter "
                f"into its base model and save the result"
            )
        if self.config.get("megatron_config") is not None:
            raise SaevalError(f"{self.config_file} names code to import ('megatron_config'), which saeval does not run")
        if self.config.get("layer_replication") is not None:
            raise SaevalError(f"{self.config_file} repeats blocks ('layer_replication'); merge it and save the model")
        if self.kind == "XLORA":
            raise SaevalError(
                f"{self.config_file} is of an X-LoRA, which reads other folders; pass the loaded model instead"
            )
        weights = self.files[1:]
        if not weights:
            raise SaevalError(f"{self.folder} has {CONFIG} but no adapter_model.safetensors; copy the adapter again")
        for file in weights:
            if file.suffix == ".safetensors":
                check_whole(file)

    def base(self) -> tuple[Path | None, str]:
        """Return the base model's folder, or None if it is not a local one, and its name."""
        name = self.config.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise SaevalError(
                f"{self.config_file} does not name its base model; set 'base_model_name_or_path' to that model's folder"
            )
        path = Path(name).expanduser()
        for folder in [path] if path.is_absolute() else [self.folder / path, path]:
            if folder.is_dir():
                return folder, name
        if path.is_absolute() or name.startswith((".", "~")):
            raise SaevalError(
                f"{self.config_file}: its base model '{name}' was not found; set 'base_model_name_or_path' to its "
                "folder"
            )
        return None, name

    def apply(self, module: PreTrainedModel) -> None:
        """Apply the adapter to its loaded base model; `SaevalError` if its weights do not fit this model."""
        with library_errors(
            f"the adapter {self.folder} cannot be applied to {type(module).__name__}", "check its base model"
        ):
            report = module.load_adapter(str(self.folder), ignore_mismatched_sizes=True)
        for keys, fault in (
            (report.missing_keys, "lacks"),
            (report.unexpected_keys, "has weights that do not exist in its base model:"),
            (report.mismatched_keys, "has weights whose shapes differ from its base model's:"),
        ):
            if keys:
                shown = ", ".join(sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)[:3])
                raise SaevalError(
                    f"the adapter {self.folder} {fault} {shown}; check 'base_model_name_or_path' of {CONFIG}"
                )


def adapter_in(folder: Path) -> PeftAdapter | None:
    """Return the checked adapter in a folder; None if there is none."""
    if not (folder / CONFIG).is_file():
        return None
    adapter = PeftAdapter(folder)
    adapter.check()
    return adapter


def attached(module: Any) -> list[str]:
    """Return the adapters of a loaded model, as `name (KIND)`."""
    configs = getattr(module, "peft_config", None)
    if not isinstance(configs, Mapping):
        return []
    kinds = {name: getattr(config, "peft_type", "") for name, config in configs.items()}
    return [f"{name} ({getattr(kind, 'value', kind)})" for name, kind in kinds.items()]
