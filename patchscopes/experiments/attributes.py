"""Attribute extraction (paper, section 4.2): a subject's attribute is read out of one hidden state.

Four methods on one set of samples, each a subject that the model knows in a source prompt that names it:

* `patchscope`: T = the relation's phrase and an x, nothing trained; right if the object is among the words that follow;
* `probe`: logistic regression on the same states, with the objects as classes;
* `lre`, `lre_patchscope`: the LRE Attribute Lens (Hernandez et al. 2023), W and b estimated from a few other subjects,
  in its original form and as a Patchscope (T = S, ℓ* = last, f = β W s + b).

What they are measured by is in `attribute_measures`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from patchscopes.data.relations import Relation
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attribute_measures import (
    compare_methods,
    measure_most_frequent,
    number_subjects,
    summarise_by_layer,
    summarise_lre,
    summarise_patchscope,
)
from patchscopes.experiments.attribute_samples import describe_sample
from patchscopes.experiments.attribute_tasks import (
    LRE_METHODS,
    Task,
    has_enough_samples,
    measure_tasks,
    prepare_tasks,
)
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, sum_timing
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json


def run(
    model: LensModel,
    relations: Sequence[Relation],
    carriers: Mapping[str, Sequence[str]],
    config: AttributesConfig,
    store: ChunkStore,
    *,
    texts: Sequence[str] | None = None,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        carriers: sentences for each kind of subject, which the source prompts are cut from.
        texts: to cut them from instead.
        progress: wraps the iteration over relations, and then over the parts of their tasks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, a relation's phrase leaves no token of its own to the x, or
            no task has enough samples.
    """
    check_methods(config.methods, AttributesConfig.METHODS)
    layers, target_layers = resolve_layer_grid(model, config)
    tasks = prepare_tasks(model, relations, carriers, texts, config, store, progress)
    kept = [task for task in tasks if has_enough_samples(task)]
    if not kept:
        raise PatchscopesError(
            f"no task has enough samples for {model.cfg.model_name!r}: {AttributesConfig.FEWEST_SAMPLES} of at least "
            f"two subjects that it knows. Of {len(relations)} relations the best has "
            f"{max(len(task.samples) for task in tasks)}, with at most {config.n_subjects} subjects and "
            f"{config.n_prompts} source prompts of each asked for; ask for more, or give easier relations, more texts "
            "or a larger model"
        )
    measured = measure_tasks(model, kept, layers, target_layers, config, store, progress)
    results = {
        "layers": layers,
        "target_layers": target_layers,
        "dropped": [{"name": task.relation.name, **task.counts} for task in tasks if task not in kept],
        "tasks": {
            task.relation.name: summarise_task(task, steps, layers, target_layers, config, len(kept))
            for task, steps in zip(kept, measured, strict=True)
        },
    }
    finished = [chunk for steps in measured for chunks in steps.values() for chunk in chunks]
    return results, sum_timing([*(task.known for task in tasks), *finished])


def resolve_layer_grid(model: LensModel, config: AttributesConfig) -> tuple[list[int], list[int]]:
    """The source and target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    layers = resolve_layers(model, config.layers, AttributesConfig.N_LAYERS)
    return layers, resolve_layers(model, config.target_layers, AttributesConfig.N_TARGET_LAYERS)


def summarise_task(
    task: Task,
    steps: Mapping[str, Sequence[Json]],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: AttributesConfig,
    n_tasks: int,
) -> Json:
    """The measures of all methods, how they compare, and every sample with what counted.

    Args:
        n_tasks: comparisons that Bonferroni's correction is for.
    """
    samples, seed = task.samples, config.seed
    groups = number_subjects(samples)
    described = [describe_sample(task.target.model, sample) for sample in samples]
    methods: Json = {"most_frequent": measure_most_frequent(samples, seed)}
    # Which samples a method was tried on, and at which ℓ it was right.
    rightly: dict[str, tuple[Sequence[int], np.ndarray]] = {}
    everyone = range(len(samples))
    if "patchscope" in steps:
        patched = [one for chunk in steps["patchscope"] for one in chunk["found"]]
        (controls,) = steps["controls"]
        methods["patchscope"], by_layer = summarise_patchscope(
            samples, patched, controls["found"], layers, target_layers, seed
        )
        rightly["patchscope"] = everyone, by_layer
        methods["patchscope"]["unpatched_text"] = controls["found"]["unpatched_text"]
        for entry, one, unrelated in zip(described, patched, controls["found"]["unrelated_texts"], strict=True):
            entry["patchscope"] = one | {"unrelated_texts": unrelated}
    if "probe" in steps:
        # In folds by subject, and by sample.
        for method, probed in zip(("probe", "probe_by_sample"), steps["probe"], strict=True):
            table = np.array(probed["found"])
            methods[method] = summarise_by_layer(table, groups, layers, "accuracy", seed)
            rightly[method] = everyone, table
    if "lre" in steps and steps["lre"][0]["found"] is not None:
        (lre,) = steps["lre"]
        forms = [method for method in LRE_METHODS if method in config.methods]
        methods |= summarise_lre(samples, lre["found"], forms, layers, seed)
        for method in forms:
            rightly[method] = lre["found"]["tested"], np.array([one[method] for one in lre["found"]["read"]])
    for method, (numbers, table) in rightly.items():
        if method != "patchscope":
            for number, row in zip(numbers, table.tolist(), strict=True):
                described[number][method] = row
    compared = [method for method in rightly if method != "patchscope"]
    # Both forms of the LRE read the same: one comparison does.
    if set(LRE_METHODS) <= set(compared):
        compared.remove("lre_patchscope")
    return {
        "kind": task.relation.kind,
        "prompt": task.relation.prompt,
        **task.counts,
        "left_out": task.relation.left_out,
        "known": task.known["found"],
        "methods": methods,
        "patchscope_against": {
            method: compare_methods(
                rightly["patchscope"][1][list(numbers)], table, groups[list(numbers)], n_tasks, seed
            )
            for method, (numbers, table) in rightly.items()
            if "patchscope" in rightly and method in compared
        },
        "samples": described,
    }
