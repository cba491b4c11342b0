"""Entity resolution: what the model takes a name for, layer by layer (paper, section 4.3).

The source prompt is the entity's name. The representation of its last token at each layer is written over the
placeholder of the entity-description prompt, and the model goes on with a description of what it finds there, which is
compared with a reference by ROUGE. Two baselines frame it: the name itself in the placeholder's place (as well as this
model can do), and the placeholder left as it is (what is said about nothing).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.entities import Entity, cut_description
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.sampling import measure_chunks, resolve_layers, sum_timing
from patchscopes.metrics import ROUGE_TYPES, mean_with_interval, rouge
from patchscopes.model.layers import resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate
from patchscopes.results import ChunkStore, Json

# Entities that are finished, and kept, together.
CHUNK_ENTITIES = 32
SCORES = ("precision", "recall", "f1")
# What a score is of: the description up to where the prompt's format ends it, or all that was generated.
SCORED = ("description", "generation")


def run(
    model: LensModel,
    entities: Sequence[Entity],
    config: EntityConfig,
    store: ChunkStore,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        progress: wraps the iteration over chunks of entities, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["entities"]` has every generation and score;
        `results["methods"]` and, for each group, `results["popularity"]` have means and intervals over entities.

    Raises:
        PatchscopesError: no entities, or a layer or the placeholder does not exist.
    """
    if not entities:
        raise PatchscopesError("no entities were given; give at least one")
    layers = resolve_layers(model, config.layers)
    target = placeholder_target(model, config.target_prompt, config.placeholder)
    where = resolve_target_layers(model, layers, config.target_layer)
    chunks = [entities[start : start + CHUNK_ENTITIES] for start in range(0, len(entities), CHUNK_ENTITIES)]

    def measure(chunk: Sequence[Entity]) -> Json:
        return _describe(model, target, chunk, layers, where, config)

    finished = measure_chunks(chunks, store, measure, progress)
    described = [entity for chunk in finished for entity in chunk["entities"]]
    groups = sorted({entity.popularity for entity in entities})
    results = {
        "layers": layers,
        "target_layers": where,
        "n_samples": len(entities),
        "methods": summarise_scores(described, config.seed),
        "popularity": {
            group: {"n_samples": len(members), "methods": summarise_scores(members, config.seed)}
            for group in groups
            if (members := [entity for entity in described if entity["popularity"] == group])
        },
        "entities": described,
    }
    return results, sum_timing(finished)


def fill_placeholder(config: EntityConfig, name: str) -> str:
    """The target prompt with a name in the place of its placeholder."""
    before, _, after = config.target_prompt.rpartition(config.placeholder)
    return before + name + after


def generate_descriptions(
    model: LensModel,
    target: TargetPrompt,
    names: Sequence[str],
    layers: Sequence[int],
    where: Sequence[int],
    config: EntityConfig,
) -> list[list[str]]:
    """What the model says for the representation of each name's last token at each layer."""
    return generate_from_vectors(
        target, extract_representations(model, names, [-1] * len(names), layers), where, config
    )


def generate_from_vectors(
    target: TargetPrompt,
    vectors: Float[Tensor, "name row d_model"],
    where: Sequence[int],
    config: EntityConfig,
) -> list[list[str]]:
    """What the target model says for the vectors of each name, the r-th of them written at layer `where[r]`."""
    tokens = patch_generate(
        target,
        vectors.flatten(0, 1),
        list(where) * len(vectors),
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    texts = target.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [texts[start : start + len(where)] for start in range(0, len(texts), len(where))]


def _describe(
    model: LensModel,
    target: TargetPrompt,
    entities: Sequence[Entity],
    layers: Sequence[int],
    where: Sequence[int],
    config: EntityConfig,
) -> Json:
    """Every generation and score for some entities, and the seconds that each step took."""
    names = [entity.name for entity in entities]
    started = time.perf_counter()
    patched = generate_descriptions(model, target, names, layers, where, config)
    after_patched = time.perf_counter()
    prompts = [fill_placeholder(config, name) for name in [*names, config.placeholder]]
    tokens = generate_after(model, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    *in_clear, unpatched = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    after_baselines = time.perf_counter()
    described = [
        {
            "entity": entity.name,
            "reference": entity.reference,
            "kind": entity.kind,
            "popularity": entity.popularity,
            "methods": {
                "patchscope": score_descriptions(by_layer, entity.reference, config.separator),
                "name_in_clear": score_descriptions([clear], entity.reference, config.separator),
                "unpatched": score_descriptions([unpatched], entity.reference, config.separator),
            },
        }
        for entity, by_layer, clear in zip(entities, patched, in_clear, strict=True)
    ]
    return {
        "entities": described,
        "seconds": {
            "patchscope": after_patched - started,
            "baselines": after_baselines - after_patched,
            "rouge": time.perf_counter() - after_baselines,
        },
    }


def score_descriptions(texts: Sequence[str], reference: str, separator: str) -> Json:
    """The generations, their descriptions, and the scores of both, one list entry per generation."""
    of = {"generation": list(texts), "description": [cut_description(text, separator) for text in texts]}
    scores = {what: [rouge(text, reference) for text in of[what]] for what in SCORED}
    return of | {
        f"{kind}_{score}_of_{what}": [one[kind][score] for one in scores[what]]
        for what in SCORED
        for kind in ROUGE_TYPES
        for score in SCORES
    }


def summarise_scores(described: Sequence[Json], seed: int) -> Json:
    """Means and intervals over entities of each score of each method."""
    methods = described[0]["methods"]
    return {
        method: {
            metric: mean_with_interval(
                np.array([entity["methods"][method][metric] for entity in described]), seed=seed
            ).as_json()
            for metric in methods[method]
            if metric not in SCORED
        }
        for method in methods
    }
