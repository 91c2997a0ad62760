"""The data sources `synthetic` and `saelens_synthetic`: activations with known features, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from saeval.plugin import SaevalError, Source, digest_of, expand_user
from saeval_synthetic.settings import NAMES, PRESETS, Settings, changed

if TYPE_CHECKING:
    from saeval.plugin import DataKind
    from saeval_synthetic.rows import WorldRows
    from saeval_synthetic.world import World

Count = Annotated[int, Field(ge=1)]
Some = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=0, lt=1)]
_WIDEST = 2**20
"""Largest number of features or dimensions: the room for a world's directions."""
Size = Annotated[int, Field(ge=1, le=_WIDEST)]


class _OfAWorld(Source):
    """A source whose rows are samples of a world."""

    kind: ClassVar[DataKind] = "activations"
    samples: int
    fit_samples: int
    context: int
    blocks: int

    def world(self) -> World:
        """Return the world; `SaevalError` if there is none with these numbers."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Width of the activations."""
        raise NotImplementedError

    @cached_property
    def _world(self) -> World:
        return self.world()

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> WorldRows:
        from saeval_synthetic.rows import FIT, WorldRows  # late: it imports torch, which listing sources must not

        fit = split == "fit"
        samples, first = (self.fit_samples, FIT) if fit else (self.samples, 0)
        return WorldRows(
            lambda: self._world,  # the evaluated rows and the fit split share it
            self.width,
            self.fingerprint(),
            samples,
            self.context,
            self.blocks,
            first,
        )


class Synthetic(_OfAWorld):
    """A world of known features: activations and the features that they are made of, drawn from a seed.

    Parameters that are left out, or null, have the preset's number. `coherence: random` draws random directions.
    `samples` activations are evaluated, in rows of `context` samples and in `documents` documents; samples are
    independent, so a document is a block of them. The fit split has `fit_samples` others. docs/ground-truth.md
    explains every number.
    """

    name = "synthetic"

    def __init__(
        self, preset: Literal["small", "medium", "synthsaebench"] = "small", samples: Count = 100_000,
        fit_samples: Count = 8192, context: Count = 256, documents: Count = 64, seed: int = 0,
        dimensions: Size | None = None, features: Size | None = None, zipf_exponent: Positive | None = None,
        most_probability: Probability | None = None, least_probability: Probability | None = None,
        magnitude_first: Positive | None = None, magnitude_last: Positive | None = None,
        magnitude_spread: NotNegative | None = None, coherence: Share | Literal["random"] | None = None,
        correlation_rank: Some | None = None, correlation_scale: NotNegative | None = None,
        groups: Some | None = None, group_size: Count | None = None, group_correlation: Correlation | None = None,
        roots: Some | None = None, branching: Count | None = None, depth: Some | None = None,
        exclusive: Share | None = None, compensate: bool | None = None, scale_children: bool | None = None,
        dense_features: Some | None = None, dense_probability: Probability | None = None,
        bias: NotNegative | None = None, noise: NotNegative | None = None,
    ) -> None:  # fmt: skip
        given = {name: value for name, value in locals().items() if name in NAMES and name != "coherence"}
        settings = changed(PRESETS[preset], **given)
        if coherence is not None:
            settings = Settings(**{**asdict(settings), "coherence": None if coherence == "random" else coherence})
        settings.check()
        self.preset, self.settings = preset, settings
        self.samples, self.fit_samples, self.context, self.blocks = samples, fit_samples, context, documents

    def fingerprint(self) -> str:
        return self.settings.fingerprint

    @property
    def width(self) -> int:
        return self.settings.dimensions

    def world(self) -> World:
        return self.settings.world()

    def facts(self) -> Mapping[str, Any]:
        return {"preset": self.preset, **asdict(self.settings)}


class SAELensSynthetic(_OfAWorld):
    """A synthetic model that sae-lens has saved: its directions, probabilities, correlations and hierarchy.

    `path` is the folder with `synthetic_model_config.json`, `synthetic_model.safetensors` and, if the model has one,
    `hierarchy.json`. saeval draws samples with its own keyed numbers; from equal draws, both give equal activations.
    """

    name = "saelens_synthetic"

    def __init__(
        self, path: str, samples: Count = 100_000, fit_samples: Count = 8192, context: Count = 256,
        documents: Count = 64, seed: int = 0,
    ) -> None:  # fmt: skip
        self.path, self.seed = expand_user(path), seed
        self.samples, self.fit_samples, self.context, self.blocks = samples, fit_samples, context, documents
        if not Path(self.path).is_dir():
            raise SaevalError(f"'path': no folder {path}; it is the folder that sae-lens' SyntheticModel.save wrote")

    def fingerprint(self) -> str:
        from saeval_synthetic.saelens_files import identity  # late: it reads files

        return digest_of([identity(Path(self.path)), self.seed])

    @property
    def width(self) -> int:
        return self._world.d

    def world(self) -> World:
        from saeval_synthetic.saelens_files import load  # late: it imports torch

        return load(Path(self.path), self.seed)

    def facts(self) -> Mapping[str, Any]:
        return {"path": self.path, "seed": self.seed}
