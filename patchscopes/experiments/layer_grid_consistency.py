"""Whether grids of several names, or of several templates, agree on which pairs work."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from patchscopes.experiments.layer_grid_classes import STRONG
from patchscopes.results import Json


def measure_consistency(
    grids: Int[np.ndarray, "grid layer target_layer"],
    labels: Sequence[str],
    layers: Sequence[int],
    target_layers: Sequence[int],
) -> Json:
    """How grids of classes agree: rank correlations between any two, and pairs that are strong for at least k of them.

    Returns:
        `rank_correlation` of each two grids (None where one has the same class everywhere) and their mean, `strong_for`
        (how many grids are strong at each pair), and `pairs` that are for at least `at_least`, half of the grids.
    """
    flat = grids.reshape(len(grids), -1)
    table = [[compute_rank_correlation(first, second) for second in flat] for first in flat]
    between = [value for row, of_row in enumerate(table) for value in of_row[row + 1 :] if value is not None]
    strong_for = (grids == STRONG).sum(axis=0)
    at_least = max(2, -(-len(grids) // 2))
    return {
        "labels": list(labels),
        "rank_correlation": table,
        "mean_rank_correlation": float(np.mean(between)) if between else None,
        "n_correlated": len(between),
        "strong_for": strong_for.tolist(),
        "at_least": at_least,
        "pairs": [[layers[row], target_layers[column]] for row, column in np.argwhere(strong_for >= at_least)],
    }


def compute_rank_correlation(
    first: Float[np.ndarray, " pair"] | Int[np.ndarray, " pair"],
    second: Float[np.ndarray, " pair"] | Int[np.ndarray, " pair"],
) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of the two is constant."""
    # SciPy takes a second to import.
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(of_one) == 0 for of_one in ranks):
        return None
    # Rounding may pass 1.
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))
