"""From the texts of a layer grid to what they show: success beside its controls, hotspots, regions.

Every state is scored on the keywords of every name that is asked for. A name's own state is what is measured; the
others are the control: they say what the template, the model and chance bring about without knowing the name. Intervals
are over names, those of the control over the names whose states are written.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import Source
from patchscopes.experiments.layer_grid_classes import CLASSES, STRONG, classify
from patchscopes.experiments.layer_grid_hotspots import compute_p_values
from patchscopes.metrics import mean_with_interval
from patchscopes.results import Json

# Shares of the depth of which others claim something: those of ℓ, where states are read, and of ℓ*.
REGIONS = {
    "extract_middle_inject_early": ((0.4, 0.6), (0.1, 0.3)),
    "extract_late": ((0.7, 1.0), (0.0, 1.0)),
    "inject_late": ((0.0, 1.0), (0.7, 1.0)),
}


def classify_states(
    texts: Sequence[Sequence[Sequence[Sequence[str]]]], asked: Sequence[Source]
) -> Int[np.ndarray, "template name state layer target_layer"]:
    """The class of what each state said, by the keywords of each name."""
    return np.array(
        [
            [
                [[[classify(text, source.keywords) for text in row] for row in of_state] for of_state in of_template]
                for source in asked
            ]
            for of_template in texts
        ]
    )


def classify_unpatched(texts: Sequence[str], asked: Sequence[Source]) -> Int[np.ndarray, "template name"]:
    """The class of what each template said unpatched, by the keywords of each name."""
    return np.array([[classify(text, source.keywords) for source in asked] for text in texts])


def select_own(
    classes: Int[np.ndarray, "template name state layer target_layer"],
) -> Int[np.ndarray, "template name layer target_layer"]:
    """Those of each name's own state."""
    numbers = np.arange(classes.shape[1])
    return classes[:, numbers, numbers]


def average_others(
    share: Float[np.ndarray, "name state layer target_layer"],
) -> Float[np.ndarray, "other layer target_layer"]:
    """How strong each state is, on average over the names that it is not of; states without such names are left out."""
    n_names, n_states = share.shape[:2]
    is_other = ~np.eye(n_names, n_states, dtype=bool)
    return np.array(
        [share[is_other[:, state], state].mean(axis=0) for state in range(n_states) if is_other[:, state].any()]
    ).reshape(-1, *share.shape[2:])


def measure_grid(
    classes: Int[np.ndarray, "template name state layer target_layer"],
    unpatched: Int[np.ndarray, "template name"],
    layers: Sequence[int],
    target_layers: Sequence[int],
    n_layers: int,
    seed: int,
) -> Json:
    """All that is reported of one grid.

    Args:
        layers, target_layers: of its rows and columns.
        n_layers: of the model.
    """
    share = (classes == STRONG).mean(axis=0)
    own = (select_own(classes) == STRONG).mean(axis=0)
    known = (select_own(classes) > 0).mean(axis=0)
    other = average_others(share)
    alone = summarise((unpatched == STRONG).mean(axis=0), seed)
    views = {
        name: {
            "strong": summarise(own.mean(axis=axes), seed),
            "strong_or_partial": summarise(known.mean(axis=axes), seed),
            "other_state": summarise(other.mean(axis=axes), seed),
        }
        for name, axes in (("by_pair", ()), ("by_layer", (2,)), ("by_target_layer", (1,)))
    }
    p_values = compute_p_values(share, seed)
    places: dict[str, list[Json]] = {
        "pairs": [{"layer": layer, "target_layer": target} for layer in layers for target in target_layers],
        "layers": [{"layer": layer} for layer in layers],
        "target_layers": [{"target_layer": target} for target in target_layers],
    }
    return {
        "success": {
            name: summarise((select_own(classes) == number).mean(axis=(0, 2, 3)), seed)
            for number, name in enumerate(CLASSES)
        },
        "other_state": summarise(other.mean(axis=(1, 2)), seed),
        "unpatched": alone,
        **views,
        "by_name": own.mean(axis=(1, 2)).tolist(),
        "by_template": [
            measure_template(of_template, of_unpatched, seed)
            for of_template, of_unpatched in zip(classes == STRONG, unpatched == STRONG, strict=True)
        ],
        "hotspots": {
            what: select_hotspots(of_places, view, alone, p_values[what])
            for (what, of_places), view in zip(places.items(), views.values(), strict=True)
        },
        "regions": measure_regions(own, layers, target_layers, n_layers, seed),
    }


def summarise(values: Float[np.ndarray, " sample *rest"], seed: int) -> Json:
    """The mean over samples with its interval; of one sample without an interval, and of none nothing."""
    if len(values) == 0:
        return None
    if len(values) == 1:
        return {"mean": values[0].tolist(), "ci95": None}
    return mean_with_interval(values, seed=seed).as_json()


def measure_template(
    strong: Bool[np.ndarray, "name state layer target_layer"], unpatched: Bool[np.ndarray, " name"], seed: int
) -> Json:
    """The success of one template over all its pairs, and its controls."""
    numbers = np.arange(len(strong))
    return {
        "strong": summarise(strong[numbers, numbers].mean(axis=(1, 2)), seed),
        "other_state": summarise(average_others(strong.astype(float)).mean(axis=(1, 2)), seed),
        "unpatched": float(unpatched.mean()),
    }


def select_hotspots(
    places: Sequence[Json], view: Json, unpatched: Json, p_values: Float[np.ndarray, " *place"]
) -> list[Json]:
    """The places that stand out of chance, and whose share is above the intervals of both controls."""
    if view["other_state"] is None:
        return []
    strong, other = (np.ravel(view[of]["mean"]) for of in ("strong", "other_state"))
    high = np.maximum(_get_high(view["other_state"]), _get_high(unpatched))
    return [
        place | {"strong": float(strong[number]), "other_state": float(other[number]), "p": float(p)}
        for number, (place, p) in enumerate(zip(places, p_values.ravel(), strict=True))
        if p <= LayerGridConfig.ALPHA and strong[number] > high[number]
    ]


def _get_high(summary: Json) -> Float[np.ndarray, " place"]:
    """The upper ends of a summary's intervals; the mean itself where it has none."""
    if summary["ci95"] is None:
        return np.ravel(summary["mean"])
    return np.array(summary["ci95"]).reshape(-1, 2)[:, 1]


def measure_regions(
    own: Float[np.ndarray, "name layer target_layer"],
    layers: Sequence[int],
    target_layers: Sequence[int],
    n_layers: int,
    seed: int,
) -> Json:
    """How strong the pairs in each region of `REGIONS` are, beside all others; None where there are none of either."""
    depths = [np.array(some) / max(1, n_layers - 1) for some in (layers, target_layers)]
    measured: Json = {}
    for name, region in REGIONS.items():
        within = [(low <= depth) & (depth <= high) for depth, (low, high) in zip(depths, region, strict=True)]
        inside = np.outer(*within)
        if inside.all() or not inside.any():
            measured[name] = None
            continue
        there, elsewhere = own[:, inside].mean(axis=1), own[:, ~inside].mean(axis=1)
        measured[name] = {
            "inside": summarise(there, seed),
            "outside": summarise(elsewhere, seed),
            "difference": summarise(there - elsewhere, seed),
        }
    return measured
