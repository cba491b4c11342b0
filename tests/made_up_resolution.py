"""Documents of entity resolution with made-up numbers, in the form of the result files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchscopes.experiments.entity_resolution import UNITS
from patchscopes.experiments.entity_resolution_changes import summarise_measure


def make_curve(name: str, layers: Sequence[int]) -> np.ndarray:
    """The attribute leaves the subject around layer 22 of 30."""
    late = 1 / (1 + np.exp((22 - np.array(layers)) / 2))
    scale = 100 if name == "knockout" else 0.4
    return scale * {"tracing_last": late, "knockout": 4 * late * (1 - late)}.get(name, 1 - late)


def make_resolution(
    layers: Sequence[int] = range(30), measures: Sequence[str] = tuple(UNITS), n_samples: int = 36, scale: float = 1.0
) -> dict[str, Any]:
    """The document of `entity_resolution`."""
    layers, generator = list(layers), np.random.default_rng(0)

    def draw(name: str) -> np.ndarray:
        return scale * make_curve(name, layers) * generator.uniform(0.7, 1.3, (n_samples, 1))

    results = {
        "layers": layers,
        "window": 5,
        "n_facts": 350,
        "n_left_out": 0,
        "n_known": 120,
        "n_samples": n_samples,
        "n_subjects": n_samples,
        "measures": {
            name: {"unit": UNITS[name]} | summarise_measure(draw(name), layers, np.arange(n_samples), 0)
            for name in measures
        },
    }
    environment = {"model": {"id": "smollm2-135m-instruct"}}
    return {"experiment": "entity_resolution", "config": {}, "environment": environment, "results": results}
