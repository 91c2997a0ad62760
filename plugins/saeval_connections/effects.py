"""The effects of ablating single features on the features of a later SAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.plugin import Encoding, Evidence, Ratio, Resume, SaevalError, Stamp, Substitute, torch
from saeval_connections.edges import Edges
from saeval_reward.ablation import Ablations
from saeval_reward.integration import Reference

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Effects(Evidence):
    """Sums over the tokens on which each ablated feature fires, and by document for the edges to be tested."""

    change: Float[np.ndarray, "n d_sae_2"]
    """Σ (f2 − f2 after the ablation)."""
    acts: Float[np.ndarray, "rows n"]
    """Σ f1 by document."""
    fires: Int[np.ndarray, "rows n"]
    """Number of tokens by document."""
    edges: Float[np.ndarray, "rows edges"]
    """Σ (f2 − f2 after) of each tested edge by document."""
    resumes: int
    """Number of resumed passes."""

    @classmethod
    def of(
        cls,
        edges: Edges,
        saes: Sequence[Substitute],
        encoding: Encoding | None,
        feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
        activations: Float[Tensor, "batch seq d"],
        mask: Bool[Tensor, "batch seq"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        resume: Resume,
        hook_names: tuple[str, str],
        W_dec: Float[Tensor, "d_sae_1 d_x"],
    ) -> Effects:
        """Ablate each source wherever it fires in the mask, run to the later hook, and encode with the later SAE.

        Rows in which the source never fires are not run.
        """
        count, d_2 = len(edges.sources), feature_acts[1].shape[-1]
        change, by_edge = np.zeros((count, d_2)), np.zeros((len(mask), len(edges.pairs)))
        acts, fires = np.zeros((len(mask), count)), np.zeros((len(mask), count), np.int64)
        resumes = 0
        members = {str(n): edges.sources[n : n + 1] for n in range(count)}
        at_zero = Reference(*torch.zeros(3, 1))
        ablations = Ablations(saes[0], encoding, activations, token_keys, members, at_zero, W_dec)
        for n, source in enumerate(edges.sources):
            f1 = feature_acts[0][..., int(source)] * mask
            inside = f1 != 0
            rows = inside.any(1).nonzero()[:, 0]
            if not len(rows):
                continue
            taken = rows.tolist()
            ablated = torch.where(inside[..., None], ablations[str(n)], activations)[rows]
            x = ablated
            if hook_names[0] != hook_names[1]:
                later = resume.part(taken).until(ablated, [hook_names[1]])
                if hook_names[1] not in later:
                    raise SaevalError(f"the model does not pass {hook_names[1]} after {hook_names[0]}")
                x = later[hook_names[1]]
                resumes += 1
            x = x.to(saes[1].device or activations.device)
            after = saes[1].at(token_keys[taken]).encode(x).feature_acts.to(mask.device)
            moved = torch.where(
                inside[rows][..., None], feature_acts[1][rows] - after, torch.zeros((), device=x.device)
            )
            change[n] = moved.sum((0, 1), dtype=torch.float64).cpu().numpy()
            tested = np.flatnonzero(edges.pairs[:, 0] == n)
            targets = torch.from_numpy(edges.pairs[tested, 1]).to(moved.device)
            by_edge[np.ix_(taken, tested)] = moved[..., targets].sum(1, dtype=torch.float64).cpu().numpy()
            acts[:, n] = f1.sum(1, dtype=torch.float64).cpu().numpy()
            fires[:, n] = inside.sum(1).cpu().numpy()
        return cls(change, acts, fires, by_edge, resumes)

    def stamp(self, stamp: Stamp) -> Effects:
        def scattered(rows: np.ndarray) -> np.ndarray:
            total = np.zeros((stamp.n_clusters, rows.shape[1]), rows.dtype)
            np.add.at(total, stamp.clusters, rows)
            return total

        sums = {"acts": scattered(self.acts), "fires": scattered(self.fires), "edges": scattered(self.edges)}
        return Effects(self.change, **sums, resumes=self.resumes)

    def edge(self, e: int, source: int) -> Ratio:
        """Change of the later feature per unit of the source, with the sums of each document."""
        return Ratio(self.edges[:, e], self.acts[:, source], self.fires[:, source])

    @property
    def per_unit(self) -> Float[np.ndarray, "n d_sae_2"]:
        """Change of every later feature per unit of each source; NaN for a source that never fires."""
        acts = self.acts.sum(0)[:, None]
        return np.where(acts != 0, self.change / np.where(acts != 0, acts, 1.0), np.nan)

    def components(self) -> dict[str, Any]:
        return {"resumes": self.resumes, "tokens": self.fires.sum(0).tolist()}
