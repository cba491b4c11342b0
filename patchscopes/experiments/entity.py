"""Entity resolution: what the model takes a name for, layer by layer (paper, section 4.3).

The source prompt is the entity's name. The representation of its last token at each layer is written over the
placeholder of the entity-description prompt, and the model goes on with a description of what it finds there, which is
compared with references by ROUGE. Two baselines frame it: the name itself in the placeholder's place (as well as this
model can do), and the placeholder left as it is (what is said about nothing). How much of each token is due to the
representation, and not to the prompt, is its relevancy.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.entities import Entity, cut_description, find_description
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.relevancy import Continuation, describe_relevancy
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import EntityConfig
from patchscopes.metrics import ROUGE_TYPES, mean_with_interval, rouge
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import Row, Write, generate_with_relevancy, patch_generate
from patchscopes.positions import find_end
from patchscopes.prompts import Chat
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
    progress: Progress = iter,
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
    target_layers = resolve_target_layers(model, layers, config.target_layer)
    target = build_description_target(model, config)

    def measure(some: Sequence[Entity]) -> Json:
        return _describe_entities(target, some, layers, target_layers, config)

    finished = measure_chunks(split_into_chunks(entities, CHUNK_ENTITIES), store, measure, progress)
    described = [entity for chunk in finished for entity in chunk["entities"]]
    groups = {
        group: [entity for entity in described if entity["popularity"] == group]
        for group in sorted({entity.popularity for entity in entities})
    }
    results = {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": len(entities),
        "methods": summarise_scores(described, config.seed),
        "popularity": {
            group: {"n_samples": len(members), "methods": summarise_scores(members, config.seed)}
            for group, members in groups.items()
        },
        "entities": described,
    }
    return results, sum_timing(finished)


def _describe_entities(
    target: TargetPrompt,
    entities: Sequence[Entity],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: EntityConfig,
) -> Json:
    """Every generation and score for some entities, and the seconds that each step took."""
    model, names = target.model, [entity.name for entity in entities]
    watch = StopWatch()
    with watch.time("patchscope"):
        patched = generate_with_relevancies(target, names, layers, target_layers, config)
    with watch.time("baselines"):
        prompts = [fill_placeholder(config, name) for name in [*names, config.placeholder]]
        tokens = generate_after(model, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
        *in_clear, unpatched = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    with watch.time("rouge"):
        scored = [
            collect_scores(
                entity,
                {"patchscope": [one.text for one in said], "name_in_clear": [clear], "unpatched": [unpatched]},
                config.separator,
            )
            for entity, said, clear in zip(entities, patched, in_clear, strict=True)
        ]
    for described, said in zip(scored, patched, strict=True):
        described["methods"]["patchscope"] |= collect_relevancies(said, config.separator)
    return {"entities": scored, "seconds": watch.seconds}


def generate_with_relevancies(
    target: TargetPrompt,
    names: Sequence[str],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: EntityConfig,
) -> list[Sequence[Continuation]]:
    """`generate_descriptions`, with the relevancy of each token."""
    vectors = extract_names(target.model, names, layers, config)
    rows = [
        Row(target=target, writes=(Write(position=target.position, layer=layer, vector=vector),))
        for of_name in vectors
        for layer, vector in zip(target_layers, of_name, strict=True)
    ]
    said = generate_with_relevancy(rows, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    continuations = describe_relevancy(target.model, said)
    return split_into_chunks(continuations, len(layers))


def collect_relevancies(continuations: Sequence[Continuation], separator: str) -> Json:
    """The tokens of each description and how relevant they are, one list entry per generation."""
    within = [cut_tokens(one, separator) for one in continuations]
    return {
        "tokens_of_description": [[token for token, _ in tokens] for tokens in within],
        # Plus 0.0: not -0.0.
        "relevancy_of_description": [[round(relevancy, 4) + 0.0 for _, relevancy in tokens] for tokens in within],
    }


def cut_tokens(continuation: Continuation, separator: str) -> list[tuple[str, float]]:
    """The tokens of the description, with their relevancies."""
    tokens = list(zip(continuation.tokens, continuation.relevancies, strict=True))
    start, end = find_description_tokens(continuation.tokens, separator)
    return tokens[start:end]


def find_description_tokens(tokens: Sequence[str], separator: str) -> tuple[int, int]:
    """The first token of the description in what a model said, and the first one behind it."""
    start, end = find_description("".join(tokens), separator)
    n_read = np.cumsum([0, *map(len, tokens)])
    within = [number for number in range(len(tokens)) if n_read[number] < end and n_read[number + 1] > start]
    return (within[0], within[-1] + 1) if within else (len(tokens), len(tokens))


def build_description_target(model: LensModel, config: EntityConfig) -> TargetPrompt:
    """T with i* at its placeholder, in the form that is asked for.

    Raises:
        PatchscopesError: as `placeholder_target`, or as `as_chat`.
    """
    return placeholder_target(model, config.chat.of_target(config.target_prompt), config.placeholder)


def extract_names(
    model: LensModel, names: Sequence[str], layers: Sequence[int], config: EntityConfig
) -> Float[Tensor, "name layer d_model"]:
    """The representation of each name's last token at each layer; the name alone is S, in the form that is asked for.

    Raises:
        PatchscopesError: as `as_chat`.
    """
    prompts = [config.chat.of_source(name) for name in names]
    return extract_representations(model, prompts, [find_end(model, prompt) for prompt in prompts], layers)


def fill_placeholder(config: EntityConfig, name: str) -> str | Chat:
    """The target prompt with a name in the place of its placeholder, in the form that is asked for."""
    before, _, after = config.target_prompt.rpartition(config.placeholder)
    return config.chat.of_target(before + name + after)


def generate_descriptions(
    target: TargetPrompt,
    names: Sequence[str],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: EntityConfig,
) -> list[list[str]]:
    """What the model says for the representation of each name's last token at each layer."""
    vectors = extract_names(target.model, names, layers, config)
    return generate_from_vectors(target, vectors, target_layers, config)


