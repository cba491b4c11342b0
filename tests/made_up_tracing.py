"""Documents of causal tracing with made-up numbers, in the form of the result files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchscopes.experiments.config import CausalTracingConfig

SITES, CLASSES = CausalTracingConfig.SITES, CausalTracingConfig.TOKEN_CLASSES
TOKENS = ("V", "inson", " Mass", "if", " is", " in", " the", "\n", " $5 of $")
OF_TOKENS = (CLASSES[0], CLASSES[1], CLASSES[1], CLASSES[2], CLASSES[3], *[CLASSES[4]] * 3, CLASSES[5])


def measure(mean: Any) -> dict[str, Any]:
    """A measure with intervals of a plausible width."""
    middle = np.asarray(mean)
    return {"mean": middle.tolist(), "ci95": np.stack([middle - 0.03, middle + 0.03], axis=-1).tolist()}


def make_curve(token_class: str, layers: Sequence[int]) -> np.ndarray:
    """The effect of the last subject token falls off in late layers, where that of the last token rises."""
    late = 1 / (1 + np.exp((22 - np.array(layers)) / 2))
    return {"last_subject": 0.4 * (1 - late), "last": 0.4 * late}.get(token_class, 0.05 * (1 - late))


def make_tracing(
    layers: Sequence[int] = range(30),
    classes: Sequence[str] = CLASSES,
    methods: Sequence[str] = CausalTracingConfig.METHODS,
    n_original: int = 4,
    prompt: str = "Vinson Massif is in the\n $5 of $",
) -> dict[str, Any]:
    """The document of `causal_tracing`; the tokens of the one fact are those of the classes."""
    summary = {
        site: {
            one: measure(make_curve(one, layers)) | {"n_facts": 11 if one == "middle_subject" else 40}
            for one in classes
        }
        for site in SITES
    }
    tokens = [(token, one) for token, one in zip(TOKENS, OF_TOKENS, strict=True) if one in classes]
    table = [make_curve(one, layers).tolist() for _, one in tokens]
    fact = {
        "prompt": prompt,
        "subject": "Vinson Massif",
        "attribute": "Antarctica",
        "relation": "unspecified",
        "answer": " Ant",
        "tokens": [token for token, _ in tokens],
        "token_classes": [one for _, one in tokens],
        "clean": 0.6,
        "corrupted": 0.01,
        "total_effect": 0.59,
        "indirect_effect": dict.fromkeys(SITES, table),
    }
    counts = {"original": n_original if "patchscope" in methods else 40, "patchscope": 40}
    effects = {"clean": measure(0.5), "corrupted": measure(0.05), "total_effect": measure(0.45)}
    return {
        "experiment": "causal_tracing",
        "config": {"noise": 3.0, "n_noise_samples": 10, "window": 10},
        "environment": {"model": {"id": "smollm2-135m-instruct"}, "dataset": None},
        "results": {
            "layers": list(layers),
            "embedding_spread": 0.1,
            "n_facts": 600,
            "n_known": 200,
            "n_samples": 40,
            "methods": {
                method: {"n_samples": counts[method], **effects, "indirect_effect": summary} for method in methods
            },
            "largest_probability_difference": 3.2e-6 if len(methods) == 2 else None,
            "example": 0,
            "facts": [fact],
        },
    }
