"""How well each method extracts the attribute of one task, with intervals over subjects, and how the methods compare.

A method's two numbers that can be set side by side are its share of right answers averaged over ℓ (for the Patchscope
that of `any`, the paper's measure) and `held_out`: at the one ℓ, or pair (ℓ, ℓ*), that is best on half of the subjects,
scored on the others, both ways.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from patchscopes.data.questions import contains_answer
from patchscopes.experiments.attribute_patching import flatten_pairs
from patchscopes.experiments.attribute_samples import AttributeSample
from patchscopes.experiments.layer_pairs import score_held_out, tabulate_solved
from patchscopes.metrics import mean_with_interval, paired_t_test
from patchscopes.results import Json


def number_subjects(samples: Sequence[AttributeSample]) -> Int[np.ndarray, " sample"]:
    """The same number for all samples of a subject: they are not independent, and are resampled together."""
    subjects = list(dict.fromkeys(sample.fact.subject for sample in samples))
    return np.array([subjects.index(sample.fact.subject) for sample in samples])


def summarise_patchscope(
    samples: Sequence[AttributeSample],
    patched: Sequence[Json],
    without_state: Json,
    layers: Sequence[int],
    target_layers: Sequence[int],
    seed: int,
) -> tuple[Json, Float[np.ndarray, "sample layer"]]:
    """All measures of the Patchscope and its controls; and whether any ℓ* is right, for each sample and ℓ."""
    groups = number_subjects(samples)
    table = tabulate_solved([flatten_pairs(one["texts"]) for one in patched], layers, target_layers)
    by_layer = table.any(axis=2).astype(float)
    held_out, pairs = score_held_out(table, groups, seed)
    of_unrelated = [flatten_pairs(one) for one in without_state["unrelated_texts"]]
    unrelated = tabulate_solved(of_unrelated, layers, target_layers).any(axis=2).astype(float)
    unpatched = np.array(without_state["unpatched"], dtype=float)
    measures = {
        "any": interval(by_layer.mean(axis=1), groups, seed),
        "any_by_layer": interval(by_layer, groups, seed),
        "accuracy": interval(table, groups, seed),
        "held_out": interval(held_out, groups, seed),
        "held_out_pairs": [(layers[row], target_layers[column]) for row, column in pairs],
        "control_unrelated_any": interval(unrelated.mean(axis=1), groups, seed),
        "control_unrelated_any_by_layer": interval(unrelated, groups, seed),
        "control_unpatched": interval(unpatched, groups, seed),
    }
    controls = [number for number, one in enumerate(patched) if "other_texts" in one]
    if controls:
        wrong = [flatten_pairs(patched[number]["other_texts"]) for number in controls]
        other = tabulate_solved(wrong, layers, target_layers).any(axis=2).astype(float)
        measures |= {
            "control_any": interval(other.mean(axis=1), groups[controls], seed),
            "control_any_by_layer": interval(other, groups[controls], seed),
        }
    return measures, by_layer


def summarise_by_layer(
    rightly: Num[np.ndarray, "sample layer"],
    groups: Int[np.ndarray, " sample"],
    layers: Sequence[int],
    measure: str,
    seed: int,
) -> Json:
    """The measures of a method that answers once at each ℓ.

    Args:
        measure: what its share of right answers at each ℓ is called.
    """
    held_out, pairs = score_held_out(rightly.astype(bool)[:, :, None], groups, seed)
    return {
        measure: interval(rightly, groups, seed),
        f"mean_{measure}": interval(rightly.mean(axis=1), groups, seed),
        "held_out": interval(held_out, groups, seed),
        "held_out_layers": [layers[row] for row, _ in pairs],
    }


def summarise_lre(
    samples: Sequence[AttributeSample], measured: Json, methods: Sequence[str], layers: Sequence[int], seed: int
) -> Json:
    """The measures of the LRE in the forms that were asked for; the causal test is the original's alone."""
    groups = number_subjects(samples)[measured["tested"]]
    summary: Json = {}
    for method in methods:
        rightly = np.array([one[method] for one in measured["read"]])
        summary[method] = summarise_by_layer(rightly, groups, layers, "faithfulness", seed)
    if len(methods) == 2:
        summary["lre_patchscope"]["largest_logit_difference"] = max(
            one["largest_difference"] for one in measured["read"]
        )
    if "lre" in methods:
        in_context = np.array(measured["in_context"])
        summary["lre"] |= {
            "faithfulness_in_context": interval(in_context, np.arange(len(in_context)), seed),
            "examples": measured["examples"],
            "betas": measured["betas"],
        }
        if measured["editing"] is not None:
            summary["lre"]["causal_test"] = measured["editing"]
    return summary


def measure_most_frequent(samples: Sequence[AttributeSample], seed: int) -> Json:
    """How often the answer that fits most subjects of the task is right: what can be said without any state."""
    accepted = {sample.fact.subject: sample.fact.accepted for sample in samples}
    answers = list(dict.fromkeys(sample.fact.object for sample in samples))
    fits = [sum(contains_answer(answer, of_subject) for of_subject in accepted.values()) for answer in answers]
    answer = answers[int(np.argmax(fits))]
    rightly = np.array([contains_answer(answer, sample.fact.accepted) for sample in samples], dtype=float)
    return {"answer": answer, "accuracy": interval(rightly, number_subjects(samples), seed)}


def compare_methods(
    patchscope: Float[np.ndarray, "sample layer"],
    other: Num[np.ndarray, "sample layer"],
    groups: Int[np.ndarray, " sample"],
    n_comparisons: int,
    seed: int,
) -> Json:
    """The Patchscope (right by any ℓ*) against another method on the same samples, in two ways.

    `t_test_over_layers` is the paper's: paired, over the shares at each ℓ, with Bonferroni's correction (None for a
    single ℓ). Layers are not independent, so its p is too small; `difference` has an interval over subjects.
    """
    difference = (patchscope - other).mean(axis=1)
    t_test = None
    if patchscope.shape[1] > 1:
        t_test = paired_t_test(patchscope.mean(axis=0), other.mean(axis=0), n_comparisons).as_json()
    return {"difference": interval(difference, groups, seed), "t_test_over_layers": t_test}


def interval(
    values: np.ndarray,
    groups: Int[np.ndarray, " sample"],
    seed: int,
) -> Json:
    """`mean` and `ci95` over subjects of values by sample, and by whatever follows."""
    return mean_with_interval(values.astype(float), groups=groups, seed=seed).as_json()
