"""The tasks of attribute extraction, each a relation and its samples, and the steps that they are measured in.

The parts of all steps of all tasks are independent of each other, so that several processes share them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, get_args

from jaxtyping import Float
from torch import Tensor

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.estimating.steps import Part
from patchscopes.experiments.attribute_lre import measure_lre
from patchscopes.experiments.attribute_patching import (
    build_attribute_target,
    draw_others,
    measure_controls,
    patch_samples,
)
from patchscopes.experiments.attribute_samples import (
    AttributeSample,
    choose_source_texts,
    draw_samples,
    find_known,
    select_known,
)
from patchscopes.experiments.chunks import Progress, StopWatch, measure_parts, split_into_chunks
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.probes import FoldsBy, cross_validate_probe
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json

# Samples whose rows go through the engine together, and are finished together.
CHUNK_SAMPLES = 64
LRE_METHODS = ("lre", "lre_patchscope")

# What each step of a task finds, one part after the other.
Steps: TypeAlias = dict[str, list[Json]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A relation and its samples.

    Attributes:
        target: T and i*.
        known: the finished step that says which subjects the model knows.
        counts: of the subjects, on their way to samples.
        folder: in which the task's own steps are kept.
    """

    relation: Relation
    samples: Sequence[AttributeSample]
    target: TargetPrompt
    known: Json
    counts: Mapping[str, int]
    folder: str


def prepare_tasks(
    model: LensModel,
    relations: Sequence[Relation],
    carriers: Mapping[str, Sequence[str]],
    texts: Sequence[str] | None,
    config: AttributesConfig,
    store: ChunkStore,
    progress: Progress,
) -> list[Task]:
    """The samples of each relation: its known subjects in source prompts.

    Raises:
        PatchscopesError: a relation's phrase leaves no token of its own to the x.
    """
    targets = [build_attribute_target(model, relation, config.chat) for relation in relations]
    # The number tells names apart that differ in signs only, or in case.
    folders = [f"{number}-" + re.sub(r"\W+", "-", one.name) for number, one in enumerate(relations, start=1)]

    def ask(relation: Relation, some: Sequence[RelationSample]) -> list[Json]:
        return find_known(model, replace(relation, samples=tuple(some)), config)

    asked = measure_parts(
        {
            f"{folder}/known": _time_part("known", Part(partial(ask, relation), relation.samples, decides=True))
            for folder, relation in zip(folders, relations, strict=True)
        },
        store,
        progress,
    )
    tasks = []
    for relation, target, folder, step in zip(relations, targets, folders, asked.values(), strict=True):
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
        task = Task(relation=relation, samples=samples, target=target, known=step, counts=counts, folder=folder)
        tasks.append(task)
    return tasks


def has_enough_samples(task: Task) -> bool:
    """Whether a task is kept: few samples are dropped as in the paper, and from one subject nothing is learned."""
    return len(task.samples) >= AttributesConfig.FEWEST_SAMPLES and task.counts["n_drawn"] >= 2


def measure_tasks(
    model: LensModel,
    tasks: Sequence[Task],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: AttributesConfig,
    store: ChunkStore,
    progress: Progress,
) -> list[Steps]:
    """What each step of each task finds, and the seconds that it took."""
    names: list[dict[str, list[str]]] = []
    parts: dict[str, Callable[[], Json]] = {}
    for task in tasks:
        of_task: dict[str, list[str]] = {}
        for step, of_step in _divide_task(model, task, layers, target_layers, config).items():
            of_task[step] = [f"{task.folder}/{step}/{number:05d}" for number in range(len(of_step))]
            parts |= {name: _time_part(step, part) for name, part in zip(of_task[step], of_step, strict=True)}
        names.append(of_task)
    found = measure_parts(parts, store, progress)
    return [{step: [found[name] for name in of_step] for step, of_step in of_task.items()} for of_task in names]


def _divide_task(
    model: LensModel, task: Task, layers: Sequence[int], target_layers: Sequence[int], config: AttributesConfig
) -> dict[str, list[Callable[[], Json]]]:
    """By step, the parts that a task is measured in."""
    samples, target = task.samples, task.target

    def extract(some: Sequence[AttributeSample]) -> Float[Tensor, "sample layer d_model"]:
        tokens, positions = [list(sample.tokens) for sample in some], [sample.position for sample in some]
        return extract_representations(model, tokens, positions, layers)

    def patch(numbers: Sequence[int]) -> Json:
        some, others = [samples[number] for number in numbers], [unlike[number] for number in numbers]
        return patch_samples(target, some, others, extract(some), layers, target_layers, config)

    def probe(folds_by: FoldsBy) -> Json:
        states = extract(samples).float().cpu().numpy()
        objects, subjects = [sample.fact.object for sample in samples], [sample.fact.subject for sample in samples]
        # As for the other methods, right is what holds an accepted answer.
        accepted = [
            [name for name in set(objects) if contains_answer(name, sample.fact.accepted)] for sample in samples
        ]
        right = cross_validate_probe(states, objects, subjects, accepted=accepted, folds_by=folds_by, seed=config.seed)
        return right.astype(int).tolist()

    steps: dict[str, list[Callable[[], Json]]] = {}
    if "patchscope" in config.methods:
        unlike = draw_others(samples, config.seed)
        chunks = split_into_chunks(range(len(samples)), CHUNK_SAMPLES)
        steps["patchscope"] = [Part(patch, numbers) for numbers in chunks]
        steps["controls"] = [partial(measure_controls, target, samples, layers, target_layers, config)]
    if "probe" in config.methods:
        steps["probe"] = [partial(probe, folds_by) for folds_by in get_args(FoldsBy)]
    if any(method in config.methods for method in LRE_METHODS):
        steps["lre"] = [lambda: measure_lre(model, task.relation, samples, extract(samples), layers, config)]
    return steps


def _time_part(step: str, part: Callable[[], Json]) -> Callable[[], Json]:
    """The part with the seconds that it takes."""
    if isinstance(part, Part):
        return Part(lambda some: _time(step, partial(part.measure, some)), part.members, part.decides)
    return partial(_time, step, part)


def _time(step: str, measure: Callable[[], Json]) -> Json:
    """What is found, and the seconds that it took."""
    watch = StopWatch()
    with watch.time(step):
        found = measure()
    return {"found": found, "seconds": watch.seconds}