def generate_from_vectors(
    target: TargetPrompt,
    vectors: Float[Tensor, "name row d_model"],
    target_layers: Sequence[int],
    config: EntityConfig,
) -> list[list[str]]:
    """What the target model says for the vectors of each name, row r of them written at layer `target_layers[r]`."""
    tokens = patch_generate(
        target,
        vectors.flatten(0, 1),
        list(target_layers) * len(vectors),
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    generations = target.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [generations[start : start + len(target_layers)] for start in range(0, len(generations), len(target_layers))]


def collect_scores(entity: Entity, generations: Mapping[str, Sequence[str]], separator: str) -> Json:
    """An entity with the generations of each method and their scores."""
    return {
        "entity": entity.name,
        "references": list(entity.references),
        "kind": entity.kind,
        "popularity": entity.popularity,
        "methods": {
            method: score_generations(of_method, entity.references, separator)
            for method, of_method in generations.items()
        },
    }


def score_generations(generations: Sequence[str], references: Sequence[str], separator: str) -> Json:
    """The generations, their descriptions, and the scores of both (of several references the best), one list entry per
    generation."""
    texts = {
        "generation": list(generations),
        "description": [cut_description(generation, separator) for generation in generations],
    }
    scores = {what: [rouge(text, *references) for text in texts[what]] for what in SCORED}
    return texts | {
        f"{kind}_{score}_of_{what}": [of_text[kind][score] for of_text in scores[what]]
        for what in SCORED
        for kind in ROUGE_TYPES
        for score in SCORES
    }


def summarise_scores(described: Sequence[Json], seed: int) -> Json:
    """Means and intervals over entities of each score of each method."""

    def summarise(method: str, metric: str) -> Json:
        values = np.array([entity["methods"][method][metric] for entity in described])
        return mean_with_interval(values, seed=seed).as_json()

    metrics = [f"{kind}_{score}_of_{what}" for what in SCORED for kind in ROUGE_TYPES for score in SCORES]
    return {method: {metric: summarise(method, metric) for metric in metrics} for method in described[0]["methods"]}
