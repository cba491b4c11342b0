"""The layers of each kind of grid: by number, by share of the depth, or around what another grid has found."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel

# Pairs whose neighbours are good too are better, by as little as decides between equals.
WEIGHT_OF_NEIGHBOURS = 1e-3


def choose_layers(model: LensModel, config: LayerGridConfig) -> tuple[list[int], list[int]]:
    """ℓ and ℓ* of a mode's (first) grid, from the lowest up.

    Raises:
        PatchscopesError: a layer does not exist, or a share is not from 0 to 1.
    """
    if config.full_grid:
        return resolve_layers(model, None), resolve_layers(model, None)
    default = LayerGridConfig.TEMPLATE_SHARES if config.mode == "templates" else LayerGridConfig.SHARES
    defaults = LayerGridConfig.QUICK_SHARES if config.mode == "quick" else (default, default)
    given = ((config.layers, config.shares), (config.target_layers, config.target_shares))
    source, target = (
        sorted(set(resolve_layers(model, numbers))) if numbers is not None else convert_shares(model, shares or default)
        for (numbers, shares), default in zip(given, defaults, strict=True)
    )
    return source, target


def convert_shares(model: LensModel, shares: Sequence[float]) -> list[int]:
    """The blocks at these shares of the depth: the first at 0, the last at 1; each once.

    Raises:
        PatchscopesError: a share is not from 0 to 1.
    """
    for share in shares:
        if not 0 <= share <= 1:
            raise PatchscopesError(f"a share of the depth is from 0 (the first block) to 1 (the last), got {share}")
    return sorted({round(share * (model.cfg.n_layers - 1)) for share in shares})


def find_best_pair(
    score: Float[np.ndarray, "layer target_layer"], candidates: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """The row and column of the best of the candidates (of all pairs, if there are none); None if none is above 0."""
    padded = np.pad(score, 1)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean(axis=(2, 3))
    allowed = np.zeros(score.shape, dtype=bool)
    for row, column in candidates:
        allowed[row, column] = True
    if not candidates:
        allowed[:] = True
    ranked = np.where(allowed, score + WEIGHT_OF_NEIGHBOURS * around, -np.inf)
    best = divmod(int(ranked.argmax()), score.shape[1])
    return best if score[best] > 0 else None


def find_neighbours(layers: Sequence[int], number: int) -> list[int]:
    """One of the layers, and all blocks between it and the layers beside it in the list."""
    low = layers[number - 1] + 1 if number > 0 else layers[number]
    high = layers[number + 1] - 1 if number + 1 < len(layers) else layers[number]
    return list(range(low, high + 1))
