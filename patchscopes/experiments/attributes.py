"""Attribute extraction (paper, section 4.2): a subject's attribute is read out of one hidden state.

Four methods on one set of samples, each a subject that the model knows in a source prompt that names it:

* `patchscope`: T = the relation's phrase and an x, nothing trained; right if the object is among the words that follow;
* `probe`: logistic regression on the same states, with the objects as classes;
* `lre`, `lre_patchscope`: the LRE Attribute Lens (Hernandez et al. 2023), W and b estimated from a few other subjects,
  in its original form and as a Patchscope (T = S, ℓ* = last, f = β W s + b).

What they are measured by is in `attribute_measures`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import Relation
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attribute_lre import measure_lre
from patchscopes.experiments.attribute_measures import (
    compare_methods,
    measure_most_frequent,
    number_subjects,
    summarise_by_layer,
    summarise_lre,
    summarise_patchscope,
)
from patchscopes.experiments.attribute_patching import (
    build_attribute_target,
    draw_others,
    measure_controls,
    patch_samples,
)
from patchscopes.experiments.attribute_samples import (
    AttributeSample,
    choose_source_texts,
    describe_sample,
    draw_samples,
    find_known,
    select_known,
)
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.probes import cross_validate_probe
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json

# Samples whose rows go through the engine together, and are finished together.
CHUNK_SAMPLES = 64
LRE_METHODS = ("lre", "lre_patchscope")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A relation and its samples.

    Attributes:
        target: T and i*.
        known: the finished step that says which subjects the model knows.
        counts: of the subjects, on their way to samples.
        store: of the task's own steps.
    """

    relation: Relation
    samples: Sequence[AttributeSample]
    target: TargetPrompt
    known: Json
    counts: Mapping[str, int]
    store: ChunkStore


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
        progress: wraps the iteration over relations, and then over tasks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, a relation's phrase leaves no token of its own to the x, or
            no task has enough samples.
    """
    check_methods(config.methods, AttributesConfig.METHODS)
    layers, target_layers = resolve_layer_grid(model, config)
    targets = [build_attribute_target(model, relation, config.chat) for relation in relations]
    # The number tells names apart that differ in signs only, or in case.
    folders = [f"{number}-" + re.sub(r"\W+", "-", one.name) for number, one in enumerate(relations, start=1)]
    tasks = [
        prepare_task(model, relation, target, carriers, texts, config, ChunkStore(store.folder / folder))
        for relation, target, folder in progress(list(zip(relations, targets, folders, strict=True)))
    ]
    kept = [task for task in tasks if has_enough_samples(task)]
    if not kept:
        raise PatchscopesError(
            f"no task has enough samples for {model.cfg.model_name!r}: {AttributesConfig.FEWEST_SAMPLES} of at least "
            f"two subjects that it knows. Of {len(relations)} relations the best has "
            f"{max(len(task.samples) for task in tasks)}, with at most {config.n_subjects} subjects and "
            f"{config.n_prompts} source prompts of each asked for; ask for more, or give easier relations, more texts "
            "or a larger model"
        )
    measured = [measure_task(model, task, layers, target_layers, config) for task in progress(kept)]
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


def has_enough_samples(task: Task) -> bool:
    """Whether a task is kept: few samples are dropped as in the paper, and from one subject nothing is learned."""
    return len(task.samples) >= AttributesConfig.FEWEST_SAMPLES and task.counts["n_drawn"] >= 2


def prepare_task(
    model: LensModel,
    relation: Relation,
    target: TargetPrompt,
    carriers: Mapping[str, Sequence[str]],
    texts: Sequence[str] | None,
    config: AttributesConfig,
    store: ChunkStore,
) -> Task:
    """The samples of a relation: its known subjects in source prompts."""
    (step,) = finish_step(store, "known", [relation], lambda one: find_known(model, one, config))
    known = select_known(relation, step["found"])
    source_texts = choose_source_texts(relation, carriers, texts, config)
    samples = draw_samples(model, known, source_texts, config)
    counts = {
        "n_left_out": relation.n_left_out,
        "n_subjects": len(relation.samples),
        "n_known": len(known),
        "n_in_texts": sum(len(of_subject) > 0 for of_subject in source_texts.values()),
        "n_drawn": len({sample.fact for sample in samples}),
        "n_samples": len(samples),
    }
    return Task(relation=relation, samples=samples, target=target, known=step, counts=counts, store=store)


def measure_task(
    model: LensModel, task: Task, layers: Sequence[int], target_layers: Sequence[int], config: AttributesConfig
) -> dict[str, list[Json]]:
    """The finished chunks of each step of a task."""
    samples, target = task.samples, task.target

    @cache
    def extract() -> Float[Tensor, "sample layer d_model"]:
        return extract_representations(
            model, [list(sample.tokens) for sample in samples], [sample.position for sample in samples], layers
        )

    def patch(numbers: Sequence[int]) -> Json:
        some = [samples[number] for number in numbers]
        return patch_samples(
            target, some, [others[number] for number in numbers], extract()[numbers], layers, target_layers, config
        )

    def probe(_: None) -> Json:
        states = extract().float().cpu().numpy()
        objects, subjects = [sample.fact.object for sample in samples], [sample.fact.subject for sample in samples]
        # As for the other methods, right is what holds an accepted answer.
        accepted = [
            [name for name in set(objects) if contains_answer(name, sample.fact.accepted)] for sample in samples
        ]
        return {
            folds_by: cross_validate_probe(
                states, objects, subjects, accepted=accepted, folds_by=folds_by, seed=config.seed
            )
            .astype(int)
            .tolist()
            for folds_by in ("subject", "sample")
        }

    steps: dict[str, list[Json]] = {}
    if "patchscope" in config.methods:
        others = draw_others(samples, config.seed)
        chunks = split_into_chunks(range(len(samples)), CHUNK_SAMPLES)
        steps["patchscope"] = finish_step(task.store, "patchscope", chunks, patch)
        steps["controls"] = finish_step(
            task.store,
            "controls",
            [samples],
            lambda some: measure_controls(target, some, layers, target_layers, config),
        )
    if "probe" in config.methods:
        steps["probe"] = finish_step(task.store, "probe", [None], probe)
    if any(method in config.methods for method in LRE_METHODS):
        steps["lre"] = finish_step(
            task.store,
            "lre",
            [samples],
            lambda some: measure_lre(model, task.relation, some, extract(), layers, config),
        )
    return steps


def finish_step(store: ChunkStore, step: str, chunks: Sequence[Any], measure: Callable[[Any], Json]) -> list[Json]:
    """What one step of a task finds for each chunk, and the seconds that it took; finished chunks are kept."""

    def timed(chunk: Any) -> Json:
        watch = StopWatch()
        with watch.time(step):
            found = measure(chunk)
        return {"found": found, "seconds": watch.seconds}

    return measure_chunks(chunks, ChunkStore(store.folder / step), timed, iter)


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
        (probed,) = steps["probe"]
        for method, folds_by in (("probe", "subject"), ("probe_by_sample", "sample")):
            table = np.array(probed["found"][folds_by])
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
