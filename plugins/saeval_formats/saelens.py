"""SAEs of SAELens: its folders, the releases in its registry, and its objects in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from saeval.plugin import LiveSAE, SAEInfo, SaevalError, Substitute, sha256_file, torch
from saeval_formats import folding
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed
from saeval_formats.saelens_config import BY_LIBRARY, Config, assembled, parsed_config
from saeval_formats.saelens_objects import LibrarySAE, expected_shapes, loaded
from saeval_formats.saelens_releases import Release, Releases, releases
from saeval_formats.tensors import Header, Tensors

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
_SCALE = "scaling_factor"  # some versions wrote it with every SAE, nearly always as ones


class Reference(TranscoderReference):
    """A suite's reference to one SAE in a folder."""

    unit_decoder: bool = Field(default=False, alias="fold_W_dec_norm")
    """Scale decoder rows to norm 1 and multiply their old norms into the features."""


class SAELens(FolderLoader):
    """SAEs that SAELens 3 to 6 saved, and those that `SAE.from_pretrained` loads.

    `{path: folder}`, `{path: run, sites: "blocks.*"}`, `{release: gpt2-small-res-jb, id: blocks.8.hook_resid_pre}`,
    `{release: gpt2-small-res-jb, ids: "blocks.*"}`.
    At hook_z, the width is that of all heads together. As in the library, `normalize_activations:
    expected_average_only_in` scales nothing at run time; if the folder still has the factor (or the whitening) of an
    unfinished run, saeval folds it into the weights.
    """

    name, entry, otherwise = "saelens", Reference, Releases
    markers = (CONFIG,)

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return releases(reference) if "release" in reference else super().expand(reference)

    def fetch(self, reference: Mapping[str, Any]) -> None:
        if "release" in reference:  # the library downloads as it loads
            self.load(reference)

    def label(self, reference: Mapping[str, Any]) -> str:
        parts = [str(reference[key]) for key in ("release", "id") if reference.get(key)]
        return "/".join(parts) or self.name

    def opened(self, reference: Mapping[str, Any]) -> Folder | Release:
        if "release" in reference:
            return Release.of(reference)
        options = parsed(Reference, reference, "saelens", needs=f"the folder with {CONFIG} and {WEIGHTS}, or 'release'")
        folder = folder_of(options.path, "saelens", f"{CONFIG} and {WEIGHTS}")
        raw = json_object(holding(folder, "saelens", (CONFIG,)))
        return Folder(options, folder, raw, parsed_config(folder / CONFIG, raw), Header.of(folder / WEIGHTS))

    def accepts(self, live: object) -> bool:
        return any(c.__name__ == "SAE" and c.__module__.startswith("sae_lens.") for c in type(live).__mro__)

    def wrap(self, live: Any, hook_name: str | None, name: str) -> LiveSAE:
        return LibrarySAE(live, hook_name, name)


@dataclass(frozen=True)
class Folder:
    """An SAE in a local folder."""

    options: Reference
    path: Path
    raw: Mapping[str, Any]
    config: Config
    header: Header

    def info(self) -> SAEInfo:
        self.check()
        config, whitening = self.config.with_factor(self.factor, SCALER), self.whitening
        numeric = [*config.numeric, self.factor, self.options.unit_decoder]
        sha256 = self.header.identity(*numeric, *([sha256_file(whitening.path)] if whitening else []))
        return config.info(self.options.hook_name, self.options.input_hook, sha256, config.facts)

    def load(self, device: str, dtype: torch.dtype | None) -> Substitute:
        config, header = self.config, self.header
        self.check()
        hook_name = self.options.hook_name or config.hook_name
        if config.architecture in BY_LIBRARY:
            if self.options.unit_decoder:
                raise SaevalError(f"{self.path}: 'fold_W_dec_norm' is not for '{config.architecture}' SAEs")
            # LibrarySAE requires a name; `info` has reported an unknown hook.
            module = loaded(self.path, self.raw, header.read(header.shapes, device, dtype))
            return LibrarySAE(module, hook_name or "?", str(self.path))
        if _SCALE in header.shapes and not (header.read([_SCALE], "cpu")[_SCALE] == 1).all():
            raise SaevalError(f"{header.path}: '{_SCALE}' is not all ones; fold the fine-tuned scale into W_dec first")
        tensors, config = self._folded(header.read(config.shapes, device, dtype))
        return assembled(self.path, config, tensors, hook_name, unit_decoder=self.options.unit_decoder)

    def check(self) -> None:
        """Raise `SaevalError` if the tensors do not match the config."""
        config = self.config
        if config.architecture in BY_LIBRARY:
            if config.normalization == "covariance_whitening" or self.factor is not None:
                fault = f"the scale of training inputs cannot be folded into a '{config.architecture}' SAE"
                raise SaevalError(f"{self.path}: {fault}")
            self.header.check(expected_shapes(self.path, self.raw))
            return
        self.header.check(config.shapes, [_SCALE])
        if config.transcoder and self.factor is not None:
            raise SaevalError(f"{self.path / SCALER}: an input factor does not determine a transcoder's output scale")

    @property
    def factor(self) -> float | None:
        """The factor of the inputs in training, if it is not yet folded into the weights."""
        path = self.path / SCALER
        if self.config.normalization != "expected_average_only_in" or not path.is_file():
            return None
        fields = Fields(path, json_object(path))
        if fields.maybe(fields.flag, "has_whitening"):
            raise SaevalError(f"{path}: 'has_whitening' contradicts 'normalize_activations: expected_average_only_in'")
        return fields.maybe(fields.positive, _SCALE)

    @property
    def whitening(self) -> Header | None:
        """The whitening statistics of the training inputs, if they are not yet folded into the weights."""
        if self.config.normalization != "covariance_whitening":
            return None
        path, d_in = self.path / WHITENING, self.config.d_in
        if not path.is_file():
            raise SaevalError(
                f"{self.path / CONFIG}: 'normalize_activations: covariance_whitening' without {WHITENING}: "
                "the weights are for whitened activations; export it with SAELens' fold_activation_whitening()"
            )
        header = Header.of(path)
        header.check({"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)})
        return header

    def _folded(self, tensors: Tensors) -> tuple[Tensors, Config]:
        """Return tensors for the model's own activations, and the config that remains to be applied."""
        config, factor, whitening = self.config, self.factor, self.whitening
        if factor is not None:
            return folding.scaled(tensors, factor, factor), config
        if whitening is None:
            return tensors, config
        stats = whitening.read(whitening.shapes, str(tensors["W_enc"].device), torch.float64)
        if config.rescale:  # by the row norms before whitening, so that the same features stay the k largest
            tensors, config = folding.rescaled(tensors), replace(config, rescale=False)
        by_input = config.apply_b_dec_to_input
        statistics = stats["mean"], stats["matrix"], stats["inverse_matrix"]
        return folding.whitened(tensors, *statistics, apply_b_dec_to_input=by_input), config
