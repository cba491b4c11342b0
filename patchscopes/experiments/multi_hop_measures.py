"""How many two-hop questions a method solves: by any pair of layers, and by one that was chosen on other questions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from patchscopes.data.questions import TwoHopQuestion
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.layer_pairs import score_held_out, tabulate_solved
from patchscopes.metrics import mean_with_interval
from patchscopes.results import Json


def count_hops_alone(questions: Sequence[TwoHopQuestion], hops: Sequence[Json]) -> Json:
    """For each category: how many questions there are, and of how many the model answers each hop alone, and both."""
    counts: dict[str, dict[str, int]] = {}
    for question, one in zip(questions, hops, strict=True):
        solved = one["hop1"]["solved"], one["hop2"]["solved"]
        count = counts.setdefault(question.category, {"n_questions": 0, "hop1": 0, "hop2": 0, "both": 0})
        for name, value in zip(count, (1, *solved, min(solved)), strict=True):
            count[name] += value
    return counts


def summarise_methods(
    questions: Sequence[TwoHopQuestion],
    answered: Sequence[Json],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: MultiHopConfig,
) -> Json:
    """All measures of all methods, with intervals over questions; those about the same thing are resampled together.

    The intervals of `held_out` take the chosen pairs as given. A patching method that could not be tried on every
    question is left out.
    """
    bridges = sorted({question.hop1_answer for question in questions})
    groups = np.array([bridges.index(question.hop1_answer) for question in questions])

    def interval(values: Float[np.ndarray, " question"]) -> Json:
        return mean_with_interval(values, groups=groups, seed=config.seed).as_json()

    summary: Json = {}
    values: dict[str, dict[str, Any]] = {}
    vanilla = np.array([one["vanilla"]["solved"] for one in answered], dtype=float)
    for method in MultiHopConfig.UNPATCHED:
        if method in config.methods:
            solved = np.array([one[method]["solved"] for one in answered], dtype=float)
            summary[method] = {"accuracy": interval(solved)}
    for method in MultiHopConfig.PATCHED:
        if not all(method in one for one in answered):
            continue
        table = tabulate_solved([one[method]["solved"] for one in answered], layers, target_layers)
        upwards = np.array([[layer < target_layer for target_layer in target_layers] for layer in layers])
        held_out, pairs = score_held_out(table, groups, config.seed)
        values[method] = {"any": table.any(axis=(1, 2)).astype(float), "held_out": held_out}
        if method != "back_patch":
            values[method]["any_upwards"] = (table & upwards).any(axis=(1, 2)).astype(float)
        summary[method] = {measure: interval(scores) for measure, scores in values[method].items()} | {
            "held_out_pairs": [(layers[row], target_layers[column]) for row, column in pairs],
            "held_out_gain": interval(held_out - vanilla),
            "accuracy": mean_with_interval(table.astype(float), groups=groups, seed=config.seed).as_json(),
        }
    if "patchscope" in values and "control" in values:
        for measure in ("any", "any_upwards", "held_out"):
            difference = values["patchscope"][measure] - values["control"][measure]
            summary["patchscope"][f"{measure}_above_control"] = interval(difference)
    failed = vanilla == 0
    for method, measures in values.items():
        summary[method]["n_failed"] = int(failed.sum())
        summary[method]["n_repaired"] = int(measures["any"][failed].sum())
    return summary
