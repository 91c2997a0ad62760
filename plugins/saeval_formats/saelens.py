"""SAEs of SAELens: folders that it wrote, the releases that it knows, and its objects in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from saeval.plugin import LiveSAE, SAEInfo, SaevalError, sha256_file, torch
from saeval_formats import folding
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import AskedTranscoder, folder_of, json_object, parsed
from saeval_formats.saelens_config import BY_LIBRARY, Config, assembled, parsed_config
from saeval_formats.saelens_objects import LibrarySAE, loaded
from saeval_formats.saelens_releases import Release, releases
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Substitute

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
_SCALE = "scaling_factor"  # for a while written with every SAE, nearly always as ones


class Reference(AskedTranscoder):
    """What a suite says of one SAE."""

    unit_decoder: bool = Field(default=False, alias="fold_W_dec_norm")
    """Give the decoder rows of norm 1 and multiply their norms into the features."""


class SAELens(FolderLoader):
    """SAEs saved by SAELens, versions 3 to 6, and those that `SAE.from_pretrained` knows.

    `{path: folder}`, `{path: run, sites: "blocks.*"}`, `{release: gpt2-small-res-jb, id: blocks.8.hook_resid_pre}`,
    `{release: gpt2-small-res-jb, ids: "blocks.*"}`. At hook_z their width is that of all heads together.
    `normalize_activations: expected_average_only_in` scales nothing at run time, as in the library; where the folder
    still holds the factor (or the whitening) of an unfinished run, it is folded into the weights.
    """

    name, entry = "saelens", Reference
    markers = (CONFIG,)

    def expand(self, reference: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return releases(reference) if "release" in reference else super().expand(reference)

    def fetch(self, reference: Mapping[str, Any]) -> None:
        if "release" in reference:  # the library downloads as it loads
            self.load(reference)

    def label(self, reference: Mapping[str, Any]) -> str:
        known = [str(reference[key]) for key in ("release", "id") if reference.get(key)]
        return "/".join(known) or self.name

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        return _source(reference).info()

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> Substitute:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        return _source(reference).load(device, dtype)

    def accepts(self, live: object) -> bool:
        return any(c.__name__ == "SAE" and c.__module__.startswith("sae_lens.") for c in type(live).__mro__)

    def wrap(self, live: Any, hook_name: str | None, name: str) -> LiveSAE:
        from saeval_formats.saelens_objects import LibrarySAE  # late: it imports torch

        return LibrarySAE(live, hook_name, name)


def _source(reference: Mapping[str, Any]) -> Folder | Release:
    if "release" in reference:
        return Release.of(reference)
    asked = parsed(Reference, reference, "saelens", needs=f"the folder with {CONFIG} and {WEIGHTS}, or 'release'")
    folder = folder_of(asked.path, "saelens", f"{CONFIG} and {WEIGHTS}")
    raw = json_object(holding(folder, "saelens", (CONFIG,)))
    return Folder(asked, folder, raw, parsed_config(folder / CONFIG, raw), Header.of(folder / WEIGHTS))


@dataclass(frozen=True)
class Folder:
    """An SAE on this machine."""

    asked: Reference
    path: Path
    raw: Mapping[str, Any]
    config: Config
    header: Header

    def info(self) -> SAEInfo:
        self.check()
        config = self.config.with_factor(self.factor, SCALER)
        whitening = self.whitening
        numeric = [*config.numeric, self.factor, self.asked.unit_decoder]
        sha256 = self.header.identity(*numeric, *([sha256_file(whitening.path)] if whitening else []))
        return config.info(self.asked.hook_name, self.asked.input_hook, sha256, config.facts)

    def load(self, device: str, dtype: torch.dtype | None) -> Substitute:
        config, header = self.config, self.header
        self.check()
        hook_name = self.asked.hook_name or config.hook_name
        if config.architecture in BY_LIBRARY:
            if self.asked.unit_decoder:
                raise SaevalError(f"{self.path}: 'fold_W_dec_norm' is not for '{config.architecture}' SAEs")
            # A name must be given: where nobody knows it, `info` has said so.
            module = loaded(self.path, self.raw, header.read(header.shapes, device, dtype))
            return LibrarySAE(module, hook_name or "?", str(self.path))
        if _SCALE in header.shapes and not (header.read([_SCALE], "cpu")[_SCALE] == 1).all():
            raise SaevalError(f"{header.path}: '{_SCALE}' is not all ones; fold the fine-tuned scale into W_dec first")
        tensors, config = self._folded(header.read(config.shapes, device, dtype))
        try:
            return assembled(config, tensors, hook_name or "", unit_decoder=self.asked.unit_decoder)
        except ValueError as error:
            raise SaevalError(f"{self.path}: 'fold_W_dec_norm' is not for this SAE: {error}") from None

    def check(self) -> None:
        """`SaevalError` where the tensors are not those of the config."""
        config = self.config
        if config.architecture in BY_LIBRARY:
            from saeval_formats.saelens_objects import expected_shapes  # late: it imports torch

            if config.normalization == "covariance_whitening" or self.factor is not None:
                raise SaevalError(
                    f"{self.path}: the training inputs' scale of '{config.architecture}' cannot be folded"
                )
            self.header.check(expected_shapes(self.path, self.raw))
            return
        self.header.check(config.shapes, [_SCALE])
        if config.transcoder and self.factor is not None:
            raise SaevalError(f"{self.path / SCALER}: a factor of the inputs says nothing of a transcoder's outputs")

    @property
    def factor(self) -> float | None:
        """What the inputs were multiplied by in training and is not in the weights yet."""
        path = self.path / SCALER
        if self.config.normalization != "expected_average_only_in" or not path.is_file():
            return None
        found = Fields(path, json_object(path))
        if found.maybe(found.flag, "has_whitening"):
            raise SaevalError(f"{path}: 'has_whitening' with 'normalize_activations: expected_average_only_in'")
        return found.maybe(found.positive, _SCALE)

    @property
    def whitening(self) -> Header | None:
        """The statistics of training inputs that were whitened, where that is not in the weights yet."""
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

    def _folded(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Config]:
        """The tensors for activations as the model has them, and the config that is left to be applied."""
        config, factor, whitening = self.config, self.factor, self.whitening
        if factor is not None:
            return folding.scaled(tensors, factor, factor), config
        if whitening is None:
            return tensors, config
        stats = whitening.read(whitening.shapes, str(tensors["W_enc"].device), torch.float64)
        if config.rescale:  # by the norms of the rows that whitening knows, which then must not change the choice
            tensors, config = folding.rescaled(tensors), replace(config, rescale=False)
        by_input = config.apply_b_dec_to_input
        statistics = stats["mean"], stats["matrix"], stats["inverse_matrix"]
        return folding.whitened(tensors, *statistics, apply_b_dec_to_input=by_input), config
