"""Controls: untrained baselines and ablations that a trained SAE is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Control, hookimpl
from saeval_controls.constant import Identity, Mean, Zero
from saeval_controls.damaged import DroppedFeatures, NoisyReconstruction
from saeval_controls.fitted import alive_features, fit_activations, fit_inputs, parent_l0
from saeval_controls.frozen import FrozenDecoder
from saeval_controls.projection import PCA, BestKDense, PrincipalComponents
from saeval_controls.shuffled import Resample, ShuffledDecoder, ShuffledFeatures
from saeval_controls.untrained import Random


@hookimpl
def saeval_controls() -> list[type[Control]]:
    return [
        Identity, Zero, Mean, Resample, PCA, PrincipalComponents, BestKDense, Random, FrozenDecoder, ShuffledDecoder,
        ShuffledFeatures, DroppedFeatures, NoisyReconstruction,
    ]  # fmt: skip


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [alive_features, fit_activations, fit_inputs, parent_l0]
