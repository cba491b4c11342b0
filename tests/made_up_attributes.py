"""Documents of attribute extraction with made-up numbers, in the form of the result files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LAYERS = [0, 4, 8, 12, 17, 21, 25, 29]
RANKS = [4, 16, 64, 256]
TASKS = (
    "capital", "ceo", "constellation", "continent", "currency", "food_origin", "fruit_inside_color",
    "fruit_outside_color", "language", "largest_city", "nationality", "phase", "product_maker", "sport",
    "sports_position", "superclass", "tool",
)  # fmt: skip
METHODS = ("patchscope", "probe", "probe_by_sample", "lre", "lre_patchscope")
ENVIRONMENT = {"model": {"id": "smollm2-135m-instruct"}, "dataset": None}


def measure(mean: Any) -> dict[str, Any]:
    """A measure with intervals of a plausible width."""
    middle = np.asarray(mean)
    ends = np.stack([np.clip(middle - 0.07, 0, 1), np.clip(middle + 0.07, 0, 1)], axis=-1)
    return {"mean": middle.tolist(), "ci95": ends.tolist()}


def measure_layers(curve: np.ndarray, name: str) -> dict[str, Any]:
    """The measures of a method that answers once at each ℓ."""
    return {
        name: measure(curve),
        f"mean_{name}": measure(curve.mean()),
        "held_out": measure(curve.max()),
        "held_out_layers": [LAYERS[int(curve.argmax())]] * 2,
    }


def make_methods(generator: np.random.Generator) -> dict[str, dict[str, Any]]:
    """All methods of one task: the Patchscope and the LRE fall off in late layers."""
    height, late = generator.uniform(0.05, 0.98), 1 / (1 + np.exp((np.array(LAYERS) - 22) / 2))
    table = height * late[:, None] * generator.uniform(0.2, 1, (len(LAYERS), len(LAYERS)))
    by_layer = np.clip(table.max(axis=1) * 1.2, 0, 1)
    patchscope = {
        "any": measure(by_layer.mean()),
        "any_by_layer": measure(by_layer),
        "accuracy": measure(table),
        "held_out": measure(table.max()),
        "held_out_pairs": [[8, 12], [8, 17]],
        "control_unpatched": measure(generator.choice([0.0, 0.1])),
    }
    for control in ("control_any", "control_unrelated_any"):
        curve = by_layer * generator.uniform(0, 0.5)
        patchscope |= {control: measure(curve.mean()), f"{control}_by_layer": measure(curve)}
    faithful = measure_layers(late * generator.uniform(0.1, 0.9), "faithfulness")
    efficacy = late[:, None] * np.linspace(0.1, 0.8, len(RANKS))
    causal_test = {"layers": LAYERS, "ranks": RANKS, "n_subjects": 20}
    causal_test |= {"efficacy": measure(efficacy), "answers": measure(efficacy / 2)}
    in_context = measure(late * generator.uniform(0.4, 0.95))
    probe = generator.uniform(0, 0.7, len(LAYERS))
    return {
        "most_frequent": {"answer": "euro", "accuracy": measure(generator.uniform(0, 0.4))},
        "patchscope": patchscope,
        "probe": measure_layers(probe, "accuracy"),
        "probe_by_sample": measure_layers(np.clip(probe + 0.3, 0, 1), "accuracy"),
        "lre": {**faithful, "faithfulness_in_context": in_context, "examples": [], "causal_test": causal_test},
        "lre_patchscope": {**faithful, "largest_logit_difference": 1e-5},
    }


def make_attributes(names: Sequence[str] = TASKS, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """The document of `attributes` with some tasks and methods."""
    generator = np.random.default_rng(0)
    tasks = {}
    for name in names:
        made = make_methods(generator)
        n_samples = int(generator.integers(15, 200))
        kept = {method: made[method] for method in ("most_frequent", *methods)}
        tasks[name] = {
            "kind": "factual",
            "prompt": "The … of {}",
            "n_drawn": n_samples // 5,
            "n_samples": n_samples,
            "methods": kept,
        }
    results = {"layers": LAYERS, "target_layers": LAYERS, "dropped": [{"name": "river_mouth"}], "tasks": tasks}
    return {"experiment": "attributes", "config": {}, "environment": ENVIRONMENT, "results": results}


def make_attribute_lens(tokens: Sequence[str], layers: Sequence[int] = tuple(range(0, 30, 2))) -> dict[str, Any]:
    """The document of `attribute_lens` for the tokens of a text."""
    generator = np.random.default_rng(0)
    words = np.array([" Paris", " Rome", " the", "\n", " $1$", " Constantinople", " a"])
    shape = (len(layers), len(tokens))
    results = {
        "relation": "capital",
        "prompt": "The capital of {}",
        "tokens": list(tokens),
        "layers": list(layers),
        "top": words[generator.integers(len(words), size=shape)].tolist(),
        "probability": generator.uniform(0, 1, shape).tolist(),
    }
    return {"experiment": "attribute_lens", "config": {}, "environment": ENVIRONMENT, "results": results}


def make_attribute_layers(
    subject: str = "Canada", answer: str = "Ottawa", target_layers: Sequence[int] = tuple(LAYERS)
) -> dict[str, Any]:
    """The document of `attribute_layers` for one subject."""
    solved = np.random.default_rng(0).integers(2, size=(len(LAYERS), len(target_layers)))
    says = {0: " the name of a place.\n\nQuestion: what is", 1: " Ottawa. It lies in Ontario"}
    results = {
        "subject": subject,
        "object": answer,
        "relation": "capital",
        "prompt": "The capital of {}",
        "layers": LAYERS,
        "target_layers": list(target_layers),
        "source_prompt": f"Yesterday we talked for an hour about {subject}",
        "methods": {
            "patchscope": {"texts": [[says[one] for one in row] for row in solved.tolist()], "solved": solved.tolist()},
            "unpatched": {"text": " the world is\n the city of", "solved": 0},
            "in_clear": {"text": " is Ottawa.", "solved": 1},
        },
    }
    return {"experiment": "attribute_layers", "config": {}, "environment": ENVIRONMENT, "results": results}


def make_attribute_example(
    subject: str = "Japan", answer: str = "yen", methods: Sequence[str] = METHODS, layers: Sequence[int] = tuple(LAYERS)
) -> dict[str, Any]:
    """The document of `attribute_example` for one subject."""
    generator = np.random.default_rng(0)

    def read() -> dict[str, Any]:
        curve = generator.uniform(0, 1, len(layers))
        known = {"solved": (curve > 0.5).astype(int).tolist(), "probability": curve.tolist()}
        known |= {"of_other": (curve / 20).tolist()}
        return {"top": [" yen"] * len(layers), "top_probability": curve.tolist()} | (
            known if answer else dict.fromkeys(known)
        )

    once = {"text": " is the yen", "solved": 1, "probability": 0.4 if answer else None}
    made = {"in_clear": once, "unpatched": once | {"solved": 0, "probability": 0.01}}
    made |= {method: read() for method in methods if method in ("patchscope", "probe", "lre", "lre_patchscope")}
    if "lre_patchscope" in made:
        made["lre_patchscope"] |= {name: made["lre"][name] for name in ("probability", "top_probability", "solved")}
    if "probe" in made:
        made["probe"]["share"] = 0.1
    results = {
        "subject": subject,
        "object": answer,
        "other_subject": "Peru" if answer else None,
        "relation": "currency",
        "prompt": "The official currency of {}",
        "layers": list(layers),
        "target_layers": [0] * len(layers),
        "source_prompt": f"Yesterday we talked for an hour about {subject}",
        "methods": made,
    }
    return {"experiment": "attribute_example", "config": {}, "environment": ENVIRONMENT, "results": results}
