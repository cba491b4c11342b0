"""The low-rank inverse of a linear map: which change of a representation makes a wanted change of what it maps to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankInverse:
    """W†_r, the pseudo-inverse of the rank-r truncation of W, for every r, at each of some layers.

    Hernandez et al. 2023, section 5: W of a relation shrinks most directions, and the inverse of these few would drown
    all else. W is decomposed once and serves all ranks.

    Attributes:
        inputs: the right singular vectors, as rows, largest singular value first.
        inverted: one over the singular values; 0 where the singular value is 0 (to rounding).
        outputs: the left singular vectors, as rows.
    """

    inputs: Float[Tensor, "layer direction d_in"]
    inverted: Float[Tensor, "layer direction"]
    outputs: Float[Tensor, "layer direction d_out"]

    def __call__(self, changes: Float[Tensor, " d_out"], ranks: Sequence[int]) -> Float[Tensor, "layer rank d_in"]:
        """Δs = W†_r Δo, for each layer and rank.

        Raises:
            PatchscopesError: a rank below 1 or above the width of W.
        """
        highest = self.inverted.shape[-1]
        wrong = [rank for rank in ranks if not 1 <= rank <= highest]
        if wrong:
            raise PatchscopesError(f"a rank must be from 1 to {highest}, the width of the map; got {wrong[0]}")
        weights = self.inverted * (self.outputs @ changes.to(self.outputs))
        kept = torch.arange(highest) < torch.tensor(ranks)[:, None]
        return (weights[:, None] * kept.to(weights)) @ self.inputs


def invert_low_rank(weights: Float[Tensor, "layer d_out d_in"]) -> LowRankInverse:
    """Decompose the W of each layer for its low-rank inverses."""
    outputs, singular, inputs = torch.linalg.svd(weights, full_matrices=False)
    smallest = max(weights.shape[1:]) * torch.finfo(weights.dtype).eps * singular[:, :1]
    inverted = torch.where(singular > smallest, 1 / singular, 0.0)
    return LowRankInverse(inputs=inputs, inverted=inverted, outputs=outputs.mT)
