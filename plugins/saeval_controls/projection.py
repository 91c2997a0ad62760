"""The best linear code of as many numbers a token as an SAE has features firing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Control, Encoding, Sample, Substitute, Undefined, torch
from saeval_controls.fitted import device_of, rows_of, with_features

if TYPE_CHECKING:
    from torch import Tensor


class Projection(Substitute):
    """x̂ = mean + (x − mean) V Vᵀ with orthonormal columns V. It replaces, and encodes nothing that is a feature."""

    name = "pca"

    def __init__(self, mean: Float[Tensor, "d"], components: Float[Tensor, "d k"]) -> None:
        self.mean, self.components = mean, components

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        centred = activations.to(self.mean) - self.mean
        return (self.mean + centred @ self.components @ self.components.T).to(activations.dtype)

    @property
    def device(self) -> torch.device:
        return self.mean.device


class PCA(Control):
    """Principal components, as many as its parent has features firing on a token.

    x̂ = mean_fit + P_k(x − mean_fit), with k = round(mean L0 of the parent) and P_k the projection on
    the k first eigenvectors of the centred covariance, all on up to 8192 tokens sampled from the fit
    split. Undefined for k >= d, where it would be the identity. A dense code, chosen once for all
    tokens: k of its numbers are not the description length of k features out of d_sae.
    """

    name, version, per = "pca", 1, "sae"

    def build(self, sae: Substitute, parent_l0: float, fit_activations: Sample) -> Substitute:
        with_features(sae)
        x = rows_of(fit_activations).double()
        k, d = round(parent_l0), x.shape[1]
        if k >= d:
            raise Undefined(f"the parent SAE fires {k} features a token, and {k} components of {d} dimensions are all")
        if k == 0:
            raise Undefined(f"the parent SAE fires {parent_l0:.2g} features a token, which makes no component")
        mean = x.mean(0)
        _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))  # eigenvalues ascend
        place = device_of(sae)
        return Projection(mean.float().to(place), vectors[:, -k:].float().to(place))
