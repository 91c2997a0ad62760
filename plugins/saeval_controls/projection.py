"""PCA with a fixed number of components, or with as many as a parent SAE has active features per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from saeval.plugin import Control, Encoding, Sample, Substitute, Undefined, torch
from saeval_controls.fitted import device_of, rows_of, with_features

if TYPE_CHECKING:
    from torch import Tensor


def _components(sample: Sample, k: int) -> tuple[Float[Tensor, "d"], Float[Tensor, "d k"]]:
    """Return the mean of the sampled rows and the first k eigenvectors of their covariance, float32."""
    x = rows_of(sample).double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))  # eigenvalues ascend
    return mean.float(), vectors[:, -k:].float()


def _sparsity(parent_l0: float, d: int) -> int:
    """Return the number of components; `Undefined` if it is 0, or as large as the width."""
    k = round(parent_l0)
    if k >= d:
        raise Undefined(f"the parent SAE fires {k} features per token, and {k} components of {d} are all there are")
    if k == 0:
        raise Undefined(f"the parent SAE fires {parent_l0:.2g} features per token, which rounds to no component")
    return k


class Projection(Substitute):
    """x̂ = mean + (x − mean) V Vᵀ with orthonormal columns V; a substitute without features."""

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
    """Principal components, as many as the parent SAE's mean L0.

    x̂ = mean_fit + P_k(x − mean_fit), with k = round(mean L0 of the parent) and P_k the projection on the
    first k eigenvectors of the centred covariance, all computed on up to 8192 tokens sampled from the
    fit split. Undefined for k = 0, and for k >= d, where it would be the identity. The code is dense
    and has the same components for all tokens: its description length is not that of k features out of d_sae.
    """

    name, version, per = "pca", 1, "sae"

    def build(self, sae: Substitute, parent_l0: float, fit_activations: Sample) -> Substitute:
        with_features(sae)
        k = _sparsity(parent_l0, rows_of(fit_activations).shape[1])
        device = device_of(sae)
        return Projection(*(part.to(device) for part in _components(fit_activations, k)))


class PrincipalComponents(Control):
    """Principal components of the activations at a hook, a fixed number of them: `pca` without an SAE.

    x̂ = mean_fit + P_k(x − mean_fit), k = `components`, as for `pca`. Undefined for k >= d, where it would be the
    identity.
    """

    name, version, per = "principal_components", 1, "hook"

    def __init__(self, components: int) -> None:
        if components < 1:
            raise ValueError(f"control '{self.name}': components must be at least 1, got {components}")
        self.components = components

    def build(self, fit_activations: Sample) -> Substitute:
        d = rows_of(fit_activations).shape[1]
        if self.components >= d:
            raise Undefined(f"{self.components} components of {d} are all there are")
        return Projection(*_components(fit_activations, self.components))


class DenseFeatures(Substitute):
    """x̂ = mean + Σ of the features ±⟨x − mean, v_i⟩⁺ in the directions ±v_i: two features for each component."""

    name = "best_k_dense"

    def __init__(self, mean: Float[Tensor, "d"], components: Float[Tensor, "d k"]) -> None:
        self.mean, self.directions = mean, torch.cat([components.T, -components.T])
        self.d_sae, self.d_in = self.directions.shape

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        return Encoding(((activations.to(self.mean) - self.mean) @ self.directions.T).relu())

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]
    ) -> Float[Tensor, "batch seq d"]:
        assert encoding is not None
        return (encoding.feature_acts @ self.directions + self.mean).to(activations.dtype)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            "W_enc": self.directions.T,
            "b_enc": -self.directions @ self.mean,
            "W_dec": self.directions,
            "b_dec": self.mean,
        }


class BestKDense(Control):
    """The best dense code of the parent SAE's L0: principal components as features.

    As `pca`, with a feature for each sign of each of the k = round(mean L0 of the parent) components: 2k features, of
    which k fire on each token. No other k linear features reconstruct the fit split better, and none is sparse.
    Undefined for k = 0, and for k >= d. Nothing in it is random, so that there is one draw.
    """

    name, version, per = "best_k_dense", 1, "sae"

    def build(self, sae: Substitute, parent_l0: float, fit_activations: Sample) -> Substitute:
        with_features(sae)
        k = _sparsity(parent_l0, rows_of(fit_activations).shape[1])
        device = device_of(sae)
        return DenseFeatures(*(part.to(device) for part in _components(fit_activations, k)))
