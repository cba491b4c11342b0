"""Another model as the explainer: the hidden states of one model, read by a second one (paper, section 4.4).

A representation of the source model M at layer ℓ goes through f into the residual stream of the target model M* at
layer ℓ*. The models may differ in width, depth and tokenizer. f is an affine map, fitted for each pair (ℓ, ℓ*) on other
texts at positions where both models have read the same part of the text; or the identity, between models of one width.

Two questions are asked of each state:

* `next_token`: which token comes next? M* answers after one of two target prompts: the token-identity prompt
  (`token_identity`), or the source prompt itself, S, patched at the position that has read the same text
  (`source_prompt`). What counts is M's own prediction: Precision@1 and Surprisal over all pairs (ℓ, ℓ*). With
  `source_prompt` the later blocks of M* still see the words of S before i*, and M* by itself often predicts what M
  does: how often is reported as `target_model_alone`.
* `entity`: what is the entity that the state stands for? M* goes on after the entity-description prompt; ROUGE against
  references, beside M's own description of the same state.

Predictions of different vocabularies are compared by their text. The Surprisal of a predicted text is that of the
longest token of M that it begins with: the same token, wherever M has it.
"""

from collections.abc import Mapping, Sequence

from patchscopes.alignment import Vocabularies
from patchscopes.data.entities import Entity
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.estimating.steps import Part
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_parts, split_into_chunks, sum_timing
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.experiments.cross_model_prediction import METRICS, predict_next_tokens
from patchscopes.experiments.entity import (
    CHUNK_ENTITIES,
    build_description_target,
    collect_scores,
    extract_names,
    fill_placeholder,
    generate_descriptions,
    generate_from_vectors,
    summarise_scores,
)
from patchscopes.experiments.model_pair import ModelPair, pair_models
from patchscopes.experiments.sampling import CHUNK_SAMPLES, sample_aligned_positions, summarise_samples
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore, Json


def run(
    source: LensModel,
    target: LensModel,
    texts: TextSet,
    entities: Sequence[Entity],
    config: CrossModelConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap] | None = None,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        entities: to describe; none to leave that part out.
        maps: f for each pair of `resolve_layer_grid`, if it is affine (`patchscopes.learned.fitting`).
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["next_token"]` has, for each method and metric, a
        table [ℓ][ℓ*]; `results["entity"]` is that of the entity experiment, with a method `cross_model`.

    Raises:
        PatchscopesError: a method or layer does not exist, f does not fit the models, or the texts have too few
            positions at which both models have read the same.
    """
    check_methods(config.methods, CrossModelConfig.METHODS)
    pair = pair_models(source, target, config, maps)
    drawn = sample_aligned_positions(source, target, texts, config.n_samples, config.seed, config.chat)
    vocabularies = Vocabularies.of(source, target)
    token_identity = placeholder_target(target, config.chat.of_target(build_token_identity_prompt()))
    source_description, target_description = (
        build_description_target(model, config.entity) for model in (source, target)
    )

    def predict(samples: Sequence[Sample]) -> Json:
        return predict_next_tokens(pair, texts, drawn, samples, vocabularies, token_identity, config)

    def describe(some: Sequence[Entity]) -> Json:
        return _describe_entities(pair, source_description, target_description, some, config.entity)

    chunks = split_into_chunks(drawn.samples, CHUNK_SAMPLES)
    chunks_of_entities = split_into_chunks(entities, CHUNK_ENTITIES)
    parts = {f"next_token/{number:05d}": Part(predict, some) for number, some in enumerate(chunks)}
    parts |= {f"entity/{number:05d}": Part(describe, some) for number, some in enumerate(chunks_of_entities)}
    finished = list(measure_parts(parts, store, progress).values())
    predicted, described = finished[: len(chunks)], finished[len(chunks) :]
    methods = [*config.methods, CrossModelConfig.TARGET_MODEL_ALONE]
    results: Json = {
        "layers": pair.layers,
        "target_layers": pair.target_layers,
        "next_token": {
            "aligned_positions": sum(map(len, drawn.pairs.values())),
            "source_positions": drawn.n_source_positions,
            **summarise_samples(predicted, drawn.samples, methods, METRICS, config.seed),
        },
    }
    if not entities:
        return results, sum_timing(predicted)
    results["entity"] = {"pairs": pair.diagonal} | _summarise_entities(described, config.seed)
    return results, sum_timing([*predicted, *described])


def _summarise_entities(finished: Sequence[Json], seed: int) -> Json:
    """As in the entity experiment: how many there are, means with intervals, and every description."""
    described = [entity for chunk in finished for entity in chunk["entities"]]
    return {"n_samples": len(described), "methods": summarise_scores(described, seed), "entities": described}


def _describe_entities(
    pair: ModelPair,
    source_description: TargetPrompt,
    target_description: TargetPrompt,
    entities: Sequence[Entity],
    config: EntityConfig,
) -> Json:
    """Every generation and score for some entities, and the seconds that each step took.

    Args:
        source_description, target_description: the entity-description prompt of M, and of M*.
    """
    names = [entity.name for entity in entities]
    watch = StopWatch()
    with watch.time("cross_model"):
        representations = extract_names(pair.source, names, pair.layers, config)
        vectors = pair.map_representations(representations, pair.diagonal)
        target_layers = [target_layer for _, target_layer in pair.diagonal]
        cross_model = generate_from_vectors(target_description, vectors, target_layers, config)
    with watch.time("same_model"):
        same_model = generate_descriptions(source_description, names, pair.layers, pair.layers, config)
    with watch.time("baselines"):
        prompts = [fill_placeholder(config, name) for name in [*names, config.placeholder]]
        in_clear: dict[str, list[str]] = {}
        for role, model in (("source", pair.source), ("target", pair.target)):
            tokens = generate_after(model, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
            in_clear[role] = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        scored = [
            collect_scores(
                entity,
                {
                    "cross_model": cross_model[number],
                    "same_model": same_model[number],
                    "name_in_clear_source_model": [in_clear["source"][number]],
                    "name_in_clear_target_model": [in_clear["target"][number]],
                    "unpatched_target_model": [in_clear["target"][-1]],
                },
                config.separator,
            )
            for number, entity in enumerate(entities)
        ]
    return {"entities": scored, "seconds": watch.seconds}
