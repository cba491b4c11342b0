"""Where in the layers a measure rises and falls: what makes several measures comparable on one axis.

All measures are zero where there is nothing: a curve rises and falls *half way* where it passes half of its largest
mean, read between layers on a straight line. Of several passes the outermost count, so that a dip between them does
not move what is said about the ends.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from patchscopes.metrics import mean_with_interval, resample_means
from patchscopes.results import Json


def summarise_measure(
    values: Float[np.ndarray, "fact layer"], layers: Sequence[int], groups: Int[np.ndarray, " fact"], seed: int
) -> Json:
    """The mean over facts with its interval at each layer, and where it changes.

    Args:
        layers: upwards.
        groups: facts with the same number are resampled together.

    Returns:
        `mean`, `ci95` and `n_samples`; `largest_at`, a layer; `steepest`, the neighbouring layers between which the
        mean changes most per layer (None with one layer only); `rises` and `falls`, half way: the `layer` and its
        `ci95`, or None if the curve does not begin, or end, below half of its largest mean. A resampled curve that does
        not is taken to rise at the first layer, or to fall at the last.
    """
    mean = values.mean(axis=0)
    resampled = [find_half_way(curve, layers) for curve in resample_means(values, groups=groups, seed=seed)]
    rises, falls = (
        None if found is None else {"layer": found, "ci95": take_interval([pair[side] for pair in resampled], edge)}
        for side, (found, edge) in enumerate(zip(find_half_way(mean, layers), (layers[0], layers[-1]), strict=True))
    )
    return {
        **mean_with_interval(values, groups=groups, seed=seed).as_json(),
        "n_samples": len(values),
        "largest_at": layers[int(mean.argmax())],
        "steepest": find_steepest(mean, layers),
        "rises": rises,
        "falls": falls,
    }


def find_half_way(curve: Float[np.ndarray, " layer"], layers: Sequence[int]) -> tuple[float | None, float | None]:
    """Where a curve rises to half of its largest value, and where it falls below that for good.

    None where it does not: it begins (or ends) above, or is nowhere above zero.
    """
    half = curve.max() / 2
    if half <= 0:
        return None, None
    above = np.flatnonzero(curve >= half)
    first, last = int(above[0]), int(above[-1])
    rises = None if first == 0 else interpolate(curve, layers, first - 1, half)
    falls = None if last == len(curve) - 1 else interpolate(curve, layers, last, half)
    return rises, falls


def interpolate(curve: Float[np.ndarray, " layer"], layers: Sequence[int], start: int, level: float) -> float:
    """The layer at which the straight line from place `start` of a curve to the next one passes a level."""
    share = (level - curve[start]) / (curve[start + 1] - curve[start])
    return float(layers[start] + share * (layers[start + 1] - layers[start]))


def take_interval(found: Sequence[float | None], edge: int) -> list[float]:
    """The 95 % interval of resampled layers; those that are None lie at the edge."""
    ends = np.percentile([edge if one is None else one for one in found], [2.5, 97.5])
    return [float(end) for end in ends]


def find_steepest(mean: Float[np.ndarray, " layer"], layers: Sequence[int]) -> Json | None:
    """The neighbouring layers between which a curve changes most per layer, and by how much per layer."""
    if len(layers) < 2:
        return None
    slopes = np.diff(mean) / np.diff(layers)
    place = int(np.abs(slopes).argmax())
    return {"layers": [layers[place], layers[place + 1]], "change_per_layer": float(slopes[place])}
